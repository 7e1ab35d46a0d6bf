"""擂台：配方读得进、层对得上，两份配方各练四步写得下、接得上，计划先调学习率再补种子。"""

import itertools
import json
import math

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from lorakit.cli import main
from lorakit.errors import ConfigError
from lorakit.judge import agreement, arena, recipes, standings
from lorakit.judge.arena import Cell
from lorakit.judge.recipes import GRID, TASKS
from lorakit.results.evidence import Share, newcombe
from lorakit.tiny import lessons


@pytest.fixture
def quick(monkeypatch):
    """考卷只有三题，只画一遍；抄没抄只问两句。"""
    monkeypatch.setattr(arena, "LEAST", 3)
    monkeypatch.setattr(lessons, "HELD_OUT", lessons.HELD_OUT[:3])
    monkeypatch.setattr(arena.TinyEye, "copies", 2)


def row(task: str, recipe: str, lr: float, seed: int, learned: int, kept: int = 60) -> dict:
    looks = {"300": {"learned": [learned, 60], "kept": [kept, 60]}}
    return {"task": task, "recipe": recipe, "lr": lr, "seed": seed, "seconds": 1.0,
            "device": "cpu", "looks": looks, "held": {"300": 0.5}, "copied": {},
            "missed": {}}  # fmt: skip


def test_shipped_recipes_load_and_say_where_they_are_from():
    found = recipes.named([])
    assert found[0].name == recipes.OURS and len(found) == 9
    assert all(one.source and one.seen for one in found[1:])
    own = {"train.lr", "train.schedule", "lora.rank"}  # 别人的不跟着我们的预设变
    assert all(own <= set(one.settings) for one in found[1:])
    with pytest.raises(ConfigError, match="是不是想写 ai-toolkit"):
        recipes.named(["ai-tolkit"])
    with pytest.raises(ConfigError, match="是不是想写 pixel"):
        recipes.tasks(["pixle"])


def test_a_recipe_with_an_unknown_setting_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nabout: 我的\nsettings: {train.lrr: 1}\n", "utf-8")
    with pytest.raises(ConfigError, match=r"train\.lrr"):
        recipes.load(path)
    path.write_text("name: mine\nwhat: 1\n", "utf-8")
    with pytest.raises(ConfigError, match="读不懂"):
        recipes.load(path)


def test_the_answers_score_full_marks():
    for name in ("pixel", "ohwx-cat", "edit-lineart"):
        lesson = lessons.lesson(TASKS[name].lesson)
        found, missed = arena.marks(lesson, lesson.answers(2))
        assert missed == {} and all(k == n for k, n in found.values())
        assert found["kept"][1] == 2 * len(lesson.asked) // (1 + (name == "ohwx-cat"))


def test_the_plan_tunes_then_adds_seeds_and_goes_past_the_edge():
    task, recipe = TASKS["pixel"], recipes.named(["seed"])[0]

    def asked(rows):
        return [cell.key[2:] for cell in arena.plan(rows, [recipe], [task], 3) if cell.lr]

    own = 1e-4
    assert asked([]) == [(own, 0), (own, 1), (own, 2), *((lr, 0) for lr in GRID)]
    rows = [row("pixel", "seed", own, seed, 10) for seed in range(3)]
    inside = [row("pixel", "seed", lr, 0, k) for lr, k in zip(GRID, (20, 50, 50, 30), strict=True)]
    assert asked(rows + inside) == [(GRID[1], 1), (GRID[1], 2)]
    edge = [row("pixel", "seed", lr, 0, k) for lr, k in zip(GRID, (20, 30, 40, 50), strict=True)]
    assert asked(rows + edge) == [(2 * GRID[3], 0)]
    more = row("pixel", "seed", 2 * GRID[3], 0, 10)
    assert asked([*rows, *edge, more]) == [(GRID[3], 1), (GRID[3], 2)]


def test_standings_pool_seeds_and_claim_only_what_holds():
    rows = [row("pixel", "lorakit", 7e-4, seed, 50) for seed in range(3)]
    rows += [row("pixel", "seed", 1e-4, seed, 20) for seed in range(3)]
    rows += [row("pixel", "diffusers", 7e-4, 0, 20)]  # 一个种子，说不了
    made = {one["recipe"]: one for one in standings.table(rows, ["pixel"])}
    assert made["lorakit"]["learned"] == [150, 180, *Share(150, 180).interval]
    assert made["seed"]["behind"] == ["learned"] and made["diffusers"]["behind"] == []
    assert "确实不如" in standings.text(list(made.values()))
    assert "先跑" in standings.text([])


def test_the_recorded_cells_are_whole_and_drawn():
    rows = arena.read(recipes.RECORDED)
    pair = [recipes.load(recipes.RECORDED / "before.yaml"), *recipes.named([recipes.OURS])]
    whole = {Cell(task, recipe, recipes.published_rate(task, recipe), seed).key
             for task in TASKS.values() for recipe in pair for seed in range(3)}  # fmt: skip
    assert len(rows) == len(whole) and set(map(arena.key_of, rows)) == whole
    made = standings.table(rows, list(TASKS))
    axes = Figure().subplots(1, 2)
    standings.draw(axes, made)
    names = [label.get_text() for label in axes[0].get_yticklabels()]
    assert names == [task.title for task in TASKS.values()] and len(set(names)) == len(TASKS)
    for axis, part in zip(axes, standings.PARTS, strict=True):
        drawn = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axis.containers
                 if isinstance(bars, BarContainer)}  # fmt: skip
        for name, widths in drawn.items():
            mine = {one["task"]: one[part] for one in made if one["recipe"] == name}
            assert widths == [mine[task][0] / mine[task][1] for task in TASKS]


def measured(rows: list[dict], task: str, recipe: str) -> list[Share]:
    """一道课题、一份配方，几个种子合起来，练完时的两个比例。"""
    mine = [one["looks"]["300"] for one in rows if (one["task"], one["recipe"]) == (task, recipe)]
    return [Share(*map(sum, zip(*(one[part] for one in mine), strict=True)))
            for part in standings.PARTS]  # fmt: skip


def percents(shares: list[Share]) -> str:
    return "、".join(f"{100 * share:.0f}" for share in shares)


def table(head: str) -> dict[str, list[str]]:
    """CONTRIBUTING 里以 head 开头的表：每行的第一格 -> 其余几格。"""
    text = (recipes.ASSETS.parents[1] / "CONTRIBUTING.md").read_text("utf-8")
    lines = text[text.index(head) :].split("\n\n", 1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip(" |").split("|")] for line in lines]
    return {title: rest for title, *rest in (cells[0], *cells[2:])}


def test_before_and_after_are_as_recorded():
    rows, told = arena.read(recipes.RECORDED), table("| 课题 | 从前 |")
    assert len(told) == 1 + len(TASKS)
    for task in TASKS.values():
        old, now = (measured(rows, task.name, name) for name in ("before", recipes.OURS))
        said = []
        for one, two in zip(now, old, strict=True):
            low, high = newcombe(one, two)
            text = f"{100 * (one - two):+.0f}（{100 * low:+.0f} 到 {100 * high:+.0f}）"
            said.append(f"**{text}**" if low > 0 or high < 0 else text)
        assert told[task.title] == [percents(old), percents(now), *said]


def test_the_others_are_as_recorded():
    ours, theirs = arena.read(recipes.RECORDED), arena.read(recipes.PUBLISHED)
    assert len(theirs) == len(set(map(arena.key_of, theirs))) == 514
    tried = itertools.product(TASKS.values(), recipes.named([]))
    own = {recipes.published_rate(task, recipe) for task, recipe in tried}
    assert {one["lr"] for one in theirs} <= {*GRID[1:], 2 * GRID[3], *own}
    told, top = table("| 课题 | 我们，三个种子 |"), 0
    names = told.pop("课题")[2:]
    assert sorted(names) == sorted(set(recipes.shipped()) - {recipes.OURS})
    for task in TASKS.values():
        mine = measured(ours, task.name, recipes.OURS)
        first = [one for one in ours if one["seed"] == 0]
        said = [percents(mine), percents(measured(first, task.name, recipes.OURS))]
        for name in names:
            rows = [one for one in theirs if (one["task"], one["recipe"]) == (task.name, name)]
            rate = arena.best({one["lr"]: one for one in rows if one["seed"] == 0})
            rows = [one for one in rows if one["lr"] == rate]  # 种子 0 选出学习率，再合几个种子
            best = measured(rows, task.name, name)
            text = percents(best) + (f" ×{len(rows)}" if len(rows) > 1 else "")
            ahead = any(newcombe(one, two)[0] > 0 for one, two in zip(best, mine, strict=True))
            said.append(f"**{text}**" if ahead else text)
        assert told[task.title] == said
        top += not any(cell.startswith("**") for cell in said)
    assert top == 11  # 十六道里没有谁在我们之上的
    image = ("seed", "diffusers", "simpletuner")  # 线稿的蛋糕，只练图像一侧注意力的认得出
    cakes = [one["missed"].get("cake", 0) for one in theirs
             if (one["task"], one["lr"] in GRID) == ("lineart", True)
             and one["recipe"] in image]  # fmt: skip
    assert len(cakes) == 7 and sum(cakes) == 1


def gain(task: str, change: str, lr: float = 2.8e-3, part: int = 0) -> tuple[int, tuple]:
    """只换一样，与我们同样几个种子比：(百分之几, 差的 95% 区间)。"""
    rows = [one for one in arena.read(recipes.RECORDED / "levers") if one["lr"] == lr]
    mine = [one for one in rows if (one["task"], one["recipe"]) == (task, change)]
    seeds = {one["seed"] for one in mine}
    ours = [one for one in arena.read(recipes.RECORDED) if one["seed"] in seeds]
    two = measured(ours, task, recipes.OURS)[part]
    one = measured(mine, task, change)[part]
    return round(100 * one), newcombe(one, two)


def test_what_one_change_does_is_as_recorded():
    place = recipes.RECORDED / "levers"
    rows = arena.read(place)
    assert len(rows) == len(set(map(arena.key_of, rows))) == 147
    assert {one["recipe"] for one in rows} == {recipes.load(p).name for p in place.glob("*.yaml")}
    for change, learned in {"constant": 98, "rank32": 94, "nodrop": 85, "cosmap": 84,
                            "rank32-nodrop": 85, "three": 87}.items():  # fmt: skip
        share, (low, _) = gain("flux-inkwash", change)
        assert share == learned and (low > 0) == (change in ("constant", "rank32"))
    share, (_, high) = gain("flux-ohwx-cat", "constant")
    assert share == 81 and high < 0  # 所以预设不能不降
    kept = {lr: [gain(f"{task}ohwx-cat-alone", "alpha1", lr, 1)[0] for task in ("", "flux-")]
            for lr in (2.8e-3, 5.6e-3, 1.12e-2)}  # fmt: skip
    assert list(kept.values()) == [[56, 42], [37, 16], [29, 14]]  # alpha 写 1 只是步子小
    for task, shares in {"ohwx-cat-alone": (97, 61), "flux-ohwx-cat-alone": (99, 67)}.items():
        assert tuple(gain(task, "image", 1.4e-3, part)[0] for part in (0, 1)) == shares
        assert gain(task, "image", 1.4e-3, 1)[1][0] > 0.25  # 不想陪练的第三招


def test_the_loss_and_the_drawing_agree_or_not():
    ranks = agreement.spearman([1, 2, 2, 9], [0.1, 0.2, 0.3, 0.4])  # 名次 1 2.5 2.5 4 与 1 2 3 4
    assert ranks == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert agreement.spearman([1, 1], [2, 3]) is None

    def run(seed: int, held: list[float], learned: list[int]) -> dict:
        steps = ("60", "120", "300")
        looks = {
            s: {"learned": [k, 60], "kept": [60, 60]} for s, k in zip(steps, learned, strict=True)
        }
        return row("pixel", "seed", 7e-4, seed, 0) | {
            "looks": looks, "held": dict(zip(steps, held, strict=True)),
        }  # fmt: skip

    # 练得越久损失越低、画得越好；各次之间正好相反
    rows = [run(i, [3, 2, 1 + i / 9], [10, 20, 30 + i]) for i in range(8)]
    (made,) = agreement.agreement([*rows, row("lineart", "seed", 7e-4, 0, 9)], ["pixel", "lineart"])
    assert made["within"] == [1, 1, 1, 8] and made["between"][0] == pytest.approx(-1)
    assert made["between"][3] == 8 and "-1.00" in agreement.text([made])
    assert agreement.agreement(rows[:5], ["pixel"]) == [] and agreement.text([]) == ""


def test_two_recipes_train_four_steps_and_go_on(quick, tmp_path, capsys):
    chosen = recipes.named(["lorakit", "seed"])

    def plan(rows):
        done = set(map(arena.key_of, rows))
        task = TASKS["pixel"]
        cells = [Cell(task, "vae")]
        cells += [Cell(task, one, recipes.published_rate(task, one)) for one in chosen]
        return [cell for cell in cells if cell.key not in done]

    extra = ["data.resolution=128", "sample.steps=2"]
    assert not arena.run(tmp_path, plan, until=0, steps=(2, 4), extra=extra)
    assert arena.run(tmp_path, plan, steps=(2, 4), extra=extra)
    rows = arena.read(tmp_path)
    assert [one["recipe"] for one in rows] == ["vae", "lorakit", "seed"]
    assert rows[0]["looks"]["0"] == {"learned": [3, 3], "kept": [3, 3]}
    assert all(set(one["looks"]) == {"2", "4"} and len(one["held"]) == 3 for one in rows[1:])
    assert rows[1]["held"]["0"] == rows[2]["held"]["0"]  # 同样的图、同样的噪声
    assert arena.run(tmp_path, plan, steps=(2, 4)) and len(arena.read(tmp_path)) == 3
    assert main(["bench", "--recipes", "--table", "--json", "--out", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {one["recipe"] for one in said["table"]} == {"vae", "lorakit", "seed"}
    assert said["agreement"] == []  # 两次训练，说不了
    assert (tmp_path / "standings.png").is_file()


def test_wrong_options_and_a_broken_line_are_said(tmp_path, capsys):
    assert main(["bench", "--lesson", "pixel"]) == 1
    assert main(["bench", "--steps", "60,120"]) == 1
    assert main(["bench", "--recipes", "--seeds", "0"]) == 1
    (tmp_path / arena.FILE).write_text('{"task": 3}\n', "utf-8")
    assert main(["bench", "--recipes", "--table", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "--recipes 一起用" in said and "只要一个数" in said and "第 1 行读不懂" in said
