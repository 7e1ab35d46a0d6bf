"""诊断室：病历齐全、数和记的一样，每个病人只有一处不对、一个对的选项；治疗真的练、真的判。"""

import json
from collections import Counter
from dataclasses import replace

import pytest

from lorakit import lab, lora
from lorakit.cli.main import main
from lorakit.errors import LorakitError
from lorakit.lab import questions
from lorakit.lab.hospital import chart, desk, handover, photos, record, treatment
from lorakit.lab.hospital.cases import ALL, CONTROLS, MOST, Plan, prescribed
from lorakit.lab.hospital.treatment import Checked
from lorakit.results.evidence import Share
from lorakit.results.verdict import NAMES, Light, Verdict
from lorakit.tiny import samples
from lorakit.train import Trainer


def test_each_patient_has_exactly_one_fault():
    assert len(ALL) >= 12 and len({case.name for case in ALL}) == len(ALL)
    for case in ALL:
        well, sick = vars(case.healthy), vars(case.plan)
        changed = [key for key in well if well[key] != sick[key]]
        assert len(changed) == 1, case.name
        if changed == ["settings"]:
            ours, theirs = case.healthy.settings, case.plan.settings
            assert [key for key in ours if ours[key] != theirs[key]] == [case.fault[0]]
        else:
            assert changed == [case.fault[0]] and not samples_of(case)
        size = int(case.plan.settings["train.steps"]) * int(case.plan.settings["train.batch_size"])
        assert size <= MOST


def samples_of(case) -> bool:
    """换上的图是不是一份现成的样例：那就不算藏着毛病。"""
    return case.fault[0] == "photos" and case.fault[1] in samples.NAMES


def test_every_question_has_one_right_option_and_letters_are_balanced():
    asked = [case.cause for case in ALL]
    assert list(questions.clinic()) == [case.name for case in ALL]
    letters = Counter(one.right for one in asked)
    assert set(letters) == {0, 1, 2, 3} and max(letters.values()) - min(letters.values()) <= 1
    longest = [max(range(4), key=lambda i, q=q: len(q.options[i][0])) for q in asked]
    assert sum(pick == q.right for pick, q in zip(longest, asked, strict=True)) <= len(asked) / 2
    for one in asked:
        assert len({text for text, _ in one.options}) == len({s for _, s in one.options}) == 4


@pytest.mark.parametrize("name", [*CONTROLS, *(case.name for case in ALL)])
def test_a_recording_is_whole_and_says_one_thing(name):
    one = chart.chart(name)
    facts = one.facts
    plan = CONTROLS.get(name) or next(case.plan for case in ALL if case.name == name)
    steps = int(plan.settings["train.steps"])
    assert len(facts["losses"]) == steps
    assert [step for step, _ in facts["held"]] == list(range(0, steps + 1, 20))
    assert [step for step, _ in facts["by_t"]] == [0, steps]
    for title, count in facts["rows"]:
        assert len(one.rows[title]) == count, title
    assert len(one.rows[chart.ASKED]) == record.SHOWN
    found = one.checked
    assert [light.name for light in found.verdict.lights] == list(NAMES)
    said = " ".join(light.said for light in found.verdict.lights)
    for what in set(found.shares) - {"hats", "leaked"}:
        assert str(found.shares[what]) in said, (what, "灯里说的和记下的是一个数")
    log = "\n".join(facts["log"])
    for step, held in facts["held"]:
        assert f"第 {step} 步：" in log and f"留出集 {held:.3f}" in log
    assert "/tmp" not in log and "runs/" not in log, "不写这台机器的路径"


def test_the_recordings_are_light_and_none_is_left_over():
    files = sorted(chart.HOME.iterdir())
    assert sum(file.stat().st_size for file in files) < 700_000
    names = {*CONTROLS, *(case.name for case in ALL)}
    assert {file.name for file in files} == {f"{n}.{e}" for n in names for e in ("json", "webp")}


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_the_fault_shows_and_its_cure_cures(case):
    sick, well = chart.chart(case.name).checked, chart.chart(case.control).checked
    assert treatment.cured(case, sick, well), treatment.gained(case.measure, sick, well)
    assert not treatment.cured(case, sick, sick)
    _, low, _ = treatment.gained(case.measure, sick, sick)
    assert low <= 0, "没有治，就没有好"


def test_bad_prescriptions_are_told(shown):
    case = ALL[0]
    for change, said in (("lr", "设置=值"), ("train.foo=1", "train.lr"), ("train.lr=1e-2", "本来")):
        with pytest.raises(LorakitError, match=said):
            prescribed(case.plan, (change,))
    for number in (0, 99, "1", True):
        with pytest.raises(LorakitError, match=f"1 到 {len(ALL)}"):
            lab.clinic(number)
    with pytest.raises(LorakitError, match="图库里没有"):
        lab.treat(1, "data.folder=别处")
    with pytest.raises(LorakitError, match="处方太久"):
        lab.treat(1, "train.steps=900")


def test_reading_a_chart_and_naming_the_cause(shown, capsys, own_cache):
    lab.clinic()
    assert all(case.complaint in shown[-1]["text/plain"] for case in ALL)
    assert "治好了 0 个" in shown[-1]["text/plain"]
    for number in (1, 4, 6):  # 设置、编辑、人物；别的走同一条路
        case = ALL[number - 1]
        shown.clear()
        lab.clinic(number)
        text = "\n".join(one.get("text/plain", "") for one in shown)
        assert all(option in text for option, _ in case.cause.options)
        assert not any(said in text for _, said in case.cause.options), "答案没有先露出来"
        assert "描述（前四句）" in text and "lora.rank = 16" in text
    asked = desk.Diagnosis(ALL[0])
    asked.ask.radio.value = (ALL[0].cause.right + 1) % 4
    asked.open()
    assert desk.state(ALL[0]) == 0 and "✗" in asked.ask.page.value
    asked = desk.Diagnosis(ALL[0])
    asked.ask.radio.value = ALL[0].cause.right
    asked.open()
    desk.remember(ALL[0], 0)
    assert desk.state(ALL[0]) == 1 and desk.state(ALL[1]) == 0
    (own_cache / "clinic.json").write_text('{"lr_high": "坏了", "four": 7}', encoding="utf-8")
    assert desk.state(ALL[0]) == desk.state(ALL[1]) == 0, "记坏了的，当作还没有看"
    assert lab.treat(1, ...) is lab.treat(1) is None
    assert capsys.readouterr().out.count("未完成") == 2


def test_telling_cured_from_not(shown, own_cache):
    case = ALL[0]
    sick, well = chart.chart(case.name).checked, chart.chart(case.control).checked
    images = chart.chart(case.control).rows[chart.ASKED]
    desk.tell(1, case, sick, images)
    assert "没治好" in shown[-1]["text/plain"] and case.hint in shown[-1]["text/plain"]
    assert desk.state(case) == 0
    desk.tell(1, case, well, images)
    said = shown[-1]["text/plain"]
    assert "✓ 1 号治好了" in said and "95% 区间" in said and str(well.shares["right"]) in said
    assert desk.state(case) == 2


def test_cured_needs_the_judge_and_the_complaint():
    def one(word="学到了", losses=(1.0, 1.1, 0.9), **shares):
        return Checked(Verdict(word, ""), shares, {"fine": list(losses)})

    def cured(measure, before, after):
        return treatment.cured(replace(ALL[0], measure=measure), before, after)

    few, many = Share(2, 24), Share(22, 24)
    assert cured("right", one(right=few), one(right=many))
    assert not cured("right", one(right=few), one("还早", right=many))
    assert not cured("right", one(right=many), one(right=Share(23, 24))), "区间里有 0"
    assert cured("hats", one(hats=many), one(hats=few))
    assert not cured("hats", one(hats=Share(24, 24)), one(hats=Share(14, 24))), "少了，还是多半戴着"
    assert cured("fine", one(), one(losses=(0.5, 0.56, 0.45)))
    assert not cured("fine", one(), one(losses=(1.0, 1.0, 1.0)))


def test_sick_pictures_are_sick(tmp_path):
    few = photos.write("few", tmp_path / "a")
    assert len(list(few.glob("*.png"))) == photos.FEW
    one = photos.write("one-caption", few)
    assert len({file.read_text("utf-8") for file in one.glob("*.txt")}) == 1
    pairs = photos.write("swapped", few)
    right = samples.write("edit-papercut", tmp_path / "right")
    photos.swap(pairs)
    for file in right.rglob("*.*"):
        assert (pairs / file.relative_to(right)).read_bytes() == file.read_bytes()


@pytest.fixture
def trained(config):
    """练了两步的结果文件夹，缩放是 4。"""
    settings = config("train.steps=2", "lora.rank=4", "lora.alpha=16", "lora.targets=all-linear")
    trainer = Trainer(settings)
    list(trainer)
    trainer.close()
    return settings.run.output, trainer.family


def norms(run) -> float:
    return sum(float(t.norm()) for key, t in lora.read(lora.find(run))[0].items() if "_B." in key)


def test_scripts_lose_what_they_say_and_export_does_not(trained):
    run, family = trained
    whole = norms(run)

    def export(run, out):
        main(["export", str(run), "--to", "kohya", "--dtype", "fp32", "--out", str(out)])

    found = handover.hand_over(export, run, family)
    assert found.good and norms(run) == pytest.approx(whole, rel=1e-4)
    found = handover.hand_over(handover.SCRIPTS["no-alpha"], run, family)
    assert found.good and "没有写强度" in found.strength
    assert norms(run) == pytest.approx(whole / 4, rel=1e-4)
    found = handover.hand_over(handover.SCRIPTS["half-named"], run, family)
    assert not found.good and len(found.unknown) == 2 * found.layers
    with pytest.raises(LorakitError, match="没有写出文件"):
        handover.hand_over(lambda run, out: None, run, family)


@pytest.fixture
def quick(monkeypatch):
    """画得糊些，快些。"""
    rest = [line for line in treatment.FIXED if not line.startswith("sample.steps")]
    monkeypatch.setattr(treatment, "FIXED", (*rest, "sample.steps=2"))


def test_a_treatment_is_trained_and_judged(shown, quick):
    """两步练不好什么；路是一样的：改设置、改图、换脚本、练、判、说没治好。"""
    touched = []
    found = lab.treat(
        1,
        *("train.lr=1e-3", "train.steps=2", "train.batch_size=2"),
        photos=lambda folder: touched.append(len(list(folder.glob("*.png")))),
    )
    assert touched == [24] and found.verdict.word != "学到了" and found.shares["right"].n == 26
    assert "没治好" in shown[-1]["text/plain"] and desk.state(ALL[0]) == 0


def test_a_recording_can_be_made_again(tmp_path, quick):
    settings = CONTROLS["paper"].settings | {"train.steps": "2", "train.batch_size": "2"}
    record.record("paper", Plan("tiny-qwen-image", settings, "papercut"), tmp_path)
    facts = json.loads((tmp_path / "paper.json").read_text("utf-8"))
    assert facts.keys() == chart.chart("paper").facts.keys() and len(facts["losses"]) == 2
    assert [len(light) for light in facts["lights"]] == [len(NAMES)] * 3
    assert isinstance(Light(*facts["lights"][0]), Light) and str(tmp_path) not in str(facts["log"])
