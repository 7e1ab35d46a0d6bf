"""与 LoRA 文件打交道的命令：export 转换、合并、缩秩，audit 体检，push 发布。"""

from pathlib import Path

from lorakit.errors import LorakitError


def _family(args, file: Path):
    """--model 指定的底模，没写就用文件或结果文件夹里记着的。"""
    from lorakit import lora
    from lorakit.config import load_config
    from lorakit.families import open_family

    inside = next((p / "config.yaml" for p in (file, *file.parents[:2]) if p.is_dir()), None)
    if args.model:
        source = Path(args.model)
        config = load_config(source if source.is_file() else args.model)
    elif inside is not None and inside.is_file():
        config = load_config(inside)
    else:
        card = lora.read(file)[1]
        if "family" not in card or "base" not in card:
            raise LorakitError("文件里没有写是给哪个底模的。请用 --model 写上预设名或 YAML 文件。")
        sets = [f"model.family={card['family']}", f"model.path={card['base']}"]
        config = load_config("tiny-qwen-image", sets)
    return open_family(config)


def export(args) -> int:
    """转换写法；可以先叠几个、缩秩，也可以直接合并进底模。"""
    from torch import nn

    from lorakit import full, lora, lora_files

    files = [lora.find(path) for path in (args.file, *args.also)]
    weights = args.weight or [1.0] * len(files)
    if len(weights) != len(files):
        raise LorakitError(
            f"--weight 要写 {len(files)} 个（每个文件一个），得到 {len(weights)} 个。"
        )
    family = _family(args, args.file)
    shell = family.skeleton()
    modules = [name for name, module in shell.named_modules() if isinstance(module, nn.Linear)]
    several = []
    for file, weight in zip(files, weights, strict=True):
        lora_files.refuse(lora_files.audit(file, shell), file)
        several.append((lora_files.read(file, modules)[0], weight))
    layers = lora_files.combine(several) if len(several) > 1 or weights != [1.0] else several[0][0]
    if args.rank:
        layers, kept = lora_files.resize(layers, args.rank)
        print(f"缩到秩 {args.rank}，保住了 {kept:.1%} 的能量（ΔW 的平方和）。")
    if args.merge:
        transformer = family.load("transformer")
        lora_files.merge(layers, transformer)
        print(f"合并好了：{full.save(args.out, transformer, family)}")
        return 0
    card = lora.read(files[0])[1] | {"alpha": "folded"}
    card["rank"] = str(max(len(a) for a, _ in layers.values()))
    made = lora_files.write(layers, args.to, args.out, card)
    print(f"写好了：{made}（{args.to}，{len(layers)} 层；重读核对过，每层的 ΔW 都没有变）")
    return 0


def audit(args) -> int:
    """体检一个 LoRA 文件：多少层放得上、改了多少、有没有坏数。"""
    from lorakit import lora, lora_files

    file = lora.find(args.file)
    result = lora_files.audit(file, _family(args, args.file).skeleton())
    print(result.text())
    return 0 if result.good else 1


def push(args) -> int:
    """列出要上传的；写了 --yes 才真的上传。"""
    from lorakit import push as publish

    wanted = publish.plan(args.source, args.to, args.repo, not args.public)
    print(wanted.text())
    if not args.yes:
        print("\n这只是预演，什么也没有上传。看过没问题，再加上 --yes。")
        return 0
    print(f"\n传好了：{publish.upload(wanted)}")
    return 0
