"""提示：检查下面的按钮，一次给一条，最后才是折起来的答案。"""

from lorakit.inert import in_html
from lorakit.lab.display import both, widgets
from lorakit.lab.exercises.judge import Exercise, find

_given: dict[str, int] = {}  # 题名 -> 要过几次；再运行一遍检查，要过的还在
STATIC = "〔提示的按钮：在 Jupyter 里运行这一格才会出现〕"


class Hints:
    """一道题的提示；more 再给一条。"""

    def __init__(self, exercise: Exercise):
        w = widgets()
        self.exercise, self.page = exercise, w.HTML()
        self.button = w.Button(icon="lightbulb-o", layout=w.Layout(width="max-content"))
        self.button.on_click(lambda button: self.more())
        self.box = w.VBox([self.button, self.page])
        self._draw()

    @property
    def level(self) -> int:
        """要过几次：1 到 3 是提示，再多一次是答案。"""
        return _given.get(self.exercise.name, 0)

    def more(self):
        _given[self.exercise.name] = self.level + 1
        self._draw()

    def _draw(self):
        hints, level = self.exercise.hints, self.level
        lines = [f"<p>提示 {i}：{in_html(text)}</p>" for i, text in enumerate(hints[:level], 1)]
        if level > len(hints):
            code = f'<pre style="font-family:monospace">{in_html(self.exercise.solution)}</pre>'
            lines.append(f"<details open><summary>答案</summary>{code}</details>")
            self.button.layout.display = "none"
        last = level == len(hints)
        self.button.description = "看答案" if last else f"提示（{level + 1} / {len(hints)}）"
        self.page.value = "".join(lines)


def hint(name: str) -> None:
    """摆出一道题的提示按钮：前三次各给一条，第四次是答案。"""
    shown = Hints(find(name))
    small = f"<p><small>{STATIC}</small></p>"
    both(shown.box, {"text/html": small, "text/plain": STATIC})
