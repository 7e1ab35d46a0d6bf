"""别的训练器摆文件夹的习惯：遮罩叫什么、放哪里，同类图放在一起，文件夹名里写着次数。"""

import itertools
import json
import os
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from lorakit.config.explain import inline
from lorakit.data.read import IMAGE_SUFFIXES, PICTURE
from lorakit.data.report import Problem, names

Key = tuple[Path, str]  # 一张图：文件夹、不带后缀的名字
COUNTED = re.compile(r"0*([1-9]\d{0,2})_.")  # “10_猫”；2024_旅行 不是 2024 次
_MASK_WORD = r"(?:masks?(?:[ _-]?(?:labels?|images?))?|遮罩|蒙版)"
_MASK_NAME = re.compile(rf"(.+?)[-_. ]+{_MASK_WORD}|{_MASK_WORD}[-_. ]+(.+)", re.IGNORECASE)
_MASK_FOLDER = re.compile(rf"(?:(.*)[-_. ]|(?:images?|imgs?)[-_. ]?)?{_MASK_WORD}", re.IGNORECASE)
_SUFFIX = re.compile(rf"({PICTURE})$", re.IGNORECASE)
_CLASS = re.compile(
    r"(reg|regulari[sz]ation|class|prior)([ _-]?(images?|imgs?|pictures?|pics?|data|dir|set))?s?"
    r"|(正则|先验)化?(图片?|图像|集)?|同类(图片?)?",
    re.IGNORECASE,
)
_AFTER = re.compile(r"(targets?|after|edited|outputs?)([ _-]?(images?|imgs?))?|目标图|改后", re.I)
_IMAGES = re.compile(rf"images?|imgs?|pictures?|data|{_AFTER.pattern}", re.IGNORECASE)
_CONTROL = re.compile(r"(controls?|conditioning)([ _-]?(images?|imgs?))?|控制图", re.IGNORECASE)
_BEFORE = re.compile(  # 与 target、after 并排时，这些也是改之前的图
    rf"(sources?|before|inputs?|originals?)([ _-]?(images?|imgs?))?|原图|改前|{_CONTROL.pattern}",
    re.I,
)
_TRAIN = re.compile(r"train(ing)?|训练集?", re.IGNORECASE)
_APART = re.compile(r"val(id(ation)?)?|test(ing)?|eval|dev|验证集?|测试集?", re.IGNORECASE)


def mask_targets(path: Path, stem: str, keys: set[Key], folder: Path) -> list[Key]:
    """这张图按名字、按所在的文件夹看，会是哪几张图的遮罩；不像遮罩就是空的。

    认的有：0_mask、0-masklabel（OneTrainer）、0.mask、mask_0，以及 masks/0（和 0 同级，或和
    images 并排）、images_mask/0。
    """
    hit = _MASK_NAME.fullmatch(stem)
    stems = [_SUFFIX.sub("", hit[1] or hit[2])] if hit else []
    beside = [(path.parent, one) for one in stems if (path.parent, one) in keys]
    if beside:
        return beside
    parts = path.parent.relative_to(folder).parts
    for depth, name in enumerate(parts):
        place = _MASK_FOLDER.fullmatch(name)
        if not place:
            continue
        top, rest = folder.joinpath(*parts[:depth]), Path(*parts[depth + 1 :])
        stems = [stem, _SUFFIX.sub("", stem), *stems]
        if place[1]:  # images_mask 先找 images
            own = [(top / place[1] / rest, one) for one in stems]
            if found := [key for key in own if key in keys]:
                return found[:1]
        if found := [(top / rest, one) for one in stems if (top / rest, one) in keys]:
            return found[:1]
        level = depth + 1 + len(rest.parts)
        others = {
            home for home, _ in keys
            if len(home.relative_to(folder).parts) == level and home.is_relative_to(top)
            and home.relative_to(top).parts[1:] == rest.parts
            and not _MASK_FOLDER.fullmatch(home.relative_to(top).parts[0])
        }  # fmt: skip
        found = [(home, one) for home in sorted(others) for one in stems if (home, one) in keys]
        return list(dict.fromkeys(found))
    return []


def is_mask_folder(name: str) -> bool:
    """叫 mask、masks、images_mask 一类名字。"""
    return _MASK_FOLDER.fullmatch(name) is not None


def mask_base(stem: str) -> str:
    """0_mask -> 0；不像遮罩的名字就是空的。"""
    hit = _MASK_NAME.fullmatch(stem)
    return (hit[1] or hit[2]) if hit else ""


def in_mask_folder(path: Path, folder: Path) -> bool:
    """在叫 mask、masks 一类名字的文件夹里。"""
    return any(_MASK_FOLDER.fullmatch(part) for part in path.parent.relative_to(folder).parts)


def masks_told(masks: dict[Key, Path], folder: Path) -> list[Problem]:
    """不叫 _mask 的也当遮罩用了，说一声。"""
    found = [
        path for (home, stem), path in masks.items() if path.stem != f"{stem}_mask" or
        path.parent != home
    ]  # fmt: skip
    if not found:
        return []
    reason = f"{names(found, folder)} 按名字或位置认作同名图的遮罩（和 名字_mask.png 一样）"
    return [Problem.note("masks_named", reason)]


def beside(folder: Path, control: Path | None) -> list[Problem]:
    """data.folder 写的是 images、img、10_猫；与它并排的遮罩、控制图、同类图没有走到。"""
    folder = Path(os.path.abspath(folder)) if folder.name in ("", "..") else folder
    problems, own = [], folder
    while own.parent != own and (_IMAGES.fullmatch(own.name) or COUNTED.match(own.name)):
        before = _BEFORE if _AFTER.fullmatch(own.name) else _CONTROL
        own = own.parent
        for place in sorted(own.iterdir()) if os.access(own, os.R_OK | os.X_OK) else ():
            if folder.is_relative_to(place) or not os.path.isdir(place):
                continue
            seen, line = f"旁边的 {place} 像是", yaml_path(place)
            aside = f"不是就给它改个名字（例如 .{place.name}：名字以点开头的不看）"
            if _MASK_FOLDER.fullmatch(place.name) and holds_pictures(place):
                mend = f"要用就写 data.folder: {yaml_path(own)} 和 data.mask: file；{aside}"
                reason = f"{seen}遮罩，没有走到，没有用到"
                problems.append(Problem.warning("masks_beside", None, reason, mend))
            elif control is None and before.fullmatch(place.name) and holds_pictures(place):
                mend = f"练的是编辑，就写 data.control_folder: {line}（data.folder 是列表的，"
                mend += f"写在那一个里：{{folder: {yaml_path(folder)}, control_folder: {line}}}）"
                reason = f"{seen}控制图，没有用到"
                problems.append(Problem.warning("control_beside", None, reason, f"{mend}；{aside}"))
            elif _CLASS.fullmatch(place.name):
                reason = f"{seen}同类图片（正则图），不当训练图；要用就写 data.class_folder: {line}"
                problems.append(Problem.note("class_beside", reason))
    return problems


def holds_pictures(folder: Path) -> bool:
    """里面（几层都行，看到一千个文件夹为止）有没有图。"""
    return any(
        os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        for _, _, names in itertools.islice(os.walk(folder), 1000)
        for name in names
    )


def pictures_in(folder: Path) -> list[Path]:
    """里面（几层都行）的图；没有这个文件夹就没有图。"""
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES)


def yaml_path(path: Path) -> str:
    """写在 [{folder: …}] 里也不会读错的路径。"""
    text = str(path)
    return json.dumps(text, ensure_ascii=False) if set(text) & set(",[]{}") else inline(text)


def _counted_folder(path: Path, folder: Path) -> tuple[Path, str] | None:
    """一张图在哪个“10_猫”里、写着几次；任何一层都算。"""
    parts = path.parent.relative_to(folder).parts
    for depth, name in enumerate(parts):
        if hit := COUNTED.match(name):
            return folder.joinpath(*parts[: depth + 1]), hit[1]
    return None


def _class_root(path: Path, folder: Path) -> Path | None:
    parts = path.parent.relative_to(folder).parts
    for depth, name in enumerate(parts):
        if _CLASS.fullmatch(name):
            return folder.joinpath(*parts[: depth + 1])
    return None


def _lines(pictures: Iterable[Path], folder: Path) -> list[str]:
    """训练图各在哪里 -> data.folder 列表里的各项；直接放在最上层的没有自己的文件夹。"""
    found = []
    for path in pictures:
        inside = path.parent.relative_to(folder).parts
        if counted := _counted_folder(path, folder):
            home, times = counted
            found.append(f"{{folder: {yaml_path(home)}, repeats: {times}}}")
        elif inside:
            found.append(yaml_path(folder / inside[0]))
    return list(dict.fromkeys(found))


def counted(pictures: Sequence[Path], folder: Path, bare: Collection[Path] = ()) -> list[Problem]:
    """“10_猫”这样的文件夹：有的训练器把 10 当成重复次数，这里不猜，写出要抄的那一行。

    Args:
        bare: 没有描述的图：那些训练器拿文件夹的名字当它们的描述。
    """
    mine = [path for path in pictures if not _class_root(path, folder)]
    inside = [path for path in mine if _counted_folder(path, folder)]
    own = COUNTED.match(folder.name)
    listed, rest = _lines(inside, folder), _lines([p for p in mine if p not in set(inside)], folder)
    if not inside and own:
        listed = [f"{{folder: {yaml_path(folder)}, repeats: {own[1]}}}"]
    if not listed:
        return []
    what = "子文件夹的名字里有次数" if inside else "文件夹的名字里有次数"
    reason = f"{what}，这里不按它重复；要重复就写 data.folder: [{', '.join(listed)}]"
    if inside and rest:
        reason += f"，别的文件夹也写进去：{', '.join(rest)}"
    if inside and any(path.parent == folder for path in mine):
        reason += f"；直接放在 {folder} 里的图，先挪进一个自己的文件夹，也写进去"
    told = [found for path in inside if path in bare and (found := _counted_folder(path, folder))]
    if told:
        word = told[0][0].name.partition("_")[2]
        command = f"lorakit caption {shlex.quote(str(folder))} --prefix {shlex.quote(word)}"
        reason += f"；没有描述的图，别处拿“{word}”当描述，这里要写出来：{command}"
    return [Problem.note("folder_counted", reason)]


def splits(pictures: Sequence[Path], folder: Path) -> list[Problem]:
    """train、val、test 并排：留着检验的也会拿来练。"""
    homes = Counter(path.relative_to(folder).parts[0] for path in pictures if path.parent != folder)
    train = [name for name in homes if _TRAIN.fullmatch(name)]
    apart = [name for name in homes if _APART.fullmatch(name)]
    if not (train and apart):
        return []
    reason = f"{'、'.join(apart)} 里的 {sum(homes[name] for name in apart)} 张图也会拿来练"
    mend = f"它们是留着检验的，就写 data.folder: {yaml_path(folder / train[0])}；"
    mend += "这里自己会留出一部分检验（eval.holdout）"
    return [Problem.warning("folder_split", None, reason, mend)]


def class_inside(pictures: Sequence[Path], folder: Path) -> list[Problem]:
    """训练图和同类图（reg、class……）在一棵树里：一起练，就把同类也教成了触发词。"""
    roots = defaultdict(list)
    mine = []
    for path in pictures:
        root = _class_root(path, folder)
        (mine if root is None else roots[root]).append(path)
    if not mine or not roots:
        return []
    problems = []
    for root, prior in roots.items():
        homes = {home for home, _ in filter(None, (_counted_folder(p, folder) for p in prior))}
        home = next(iter(homes)) if len(homes) == 1 else root
        listed = ", ".join(_lines(mine, folder))
        first = f"data.folder: [{listed}]" if listed else "data.folder: 那个文件夹"
        if any(path.parent == folder for path in mine):
            first = f"先把训练图挪进一个自己的文件夹（例如 {folder / 'img'}），写 {first}"
        reason = f"{len(prior)} 张图在 {root.name} 里，像是同类图片（正则图），不是要学的"
        reason += "；混在一起练，会把它们也教成触发词"
        mend = f"设置里分开写：{first} 和 data.class_folder: {yaml_path(home)}；"
        mend += f"确实是训练图，就把 {root.name} 改个名字"
        plain = root.name.lower() in ("class", "classes", "prior", "priors")
        sure = bool(homes) or not plain
        severity = "error" if sure else "warning"
        problems.append(Problem(severity, "class_inside", root, reason, mend))
    return problems
