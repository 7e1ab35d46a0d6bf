"""自动写描述：三种模型各造一个极小的（随机权重，同样的类），不联网；不盖掉已有的，断了接着来。"""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from lorakit import cli
from lorakit.data import inspect
from lorakit.data.caption import KINDS, Captioner, caption_folder
from lorakit.errors import DataError, LorakitError

WORDS = ["a", "cat", "dog", "on", "red", "blue", "meadow", "with", "the", "sea", "big", "hat"]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>",
           "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]  # fmt: skip


def tokenizer(image_token: str) -> transformers.PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(SPECIAL)
    named = {"extra_special_tokens": {"image_token": image_token}} if image_token else {}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", **named,
    )  # fmt: skip


def florence(folder, words):
    text = {"model_type": "bart", "vocab_size": len(words), "d_model": 16, "encoder_layers": 1,
            "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 256,
            "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
            "decoder_start_token_id": 2, "forced_eos_token_id": None}  # fmt: skip
    vision = {"depths": [1, 1, 1, 1], "embed_dim": [8, 8, 8, 8], "num_heads": [1, 1, 1, 1],
              "num_groups": [1, 1, 1, 1], "window_size": 2, "projection_dim": 16}  # fmt: skip
    config = transformers.Florence2Config(
        text_config=text, vision_config=vision, image_token_id=words.image_token_id
    )
    images = transformers.CLIPImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64}
    )
    images.image_seq_length = 5  # 2x2 个格子，加一个平均
    transformers.Florence2Processor(images, words).save_pretrained(folder)
    return transformers.Florence2ForConditionalGeneration(config)


def blip(folder, words):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
              "num_attention_heads": 2, "image_size": 32, "patch_size": 16}  # fmt: skip
    former = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "intermediate_size": 16, "encoder_hidden_size": 16, "vocab_size": 30}  # fmt: skip
    text = {"model_type": "opt", "vocab_size": len(words), "hidden_size": 16, "ffn_dim": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16,
            "max_position_embeddings": 256, "pad_token_id": 1, "bos_token_id": 0,
            "eos_token_id": 2}  # fmt: skip
    config = transformers.Blip2Config(
        vision_config=vision, qformer_config=former, text_config=text, num_query_tokens=4,
        image_token_index=SPECIAL.index("<image>"),
    )  # fmt: skip
    images = transformers.BlipImageProcessor(size={"height": 32, "width": 32})
    transformers.Blip2Processor(images, words, num_query_tokens=4).save_pretrained(folder)
    return transformers.Blip2ForConditionalGeneration(config)


def qwen(folder, words):
    ids = words.convert_tokens_to_ids(SPECIAL)
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
              "out_hidden_size": 16, "fullatt_block_indexes": [0]}  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids[9], video_token_id=ids[10],
        vision_start_token_id=ids[7], vision_end_token_id=ids[8],
    )  # fmt: skip
    words.save_pretrained(folder)
    transformers.Qwen2VLImageProcessor(min_pixels=784, max_pixels=3136).save_pretrained(folder)
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


MAKE = {"florence-2": (florence, "<image>"), "blip-2": (blip, ""),
        "qwen2.5-vl": (qwen, "<|image_pad|>")}  # fmt: skip


def only_words(model):
    """随机的权重多半一开口就是句末记号；不许它说特殊记号，才有字可看。"""
    model.generation_config.forced_eos_token_id = None
    model.generation_config.suppress_tokens = list(range(len(SPECIAL)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """名字 -> 存好的极小模型的文件夹。"""
    made = {}

    def make(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace(".", ""))
            build, image_token = MAKE[name]
            torch.manual_seed(1)
            model = build(folder, tokenizer(image_token))
            only_words(model)
            model.save_pretrained(folder)
            made[name] = folder
        return str(made[name])

    return make


@pytest.fixture
def folder(tmp_path):
    made, rng = tmp_path / "pics", np.random.default_rng(0)
    (made / "里面").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "里面/c.png"):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), np.uint8)).save(made / name)
    return made


@pytest.mark.parametrize("name", MAKE)
def test_each_model_writes_words_from_a_local_folder(tiny, name):
    captioner = Captioner(tiny(name), length="short")
    assert captioner.name == name
    if name == "blip-2":  # 它的文字部分用自己的生成设置，存盘时不带
        only_words(captioner.model.language_model)
    image = Image.new("RGB", (60, 40), "red")
    said = captioner(image)
    words = said.split()
    assert words and set(words) <= set(WORDS)  # 没有特殊记号
    assert len(words) <= 40
    assert captioner(image) == said
    assert len(words) >= 30  # 只有回答，没有把问题也算进去


def test_qwen_sees_one_token_for_each_merged_patch(tiny):
    captioner = Captioner(tiny("qwen2.5-vl"))
    assert captioner.model
    batch = captioner._qwen(Image.new("RGB", (56, 112), "red"))
    assert batch["image_grid_thw"].tolist() == [[1, 4, 2]]  # 缩到上限以内，14 像素一格
    assert int(batch["mm_token_type_ids"].sum()) == 2  # 2x2 格并成一个


def test_the_longest_length_writes_more(tiny):
    image = Image.new("RGB", (60, 40), "blue")
    short, long = (Captioner(tiny("qwen2.5-vl"), length=n)(image) for n in ("short", "long"))
    assert len(long.split()) > len(short.split())


def test_the_command_fills_gaps_only(tiny, folder, capsys):
    (folder / "a.txt").write_text("我自己写的", encoding="utf-8")
    (folder / "b.txt").write_text(" \n", encoding="utf-8")  # 空的：补上不算盖掉
    command = ["caption", str(folder), "--model", tiny("florence-2"), "--prefix", "ohwx cat"]
    assert cli.main(command) == 0
    assert "写好了 2 份描述；1 张图已经有描述" in capsys.readouterr().out
    assert (folder / "a.txt").read_text("utf-8") == "我自己写的"
    first = (folder / "里面" / "c.txt").read_text("utf-8")
    assert first.startswith("ohwx cat, ") and (folder / "b.txt").read_text("utf-8").strip()
    assert cli.main(command) == 0
    assert "写好了 0 份描述；3 张" in capsys.readouterr().out
    assert cli.main([*command, "--overwrite"]) == 0
    assert (folder / "a.txt").read_text("utf-8").startswith("ohwx cat, ")


def test_stopping_in_the_middle_keeps_what_was_written(folder):
    seen = []

    def write(image):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(image.size)
        return "一只猫"

    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, write)
    assert len(list(folder.rglob("*.txt"))) == 2
    assert not list(folder.rglob("*.tmp"))
    done = caption_folder(folder, lambda image: "一只狗", prefix="ohwx")
    assert (done.written, done.kept, done.failed) == (1, 2, ())
    assert (folder / "里面" / "c.txt").read_text("utf-8") == "ohwx，一只狗\n"


def test_other_places_that_already_say_it_are_kept(folder):
    (folder / "a.caption").write_text("一", encoding="utf-8")
    row = json.dumps({"file_name": "b.jpg", "text": "二"})
    (folder / "metadata.jsonl").write_text(row + "\n", encoding="utf-8")
    (folder / "里面" / "c.txt").write_bytes("一只猫在草地上跑".encode("gbk"))  # 读不懂也不盖
    assert caption_folder(folder, lambda image: pytest.fail()).kept == 3


NAMES = ("a.png", "b.jpg", "里面/c.png")
TABLES = {  # 体检和训练认得的表，各写着三张图
    "captions.json": json.dumps([{"image": one, "caption": f"我的 {one}"} for one in NAMES]),
    "meta_cap.json": json.dumps({one: {"tags": f"我的 {one}"} for one in NAMES}),
    "d.jsonl": "\n".join(json.dumps({"image_path": one, "caption": "我的"}) for one in NAMES),
    "metadata.csv": "file_name;text\n" + "\n".join(f"{one};我的, {one}" for one in NAMES),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_that_training_reads_counts(folder, name, overwrite):
    (folder / name).write_text(TABLES[name], encoding="utf-8")
    done = caption_folder(folder, lambda image: pytest.fail(), "ohwx", overwrite)
    assert done.kept == 3 and not inspect(folder)[1].errors


def test_overwriting_is_only_of_txt(folder):
    """写在 .caption、.json 里的不动：再写一份 .txt，就成了两种写法。"""
    (folder / "a.caption").write_text("一", encoding="utf-8")
    (folder / "b.json").write_text('{"text": "二"}', encoding="utf-8")
    (folder / "里面" / "c.txt").write_text("三", encoding="utf-8")
    done = caption_folder(folder, lambda image: "一只猫", overwrite=True)
    assert (done.written, done.kept) == (1, 2) and not inspect(folder)[1].errors


@pytest.mark.parametrize(("name", "content"), [
    ("metadata.csv", "file_name,text\na.png,一只红色的猫坐着\n".encode("gbk")),
    ("metadata.jsonl", b'{"file_name": "a.png", "text": "x"'),
    ("captions.json", b'[{"image": "a.png", "caption": "x"}'), ("data.parquet", b"PAR1"),
])  # fmt: skip
def test_a_table_that_is_not_understood_stops_the_writing(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=r"描述表还有没读懂的地方[\s\S]*改好，或移走它"):
        caption_folder(folder, lambda image: pytest.fail())
    assert not list(folder.rglob("*.txt"))
    for one in NAMES:
        (folder / one).with_suffix(".txt").write_text("我的", encoding="utf-8")
    assert caption_folder(folder, lambda image: pytest.fail()).kept == 3  # 没有要写的，不拦


def test_pairs_of_a_yaml_are_not_captioned(tiny, folder, tmp_path, capsys):
    (tmp_path / "before").mkdir()
    text = f"data: {{folder: '{folder}', control_folder: '{tmp_path / 'before'}'}}"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert cli.main(["caption", str(tmp_path / "mine.yaml"), "--model", tiny("florence-2")]) == 1
    assert "是编辑数据" in capsys.readouterr().err and not list(folder.rglob("*.txt"))


def test_what_cannot_be_written_is_named(folder):
    (folder / "a.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (40, 40)).save(folder / "b.png")
    answers = iter(["一只猫", ""])
    done = caption_folder(folder, lambda image: next(answers))
    assert done.written == 1 and not (folder / "a.txt").exists()
    text = done.text()
    assert "a.png：文件坏了" in text and "b.png：和 b.jpg 同名" in text
    assert "c.png：模型什么也没写" in text


def test_wrong_options_say_what_to_write(tiny, tmp_path):
    with pytest.raises(LorakitError, match=r"不认识“gpt”。可选：florence-2、blip-2、qwen2\.5-vl"):
        Captioner("gpt")
    for name in ("florence-2", "blip-2"):
        with pytest.raises(LorakitError, match=r"只会写英文。要中文请用 --model qwen2\.5-vl"):
            Captioner(name, language="zh")
    with pytest.raises(LorakitError, match="--length：没有“huge”"):
        Captioner("blip-2", length="huge")
    with pytest.raises(LorakitError, match="--language：没有“法语”"):
        Captioner("blip-2", language="法语")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(LorakitError, match="BertModel，这里能用的是 Florence2"):
        Captioner(str(tmp_path))
    (tmp_path / "config.json").write_text(
        f'{{"architectures": ["{KINDS["blip-2"].architecture}"]}}'
    )
    with pytest.raises(LorakitError, match=r"里的模型读不出来，多半是没有下载完"):
        Captioner(str(tmp_path))(Image.new("RGB", (40, 40)))
    with pytest.raises(DataError, match="没有这个文件夹"):
        caption_folder(tmp_path / "none", len)


class Evil:
    """打开它就会运行的 pickle。"""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def _pickle(home):
    torch.save({"x": Evil()}, home / "pytorch_model.bin")
    (home / "model.safetensors").unlink()


def _keep(share: float):
    def damage(home):
        raw = (home / "model.safetensors").read_bytes()
        (home / "model.safetensors").write_bytes(raw[: int(len(raw) * share)])

    return damage


def _layer(home):
    tensors = load_file(home / "model.safetensors")
    tensors.pop(next(name for name in tensors if "layers.0" in name))
    save_file(tensors, home / "model.safetensors", {"format": "pt"})


def _without(*names):
    return lambda home: [(home / name).unlink(missing_ok=True) for name in names]


DAMAGE = {
    "pickle": _pickle, "half": _keep(0.5), "empty": _keep(0), "layer": _layer,
    "no words": _without("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "no pictures": _without("preprocessor_config.json", "processor_config.json"),
    "words": lambda home: (home / "tokenizer.json").write_text("[" * 100_000),
    "settings": lambda home: (home / "preprocessor_config.json").write_text("[]"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_is_one_sentence_and_no_code_runs(tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny("qwen2.5-vl"), tmp_path / "m")
    DAMAGE[name](tmp_path / "m")
    with pytest.raises(LorakitError, match=r"里的模型读不出来.*safetensors"):
        Captioner(str(tmp_path / "m"))(Image.new("RGB", (40, 40)))
    assert not (tmp_path / "ran").exists()


def test_the_folder_is_looked_at_before_the_model(folder, tmp_path, capsys, monkeypatch):
    """文件夹写错了、都有描述了，就不去下载几个 GB。"""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # 不真的去连
    assert cli.main(["caption", str(tmp_path / "没有")]) == 1
    assert "没有这个文件夹" in capsys.readouterr().err
    for path in folder.rglob("*.[pj]*g"):
        path.with_suffix(".txt").write_text("一只猫", encoding="utf-8")
    assert cli.main(["caption", str(folder)]) == 0
    assert "3 张图已经有描述" in capsys.readouterr().out
    (folder / "a.txt").unlink()
    monkeypatch.setitem(KINDS, "blip-2", replace(KINDS["blip-2"], repository="no/such"))
    assert cli.main(["caption", str(folder), "--model", "blip-2"]) == 1
    said = capsys.readouterr().err
    assert "“no/such”不在本地，也没能从模型站下载" in said and "Traceback" not in said


def test_a_yaml_names_the_folders_and_the_trigger(tiny, folder, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(f"data: {{folder: {folder}, trigger: ohwx}}")
    assert cli.main(["caption", str(tmp_path / "mine.yaml"), "--model", tiny("florence-2")]) == 0
    assert "写好了 3 份描述" in capsys.readouterr().out
    assert all(path.read_text("utf-8").startswith("ohwx, ") for path in folder.rglob("*.txt"))
    (tmp_path / "mine.yaml").write_text("data: {trigger: ohwx}")
    assert cli.main(["caption", str(tmp_path / "mine.yaml")]) == 1
    assert "没有写 data.folder" in capsys.readouterr().err


def test_every_language_and_length_has_a_question():
    from lorakit.data.caption import LENGTHS

    for kind in KINDS.values():
        assert set(kind.prompts) == {(a, b) for a in kind.languages for b in LENGTHS}
