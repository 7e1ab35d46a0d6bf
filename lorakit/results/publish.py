"""发布：挑出该上传的（LoRA、模型卡、样张、设置），说清楚，你点头了才真的上传。"""

import logging
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path, PurePosixPath

import requests
import yaml
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from lorakit import lora
from lorakit.config.read import bounded
from lorakit.errors import LorakitError
from lorakit.files import Unreadable, read_small
from lorakit.hub import REPO
from lorakit.hub.transfer import gigabytes
from lorakit.lora import full, metadata
from lorakit.results import card, checkpoint

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".npz", ".joblib"}
LONGEST = 1 << 20  # 字节；模型卡、设置再长也不到
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
SITES = {"modelscope": "ModelScope", "huggingface": "Hugging Face"}
COMMANDS = re.compile(r"```bash\n(?:(?!```).)*```\n+", re.DOTALL)  # 本机的路径，对别人没有用


@dataclass(frozen=True)
class Plan:
    """要上传什么：files 是 {仓库里的路径: 内容的所在，或改写过的内容}。"""

    site: str
    repo: str
    private: bool
    files: dict[str, Path | bytes]
    left: tuple[str, ...]  # 结果文件夹里不上传的
    missing: tuple[str, ...]  # 最好补上的
    told: tuple[str, ...] = ()  # 要知道的

    def text(self) -> str:
        """给人看的清单。"""
        seen = "新建成私有的，只有你看得到；要公开加 --public" if self.private else "新建成公开的"
        total = sum(_size(content) for content in self.files.values())
        lines = [f"上传到 {SITES[self.site]} 的 {self.repo}（{seen}），共 {gigabytes(total)}："]
        lines += [f"  {name}（{gigabytes(_size(c))}）" for name, c in self.files.items()]
        lines += [f"  不上传：{line}" for line in self.left]
        lines += [f"  最好补上：{line}" for line in self.missing]
        lines += [f"  请看一遍：{line}" for line in self.told]
        return "\n".join(lines)


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def plan(source: Path, site: str, repo: str, private: bool = True) -> Plan:
    """一次训练的结果文件夹、检查点或一个 LoRA 文件 -> 要上传的清单；不联网。

    Raises:
        LorakitError: 仓库名不对、没有 LoRA。
        WeightsError: pickle、文件坏了、不是 LoRA、里面有 NaN。
    """
    if not REPO.fullmatch(repo):
        raise LorakitError(
            f"--repo：得到“{repo}”，应为 用户名/模型名，例如 zhangsan/papercut-lora。"
        )
    if not source.exists():
        raise LorakitError(f"没有这个文件或文件夹：“{source}”。")
    source = source.resolve()
    weights = _weights(source)
    files: dict[str, Path | bytes] = dict(weights)
    run = _run_of(source)
    text = _read(run / card.NAME) if run and (run / card.NAME).is_file() else None
    missing, told = [], []
    if text is not None:
        text, told = _of_step(text, run, next(iter(weights.values())))
    if text is None:
        missing.append("模型卡 README.md：没有它，别人不知道底模和触发词（训练完会自动写一份）")
    else:
        missing += _lacks(text)
        pictures = _pictures(text)
        found = {name: run / name for name in pictures if _inside(run, name)}
        missing += [
            f"样张 {name}：卡里写着，可是没有这个图" for name in pictures if name not in found
        ]
        missing += [] if found else ["样张：一张图胜过一页字（训练时写 sample.prompts 就有）"]
        files = {card.NAME: _published(text, site, repo).encode(), **files, **found}
    if run and (run / "config.yaml").is_file():
        files["config.yaml"] = _without_paths(_read(run / "config.yaml")).encode()
    taken = {content for content in files.values() if isinstance(content, Path)}
    left = _left(run, taken) if run else []
    files = {name: _clean(content) for name, content in files.items()}
    return Plan(site, repo, private, files, tuple(left), tuple(missing), tuple(told))


def _of_step(text: str, run: Path, file: Path) -> tuple[str, list[str]]:
    """卡说的不是要传的那一步，就改成说它 -> (卡, 要说的话)；别人写的卡照旧。"""
    said, step = card.told_step(text), _step_of(file)
    if None in (said, step) or said == step:
        return text, []
    _front(text)  # 写错了的在这里说
    told = f"模型卡说的是第 {said} 步，要传的是第 {step} 步：已改成第 {step} 步的步数、判断和样张"
    text = card.restated(text, run, step)
    none = f"样张：第 {step} 步没有画过，不放；要就用 lorakit generate 画几张，写进模型卡"
    return text, [told, *[none] * (f"samples/{step}_" not in text)]


def _step_of(file: Path) -> int | None:
    """这个权重文件是第几步的：看它在哪个检查点里，再看它自己记着的。"""
    inside = [step for one in file.parents[:2] if (step := checkpoint.step_of(one)) is not None]
    if inside or file.parent.name == full.FOLDER:
        return inside[0] if inside else None
    known = lora.read(file)[1].get("steps", "")
    return int(known) if known.isdecimal() else None


def _clean(content: Path | bytes) -> Path | bytes:
    """safetensors 的文件头里有本地的路径，就换成去掉了的。"""
    if isinstance(content, Path) and content.suffix == ".safetensors":
        return metadata.clean(content) or content
    return content


def _weights(source: Path) -> dict[str, Path]:
    whole = full.find(source) if source.is_dir() else None
    if whole is not None:
        checkpoint.refuse_changed(whole)
        kept = [p for p in sorted(whole.iterdir()) if p.suffix in (".safetensors", ".json")]
        return {f"{full.FOLDER}/{path.name}": path for path in kept}
    file = checkpoint.exported(source)
    if file.suffix != ".safetensors":
        raise LorakitError(f"“{file}”不是 safetensors 文件，不上传。")
    lora.read(file)  # 坏的、不是 LoRA 的、有 NaN 的，都在这里报错
    return {file.name: file}


def _run_of(source: Path) -> Path | None:
    """这个文件或检查点属于哪个结果文件夹；单独的文件就是 None。"""
    if source.is_dir() and (source / card.NAME).is_file():
        return source
    around = [source, *source.parents[:2]]
    return next((p for p in around if (p / "config.yaml").is_file()), None)


def _read(path: Path) -> str:
    try:
        return read_small(path, LONGEST).decode("utf-8")
    except (Unreadable, ValueError) as error:
        raise LorakitError(f"“{path}”读不出来（要 UTF-8 的文字）：{error}。") from error


def _front(text: str) -> dict:
    """模型卡的 YAML 头。"""
    found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    try:
        head = bounded(found[1]) if found else {}
    except yaml.YAMLError as error:
        raise LorakitError(
            f"{card.NAME} 开头两行 --- 之间的 YAML 写错了：{str(error).splitlines()[0]}。"
            "改好再上传，不然两个站都读不出底模和许可。"
        ) from error
    return head if isinstance(head, dict) else {}


def _lacks(text: str) -> list[str]:
    head, lacking = _front(text), []
    if not head.get("base_model"):
        lacking.append("base_model：卡里没有写底模在站上的名字，别人不知道配哪个底模用")
    if not head.get("license"):
        lacking.append("license：卡里没有写许可")
    if not head.get("instance_prompt"):
        lacking.append("instance_prompt：没有触发词；不用触发词就不用管")
    return lacking


def _pictures(text: str) -> list[str]:
    """卡里提到的图，各一次。"""
    rows = _front(text).get("widget") or []
    urls = [((row.get("output") or {}).get("url")) for row in rows if isinstance(row, dict)]
    names = [name for name in [*urls, *card.LINKS.findall(text)] if isinstance(name, str)]
    return [name for name in dict.fromkeys(names) if not name.startswith(("http:", "https:"))]


def _inside(run: Path, name: str) -> bool:
    """是结果文件夹里的一张图：不许用 .. 或链接指到外面去。"""
    path = run / name
    within = path.resolve().is_relative_to(run.resolve())
    plain = ".." not in PurePosixPath(name).parts
    return plain and within and path.is_file() and path.suffix.lower() in PICTURES


def _published(text: str, site: str, repo: str) -> str:
    """卡里的代码改成从仓库载入；只有你机器上才有的命令去掉。"""
    where = f'lora = "{repo}"'
    if site == "modelscope":
        where = f'from modelscope import snapshot_download\n\nlora = snapshot_download("{repo}")'
    text = card.LORA_LINE.sub(lambda _: where, card.without_paths(text))
    return COMMANDS.sub("", text)


def _without_paths(text: str) -> str:
    """设置里的文件夹只留最后一段：别人用不上，还会露出你的用户名。"""
    try:
        tree = metadata.bare(bounded(text))
    except (yaml.YAMLError, RecursionError) as error:
        raise LorakitError("config.yaml 读不懂，不上传：请改好，或把它移走再来。") from error
    if isinstance(tree, dict) and isinstance(tree.get("model"), dict) and tree["model"].get("path"):
        tree["model"]["path"] = metadata.base_of(tree["model"]["path"])
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)


def _left(run: Path, taken: set[Path]) -> list[str]:
    inside = [path for path in sorted(run.rglob("*")) if path.is_file() and path not in taken]
    danger = [p for p in inside if p.suffix.lower() in PICKLES]
    lines = [f"{p.relative_to(run)}（pickle 之类，打开它可能运行里面藏的代码）" for p in danger]
    known = {card.NAME, "config.yaml"}
    rest = {p.relative_to(run).parts[0] for p in inside if p not in danger} - known
    whole = {path.relative_to(run).parts[0] for path in taken if path.is_relative_to(run)}
    others = sorted(name + (" 里其余的" if name in whole else "") for name in rest)
    return [*lines, f"{'、'.join(others)}（别人用不上）"] if others else lines


def upload(wanted: Plan) -> str:
    """真的上传，返回网页的地址。

    Raises:
        LorakitError: 没有登录、没有权限、网络断了、缺库。
    """
    if constants.HF_HUB_OFFLINE:
        raise LorakitError("现在是离线模式（HF_HUB_OFFLINE=1），不能上传。去掉它再运行。")
    send = {"huggingface": _to_hugging_face, "modelscope": _to_modelscope}[wanted.site]
    try:
        return send(wanted)
    except HfHubHTTPError as error:
        raise _explain(wanted, error.response.status_code, error.server_message or "") from error
    except PermissionError as error:  # hf_xet 没有状态码，只这样说
        raise _explain(wanted, 403, "") from error
    except (HTTPError, requests.RequestException, ConnectionError, TimeoutError) as error:
        raise LorakitError(
            f"上传到 {SITES[wanted.site]} 时网络断了（{type(error).__name__}）。"
            "检查网络和代理，再运行同一条命令；传过的不会重传。"
        ) from error
    except (OSError, RuntimeError) as error:  # RuntimeError：hf_xet 的其他错误
        raise LorakitError(
            f"上传到 {SITES[wanted.site]} 没有成：{str(error).splitlines()[0][:200]}。"
            "再运行同一条命令；还不行，设 HF_HUB_DISABLE_XET=1 换平常的传法。"
        ) from error


def _explain(wanted: Plan, status: int | None, said: str) -> LorakitError:
    site = SITES[wanted.site]
    login = {
        "huggingface": "运行 hf auth login，或设 HF_TOKEN；令牌要有写（write）的权限",
        "modelscope": "运行 modelscope login，或设 MODELSCOPE_API_TOKEN（网页上“访问令牌”里）",
    }[wanted.site]
    if status is None:
        return LorakitError(f"还没有登录 {site}。{login}。")
    if status == 401:
        return LorakitError(f"{site} 不认识你：令牌不对或过期了。{login}。")
    if status == 403:
        return LorakitError(
            f"{site} 不让你写 {wanted.repo}："
            f"{wanted.repo.split('/')[0]} 是你的用户名或组织吗？{login}。"
        )
    if status == 404:
        return LorakitError(f"{site} 上没有 {wanted.repo}，也建不了它。看看 --repo 写对了没有。")
    return LorakitError(
        f"{site} 没有收下（回答 {status}：{said[:120]}）。过一会儿再运行同一条命令。"
    )


def _to_hugging_face(wanted: Plan) -> str:
    from huggingface_hub import CommitOperationAdd

    if not get_token():
        raise _explain(wanted, None, "")
    api = HfApi(endpoint=constants.ENDPOINT)
    api.create_repo(wanted.repo, private=wanted.private, exist_ok=True)
    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in wanted.files.items()
    ]
    api.create_commit(wanted.repo, operations, commit_message="Upload with lorakit")
    return f"{constants.ENDPOINT}/{wanted.repo}"


def _to_modelscope(wanted: Plan) -> str:
    try:
        from modelscope_hub import HubApi, HubConfig
        from modelscope_hub.errors import AlreadyExistsError, APIError, HubError
    except ImportError as error:
        raise LorakitError(
            "上传到 ModelScope 要用它的库：请运行 pip install modelscope-hub，再来一次。"
        ) from error
    from lorakit.hub.sites import ModelScope

    address = ModelScope().endpoint
    try:
        token = HubConfig(endpoint=address).token  # 环境变量，或登录过的
        if not token:
            raise _explain(wanted, None, "")
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
        api = HubApi(endpoint=address, token=token)
        try:
            seen = "private" if wanted.private else "public"
            api.create_repo(wanted.repo, "model", visibility=seen)
        except AlreadyExistsError:
            pass  # 再传一次，更新它
        for name, content in wanted.files.items():
            with redirect_stdout(StringIO()):  # 它会打印英文的流水账
                api.upload_file(wanted.repo, "model", content, name, disable_tqdm=True)
            print(f"  传好了 {name}", flush=True)
    except APIError as error:
        raise _explain(wanted, error.status_code, str(error)) from error
    except HubError as error:
        raise LorakitError(
            f"上传到 ModelScope 没有成（{error}）。检查网络和代理，再运行同一条命令。"
        ) from error
    return f"{address}/models/{wanted.repo}"
