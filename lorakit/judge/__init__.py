"""判断：Judge 画图、请眼睛看、亮三个灯；tiny_eye 是小世界的考官，hub_eye 是模型站上的编码器。"""

from lorakit.judge.judge import Judge, choose, eye_for, open_run, scope

__all__ = ["Judge", "choose", "eye_for", "open_run", "scope"]
