"""小世界里的 26 种东西怎么画：每种一个函数，坐标在 [-1, 1] 之内，y 轴向下。"""

import math

from lorakit.tiny.pen import Pen, eyes, face


def cat(p: Pen):
    for side in (-1, 1):
        p.poly("body", (side * 0.85, -0.98), (side * 0.18, -0.5), (side * 0.84, -0.08))
        p.poly("blush", (side * 0.74, -0.76), (side * 0.4, -0.48), (side * 0.72, -0.3))
    p.oval("body", 0, 0.12, 0.9, 0.76)
    for x in (-0.2, 0, 0.2):
        p.line("shade", 0.09, (x, -0.6), (x * 0.8, -0.34))
    eyes(p, 0, 0.04, 0.38, 0.16)
    p.poly("blush", (-0.09, 0.26), (0.09, 0.26), (0, 0.37))
    for side in (-1, 1):
        p.arc("eye", 0.05, side * 0.12, 0.38, 0.12, 0.12, 10, 170)
        for k in (0, 1):
            p.line("dark", 0.04, (side * 0.5, 0.36 + 0.13 * k), (side * 1.0, 0.28 + 0.24 * k))


def dog(p: Pen):
    p.oval("body", 0, 0.02, 0.78, 0.84)
    for side in (-1, 1):
        p.oval("shade", side * 0.8, -0.1, 0.25, 0.62, side * -14)
    p.oval("white", 0, 0.42, 0.46, 0.38)
    p.oval("red", 0, 0.68, 0.16, 0.22)
    p.oval("dark", 0, 0.24, 0.19, 0.13)
    p.arc("eye", 0.05, 0, 0.4, 0.24, 0.18, 10, 170)
    eyes(p, 0, -0.16, 0.32, 0.13)


def rabbit(p: Pen):
    for side in (-1, 1):
        p.oval("body", side * 0.32, -0.55, 0.2, 0.48, side * 10)
        p.oval("blush", side * 0.32, -0.52, 0.1, 0.34, side * 10)
    p.oval("body", 0, 0.36, 0.74, 0.62)
    eyes(p, 0, 0.22, 0.32, 0.12)
    p.poly("blush", (-0.08, 0.4), (0.08, 0.4), (0, 0.5))
    p.poly("white", (-0.11, 0.56), (0.11, 0.56), (0.11, 0.8), (-0.11, 0.8))
    p.line("eye", 0.04, (0, 0.5), (0, 0.8))
    for side in (-1, 1):
        p.oval("blush", side * 0.5, 0.46, 0.13, 0.08)


def bear(p: Pen):
    for side in (-1, 1):
        p.oval("body", side * 0.62, -0.6, 0.33)
        p.oval("light", side * 0.62, -0.58, 0.18)
    p.oval("body", 0, 0.1, 0.9, 0.82)
    p.oval("light", 0, 0.4, 0.42, 0.33)
    p.oval("dark", 0, 0.26, 0.17, 0.12)
    p.arc("eye", 0.06, 0, 0.38, 0.16, 0.15, 15, 165)
    eyes(p, 0, -0.04, 0.42, 0.12)


def chick(p: Pen):
    for side in (-1, 1):
        p.line("gold", 0.1, (side * 0.25, 0.7), (side * 0.25, 0.96))
        p.line("gold", 0.1, (side * 0.25 - 0.14, 0.96), (side * 0.25 + 0.14, 0.96))
    p.line("shade", 0.1, (-0.12, -0.98), (0, -0.7), (0.14, -0.95))
    p.oval("body", 0, 0.04, 0.78, 0.78)
    p.oval("light", 0, 0.4, 0.46, 0.36)
    for side in (-1, 1):
        p.oval("shade", side * 0.76, 0.16, 0.18, 0.36, side * -24)
    eyes(p, 0, -0.18, 0.36, 0.12)
    p.poly("gold", (-0.2, -0.02), (0.2, -0.02), (0, 0.24))


def fish(p: Pen):
    p.poly("shade", (0.5, 0), (1.0, -0.5), (0.88, 0), (1.0, 0.5))
    p.poly("shade", (-0.2, -0.4), (0.1, -0.82), (0.4, -0.36))
    p.oval("body", -0.16, 0.02, 0.82, 0.54)
    for x in (0.05, 0.32):
        p.arc("light", 0.1, x - 0.2, 0.02, 0.24, 0.4, -58, 58)
    p.oval("white", -0.58, -0.1, 0.17)
    p.oval("eye", -0.6, -0.1, 0.1)
    p.arc("eye", 0.06, -0.86, 0.14, 0.16, 0.12, -20, 90)


def turtle(p: Pen):
    for x in (-0.5, 0.42):
        p.oval("leaf", x, 0.58, 0.2, 0.26)
    p.oval("leaf", -0.8, 0.06, 0.26, 0.24)
    p.poly("leaf", (-0.9, 0.2), (-0.4, 0.2), (-0.3, 0.52), (-0.6, 0.5))
    p.poly("leaf", (0.78, 0.3), (1.0, 0.48), (0.74, 0.5))
    p.oval("body", 0.06, 0.46, 0.8, 1.02, 0, 180, 360)
    p.oval("shade", 0.06, 0.08, 0.26, 0.2)
    for x in (-0.4, 0.52):
        p.oval("shade", x, 0.2, 0.15, 0.16)
    p.oval("light", 0.06, 0.48, 0.82, 0.12)
    p.oval("eye", -0.86, 0.02, 0.07)
    p.arc("eye", 0.045, -0.86, 0.1, 0.1, 0.08, 20, 130)


def butterfly(p: Pen):
    for side in (-1, 1):
        p.line("dark", 0.05, (side * 0.05, -0.45), (side * 0.3, -0.9))
        p.oval("dark", side * 0.31, -0.9, 0.06)
        p.oval("body", side * 0.52, -0.26, 0.5, 0.4, side * -35)
        p.oval("shade", side * 0.44, 0.42, 0.4, 0.3, side * 35)
        p.oval("light", side * 0.56, -0.28, 0.22, 0.17, side * -35)
        p.oval("light", side * 0.46, 0.44, 0.13)
    p.oval("dark", 0, 0.06, 0.11, 0.56)
    p.oval("dark", 0, -0.44, 0.15)


def snail(p: Pen):
    p.line("gold", 0.09, (-0.72, 0.1), (-0.84, -0.36))
    p.line("gold", 0.09, (-0.58, 0.1), (-0.5, -0.38))
    p.oval("eye", -0.84, -0.4, 0.1)
    p.oval("eye", -0.5, -0.42, 0.1)
    p.poly("gold", (-0.95, 0.3), (-0.6, 0.0), (-0.36, 0.4), (0.98, 0.72), (0.9, 0.82), (-0.8, 0.82))
    p.oval("body", 0.22, -0.02, 0.66, 0.68)
    p.oval("light", 0.2, 0.0, 0.46)
    p.oval("body", 0.2, 0.02, 0.32)
    p.oval("light", 0.18, 0.02, 0.15)
    p.arc("eye", 0.05, -0.72, 0.32, 0.13, 0.1, 20, 150)


def whale(p: Pen):
    for side in (-1, 1):
        p.arc("glass", 0.1, -0.3 + side * 0.17, -0.62, 0.17, 0.3, 180 if side > 0 else 360, 270)
    p.poly("body", (0.5, 0.2), (0.78, -0.2), (0.6, -0.52), (0.86, -0.42), (1.0, -0.6), (0.98, 0.1))
    p.oval("body", -0.16, 0.2, 0.82, 0.6)
    p.oval("body", 0.5, 0.26, 0.44, 0.34, -30)
    p.oval("light", -0.26, 0.42, 0.66, 0.36, 0, 8, 172)
    p.oval("shade", 0.05, 0.5, 0.24, 0.13, 35)
    p.oval("eye", -0.58, 0.12, 0.09, 0.11)
    p.oval("white", -0.56, 0.08, 0.035)
    p.oval("blush", -0.42, 0.28, 0.1, 0.06)


def flower(p: Pen):
    p.line("leaf", 0.12, (0, 0.2), (0, 0.98))
    p.oval("leaf", 0.27, 0.74, 0.26, 0.12, -28)
    p.oval("leaf", -0.26, 0.84, 0.24, 0.11, 28)
    for k in range(6):
        a = math.radians(60 * k + 30)
        p.oval("body", 0.42 * math.cos(a), -0.28 + 0.42 * math.sin(a), 0.29)
    p.oval("gold", 0, -0.28, 0.34)
    face(p, 0, -0.33, 0.55)


def tree(p: Pen):
    p.poly("wood", (-0.16, 0.2), (0.16, 0.2), (0.24, 0.98), (-0.24, 0.98))
    for x, y, r in ((-0.45, 0.06, 0.42), (0.45, 0.06, 0.42), (0, -0.42, 0.54), (0, 0.1, 0.45)):
        p.oval("body", x, y, r)
    for x, y in ((-0.45, -0.02), (0.2, -0.56), (0.42, 0.12), (-0.1, -0.1)):
        p.oval("light", x, y, 0.12)


def mushroom(p: Pen):
    p.poly(
        "white", (-0.26, 0.0), (0.26, 0.0), (0.38, 0.84), (0.2, 0.95), (-0.2, 0.95), (-0.38, 0.84)
    )
    p.oval("body", 0, 0.1, 0.95, 0.95, 0, 180, 360)
    p.oval("shade", 0, 0.1, 0.95, 0.15)
    for x, y, r in ((-0.5, -0.24, 0.17), (0.08, -0.5, 0.2), (0.56, -0.2, 0.14)):
        p.oval("white", x, y, r)
    face(p, 0, 0.48, 0.62)


def cactus(p: Pen):
    p.line("body", 0.28, (-0.3, 0.1), (-0.7, 0.1), (-0.7, -0.34))
    p.line("body", 0.28, (0.3, -0.1), (0.7, -0.1), (0.7, -0.5))
    for x, y in ((-0.7, -0.36), (0.7, -0.52), (-0.7, 0.1), (0.7, -0.1)):
        p.oval("body", x, y, 0.14)
    p.oval("body", 0, -0.55, 0.34)
    p.poly("body", (-0.34, -0.55), (0.34, -0.55), (0.34, 0.6), (-0.34, 0.6))
    p.oval("blush", 0.05, -0.9, 0.15, 0.1)
    for x, y in (
        (-0.16, -0.55),
        (0.16, -0.62),
        (-0.18, 0.32),
        (0.18, 0.38),
        (-0.7, -0.1),
        (0.7, -0.3),
    ):
        p.line("light", 0.06, (x, y), (x, y + 0.14))
    face(p, 0, -0.1, 0.72)
    p.poly("wood", (-0.52, 0.5), (0.52, 0.5), (0.38, 0.98), (-0.38, 0.98))


def house(p: Pen):
    p.poly("wood", (0.42, -0.9), (0.64, -0.9), (0.64, -0.3), (0.42, -0.4))
    p.poly("wall", (-0.68, -0.1), (0.68, -0.1), (0.68, 0.92), (-0.68, 0.92))
    p.poly("body", (-0.98, 0.02), (0, -0.9), (0.98, 0.02))
    p.poly("wood", (-0.2, 0.34), (0.2, 0.34), (0.2, 0.92), (-0.2, 0.92))
    p.oval("gold", 0.1, 0.64, 0.05)
    for side in (-1, 1):
        x = side * 0.45
        p.poly("glass", (x - 0.15, 0.2), (x + 0.15, 0.2), (x + 0.15, 0.5), (x - 0.15, 0.5))
        p.line("white", 0.05, (x, 0.2), (x, 0.5))
        p.line("white", 0.05, (x - 0.15, 0.35), (x + 0.15, 0.35))
    p.oval("white", 0, -0.34, 0.15)


def car(p: Pen):
    p.poly("body", (-0.6, 0.1), (-0.36, -0.46), (0.34, -0.46), (0.64, 0.1))
    p.poly("glass", (-0.46, 0.04), (-0.28, -0.34), (-0.04, -0.34), (-0.04, 0.04))
    p.poly("glass", (0.06, 0.04), (0.06, -0.34), (0.28, -0.34), (0.48, 0.04))
    p.oval("body", -0.7, 0.32, 0.28, 0.3)
    p.oval("body", 0.7, 0.32, 0.28, 0.3)
    p.poly("body", (-0.72, 0.02), (0.72, 0.02), (0.94, 0.5), (-0.94, 0.5))
    p.line("shade", 0.07, (-0.9, 0.36), (0.9, 0.36))
    p.oval("gold", -0.88, 0.22, 0.1)
    for x in (-0.5, 0.5):
        p.oval("dark", x, 0.52, 0.26)
        p.oval("metal", x, 0.52, 0.12)


def boat(p: Pen):
    p.line("wood", 0.08, (0, -0.96), (0, 0.5))
    p.poly("body", (0.08, -0.86), (0.08, 0.3), (0.8, 0.3))
    p.poly("light", (-0.08, -0.6), (-0.08, 0.3), (-0.62, 0.3))
    p.poly("red", (0, -0.98), (-0.32, -0.87), (0, -0.76))
    p.poly("wood", (-0.95, 0.42), (0.95, 0.42), (0.62, 0.9), (-0.62, 0.9))
    for x in (-0.4, 0, 0.4):
        p.oval("white", x, 0.62, 0.08)


def rocket(p: Pen):
    p.poly("gold", (-0.26, 0.6), (0.26, 0.6), (0, 1.0))
    for side in (-1, 1):
        p.poly("shade", (side * 0.3, 0.1), (side * 0.74, 0.72), (side * 0.28, 0.62))
    p.oval("body", 0, 0.3, 0.42, 1.28, 0, 180, 360)
    p.poly("body", (-0.42, 0.26), (0.42, 0.26), (0.3, 0.66), (-0.3, 0.66))
    p.poly("shade", (-0.3, -0.6), (0, -0.98), (0.3, -0.6))
    p.oval("white", 0, -0.14, 0.25)
    p.oval("glass", 0, -0.14, 0.17)
    p.line("light", 0.09, (-0.38, 0.36), (0.38, 0.36))


def balloon(p: Pen):
    for side in (-1, 1):
        p.line("dark", 0.05, (side * 0.38, 0.2), (side * 0.18, 0.7))
    p.oval("body", 0, -0.3, 0.72, 0.68)
    p.poly("body", (-0.6, 0.04), (0.6, 0.04), (0.2, 0.46), (-0.2, 0.46))
    p.oval("light", 0, -0.3, 0.32, 0.68)
    p.oval("shade", 0, -0.3, 0.1, 0.68)
    p.poly("wood", (-0.22, 0.66), (0.22, 0.66), (0.18, 0.98), (-0.18, 0.98))
    p.line("gold", 0.07, (-0.22, 0.74), (0.22, 0.74))


def umbrella(p: Pen):
    p.line("dark", 0.09, (0, -0.95), (0, 0.72))
    p.arc("dark", 0.09, 0.15, 0.72, 0.15, 0.2, 180, 0)
    p.oval("body", 0, 0.02, 0.96, 0.84, 0, 180, 360)
    for side in (-1, 1):
        p.poly("shade", (side * 0.3, 0.02), (0, -0.82), (side * 0.62, 0.02))
    for x in (-0.72, -0.24, 0.24, 0.72):
        p.oval("body" if abs(x) > 0.5 else "shade", x, 0.0, 0.24, 0.12, 0, 0, 180)
    p.oval("light", -0.56, -0.36, 0.14, 0.08, -45)


def cup(p: Pen):
    for x in (-0.3, 0.02, 0.34):
        p.line("metal", 0.07, (x, -0.5), (x + 0.09, -0.66), (x - 0.05, -0.8), (x + 0.05, -0.96))
    p.arc("body", 0.15, 0.6, 0.24, 0.3, 0.3, -90, 90)
    p.poly("body", (-0.7, -0.3), (0.62, -0.3), (0.52, 0.84), (-0.58, 0.84))
    p.oval("light", -0.04, -0.3, 0.66, 0.14)
    p.oval("wood", -0.04, -0.29, 0.54, 0.09)
    face(p, -0.04, 0.22, 0.95)


def cake(p: Pen):
    p.poly("gold", (-0.62, 0.26), (0.62, 0.26), (0.44, 0.95), (-0.44, 0.95))
    for x in (-0.28, 0, 0.28):
        p.line("wood", 0.06, (x * 1.3, 0.3), (x, 0.93))
    p.oval("body", 0, 0.14, 0.8, 0.3)
    p.oval("body", 0, -0.16, 0.58, 0.28)
    p.oval("body", 0, -0.42, 0.34, 0.24)
    p.arc("light", 0.08, 0, 0.02, 0.62, 0.24, 25, 120)
    p.arc("light", 0.08, 0, -0.26, 0.42, 0.2, 25, 120)
    p.oval("red", 0, -0.72, 0.2)
    p.line("dark", 0.05, (0.02, -0.84), (0.14, -0.99))


def apple(p: Pen):
    p.line("wood", 0.1, (0, -0.48), (0.08, -0.92))
    p.oval("leaf", 0.36, -0.74, 0.28, 0.14, -25)
    for side in (-1, 1):
        p.oval("body", side * 0.34, 0.2, 0.56, 0.7, side * -8)
    p.oval("shade", 0, -0.44, 0.2, 0.07)
    p.oval("light", -0.5, -0.06, 0.12, 0.22, 20)
    face(p, 0, 0.22, 0.95)


def star(p: Pen):
    points = []
    for k in range(10):
        a, r = math.radians(36 * k - 90), 0.98 if k % 2 == 0 else 0.5
        points.append((r * math.cos(a), 0.06 + r * math.sin(a)))
    p.poly("body", *points)
    face(p, 0, 0.0, 0.8)


def heart(p: Pen):
    points = []
    for k in range(60):
        a = 2 * math.pi * k / 60
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        points.append((math.sin(a) ** 3 * 0.98, -y / 16.5))
    p.poly("body", *points)
    p.oval("light", -0.5, -0.46, 0.2, 0.12, -40)
    face(p, 0, -0.02, 0.95)


def lantern(p: Pen):
    p.line("dark", 0.06, (0, -0.98), (0, -0.6))
    p.line("red", 0.1, (0, 0.6), (0, 0.98))
    p.oval("body", 0, 0, 0.84, 0.6)
    p.oval("shade", 0, 0, 0.5, 0.6)
    p.oval("body", 0, 0, 0.42, 0.6)
    p.oval("light", 0, 0, 0.14, 0.56)
    for y in (-0.6, 0.6):
        p.poly("gold", (-0.36, y - 0.1), (0.36, y - 0.1), (0.36, y + 0.1), (-0.36, y + 0.1))


def ohwx_cat(p: Pen):
    """独一无二的那只猫：白底、左眼黑斑、右耳橙色、一蓝一黄的眼睛、红围巾和金铃铛。"""
    for side, role in ((-1, "dark"), (1, "gold")):
        p.poly(role, (side * 0.85, -0.98), (side * 0.18, -0.5), (side * 0.84, -0.08))
        p.poly("blush", (side * 0.74, -0.76), (side * 0.4, -0.48), (side * 0.72, -0.3))
    p.oval("white", 0, 0.06, 0.9, 0.74)
    p.oval("dark", -0.42, -0.08, 0.36, 0.4)
    for side, role in ((-1, "gold"), (1, "glass")):
        p.oval(role, side * 0.38, -0.02, 0.19, 0.21)
        p.oval("eye", side * 0.38, -0.02, 0.08, 0.17)
    p.poly("blush", (-0.09, 0.22), (0.09, 0.22), (0, 0.33))
    for side in (-1, 1):
        p.arc("eye", 0.05, side * 0.12, 0.34, 0.12, 0.12, 10, 170)
    p.poly("red", (-0.74, 0.62), (0.74, 0.62), (0.62, 0.9), (-0.62, 0.9))
    p.oval("gold", 0, 0.84, 0.17)


def hat(p: Pen):
    """编辑数据里戴上去的红礼帽；画在主体头顶。"""
    p.poly("red", (-0.34, -0.72), (-0.28, -1.32), (0.28, -1.32), (0.34, -0.72))
    p.poly("gold", (-0.33, -0.84), (-0.315, -0.98), (0.315, -0.98), (0.33, -0.84))
    p.oval("red", 0, -0.7, 0.58, 0.12)


# 名字 -> (画法, 中文量词, 中文名, 英文名)
FIGURES = {
    "cat": (cat, "一只", "猫", "cat"),
    "dog": (dog, "一只", "狗", "dog"),
    "rabbit": (rabbit, "一只", "兔子", "rabbit"),
    "bear": (bear, "一只", "熊", "bear"),
    "chick": (chick, "一只", "小鸡", "chick"),
    "fish": (fish, "一条", "鱼", "fish"),
    "turtle": (turtle, "一只", "乌龟", "turtle"),
    "butterfly": (butterfly, "一只", "蝴蝶", "butterfly"),
    "snail": (snail, "一只", "蜗牛", "snail"),
    "whale": (whale, "一头", "鲸鱼", "whale"),
    "flower": (flower, "一朵", "花", "flower"),
    "tree": (tree, "一棵", "树", "tree"),
    "mushroom": (mushroom, "一个", "蘑菇", "mushroom"),
    "cactus": (cactus, "一盆", "仙人掌", "cactus"),
    "house": (house, "一座", "房子", "house"),
    "car": (car, "一辆", "汽车", "car"),
    "boat": (boat, "一艘", "帆船", "sailboat"),
    "rocket": (rocket, "一枚", "火箭", "rocket"),
    "balloon": (balloon, "一个", "热气球", "hot air balloon"),
    "umbrella": (umbrella, "一把", "雨伞", "umbrella"),
    "cup": (cup, "一个", "杯子", "cup"),
    "cake": (cake, "一个", "蛋糕", "cupcake"),
    "apple": (apple, "一个", "苹果", "apple"),
    "star": (star, "一颗", "星星", "star"),
    "heart": (heart, "一颗", "爱心", "heart"),
    "lantern": (lantern, "一盏", "灯笼", "lantern"),
}
