"""检查一个图片文件夹：找出每张图和它的描述，把所有问题写进一份报告，什么都不悄悄跳过。"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.data import archives, pairs
from lorakit.data.captions import (
    SIDECARS,
    TABLES,
    Said,
    caption_for,
    lines_together,
    links_together,
    loose,
    nfc,
    read_tables,
    stay_inside,
)
from lorakit.data.conventions import beside, class_inside, counted, mask_base, masks_told, splits
from lorakit.data.folder import Found, key_of, walk
from lorakit.data.limits import MIN_SIDE, check_size
from lorakit.data.lint import lint, placeholders
from lorakit.data.mask import check_masks
from lorakit.data.named import check_named
from lorakit.data.read import IMAGE_SUFFIXES, PICTURE, RESAVE, Progress, in_threads
from lorakit.data.record import Record
from lorakit.data.report import Fault, Problem, Report, names, relative
from lorakit.data.seen import Album, Seen
from lorakit.data.tables import read_foreign, tables_of
from lorakit.data.trigger import fill, has_trigger, looks_like
from lorakit.data.whose import MISSING, say_whose
from lorakit.files import user_path

# 下载来的常叫 1.jpg!w500、1.jpg_large，Windows 里复制来的会带一个空格
LOOKALIKE = re.compile(
    rf"({PICTURE}|\.(jfif|jif|jpe|gif|tiff?|jp2|j2k|jxl|jxr|wdp|heics|psd|psb|xcf|kra|clip|ai|eps|svg"
    r"|dng|cr[23w]|nef|arw|raf|orf|rw2|pef|srw|x3f|tga|p[bgpn]m|exr|hdr|ico|dds|pcx))(?![a-z0-9])"
)
VIDEO = re.compile(r"\.(mp4|m4v|mov|webm|mkv|avi|3gp|mpe?g|m2ts|mts|flv|wmv|ogv)$")
CAPTION_LIKE = re.compile(
    r"^metadata\.(json|parquet)$|\.(cap|captions?|tags?|wd14)$"
    r"|^(metadata|captions?|prompts?|tags|描述|标注|提示词)[^.]*\.(xlsx?|ods|docx?|rtf|ya?ml|xml|md)$"
)
MASKLIKE = (".npy", ".npz", ".mat", ".pt", ".pkl")
# 说明书、许可，不是描述
PAPERS = re.compile(
    r"(read[ _-]?me|licen[cs]e|notice|copying|changelog|说明|许可|版权)(?![a-z]).*", re.IGNORECASE
)
NOTES = {  # 处理的代号 -> 报告里的话
    "alpha": "有透明的地方，合成在白底上（透明处不想学，就写 data.mask=alpha；"
    "要学会画透明的，用 Qwen-Image 2.1、写 data.alpha=keep；都不要 --fix）",
    "animation": "是动图，只用第一帧",
    "rotated": "按 EXIF 里记的方向转正了",
    "cmyk": "是印刷色（CMYK），换成了 RGB，颜色可能略有不同",
    "color": "带着别的颜色配置（Display P3、Adobe RGB 之类），换成了 sRGB，和看图软件里一样",
    "profile": "带的颜色配置坏了，或和图对不上，没有用它，当作 sRGB",
    "several": "是一个文件里存了几张（HEIC 连拍），只用主图",
    "sixteen": "是 16 位图，按比例换成了 8 位",
}
KEPT = "有透明的地方，照 data.alpha=keep 留着，透明也教给模型（不要 --fix 去掉它）"


def inspect(
    folder: str | Path,
    trigger: str = "",
    control: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[Record], Report]:
    """检查整个文件夹（含子文件夹），返回 (可用的记录, 报告)；不抛错，也不悄悄跳过任何文件。

    记录里的描述是文件里的原样，没有加触发词。

    Args:
        control: 控制图的文件夹；不写时，folder 里 images 和 control 并排就是成对的图。
        progress: 函数 (在做什么, 第几个, 共几个)，每看完一张图调一次。
    """
    folder = user_path(folder)
    control = pairs.locate(folder, control)
    found = walk(folder, control)
    problems = list(found.problems)
    stems = Counter(map(key_of, found.pictures))
    shared = {key for key, count in stems.items() if count > 1 and key in found.captions}
    bare = [path for path in found.pictures if key_of(path) not in found.captions]
    ours, theirs = tables_of(found.others, found.tables)
    rows, wrong = read_tables(ours, found.pictures, bare, folder)
    foreign = read_foreign(theirs, found.pictures, folder)
    found.others = [path for path in found.others if path not in foreign.used]
    problems += wrong + foreign.problems
    records, did = [], defaultdict(list)
    with Album() as album:
        results = _examine(album, found, (rows, foreign.said), shared, folder, progress)
        for path, (record, treated, wrong) in zip(found.pictures, results, strict=True):
            problems += wrong
            for name in treated:
                did[name].append(path)
            if record:
                records.append(replace(record, mask=found.masks.get(key_of(path))))
        bare = {problem.path for problem in problems if problem.code == MISSING}
        problems += _pairing(found, stems, shared, folder, bare)
        problems += counted(found.pictures, folder, bare)
        problems += class_inside(found.pictures, folder) + splits(found.pictures, folder)
        problems += masks_told(found.masks, folder) + beside(folder, control)
        problems += check_masks(records, folder) + _archives(found, control, folder)
        if control and found.pictures:
            records, used, wrong = _with_controls(album, records, found, control)
            problems += wrong
            for path, name in ((p, name) for p, seen in used.items() for name in seen.did):
                did[name].append(path)
    problems += check_named((rows, foreign.said), found, records, control)
    alone = [path for key, same in found.captions.items() if key not in stems for path in same]
    problems = links_together(problems, found.pictures, folder)
    problems = say_whose(problems, found.pictures, alone, folder, found.others)
    problems = lines_together(problems, folder) + placeholders(records, trigger, folder)
    filled = [replace(r, caption=fill(r.caption, trigger.strip())) for r in records]
    problems += _repeats(records, folder) + _trigger(filled, trigger, folder)
    problems += lint(filled, trigger, folder)
    problems += _treated(did, folder)
    if not found.pictures and not any(p.severity == "error" for p in found.problems):
        reason = f"文件夹里没有图片（只认 {'、'.join(s[1:] for s in IMAGE_SUFFIXES)}）"
        mend = "检查路径；没有自己的图，可以先用 lorakit sample-data"
        problems.append(Problem.error("no_pictures", folder, reason, mend))
    return records, Report(folder, len(found.pictures), len(records), tuple(problems))


def _treated(did: dict[str, list[Path]], folder: Path) -> list[Problem]:
    """读图时替你做了的事，各有几张；HDR 的做不了，是警告。"""
    problems = []
    for name, reason in NOTES.items():
        if did[name]:
            reason = f"{len(did[name])} 张图{reason}：{names(did[name], folder)}"
            problems.append(Problem.note(name, reason))
    if did["hdr"]:
        reason = f"{len(did['hdr'])} 张图是 HDR（PQ 或 HLG 曲线），这里不会压成普通亮度，看上去发灰"
        mend = "在相机、手机或修图软件里导出成 sRGB 的 jpg 再用"
        where = f"{reason}：{names(did['hdr'], folder)}"
        problems.append(Problem.warning("picture_hdr", None, where, mend))
    return problems


def stays_clear(note: Problem) -> Problem:
    """设置里写了 data.alpha=keep：透明的地方不合成在白底上，说明也照实说。"""
    return replace(note, reason=note.reason.replace(NOTES["alpha"], KEPT))


def _with_controls(
    album: Album, records: list[Record], found: Found, control: Path
) -> tuple[list[Record], dict[Path, Seen], list[Problem]]:
    """配上控制图，返回 (配好的记录, 用到的控制图, 问题)。"""
    if os.path.realpath(control) == os.path.realpath(found.folder):
        reason = "控制图和目标图写的是同一个文件夹"
        mend = "目标图放 images/，控制图放 control/，或把 data.control_folder 写成另一个文件夹"
        return [], {}, [Problem.error("control_folder", control, reason, mend)]
    before = walk(control, masks=False)
    if not before.pictures and before.problems:  # 打不开，或没有这个文件夹：说一次就够
        return [], {}, before.problems
    records, used, problems = pairs.attach(album, records, found, before)
    if used:
        reason = f"{len(records)} 张图配好了控制图（{relative(control, found.folder)}）"
        problems.append(Problem.note("pairs", reason))
    problems += pairs.captions_beside(records, found, before)
    stems = set(map(key_of, before.pictures))
    told = "".join(problem.mend for problem in problems)  # “没有控制图”那一条提到了它
    rest = [path for path in before.others if path.name not in told]
    rest = [path for path in rest if not archives.is_archive(path)]
    unread = [_unused(path, _spare(path, stems), False) for path in rest]
    return records, used, before.problems + problems + [one for one in unread if one]


def _archives(found: Found, control: Path | None, folder: Path) -> list[Problem]:
    """图旁边、控制图旁边的压缩包：从它解压出来的说一声，有这里没有的图的是错误。"""
    before = walk(control, masks=False) if control else Found(folder)
    packed = [path for path in found.others + before.others if archives.is_archive(path)]
    if not packed:
        return []
    here = [*found.pictures, *found.masks.values(), *before.pictures]
    stems = {archives.stem_of(path.name) for path in here}
    results = {path: archives.unpacked_here(path, stems) for path in packed}
    problems = [one for one in results.values() if isinstance(one, Problem)]
    if same := [path for path, one in results.items() if one is True]:
        reason = f"{names(same, folder)} 是压缩包，没有用到：里面没有图，或图都在这里了"
        problems.append(Problem.note("archive", reason))
    return problems


def _examine(
    album: Album,
    found: Found,
    rows: Sequence[Mapping[Path, list[Said]]],
    shared: set,
    folder: Path,
    progress: Progress | None,
) -> list[tuple[Record | None, Iterable[str], list[Problem]]]:
    """逐张看图和它的描述，按次序各返回 (记录或 None, 做过的处理, 问题)。"""
    named = set(map(key_of, found.pictures))
    alone = [path for key, same in found.captions.items() if key not in named for path in same]
    strays = {loose(path): path for path in alone}

    def job(path: Path):
        key, problems, seen, caption = key_of(path), [], None, None
        try:
            stay_inside(path, folder)
            seen = album.see(path)
            problems += check_size(path, seen.size) + _empty(path, seen)
        except Fault as fault:
            problems.append(fault.problem)
        if key not in shared:  # 共用的描述由 _pairing 报一次
            own, extras = (table.get(path, []) for table in rows)
            sidecars = found.captions.get(key, [])
            caption, wrong = caption_for(path, sidecars, own, folder, strays, extras)
            problems += wrong  # 图和描述都坏时两个都报
        usable = seen and caption and min(seen.size) >= MIN_SIDE
        record = Record(path, caption, seen.size, seen.digest, seen.look) if usable else None
        return record, seen.did if seen else (), problems

    return in_threads(job, found.pictures, progress)


def _empty(path: Path, seen: Seen) -> list[Problem]:
    """解得开、却没有（或只有一半）画面。"""
    if seen.blank:
        clear = "整张都是透明的" if "alpha" in seen.did else "整张只有一种颜色"
        mend = "多半是导出时少选了图层，重新导出；不要就移走"
        return [Problem.warning("picture_blank", path, f"{clear}，没有东西可学", mend)]
    if "zeros" in seen.did:
        mend = "重新下载或复制一份"
        reason = "文件的后一截是空的（全是零），多半没有下载完"
        return [Problem.warning("picture_hollow", path, reason, mend)]
    if "grey" in seen.did:
        mend = "重新下载或复制一份；本来就是灰的就不用管"
        return [Problem.warning("picture_grey", path, "下面一截是一片灰，多半没有下载完", mend)]
    return []


def _pairing(
    found: Found, stems: Counter, shared: set, folder: Path, bare: Collection[Path]
) -> list[Problem]:
    """图和描述配对的问题，以及没有用到的文件；bare 是没有描述的图。"""
    problems = []
    for key in sorted(shared):
        # 算错误而不是警告：描述说的是哪一张没法知道，配错了会悄悄教错
        same = [p for p in found.pictures if key_of(p) == key]
        name = found.captions[key][0].name
        reason = f"{len(same)} 张图共用一份描述 {name}：{names(same, folder)}"
        mend = "同一张图存了两份就删掉一份；不是就改名，各写一份描述"
        problems.append(Problem.error("caption_shared", same[0], reason, mend))
    lonely = {key: paths for key, paths in sorted(found.captions.items()) if key not in stems}
    rest, unread = [], {}
    for path in found.others:
        if archives.is_archive(path):
            continue
        problem = _unused(path, _spare(path, stems), key_of(path) in lonely)
        unread[key_of(path)] = problem
        (problems if problem else rest).append(problem or path)
    near, named = set(map(loose, bare)), {nfc(path.stem) for path in bare}
    for key, paths in lonely.items():
        for path in paths if not unread.get(key) else ():
            if PAPERS.fullmatch(path.stem):
                rest.append(path)
                continue
            reason, mend = "没有同名的图，这份描述没有用到", "改成和图片一样的名字；用不着就移走"
            said = loose(path) in near or nfc(path.stem) in named  # “没有描述”那一条会提到它
            severity = "warning" if said else "error"
            problems.append(Problem(severity, "caption_orphan", path, reason, mend))
    if rest:
        reason = f"{len(rest)} 个别的文件没有用到：{names(rest, folder)}"
        problems.append(Problem.note("others", reason))
    return problems


def _spare(path: Path, stems: Collection) -> bool:
    """一张图的另一份（RAW、PSD、实况照片的视频、备份）：用的是那张图。"""
    return key_of(path) in stems or key_of(path.with_suffix("")) in stems


def _unused(path: Path, spare: bool, told: bool) -> Problem | None:
    """不读的文件像不像数据：像，就是没有用到的数据，不能悄悄略过。

    Args:
        spare: 有一张同名的图，用的是它。
        told: 有同名的描述，多半正是要练的。
    """
    name, also = path.name.lower(), "，也有描述" if told else ""
    if CAPTION_LIKE.search(name) or (name.endswith(".txt") and not PAPERS.fullmatch(path.stem)):
        mend = f"描述要写在和图片同名的 {'、'.join(SIDECARS)} 或 {'、'.join(TABLES)} 里；不用就移走"
        return Problem.error("not_used", path, "像是描述，没有用到", mend)
    if mask_base(nfc(path.stem)) and path.suffix.lower() in MASKLIKE:
        mend = "存成黑白的 png（要学的地方涂白），名字不变；不用就移走"
        return Problem.error("not_used", path, "像是遮罩，可是这种文件不读，没有用到", mend)
    if LOOKALIKE.search(name) and not spare:
        reason, mend = f"像是图片{also}，可是这种文件不读，没有用到", f"要用就{RESAVE}；不用就移走"
        return Problem.error("not_used", path, reason, mend)
    if VIDEO.search(name) and not spare:
        reason = f"是视频{also}，可是这里只练图，没有用到"
        mend = "要用就截几帧存成 png；不用就移走" + "（连同描述）" * told
        return Problem.error("not_used", path, reason, mend)
    return None


def _repeats(records: Sequence[Record], folder: Path) -> list[Problem]:
    """内容完全相同的图；所有描述都一样。"""
    problems, same = [], defaultdict(list)
    for record in records:
        same[record.digest].append(record.path)
    for first, *copies in same.values():
        for path in copies:
            reason = f"和 {relative(first, folder)} 是同一张图，这张图会被多学一遍"
            mend = "删掉一份；想让整套图多学几遍，加大 train.steps"
            problems.append(Problem.warning("duplicate", path, reason, mend))
    paired = any(record.controls for record in records)  # 一种编辑本来就只有一句指令
    if len(records) >= 4 and len({r.caption for r in records}) == 1 and not paired:
        same_text = f"{len(records)} 张图的描述一模一样（“{records[0].caption[:20]}”）"
        reason, mend = same_text + "，模型分不清画风和内容", "每张图各写一句，说出这张图里有什么"
        problems.append(Problem.warning("caption_same", None, reason, mend))
    return problems


def _trigger(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    trigger = trigger.strip()
    missing = [r.path for r in records if trigger and not has_trigger(r.caption, trigger)]
    if not missing:
        return []
    if len(missing) == len(records):  # 描述里都不写、交给训练来加，是正常的用法
        reason = f"描述里都没有触发词“{trigger}”，训练时会自动加在最前面"
        return [Problem.note("trigger_missing", reason)]
    counts = f"{len(records)} 份描述里有 {len(missing)} 份没有触发词“{trigger}”"
    reason = f"{counts}：{names(missing, folder)}"
    fake = [r.path for r in records if r.path in set(missing) and looks_like(r.caption, trigger)]
    if fake:
        reason += f"；{names(fake, folder)} 里写的看着像它，其实大小写不同，或是全角字、别国的字母"
    mend = "训练时会自动加在最前面；写错了字的要重新打一遍，免得一句里有两个"
    return [Problem.warning("trigger_missing", None, reason, mend)]
