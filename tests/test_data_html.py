"""网页报告：一个文件、不联网、描述里的脚本不会运行；框画的就是训练会看到的。"""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.config.groups import Data
from lorakit.data import bucket_for, fit, inspect, limits
from lorakit.data import html as data_html
from lorakit.families import REGISTRY, get

EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&amp;</p></body>'


class Page(HTMLParser):
    """像浏览器那样拆开网页：标签、属性、文字。"""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def add(folder: Path, name: str, caption: str, size=(400, 100)) -> Path:
    ramp = np.linspace(0, 255, size[0], dtype=np.uint8)
    Image.fromarray(np.tile(ramp, (size[1], 1))).convert("RGB").save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder / name


def make(folder: Path, target: Path, resolution: int | None = 128) -> Page:
    return Page(data_html.write(target, *inspect(folder), resolution).read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "我的图"
    made.mkdir()
    return made


def test_script_in_a_caption_is_inert(folder, tmp_path):
    add(folder, "a.png", EVIL)
    add(folder, "<b onclick=x>&.png", "一只猫")
    (folder / "<script>x.txt").write_text("没有图", encoding="utf-8")
    (folder / "bad.jpg").write_bytes(b"<script>alert(3)</script>")
    page = make(folder, tmp_path / "r.html")
    assert {tag for tag, _ in page.tags} == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "a", "span",
        "div", "figure", "figcaption", "img", "b", "i",
    }  # fmt: skip
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert EVIL in page.text and "<b onclick=x>&.png" in page.text  # 原样给人看


def test_page_needs_nothing_from_outside(folder, tmp_path):
    add(folder, "a.png", "看 https://example.com/x.png")
    page = make(folder, tmp_path / "r.html")
    for tag, attrs in page.tags:
        assert tag not in ("script", "link", "iframe", "object", "base")
        link = attrs.get("src") or attrs.get("href") or "#"
        assert link.startswith(("data:image/jpeg;base64,", "#"))
    styles = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "url(" not in styles and "@import" not in styles
    assert any("default-src 'none'" in attrs.get("content", "") for _, attrs in page.tags)


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (128, 128), (37, 91), (1000, 700)])
def test_frame_is_what_training_sees(folder, tmp_path, size):
    add(folder, "a.png", "一只猫", size)
    page = make(folder, tmp_path / "r.html")
    image = next(attrs for tag, attrs in page.tags if tag == "img")
    frame = next(attrs["style"] for tag, attrs in page.tags if tag == "i")
    bucket = bucket_for(size, 128, 16)
    _, box = fit(Image.new("RGB", size), bucket)
    left, top, width, height = map(float, re.findall(r":([\d.]+)%", frame))
    assert abs(left - 100 * box[0] / size[0]) < 0.01 and abs(top - 100 * box[1] / size[1]) < 0.01
    assert abs(left + width - 100 * box[2] / size[0]) < 0.02
    assert abs(top + height - 100 * box[3] / size[1]) < 0.02
    assert f"{size[0]}x{size[1]}，训练时 {bucket[0]}x{bucket[1]}" in page.text
    small = Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2])))
    assert small.format == "JPEG" and max(small.size) == min(160, max(size))
    assert small.size == (int(image["width"]), int(image["height"]))


def test_problems_are_grouped_and_linked(folder, tmp_path):
    for i, name in enumerate(["a.png", "b.png"]):
        add(folder, name, f"图 {i}", (300 + i, 50 + 60 * i))
    (folder / "坏 图.png").write_bytes(b"")
    (folder / add(folder, "c.png", "", (90, 80)).with_suffix(".txt")).write_bytes(b"\xff\xfea")
    (folder / "lonely.txt").write_text("没有图", encoding="utf-8")
    (folder / "notes.md").write_text("别的")
    page = make(folder, tmp_path / "r.html")
    places = [page.text.index(f"{word}（") for word in ("错误", "警告", "说明", "图片")]
    assert places == sorted(places)
    assert "共 4 张图，可用 2 张" in page.text and "怎么改：" in page.text
    ids = {attrs["id"] for tag, attrs in page.tags if tag == "figure"}
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert len(ids) == 4 and links and links <= ids
    assert sum(attrs.get("class") == "none" for _, attrs in page.tags) == 1
    assert "坏 图.png：文件是空的" in page.text
    figure = page.text[page.text.index("90x80，") :]
    assert "描述不是 UTF-8" in figure[:80]  # 图是好的也要看得到，描述的问题写在下面


def test_every_family_takes_the_multiple():
    families = [get(name) for name in REGISTRY]
    edits = [family.multiple for family in families if family.controls[1]]
    assert {family.multiple for family in families} - set(edits) <= {limits.MULTIPLE}
    assert max(edits) == limits.PAIRED and all(limits.PAIRED % one == 0 for one in edits)
    assert max(family.controls[1] for family in families) == limits.CONTROLS


def test_command_line(folder, tmp_path, capsys):
    add(folder, "a.png", "一只猫", (100, 100))
    target = tmp_path / "deep/r.html"
    assert main(["check", str(folder), "--html", str(target)]) == 0
    assert "网页写好了" in capsys.readouterr().out
    assert f"训练分辨率 {Data().resolution} " in target.read_text(encoding="utf-8")
    for side in ("512", "256"):
        main(["check", str(folder), "--html", str(target), "--resolution", side])
        assert f"训练时 {side}x{side}" in target.read_text(encoding="utf-8")
    capsys.readouterr()
    assert main(["check", str(folder), "--html", str(target), "--resolution", "100"]) == 1
    assert "最近的是 96 和 112" in capsys.readouterr().err
    for wrong in ("0", "-16"):
        assert main(["check", str(folder), "--html", str(target), "--resolution", wrong]) == 1
    before = (folder / "a.png").read_bytes()
    assert main(["check", str(folder), "--html", str(folder / "a.png")]) == 1
    assert (folder / "a.png").read_bytes() == before  # 手滑也不会盖掉一张图
    assert main(["check", str(tmp_path / "没有"), "--html", str(target)]) == 1
    assert "没有这个文件夹" in target.read_text(encoding="utf-8")
    assert main(["check", str(folder), "--html", "/proc/nowhere/r.html"]) == 1
    assert "写不进" in capsys.readouterr().err


def test_picture_outside_is_not_copied_into_the_page(folder, tmp_path):
    add(tmp_path, "secret.png", "外面的图")
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    page = make(folder, tmp_path / "r.html")
    assert "img" not in {tag for tag, _ in page.tags} and "没有用到" in page.text


def test_an_endless_caption_does_not_fill_the_page(folder, tmp_path):
    add(folder, "a.png", "很长的话" * 100_000)
    page = make(folder, tmp_path / "page.html")
    assert "……（共 400000 个字）" in page.text and page.text.count("很长的话") == 100


def test_names_that_are_not_utf8(folder, tmp_path):
    add(folder, "a.png", "一只猫").rename(folder / "\udcff.png")
    (folder / "a.txt").rename(folder / "\udcff.txt")
    assert "\\udcff.png" in make(folder, tmp_path / "r.html").text
