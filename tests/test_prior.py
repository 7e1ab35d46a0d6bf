"""同类图片（先验保留）：每看一张训练图陪看一张，损失按权重相加；放错了图会说。"""

import shutil

import pytest
import torch

from lorakit import cache
from lorakit.errors import DataError
from lorakit.tiny import samples
from lorakit.train import Trainer
from lorakit.training.objective import Objective


@pytest.fixture(scope="module")
def cats(tmp_path_factory):
    return samples.write("cats", tmp_path_factory.mktemp("cats") / "cats", count=6)


@pytest.fixture
def objective(config, family, cats):
    def make(*overrides):
        settings = config(f"data.class_folder={cats}", *overrides)
        dataset = cache.prepare(settings, family)
        made = Objective(settings, family, dataset, None, torch.device("cpu"))
        # 每张图的损失就是它的潜变量的均值：不用模型也能手算
        made.losses = lambda x0, noise, t, cond, weight: x0.flatten(1).mean(1)
        return made

    return make


def test_one_class_picture_accompanies_each_training_picture(objective):
    plain = objective("data.class_weight=1")
    loss, t, items = plain.draw(0, 7)
    assert len(items) == len(t) == 4  # 两张训练图，两张同类图
    assert [any(item is one for one in plain.dataset.prior) for item in items] == [
        False,
        False,
        True,
        True,
    ]
    heavy, _, again = objective("data.class_weight=3").draw(0, 7)
    assert [i.record.path for i in again] == [i.record.path for i in items]
    light, _, _ = objective("data.class_weight=2").draw(0, 7)
    # loss = 训练 + 权重 x 同类：三个权重的结果排成一条直线，斜率是同类那一份
    assert torch.allclose(heavy - light, light - loss, atol=1e-6)
    kin = torch.stack([i.mean for i in items[2:]]).flatten(1).mean(1).mean()
    assert float(heavy - light) == pytest.approx(float(kin), abs=0.02)  # 只差后验里抽的那一点


def test_class_pictures_are_not_held_out_and_get_no_trigger(config, family, cats):
    settings = config(f"data.class_folder={cats}", "data.trigger=papercut", "eval.holdout=0.5")
    dataset = cache.prepare(settings, family)
    assert len(dataset.prior) == 6
    assert not any("papercut" in item.record.caption for item in dataset.prior)
    assert all(item.record.caption.startswith("papercut") for item in dataset.train)


def test_without_a_class_folder_nothing_changes(config, family):
    dataset = cache.prepare(config(), family)
    assert dataset.prior == ()


def test_training_pictures_among_the_class_pictures_are_refused(config, family, papercut, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in sorted(papercut.iterdir())[:2]:
        shutil.copy(path, mixed)
    with pytest.raises(DataError, match=r"class_folder.*也在训练图里"):
        cache.prepare(config(f"data.class_folder={mixed}"), family)


def test_a_trigger_in_the_class_captions_is_refused(config, family, cats):
    settings = config(f"data.class_folder={cats}", "data.trigger=猫")
    with pytest.raises(DataError, match=r"触发词“猫”.*描述里不写触发词"):
        cache.prepare(settings, family)


def test_a_missing_class_folder_is_named(config, family, tmp_path):
    with pytest.raises(DataError, match="没有这个文件夹"):
        cache.prepare(config(f"data.class_folder={tmp_path / 'none'}"), family)


def test_training_with_class_pictures_resumes_exactly(config, cats):
    extra = (f"data.class_folder={cats}", "train.steps=3", "train.save_every=1")
    whole, cut = config(*extra, output="whole"), config(*extra, output="cut")
    expected = [step.loss for step in Trainer(whole)]
    for step in Trainer(cut):
        if step.step == 2:
            break
    assert [step.loss for step in Trainer(cut)] == expected[2:]


def test_the_character_preset_differs_in_what_a_character_needs():
    from lorakit.config import differences, load_config

    style, character = load_config("tiny-qwen-image"), load_config("tiny-character")
    changed = differences(style, character)
    assert set(changed) == {"train.batch_size", "run.output"}
    assert character.data.class_weight == 1 and character.data.class_folder is None


def test_weights_without_anything_to_weigh_are_told(config):
    with pytest.warns(UserWarning, match=r"data\.class_weight 不起作用：没有写 data\.class_folder"):
        Trainer(config("data.class_weight=2"))
    with pytest.warns(UserWarning, match=r"data\.mask_floor 不起作用：data\.mask 是 none"):
        Trainer(config("data.mask_floor=0.5"))
