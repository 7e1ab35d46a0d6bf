"""整个数据集一起看才知道的毛病：几乎一样的图，描述写法上的问题；只警告，不拦着训练。

教程：notebooks/02_dataset.ipynb
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lorakit.data.lookalike import lookalikes
from lorakit.data.read import CJK
from lorakit.data.record import Record
from lorakit.data.report import Problem, names
from lorakit.data.trigger import has_trigger, placeholder, position

FEW = 4  # 比这少的描述看不出“每句都有”
LONG_CHINESE, LONG_ENGLISH = 400, 300  # 字、词
COMMON_CHINESE, COMMON_ENGLISH = 3, 2  # 每句都有的一段至少这么多字、词才说
CLAUSE = re.compile(r"[，。、；：！？,.;:!?\n]+")
WORD = re.compile(r"[A-Za-z0-9_'’\-]+")
EMPTY = {*"是在的地得了着和有与一个只张里上"}  # 虚词，单独不说明画面里有什么
EMPTY |= {"a", "an", "the", "of", "in", "on", "at", "is", "are", "with", "and", "by", "to"}
NOTHING = {"nan", "none", "null", "undefined", "n/a", "无", "暂无"}  # pandas 存空格子的写法
# 只认常见的标签：<s0> 之类是触发词；<lora:…> 这样的记号由 SYNTAX 说
MARKUP = re.compile(
    r"</?(?:p|br|div|span|b|i|a|img|td|li|ul|html|body|font)\b[^>]*>|&(?:[a-z]{2,6}|#\d{2,5});",
    re.IGNORECASE,
)
# 看图说话的模型对人说的客套话；网址；markdown 的记号
CHATTER = re.compile(
    r"^(?:好的|当然|没问题)[，,！!。]|^(?:sure|certainly|of course)[,!.]|^以下是"
    r"|^(?:i['’]?m sorry|sorry,|i (?:cannot|can['’]?t|am unable)|as an ai)(?!\w)"
    r"|^(?:很)?抱歉|^对不起|^我(?:不能|无法)(?:为|提供|描述|协助|识别)|^\[\s*[\"'].*[\"']\s*\]$"
    r"|^\S+\.(?:png|jpe?g|webp)$"
    r"|希望(?:这)?对[你您]有(?:所)?帮助|^https?://\S+$|\*\*|^\s*#+ |```|</?think>"
    r"|^(?:caption|prompt|description|assistant|描述|提示词|标题)\s*[:：]",
    re.IGNORECASE,
)
# 别的程序的提示词写法：这里的文本编码器照字面读，权重、通配符都不起作用
SYNTAX = (
    (re.compile(r"<(?:lora|lyco|hypernet|loha|locon|embed(?:ding)?|wildcard|random|preset|segment)"
                r":[^>]*>", re.IGNORECASE), "调用 LoRA、通配符的记号", "删掉"),
    # 文本编码器真的把它们当成控制：一句话会在那里断掉
    (re.compile(r"<\|[^<>|]{1,40}\|>|</?s>|</?(?:bos|eos|pad|unk|image|start_of_turn|end_of_turn)>"
                r"|<extra_id_\d+>|\[/?INST\]", re.IGNORECASE), "语言模型的控制记号", "删掉"),
    (re.compile(r"(?:^|[\s,，])(?:negative prompt:|steps: \d+,)", re.IGNORECASE),
     "画图程序存下的参数", "只留提示词那一句"),
    (re.compile(r"[^\s:]::-?\d"), "权重的写法", "去掉冒号和数字，只留词"),
    (re.compile(r"\\[()\[\]{}]"), "反斜杠转义的括号", "去掉反斜杠，只留括号"),
    (re.compile(r"[(\[（][^()\[\]（）]*[^()\[\]（）\d][:：]\s*-?\d*\.?\d+\s*[)\]）]"),
     "权重的写法", "去掉括号和数字，只留词"),
    (re.compile(r"\({2,}[^()]+\){2,}|\[{2,}[^\[\]]+\]{2,}|\{{2,}[^{}]+\}{2,}"),
     "加重的括号", "去掉括号，只留词"),
    (re.compile(r"\b(?:BREAK|ADDCOMM|ADDROW|ADDCOL|ADDBASE)\b"), "分段的命令", "删掉，用逗号隔开"),
    (re.compile(r"(?<![A-Za-z0-9])__[\w/*-]+?__(?![A-Za-z0-9])"),
     "通配符", "换成图里真有的东西"),
    (re.compile(r"[{\[][^{}\[\]|]*\|[^{}\[\]]*[}\]]"), "几样里挑一样的写法", "只留图里真有的"),
    (re.compile(r"\bembedding:\S+", re.IGNORECASE), "调用 embedding 的记号", "删掉"),
    (re.compile(r"(?:^|\s)--(?:ar|v|s|no|q|n|w|h|d|l|style|stylize|niji|seed|chaos)\b(?:\s+[\w:.]+)?"),
     "命令行的参数", "删掉"),
    (re.compile(r"\)(?:\++|-{2,}|\d*\.\d+)(?=[\s,，.]|$)|(?<![\d:])\d+(?:\.\d+)?::\s*[^\s\d:]"),
     "权重的写法", "去掉括号、加号和数字，只留词"),
    (re.compile(r"[\[<](?:filewords|caption|class|style|char|character|person|prompt)[\]>]",
                re.IGNORECASE), "模板里占位的记号", "换成图里真有的东西"),
    (re.compile(r"(?<!\{)\{[^{}|\\]{0,60}\}(?!\})"), "花括号", "去掉花括号，只留词"),
    (re.compile(r"\[\d{1,3}(?:;\d{1,3})*m"), "终端的颜色记号", "删掉"),
    (re.compile(r"\\[nrt]"), "没有解开的换行（反斜杠加字母）", "换成逗号或空格"),
    (re.compile(r"\|\|\|"), "keep_tokens 的分隔记号", "换成逗号"),
)  # fmt: skip
# 读不出的字的替身，和它再读错一次的样子；没有谁的字的私用区、控制符
LOST = re.compile("[\ufffd\ue000-\uf8ff\x80-\x9f]|锟斤拷|烫烫烫")
TAG = re.compile(r"[a-z0-9]+(?:_[a-z0-9()']+)+", re.IGNORECASE)  # 整个小句是 long_hair 这样的标签
UNIT = re.compile(rf"{WORD.pattern}|\S")  # 一个汉字，或一个英文词


def lint(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    """整个数据集的警告：几乎一样的图、触发词的位置、每句都有的话、太长、中英文混用。"""
    trigger = trigger.strip()
    problems = lookalikes(records, folder)
    problems += _buried(records, trigger, folder)
    problems += _unchanging(records, trigger)
    found = [say(record) for say in (_garbled, _markup, _hollow) for record in records]
    problems += [problem for problem in found if problem]
    problems += _syntax(records, trigger, folder) + _tags(records, trigger, folder)
    problems += _long(records, folder)
    return problems + _mixed(records, trigger, folder)


# ---- 描述 ----


def _buried(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    """触发词不在第一小句里。“a photo of sks dog”算在前面。"""

    def buried(caption: str) -> bool:
        place = position(caption, trigger)
        return bool(place) and CLAUSE.search(caption[:place].lstrip()) is not None

    late = [record.path for record in records if trigger and buried(record.caption)]
    if not late:
        return []
    reason = f"{len(late)} 份描述里触发词“{trigger}”埋在后面，不在第一小句：{names(late, folder)}"
    mend = "挪到最前面：文本编码器对开头最敏感，太长被截断时也先丢后面的"
    return [Problem.warning("trigger_buried", None, reason, mend)]


def _unchanging(records: Sequence[Record], trigger: str) -> list[Problem]:
    """每句描述里都有的一段话（触发词除外）。"""
    captions = list(dict.fromkeys(record.caption for record in records))
    if len(records) < FEW or len(captions) < 2:  # 全都一样的另外报过
        return []
    # 触发词换成句号：它前后的字不该连成一段
    texts = [caption.replace(trigger, "。") if trigger else caption for caption in captions]
    phrases, problems = _common(texts), []
    if phrases and not trigger and all(text.startswith(phrases[0]) for text in texts):
        guess = phrases.pop(0)
        reason = f"每句描述都以“{guess}”开头，看着像触发词；加上 --trigger '{guess}' 能检查得更细"
        problems.append(Problem.note("trigger_guess", reason))
    if phrases:
        shown = "、".join(f"“{phrase}”" for phrase in phrases[:5])
        reason = f"每句描述里都有{shown}，它会被学进描述而不是触发词里"
        reason += "：以后提示词里不写这几个字，它就不一定出现"
        mend = "想让触发词带出它，就从描述里删掉；想以后自己决定有没有它，就留着"
        problems.append(Problem.warning("caption_unchanging", None, reason, mend))
    return problems


def _common(texts: Sequence[str]) -> list[str]:
    """所有句子里都有的最长的几段，按先后；一段由整字、整词连成，不跨标点。"""
    result = []
    for clause in CLAUSE.split(min(texts, key=len)):
        spans = [unit.span() for unit in UNIT.finditer(clause)]
        start = 0
        while start < len(spans):
            stop = start
            while stop < len(spans):
                longer = clause[spans[start][0] : spans[stop][1]]
                if not all(has_trigger(text, longer) for text in texts):
                    break
                stop += 1
            part = _bare(clause[spans[start][0] : spans[stop - 1][1]] if stop > start else "")
            least = COMMON_CHINESE if CJK.search(part) else COMMON_ENGLISH
            if len(UNIT.findall(part)) >= least and part not in result:
                result.append(part)
            start = max(stop, start + 1)
    return result


def _bare(part: str) -> str:
    """去掉两头的虚词：“背景是”里只有“背景”说了点什么。"""
    units = list(UNIT.finditer(part))
    while units and units[-1].group().lower() in EMPTY:
        units.pop()
    while units and units[0].group().lower() in EMPTY:
        units.pop(0)
    return part[units[0].start() : units[-1].end()] if units else ""


def _garbled(record: Record) -> Problem | None:
    """字读错过的描述：不报错，却全是乱码。"""
    guess = _mistaken(record.caption)
    if guess is None:
        return None
    shown = f"“{record.caption[:20]}”"
    if not guess:
        reason, mend = f"描述里有读坏的字（{shown}），原来的已经没有了", "重新写一遍"
    elif record.caption.encode().decode("gb2312", "ignore") == guess:
        reason = f"描述像是乱码（{shown}），多半是 GBK：按它读是“{guess[:20]}”"
        mend = "用记事本或 VS Code 按 GBK 打开，看到的字没有错，就另存为 UTF-8"
    else:
        reason = f"描述像是乱码（{shown}），编码读错过又存了一遍，原来多半是“{guess[:20]}”"
        mend = f"照原来的重新写：{guess[:60]}"
    return Problem.warning("caption_garbled", record.path, reason, mend)


def _mistaken(text: str) -> str | None:
    """乱码 -> 原来的字（找不回来是空的）；不像乱码是 None。"""
    odd = [char for char in text if ord(char) > 127]
    # 很短的 GBK 有时恰好也是合格的 UTF-8：“一只猫”读成“һֻè”，东一个西一个地落在好几种文字里；
    # 真正的俄文、法文只用一种。整句只有一个这样的字，也不是谁的话
    several = len({ord(char) >> 8 for char in odd}) > 1 or len(text) == 1
    if odd and max(odd) <= "\u07ff" and several:
        with suppress(UnicodeDecodeError):
            return text.encode().decode("gb2312")
    # 反过来：UTF-8 被当成 GBK 或西欧文字读，又存成了 UTF-8
    for raw in (_bytes(text, "gb18030"), _bytes(text, "cp1252")) if odd else ():
        found = raw.decode("utf-8", "ignore")
        wide = [char for char in found if ord(char) > 127]
        whole = len(found.encode()) >= len(raw) - 3  # 最后一个字可能被切断
        common = wide and all(CJK.match(c) and c.encode("gb2312", "ignore") for c in wide)
        if whole and common and (len(wide) > 1 or not re.search("[A-Za-z]", text)):
            return found
    return "" if LOST.search(text) else None


def _bytes(text: str, encoding: str) -> bytes:
    """按一种编码写回去；cp1252 没有的五个字节，各家都照 latin-1 读，解不开的算没有。"""
    parts = (c.encode(encoding, "ignore") or c.encode("latin-1", "ignore") for c in text)
    return b"".join(parts)


def _markup(record: Record) -> Problem | None:
    """描述里混进了富文本（.rtf）或网页的代码：文本编码器会把它们当成要画的东西。"""
    if record.caption.startswith("{\\rtf"):
        found, kind, mend = "{\\rtf", "富文本（RTF）", "用写它的程序打开，另存为纯文本（UTF-8）"
    elif tag := MARKUP.search(record.caption):
        found, kind, mend = tag.group(), "网页的代码", "删掉这些代码，只留说图里有什么的话"
    else:
        return None
    reason = f"描述里有{kind}“{found[:20]}”"
    return Problem.warning("caption_markup", record.path, reason, mend)


def placeholders(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    """描述里给触发词占位置的记号：有触发词就换成它，没有就不能练。"""
    found = [(record.path, mark) for record in records if (mark := placeholder(record.caption))]
    if not found:
        return []
    paths, marks = zip(*found, strict=True)
    shown = "、".join(dict.fromkeys(marks))
    where = f"{len(paths)} 份描述里有占位的记号 {shown}：{names(paths, folder)}"
    if trigger.strip():
        said = f"{where}；训练时换成触发词“{trigger.strip()}”"
        return [Problem.note("trigger_placeholder", said)]
    mend = "写上触发词（设置里的 data.trigger，或 lorakit check 的 --trigger），它会换成触发词"
    mend += "；同类图片和不用触发词的，把它改成普通的词"
    reason = f"{where}，可是没有触发词可换"
    return [Problem.error("trigger_placeholder", None, reason, mend)]


def _syntax(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    """别的程序的提示词写法：一种说一次。"""
    problems = []
    for pattern, kind, mend in SYNTAX:
        found = []
        for record in records:
            text = record.caption.replace(trigger, " ") if trigger else record.caption
            if hit := pattern.search(text):
                found.append((record.path, hit.group().strip()))
        if found:
            paths, marks = zip(*found, strict=True)
            reason = f"{len(paths)} 份描述里有{kind}“{marks[0][:30]}”：{names(paths, folder)}"
            reason += "；那是别的程序的写法，这里照字面读"
            problems.append(Problem.warning("caption_syntax", None, reason, mend))
    return problems


def _tags(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    """用下划线连起来的标签（long_hair）；每句都有的那一个多半是触发词。"""
    tags = []
    for record in records:
        text = record.caption.replace(trigger, "，") if trigger else record.caption
        clauses = (clause.strip().replace("\\", "") for clause in CLAUSE.split(text))
        tags.append({one for one in clauses if TAG.fullmatch(one)})
    always = set.intersection(*tags) if len(tags) > 1 else set()
    found = [(r.path, sorted(own - always)) for r, own in zip(records, tags, strict=True)]
    found = [(path, own) for path, own in found if own]
    if not found:
        return []
    reason = f"{len(found)} 份描述里有下划线连起来的标签“{found[0][1][0][:30]}”："
    reason += f"{names([path for path, _ in found], folder)}；文本编码器按平常的话读"
    mend = f"下划线换成空格（{found[0][1][0][:30].replace('_', ' ')}），最好写成一句话"
    return [Problem.warning("caption_syntax", None, reason, mend)]


def _hollow(record: Record) -> Problem | None:
    """没有说图里有什么的描述：只是文件名、网址，或夹着看图模型的客套话。"""
    chatter = CHATTER.search(record.caption)
    if record.caption == record.path.stem:
        reason = "描述只是文件名"
    elif not re.search(r"\w", record.caption) or record.caption.lower() in NOTHING:
        reason = f"描述里什么也没有说（“{record.caption[:20]}”）"
    elif chatter:
        reason = f"描述里有不是在说图的话“{chatter.group().strip()[:20]}”"
    else:
        return None
    mend = "只留说图里有什么的话，例如“一只猫坐在窗台上”"
    return Problem.warning("caption_hollow", record.path, reason, mend)


def _long(records: Sequence[Record], folder: Path) -> list[Problem]:
    def too_long(caption: str) -> bool:
        chinese = len(CJK.findall(caption))
        return chinese > LONG_CHINESE or len(WORD.findall(caption)) > LONG_ENGLISH

    paths = [record.path for record in records if too_long(record.caption)]
    if not paths:
        return []
    reason = f"{len(paths)} 份描述很长（超过 {LONG_CHINESE} 个汉字或 {LONG_ENGLISH} 个英文词）："
    reason += names(paths, folder) + "；文本编码器可能读不到结尾，上限要看是哪一个模型"
    mend = "只留图里看得见的、会变的东西，一两句话就够"
    return [Problem.warning("caption_long", None, reason, mend)]


def over_limit(
    records: Sequence[Record], counts: Sequence[int], limit: int, encoder: str
) -> list[Problem]:
    """超过文本编码器上限的描述：后面的它读不到，训练时会被悄悄截掉。

    Args:
        counts: 每份描述占几个词元。
        encoder: 向人说的名字，例如“qwen-image 的文本编码器”。
    """
    problems = []
    for record, count in zip(records, counts, strict=True):
        if count > limit:
            lost = f"最后约 {1 - limit / count:.0%} 会被截掉"
            reason = f"描述有 {count} 个词元，{encoder}最多读 {limit} 个，{lost}"
            mend = "删短到上限以内，要紧的写在前面；触发词放最前面就不会丢"
            problems.append(Problem.warning("caption_over_limit", record.path, reason, mend))
    return problems


def _mixed(records: Sequence[Record], trigger: str, folder: Path) -> list[Problem]:
    """有的描述是中文，有的是英文；中文里夹几个英文词不算。"""
    chinese, english = [], []
    for record in records:
        text = CLAUSE.sub(" ", record.caption)  # 英文里夹的中文标点不算中文
        text = text.replace(trigger, "") if trigger else text
        if CJK.search(text):
            chinese.append(record.path)
        elif WORD.search(text):
            english.append(record.path)
    if not chinese or not english:
        return []
    few = min(english, chinese, key=len)
    kind = "英文" if few is english else "中文"
    reason = (
        f"{len(chinese)} 份描述是中文，{len(english)} 份是英文；{kind}的是 {names(few, folder)}"
    )
    mend = "统一成以后写提示词要用的那一种：同一样东西用两种话说，学得慢"
    return [Problem.warning("caption_mixed", None, reason, mend)]
