"""画笔：把单位坐标里的形状画到图上；形状只说角色，颜色由画风决定。"""

import math

# 每个形状只说自己是什么“角色”，颜色由画风决定：同一只猫因此能画成彩图、剪纸、水墨……
ROLES = (
    "body", "shade", "light", "wall",  # 主色、它的暗面与亮面、墙
    "white", "dark", "eye", "blush", "red",
    "wood", "leaf", "gold", "glass", "metal",
)  # fmt: skip


class Pen:
    """把单位坐标里的形状画到图上；`paint(role)` 给出 (填充色, 描边色, 描边宽, 线条色)。"""

    def __init__(self, draw, paint, cx: float, cy: float, radius: float, flip: bool = False):
        self.draw, self.paint = draw, paint
        self.cx, self.cy, self.radius, self.sign = cx, cy, radius, -1 if flip else 1

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self.cx + self.sign * x * self.radius, self.cy + y * self.radius

    def poly(self, role: str, *points: tuple[float, float]):
        fill, outline, width, _ = self.paint(role)
        xy = [self._at(*point) for point in points]
        self.draw.polygon(xy, fill=fill)
        if outline is not None:
            self.draw.line([*xy, xy[0], xy[1]], fill=outline, width=width, joint="curve")

    def oval(self, role: str, x, y, rx, ry=None, turn=0.0, start=0.0, stop=360.0):
        """椭圆或扇形（角度制，0 度向右，顺时针）；`turn` 是整体旋转的角度。"""
        ry = rx if ry is None else ry
        turn = math.radians(turn)
        cos, sin, points = math.cos(turn), math.sin(turn), []
        for i in range(41):
            a = math.radians(start + (stop - start) * i / 40)
            u, v = rx * math.cos(a), ry * math.sin(a)
            points.append((x + u * cos - v * sin, y + u * sin + v * cos))
        self.poly(role, *points)

    def line(self, role: str, width: float, *points: tuple[float, float]):
        px, color = max(2, round(width * self.radius)), self.paint(role)[3]
        self.draw.line([self._at(*point) for point in points], fill=color, width=px, joint="curve")

    def arc(self, role: str, width: float, x, y, rx, ry, start: float, stop: float):
        steps = [math.radians(start + (stop - start) * i / 16) for i in range(17)]
        self.line(role, width, *[(x + rx * math.cos(a), y + ry * math.sin(a)) for a in steps])


def eyes(p: Pen, x=0.0, y=0.0, gap=0.3, r=0.13):
    for side in (-1, 1):
        p.oval("eye", x + side * gap, y, r, r * 1.15)
        p.oval("white", x + side * gap + 0.35 * r, y - 0.45 * r, 0.36 * r)


def face(p: Pen, x=0.0, y=0.0, s=1.0):
    """一张笑脸：眼睛、腮红、嘴。"""
    eyes(p, x, y, 0.28 * s, 0.11 * s)
    for side in (-1, 1):
        p.oval("blush", x + side * 0.42 * s, y + 0.2 * s, 0.11 * s, 0.07 * s)
    p.arc("eye", 0.065 * s, x, y + 0.1 * s, 0.14 * s, 0.13 * s, 15, 165)
