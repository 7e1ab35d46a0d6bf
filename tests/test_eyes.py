"""真模型的眼睛：随机权重的同类编码器，特征与余弦和手算的逐位对照；坏的、不认识的说怎么改。"""

import json
import math

import numpy as np
import pytest
import random_eyes
import torch
from PIL import Image

from lorakit.config import load_config
from lorakit.errors import LorakitError
from lorakit.judge import eye_for
from lorakit.judge.drawing import Question
from lorakit.judge.hub_eye import HubEye
from lorakit.judge.looking import Seen
from lorakit.judge.taught import Picture, Taught

SIDE = random_eyes.SIDE


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("eyes")
    kinds = {"dinov2": random_eyes.dinov2, "siglip": random_eyes.siglip}
    return {name: make(place / name) for name, make in kinds.items()}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)) for _ in range(3)]


def by_hand(model, images):
    """预处理只剩“除以 255、减平均、除以标准差”，因为图已经是要的大小。"""
    x = torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1).float() / 255 for i in images])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]))
    with torch.no_grad():
        return model(pixel_values=(x - mean) / std)


def test_dinov2_features_are_the_class_token(folders, pictures):
    from transformers import Dinov2Model

    eye = HubEye(str(folders["dinov2"]))
    found = eye.features(pictures)
    states = by_hand(Dinov2Model.from_pretrained(folders["dinov2"]), pictures)
    wanted = states.last_hidden_state[:, 0].numpy()
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert eye.kind == "dinov2" and found.shape == (3, 32)
    np.testing.assert_allclose(found @ found.T, wanted @ wanted.T, atol=1e-5)


def test_siglip_sees_pictures_and_words(folders, pictures):
    from transformers import SiglipModel

    eye, said = HubEye(str(folders["siglip"])), ["a cat", "ohwx 猫", "狗"]
    model = SiglipModel.from_pretrained(folders["siglip"])
    image = by_hand(model.vision_model, pictures).pooler_output
    rows = [[random_eyes.WORDS.index(word) for word in one.split()] for one in said]
    ids = torch.tensor([row + [0] * (64 - len(row)) for row in rows])
    with torch.no_grad():
        text = model.text_model(input_ids=ids).pooler_output
    wanted = torch.nn.functional.cosine_similarity(image, text).numpy()
    np.testing.assert_allclose(eye.match(pictures, said), wanted, atol=1e-5)


class Angle(HubEye):
    """特征就是图的红色值那么多度的单位向量：余弦手算得出。"""

    def __init__(self):
        self.kind, self.where, self.name = "dinov2", "", "angle"

    def features(self, images):
        turns = [math.radians(image.getpixel((0, 0))[0]) for image in images]
        return np.array([[math.cos(a), math.sin(a)] for a in turns])


def at(*degrees):
    return [Image.new("RGB", (16, 16), (one, 0, 0)) for one in degrees]


def about(*degrees, captions=("ohwx cat", "ohwx cat, sea", "ohwx cat, sky")):
    config = load_config("qwen-image")
    train = tuple(Picture(said, i) for said, i in zip(captions, at(*degrees), strict=True))
    return Taught(config, train, (), (), len(train))


def seen(now, before, plain=((0, 0), (0, 0))):
    paper = {"asked": [Question(f"ohwx cat {i}", (16, 16)) for i in range(2)]}
    drawn, base = {"asked": [at(*turn) for turn in now]}, {"asked": [at(*t) for t in before]}
    paper["plain"] = [Question(f"cat {i}", (16, 16)) for i in range(2)]
    drawn["plain"], base["plain"] = [[*at(plain[0][0], plain[0][1])]], [[*at(*plain[1])]]
    return Seen(paper, drawn, base)


def test_subject_fidelity_by_hand():
    """训练图在 0、10、20 度；画的 10 度，底模画的 90 度。"""
    taught = about(0, 10, 20)
    light = Angle().picture(
        taught, seen([(10, 10), (10, 10)], [(90, 90), (90, 90)], ((5, 5), (0, 10)))
    )
    cos = lambda *d: float(np.mean([math.cos(math.radians(one)) for one in d]))  # noqa: E731
    facts = light.facts
    assert facts["subject"][0] == pytest.approx(cos(10, 0, 10))
    assert facts["base"][0] == pytest.approx(cos(90, 80, 70))
    assert facts["real"] == pytest.approx(cos(10, 20, 10, 10, 20, 10))
    assert facts["gain"][0] == pytest.approx(cos(10, 0, 10) - cos(90, 80, 70))
    assert facts["kept"][0] == pytest.approx(cos(5, 5))  # 忘没忘：与底模差 5 度
    assert light.color == "绿" and "2 句" in light.said and "不说触发词" in light.said


@pytest.mark.parametrize(
    ("now", "color"),
    [
        ([(90, 89), (89, 90)], "黄"),  # 和底模一样
        ([(75, 76), (75, 76)], "黄"),  # 近了一些，不到一半的路
        ([(12, 11), (12, 11)], "绿"),
        ([(150, 151), (150, 151)], "红"),  # 比底模还不像：多半练坏了
    ],
)
def test_not_yet_alike_is_yellow(now, color):
    light = Angle().picture(about(0, 10, 20), seen(now, [(90, 90), (90, 90)]))
    assert light.color == color


def test_one_training_picture_cannot_be_compared():
    light = Angle().picture(about(0, captions=("ohwx cat",)), seen([(0, 0)], [(90, 90)]))
    assert light.color == "灭" and "1 张" in light.said


def test_questions_come_from_the_captions():
    paper = Angle().questions(about(0, 10, 20), ())
    assert [one.prompt for one in paper["asked"]] == ["ohwx cat", "ohwx cat, sea", "ohwx cat, sky"]
    assert [one.prompt for one in paper["plain"]] == ["cat", "cat, sea", "cat, sky"]
    mine = Angle().questions(about(0, 10, 20), ("ohwx cat on the moon",))
    assert [one.prompt for one in mine["plain"]] == ["cat on the moon"]


def test_eyes_are_asked_for_by_name(folders, tmp_path):
    assert eye_for(None, load_config("tiny-qwen-image")).name == "tiny"
    with pytest.raises(LorakitError, match="--eye dinov2"):
        eye_for(None, load_config("qwen-image"))
    assert eye_for("dinov2", load_config("qwen-image")).where == "facebook/dinov2-base"
    with pytest.raises(LorakitError, match="不认识"):
        eye_for(str(tmp_path / "nothing"), load_config("qwen-image"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(LorakitError, match="里是 bert"):
        eye_for(str(tmp_path), load_config("qwen-image"))


def test_only_safetensors_are_read(folders, tmp_path, pictures):
    random_eyes.dinov2(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save({}, tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(LorakitError, match="只读 safetensors"):
        HubEye(str(tmp_path)).features(pictures)
