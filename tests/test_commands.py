"""话里叫人运行的命令：从源码里全收出来，每一条都真的出现过、照着改过、改完就成。

没有一句话叫人去运行一条必定失败的命令。
"""

import ast
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import random_zimage
import torch
from safetensors.torch import save_file

from lorakit import infer
from lorakit.cli import main
from lorakit.config import load_config
from lorakit.errors import WeightsError
from lorakit.families import open_family
from lorakit.lora import lokr
from lorakit.tiny import samples
from lorakit.train import Trainer

ROOT = Path(__file__).parents[1] / "lorakit"
PLACES = [*ROOT.glob("lora/*.py"), *ROOT.glob("infer/*.py"), ROOT / "cli/weights.py",
          ROOT / "cli/draw.py"]  # fmt: skip
WRITTEN = re.compile(
    r"lorakit [a-z]{3,}|(?<![\w-])--[a-z_]+|\w+_\w+\(|save_pretrained"
    r"|(?:model|data|lora|train|memory)\.\w+=\w+"
)
Q = "transformer_blocks.0.attn.to_q"
M, SMALL = "--model tiny-qwen-image", "--steps 2 --width 64 --height 64 --guidance 1 --out o.png"
P = "--prompt 一只猫"

# 源码里那句话的一段 -> 引出它的命令、照它改过的命令（几种改法都写）
CASES = {
    "是 DoRA：sd-scripts": (f"export dora.safetensors {M} --to kohya --out o",
        [f"export dora.safetensors {M} --to comfyui --out o",
         f"export dora.safetensors {M} --merge --out merged"]),
    "是按列算长度的 DoRA": (f"export columns.safetensors {M} --out o",
        [f"export columns.safetensors {M} --to comfyui --out o",
         f"export columns.safetensors {M} --merge --out merged"]),
    "不能叠加、缩秩、改份量": (f"export dora.safetensors {M} --rank 2 --out o",
        [f"export dora.safetensors {M} --out o"]),
    "是 LoKr，写成普通 LoRA": (f"export lokr.safetensors {M} --out o",
        [f"generate tiny-qwen-image --lora lokr.safetensors {P} {SMALL}",
         f"compare tiny-qwen-image --lora lokr.safetensors {P} --out c.png --set sample.size=64 "
         "--set sample.steps=2", f"export lokr.safetensors {M} --merge --out merged"]),
    "有 fp16 装不下的大数": (f"export huge.safetensors {M} --dtype fp16 --out o",
        [f"export huge.safetensors {M} --dtype bf16 --out o"]),
    "这个 LoRA 的数太小": (f"export faint.safetensors {M} --dtype fp16 --out o",
        [f"export faint.safetensors {M} --dtype fp32 --out o"]),
    "里没有文件名": (f"export plain.safetensors {M} --out .",
        [f"export plain.safetensors {M} --out 我的画风.safetensors"]),
    "用 lorakit audit 看全部": (f"export half.safetensors {M} --out o", []),  # 看的命令在下面
    "请换 --model": (f"export flux.safetensors {M} --out o",
        ["export flux.safetensors --model tiny-flux --out o"]),
    "文件里没有写是给哪个底模的": ("audit plain.safetensors", [f"audit plain.safetensors {M}"]),
    "它的底模是训练那台机器上的文件夹": ("audit away.safetensors",
        [f"audit away.safetensors {M}", "audit away.safetensors --model here.yaml"]),
    "只写进工作流": (f"export plain.safetensors {M} --out o {P}",
        [f"export ours.safetensors --out o {P} --family qwen-image --workflow w.json"]),
    "管的是 --out 的文件": ("export ours.safetensors --workflow w.json --to comfyui",
        ["export ours.safetensors --workflow w.json --to comfyui --out o"]),
    "去掉 --to、--dtype": (f"export plain.safetensors {M} --merge --to kohya --out merged",
        [f"export plain.safetensors {M} --merge --out merged"]),
    "ComfyUI 会丢掉它的长度": ("export dora-ours.safetensors --workflow w.json",
        ["export dora-ours.safetensors --workflow w.json --to comfyui --out o"]),
    "没有写是给哪个家族的": ("export plain.safetensors --workflow w.json",
        ["export plain.safetensors --workflow w.json --family qwen-image"]),
    "去掉它。": ("export ours.safetensors --workflow w.json --family flux",
        ["export ours.safetensors --workflow w.json"]),
    "就是要读的文件": (f"export plain.safetensors {M} --out plain.safetensors",
        [f"export plain.safetensors {M} --out other.safetensors"]),
    "合并好的 transformer 写进去会顶替它": (f"export plain.safetensors {M} --merge --out run",
        [f"export plain.safetensors {M} --merge --out merged"]),
    "就是要改的图": ("edit pairs/control/000.png 变成蓝色 --out pairs/control/000.png",
        ["edit pairs/control/000.png 变成蓝色 --out e.png --set sample.size=64 "
         "--set sample.steps=2"]),
    "不是 LoRA 文件。请用": ("audit run/checkpoint-2/state/weights.safetensors",
        ["audit run/checkpoint-2/pytorch_lora_weights.safetensors"]),
    "写到哪里？": (f"export plain.safetensors {M}",
        [f"export plain.safetensors {M} --out o", "export ours.safetensors --workflow w.json"]),
    "去掉其中一个": (f"export ours.safetensors {M} --workflow w.json --merge --out merged",
        ["export ours.safetensors --workflow w.json", f"export ours.safetensors {M} --merge --out "
         "merged"]),
    "要以 .json 结尾": ("export ours.safetensors --workflow w.txt",
        ["export ours.safetensors --workflow w.json"]),
    "秩至少是 1": (f"export plain.safetensors {M} --rank 0 --out o",
        [f"export plain.safetensors {M} --rank 1 --out o"]),
    "份量是 0.5、1 这样的数": (f"export plain.safetensors {M} --weight 1000 --out o",
        [f"export plain.safetensors {M} --weight 0.5 --out o"]),
    "份量 0 等于没有用": (f"export plain.safetensors {M} --weight 0 --out o",
        [f"export plain.safetensors {M} --weight 0.5 --out o"]),
    "互相抵消": (f"export plain.safetensors {M} --also plain.safetensors --weight 1 --weight=-1 "
        "--out o", [f"export plain.safetensors {M} --also plain.safetensors --weight 1 --weight 1 "
        "--out o"]),
    "（每个文件一个）": (f"export plain.safetensors {M} --also ours.safetensors --weight 1 --out o",
        [f"export plain.safetensors {M} --also ours.safetensors --weight 1 --weight 0.5 --out o"]),
    "没有 LoRA 可比较": (f"compare tiny-qwen-image {P} --out c.png",
        [f"compare run {P} --out c.png", f"compare tiny-qwen-image --lora plain.safetensors {P} "
         "--out c.png --set sample.size=64 --set sample.steps=2"]),
    "几个一起比用 compare": (f"generate run {P} --strength 0,1",
        [f"compare run {P} --strengths 0,0.5,1 --out c.png"]),
    "--strength：没有 LoRA": (f"generate tiny-qwen-image {P} --strength 1",
        [f"generate run {P} --strength 1 {SMALL}",
         f"generate tiny-qwen-image --lora plain.safetensors {P} --strength 1 {SMALL}"]),
    "和 --model_name": (f"generate run --model_name tiny-qwen-image {P}",
        [f"generate run {P} {SMALL}", f"generate --model_name tiny-qwen-image {P} {SMALL}"]),
    "用哪个模型画？": (f"generate {P}", [f"generate run {P} {SMALL}",
        f"generate --model_name tiny-qwen-image {P} {SMALL}",
        f"generate --lora_weights ours.safetensors {P} {SMALL}"]),
    "请用 --model_name 写上它在这里的位置": (f"generate --lora_weights away.safetensors {P}",
        [f"generate --lora_weights away.safetensors --model_name tiny-qwen-image {P} {SMALL}"]),
    "也可以写 all": (f"compare run {P} --checkpoints 99 --strengths 0,1",
        [f"compare run {P} --checkpoints all --strengths 0,1 --out c.png"]),
    "最多写两样": (f"compare run {P} --checkpoints all --strengths 0,1 --seeds 1",
        [f"compare run {P} --seeds 1,2 --strengths 0,1 --out c.png"]),
    "不知道它的底模是哪个": (f"generate loose/checkpoint-2 {P}",
        [f"generate tiny-qwen-image --lora loose/checkpoint-2 {P} {SMALL}",
         f"generate here.yaml --lora loose/checkpoint-2 {P} {SMALL}"]),
    "是两个 LoRA，只能写一个": (f"generate run/checkpoint-1 --lora plain.safetensors {P}",
        [f"generate run/checkpoint-1 {P} {SMALL}",
         f"generate run --lora plain.safetensors {P} {SMALL}"]),
    "用不上 --lora：去掉其中一个": (f"compare run --lora plain.safetensors --checkpoints all {P}",
        [f"compare run --checkpoints all {P} --out c.png",
         f"compare run --lora plain.safetensors {P} --out c.png"]),
    "--checkpoints 要写结果文件夹": (f"compare run/checkpoint-1 --checkpoints all {P}",
        [f"compare run --checkpoints all {P} --out c.png"]),
    "说的是同一件事，只能写一个": (f"compare run --seeds 1,2 --set sample.seed=5 {P}",
        [f"compare run --seeds 1,2 {P} --out c.png",
         f"compare run --set sample.seed=5 {P} --out c.png"]),
    "不能改图，它只会从文字画起": ("edit pairs/control/000.png 变成蓝色 --model tiny-qwen-image",
        ["edit pairs/control/000.png 变成蓝色 --model tiny-qwen-image-edit --out e.png "
         "--set sample.size=64 --set sample.steps=2"]),
    "要先有一张图才能改": (f"generate tiny-qwen-image-edit {P} --out o.png",
        ["edit pairs/control/000.png 变成蓝色 --model tiny-qwen-image-edit --out e.png "
         "--set sample.size=64 --set sample.steps=2"]),
}  # fmt: skip
ELSEWHERE = {  # 别的测试里照着做过的 -> 哪一个
    "merge_and_unload": "test_foreign_advice.py::test_what_is_not_read_can_be_merged_as_said",
    "path_initial_model": "test_foreign_advice.py::test_what_is_converted_as_said_is_a_plain_lora",
    "不能叠加、缩秩。": "test_foreign_kinds.py::test_dora_is_neither_added_nor_shrunk",
    "量化过的底模不能合并": "test_quantize.py::test_merging_into_a_quantized_base_says_why_not",
    "kohya 的写法里没有": "test_export.py::test_kohya_refuses_a_layer_it_has_no_name_for",
    "写法 ComfyUI 读不了": "test_commands.py::test_a_spelling_comfyui_does_not_read",
    "改图的那一份": "test_commands.py::test_the_workflow_of_editing",
    "什么也没有上传": "test_push.py::test_it_really_uploads",
    "lorakit judge": "test_judge.py::test_the_command_draws_once_and_says_what_it_saved",
    "没有强度可调": "test_strength.py::test_a_full_fine_tune_has_no_strength",
    "这条管线上没有": "test_commands.py::test_a_pipeline_without_a_lora",
    "得到了 NaN 或无穷大": "test_commands.py::test_every_setting_that_is_told_is_one",
}  # fmt: skip


def words(node) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(words(part) for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "{}"


def sentences(file: Path) -> list[str]:
    """一个文件里说给人听的、写着命令的话；选项的说明与文件、函数的说明不算。"""
    tree, skipped = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("option", "command"):
            skipped |= {id(part) for part in ast.walk(node)}
        elif isinstance(node, ast.Expr):
            skipped.add(id(node.value))
    told = (words(node) for node in ast.walk(tree) if id(node) not in skipped)
    return [said for said in told if WRITTEN.search(said) and re.search("[一-鿿]", said)]


def test_every_command_that_is_told_is_run_somewhere():
    for file in PLACES:
        for said in sentences(file):
            known = [key for key in (*CASES, *ELSEWHERE) if key in said]
            assert known, f"{file.name}：“{said}”写着命令，没有测试照着做过"
    for place in ELSEWHERE.values():
        name, _, test = place.partition("::")
        text = (Path(__file__).parent / name).read_text(encoding="utf-8")
        assert f"def {test}" in text, place


def test_every_setting_that_is_told_is_one():
    found = set()
    for file in ROOT.rglob("*.py"):
        for said in sentences(file):
            found |= set(re.findall(r"\b(?:model|train|memory|lora)\.\w+=[\w-]+", said))
    assert len(found) > 15 and "model.precision=bf16" in found
    for line in found:
        family = ["model.family=qwen-image-edit"] * ("path=Qwen" in line)
        load_config("tiny-qwen-image", [*family, line])


def test_a_pipeline_without_a_lora(here):
    config = load_config("tiny-qwen-image", ["sample.steps=2"])
    family = open_family(config)
    bare = infer.open_pipeline(family)
    given = ["一只猫"], config.sample, (64, 64)
    for wrong in (lambda: infer.set_strength(bare, 1), lambda: infer.compare(family, bare, *given)):
        with pytest.raises(WeightsError, match="这条管线上没有"):
            wrong()
    pipe = infer.open_pipeline(family, here / "plain.safetensors")
    infer.set_strength(pipe, 0.5)
    assert len(infer.compare(family, pipe, *given)) == 2


@pytest.fixture(scope="module")
def here(tmp_path_factory, papercut) -> Path:
    """一个文件夹：一次训练，和各种 LoRA 文件。"""
    place = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORAKIT_CACHE", str(place / "cache"))
        patch.chdir(place)
        sets = [f"data.folder={papercut}", f"run.output={place / 'run'}", "train.steps=2",
                "train.batch_size=1", "eval.every=0", "data.resolution=64", "sample.steps=2",
                "sample.size=64", "train.save_every=1"]  # fmt: skip
        list(Trainer(load_config("tiny-qwen-image", sets)))
        shutil.copytree(place / "run/checkpoint-2", place / "loose/checkpoint-2")
        samples.write("edit-blue", place / "pairs", count=4)
        files(place)
    picture = next((place / "pairs/control").glob("*.png"))
    picture.rename(picture.with_name("000.png"))
    return place


def files(place: Path):
    layer = open_family(load_config("tiny-qwen-image")).skeleton().get_submodule(Q)
    wide, out, g = layer.in_features, layer.out_features, torch.Generator().manual_seed(0)
    a, b = torch.randn(4, wide, generator=g), torch.randn(out, 4, generator=g) * 0.1
    pair = {f"transformer.{Q}.lora_A.weight": a, f"transformer.{Q}.lora_B.weight": b}
    lengths = torch.rand(out, generator=g) + 0.5
    dora = pair | {f"transformer.{Q}.lora_magnitude_vector": lengths}
    made = {
        "plain": pair, "dora": dora, "half": pair | {"transformer.x.to_q.lora_A.weight": a,
                                                     "transformer.x.to_q.lora_B.weight": b},
        "columns": pair | {f"transformer.{Q}.dora_scale": torch.rand(1, wide) + 0.5},
        "lokr": {f"transformer.{Q}.lokr_w1": torch.randn(2, 2, generator=g) * 0.1,
                 f"transformer.{Q}.lokr_w2": torch.randn(out // 2, wide // 2, generator=g)},
        "huge": {**pair, f"transformer.{Q}.lora_B.weight": b * 1e6},
        "faint": {k: v * 1e-8 for k, v in pair.items()},
        "flux": {f"transformer.single_transformer_blocks.0.attn.to_k.lora_{side}.weight":
                 torch.randn(*shape, generator=g) * 0.1
                 for side, shape in (("A", (4, 128)), ("B", (128, 4)))},
    }  # fmt: skip
    for name, tensors in made.items():
        save_file({k: v.clone() for k, v in tensors.items()}, place / f"{name}.safetensors")
    card = {"family": "qwen-image", "base": "my-base", "alpha": "folded"}
    save_file(pair, place / "away.safetensors", {"lorakit": json.dumps(card)})
    card |= {"base": "tiny-qwen-image"}
    save_file(pair, place / "ours.safetensors", {"lorakit": json.dumps(card)})
    save_file(dora, place / "dora-ours.safetensors", {"lorakit": json.dumps(card)})
    (place / "here.yaml").write_text("model: {family: qwen-image, path: tiny-qwen-image}\n")


def run(capsys, line: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(shlex.split(line))
    return code, "".join(capsys.readouterr())


@pytest.mark.filterwarnings("ignore::lorakit.errors.LorakitWarning")
@pytest.mark.parametrize("key", CASES)
def test_what_is_told_works(here, monkeypatch, capsys, key):
    monkeypatch.chdir(here)
    if "LoKr" in key:
        monkeypatch.setattr(lokr, "PLAIN_RANK", 1)
    first, mended = CASES[key]
    code, told = run(capsys, first)
    assert code == 1 and key in told, told
    for line in mended:
        code, told = run(capsys, line)
        assert code == 0, f"{line}\n{told}"
    if "lorakit audit" in key:
        assert "没有地方放" in run(capsys, f"audit half.safetensors {M}")[1]


def carded(place: Path, family: str, base: str, path: str = Q, wide: int = 2) -> str:
    """一份写着家族与底模的文件；写工作流只看卡片。"""
    shapes = {"A": (2, wide), "B": (wide, 2)}
    pair = {f"transformer.{path}.lora_{s}.weight": torch.ones(shapes[s]) for s in "AB"}
    file = place / f"{family}.safetensors"
    card = {"family": family, "base": base, "alpha": "folded"}
    save_file(pair, file, {"lorakit": json.dumps(card)})
    return file.name


def test_the_workflow_of_editing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = carded(tmp_path, "qwen-image-2.1", "Qwen/Qwen-Image-2.1")
    code, told = run(capsys, f"export {file} --workflow w.json")
    line = re.search(r"加上 (--family [\w.-]+)", told)
    assert code == 0 and line, told
    assert run(capsys, f"export {file} --workflow e.json {line[1]}")[0] == 0


def test_a_spelling_comfyui_does_not_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wide = json.loads((random_zimage.build(tmp_path / "z") / "transformer/config.json").read_text())
    (tmp_path / "z.yaml").write_text(f"model: {{family: z-image, path: {tmp_path / 'z'}}}")
    path = "layers.0.attention.to_q"
    file = carded(tmp_path, "z-image", "Tongyi-MAI/Z-Image-Turbo", path, wide["dim"])
    line = f"export {file} --model z.yaml --workflow w.json --out o --to "
    code, told = run(capsys, line + "kohya")
    assert code == 1 and "改成 --to comfyui" in told, told
    assert run(capsys, line + "comfyui")[0] == 0


def test_nothing_is_harmed_by_what_is_written(here, monkeypatch, capsys):
    """盖掉正在读的文件、顶替底模、换成别的大小的权重留下一半：都不会悄悄发生。"""
    monkeypatch.chdir(here)
    before = (here / "plain.safetensors").read_bytes()
    link = here / "link.safetensors"
    link.symlink_to("plain.safetensors")
    for out in ("plain.safetensors", "./plain", "link.safetensors"):
        assert run(capsys, f"export plain.safetensors {M} --out {out}")[0] == 1
    assert (here / "plain.safetensors").read_bytes() == before
    picture = (here / "pairs/control/000.png").read_bytes()
    shown = "compare tiny-qwen-image-edit --lora plain.safetensors --prompt 变 --image"
    assert run(capsys, f"{shown} pairs/control/000.png --out pairs/control/000.png")[0] == 1
    assert (here / "pairs/control/000.png").read_bytes() == picture
    (here / "base").mkdir()
    (here / "base/model_index.json").write_text("{}")
    assert run(capsys, f"export plain.safetensors {M} --merge --out base")[0] == 1
    old = here / "again/transformer"
    old.mkdir(parents=True)
    for name in ("-00001-of-00002.safetensors", ".safetensors.index.json"):
        (old / f"diffusion_pytorch_model{name}").write_bytes(b"{}")
    assert run(capsys, f"export plain.safetensors {M} --merge --out again")[0] == 0
    assert {p.name for p in old.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}


@pytest.mark.parametrize("line", [
    f"generate run {P} --seed 1 --set sample.seed=2", f"generate run {P} --steps 2 --set "
    "sample.steps=3", f"generate run {P} --guidance 1 --set sample.guidance=2",
    f"generate run {P} --width 64 --height 64 --set sample.size=128",
    f"generate run {P} --quantization int8 --set model.quantize=none",
])  # fmt: skip
def test_an_option_and_a_setting_of_the_same_thing_are_not_half_heard(
    here, monkeypatch, capsys, line
):
    monkeypatch.chdir(here)
    code, told = run(capsys, line)
    assert code == 1 and "说的是同一件事，只能写一个" in told, told


def test_a_checkpoint_is_taken_wherever_a_run_is(here, monkeypatch, capsys):
    """写 run/checkpoint-1 就是那一个：画、比、改写、体检、判断；说的也是那一步。"""
    monkeypatch.chdir(here)
    one, file = "run/checkpoint-1", "run/checkpoint-1/pytorch_lora_weights.safetensors"
    drawn = []
    for source in (one, file, "run", f"tiny-qwen-image --lora {one} --set sample.steps=2"):
        code, told = run(capsys, f"generate {source} {P} --width 64 --height 64 --out o.png")
        assert code == 0, told
        drawn.append((here / "o.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]
    code, told = run(capsys, f"compare {one} {P} --out c.png")
    assert code == 0 and "第 1 步的判断——" in told and "最后一步" not in told, told
    assert "最后一步的判断——" in run(capsys, f"compare run {P} --out c.png")[1]
    assert run(capsys, f"generate --model_name {one} {P} --out o.png")[0] == 0
    for line in (
        f"audit {one}",
        f"export {one} --out e",
        f"push {one} --to huggingface --repo a/b",
    ):
        assert run(capsys, line)[0] == 0, line
    asked = "--prompts 剪纸风格，一只大狗在中间 --json"
    code, told = run(capsys, f"judge {one} {asked}")
    assert code == 0 and list(json.loads(told[told.index("{") :])["verdicts"]) == ["1"], told
    code, told = run(capsys, f"judge {one} --steps 2")
    assert code == 1 and "是第 1 步的检查点，又要看第 2 步" in told, told


def test_an_option_given_twice_is_not_half_heard(capsys):
    line = "generate tiny-qwen-image --prompt 猫 --lora a.safetensors --lora_weights b.safetensors"
    with pytest.raises(SystemExit) as code:
        main(shlex.split(line))
    assert code.value.code == 2
    assert "--lora、--lora_weights 写了两次，只能写一个" in capsys.readouterr().err
