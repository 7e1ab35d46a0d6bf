"""像人一样用浏览器走一遍：等时停得下，隔天打开不空白，照片从上传练到 LoRA，重启后接得上。"""

import io
import json
import re
import time

import nbformat
import pytest
from browser_tools import CHROMIUM, Page, server
from PIL import Image

WANTED = '没装 playwright：pip install -e ".[test]"'
playwright = pytest.importorskip("playwright.sync_api", reason=WANTED)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="没有 Chromium：apt-get install chromium")

BEGIN = """
from pathlib import Path
from lorakit import lab
import lorakit
from lorakit.tiny import samples
from PIL import Image
work = Path("scratch").resolve()
papers = samples.write("papercut", lab.fresh(work / "papers"))
small = ["eval.every=20", "sample.every=20", "sample.steps=4", "train.batch_size=2"]
lab.ready()
"""
SLIDE = """
def draw(t): return Image.new("RGB", (120, 80), (t * 20, 80, 0))
panel = lab.explore(draw, t=lab.slider("时间", 0, 9, 1))
"""
START = """
asked = "sample.prompts=[剪纸风格，一只大狗在中间, 剪纸风格，一只大熊在中间]"
where = [f"data.folder={papers}", f"run.output={lab.fresh(work / 'run')}", "train.steps=3000"]
run = lab.Run(lorakit.load_config("tiny-qwen-image", [*where, *small, asked]))
run.start()
"""
WAIT = "run.result()\nprint('总结', run.summary())"
ASK = "作品 = lab.work()"
WRITE = "editor = 作品.captions()"
TRAIN = """
mine = [f"data.folder={作品.folder(papers)}", f"run.output={作品.output(work / 'own')}"]
mine += [f"data.trigger={作品.word()}", f"sample.prompts={作品.prompts([])[:2]}", "train.steps=20"]
own = lab.Run(lorakit.load_config("tiny-qwen-image", [*mine, *small])).start().result()
"""
TABLE = """
作品.check()
作品.tries()
print("练好的", 作品.lora().name, [f.name for f in 作品.lora().glob("checkpoint-*")])
"""
CELLS = (BEGIN, SLIDE, START, WAIT, ASK, WRITE, TRAIN, TABLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lab")
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s.strip()) for s in CELLS])
    made.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, place / "book.ipynb")
    return place


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def photos(count: int = 12):
    """手机里的照片：中文名字、躺着的、HEIC、一张 18 MB 的。"""
    import pillow_heif

    from lorakit.tiny.world import Scene, Thing, render

    pillow_heif.register_heif_opener()
    places, marks = ("meadow", "sea", "snow", "night"), Image.Exif()
    marks[274] = 6
    for number in range(count):
        thing = Thing("ohwx", "white", ("left", "center", "right")[number % 3], "big")
        image = render(Scene((thing,), places[number % 4], seed=number), 256)
        file = io.BytesIO()
        if number == 0:
            image.save(file, "HEIF", quality=95)
            yield {"name": "IMG_0001.HEIC", "mimeType": "image/heic", "buffer": file.getvalue()}
        else:
            image.rotate(90).save(file, "JPEG", exif=marks)
            file.write(bytes(18_000_000 if number == 1 else 0))  # 图后面的不影响看图
            name = f"小橘 在窗台 {number:02}.jpg"
            yield {"name": name, "mimeType": "image/jpeg", "buffer": file.getvalue()}


def texts(book: Page) -> str:
    outputs = book.script("(p, a) => p.content.widgets.map(c => c.model.outputs?.toJSON() || [])")
    return json.dumps(outputs, ensure_ascii=False)


@pytest.fixture(scope="module")
def walked(folder, browser):
    """一口气走完，每一站记下看到的；第二天的两站在另一个服务里，没有内核。"""
    seen = {}
    with server(folder) as url:
        book = Page(browser, url, "book.ipynb")
        try:
            train_and_stop(book, seen, folder)
            own_work(book, seen, folder)
            book.save()
        finally:
            book.page.screenshot(path=folder / "last.png")
        seen["errors"] = book.errors
        book.page.close()
    with server(folder) as url:
        reopened(browser, url, "book.ipynb", seen, folder)
    return seen


def train_and_stop(book: Page, seen: dict, folder):
    page = book.page
    for cell in (BEGIN, SLIDE):
        book.run(cell.strip().splitlines()[-1])
        book.finish(240)
    knob = page.locator(".noUi-handle").first
    knob.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    book.run("run.start()")
    page.get_by_text(re.compile(r"第 \d+ / \d+ 步")).wait_for(timeout=120_000)
    book.run("run.start()")
    time.sleep(1)
    page.get_by_text(re.compile(r"第 \d+ / \d+ 步")).wait_for(timeout=60_000)
    seen["again"] = (book.failures(), page.get_by_role("button", name="停止").count())
    book.run("run.result()")
    page.get_by_text("正在等它练完").wait_for(timeout=20_000)
    page.get_by_text("拖一拖步数").wait_for(timeout=90_000)
    page.screenshot(path=folder / "waiting.png")
    page.get_by_role("button", name="停止").click()
    page.get_by_text(re.compile("^停在第 .* 步，已经存好")).wait_for(timeout=60_000)
    book.finish(60)
    seen["waiting_left"] = page.get_by_text("正在等它练完").count()
    seen["summary"] = texts(book)


def own_work(book: Page, seen: dict, folder):
    page = book.page
    book.run(ASK)
    book.finish(30)
    page.get_by_placeholder("例如 小橘").fill("小橘")
    page.get_by_placeholder("例如 ohwx；画风可以不写").fill("ohwx")
    page.get_by_role("button", name="用自己的照片").click()
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name=re.compile("传照片")).click()
    chosen.value.set_files(list(photos()))
    sign = page.locator(".lorakit-sending")
    seen["sending"] = sign.is_visible()
    page.get_by_text("收下了 12 张").wait_for(timeout=60_000)
    time.sleep(0.5)
    button = page.get_by_role("button", name=re.compile("传照片"))
    seen["sent"] = sign.is_visible(), button.is_enabled()
    page.screenshot(path=folder / "photos.png")
    book.run(WRITE)
    book.finish(60)
    box = page.get_by_placeholder(re.compile("这张图里有什么"))
    seen["prefilled"] = box.input_value()
    spots, places = ("左边", "中间", "右边"), ("草地", "大海", "雪地", "夜空")
    for number in range(12):  # 只用键盘：写一句，回车
        page.get_by_text(f"{number + 1}", exact=True)
        page.wait_for_function("e => e.value === 'ohwx '", arg=box.element_handle(), timeout=20_000)
        box.fill(f"ohwx 猫在{spots[number % 3]}，背景是{places[number % 4]}")
        if number == 5:
            page.screenshot(path=folder / "editor.png")
        box.press("Enter")
        page.get_by_text("可以训练" if number == 11 else f"还有 {11 - number} 张").wait_for()
    book.run("own = lab.Run")
    book.finish(300)
    book.run("作品.tries()")
    book.finish(30)
    page.screenshot(path=folder / "tries.png")
    seen["failures"], seen["own"] = book.failures(), texts(book)


def reopened(browser, url: str, name: str, seen: dict, folder):
    """第二天：没有运行任何一格；再换成深色看一遍。"""
    book = Page(browser, url, name, kernel=False)
    page = book.page
    page.locator(".lorakit-still").first.wait_for(timeout=30_000)
    time.sleep(2)
    stills = page.locator(".lorakit-still")
    seen["stills"] = [one.is_visible() for one in stills.all()]
    seen["broken"] = [one.is_visible() for one in page.get_by_text("Error displaying").all()]
    seen["still_text"] = " ".join(stills.all_inner_texts())
    seen["still_pictures"] = page.locator(".lorakit-still img").count()
    page.screenshot(path=folder / "next_day.png")
    page.evaluate(
        """window.jupyterapp.commands.execute(
             'apputils:change-theme', {theme: 'JupyterLab Dark'})"""
    )
    page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    time.sleep(1)  # 颜色是渐渐换过去的
    seen["contrast"] = page.evaluate(CONTRAST)
    page.screenshot(path=folder / "dark.png")
    restarted(book, seen)
    page.close()


def restarted(book: Page, seen: dict):
    """内核是新的：只运行准备的格子和要接着学的那一格；中间少的几格，它自己补跑。"""
    book.wait("(p) => p.sessionContext.session?.kernel?.status === 'idle'", 120)
    book.run("lab.ready()")
    book.finish(300)
    book.run("作品.tries()")
    book.finish(60)
    seen["found"] = book.failures(), texts(book)


CONTRAST = """() => {
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const numbers = text => text.match(/[\\d.]+/g).map(Number);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0.5) return c;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll('.lorakit-still p, .jp-OutputArea-output td')]
    .filter(e => e.offsetParent && e.innerText.trim()).map(e => {
      const [a, b] = [numbers(getComputedStyle(e).color), behind(e)].map(c => light(c));
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    });
}"""


def test_start_twice_shows_the_same_panel(walked):
    assert walked["again"] == ([], 1), "没有出错，停止键还在，只有一块面板"


def test_stop_works_while_a_later_cell_waits(walked):
    assert walked["waiting_left"] == 0, "等完了，那行字就擦掉"
    said = re.search(r"总结 .*?停在第 (\d+) 步，原定 3000 步", walked["summary"])
    assert said and 0 < int(said[1]) < 3000


def test_nothing_goes_blank_without_a_kernel(walked):
    assert len(walked["stills"]) == 9, "滑块、两块面板、作品、编辑器、表、三条进度条"
    assert all(walked["stills"])
    assert not any(walked["broken"]), "Error displaying widget 不许看得见"
    assert walked["still_text"].count("运行这一格，就能再动它") == 6
    assert walked["still_text"].count("做好了，用了") == 3, "进度条留下的是结局，不是走到一半的样子"
    assert "〔进度条" not in walked["still_text"]
    assert walked["still_pictures"] >= 3, "滑块的图、面板、样张的动图"


def test_an_upload_shows_that_it_goes_on(walked):
    assert walked["sending"], "选好的那一刻就看得见正在传，不用等传完"
    assert walked["sent"] == (False, True), "收完就收起来，按钮又能按"


def test_own_photos_from_upload_to_a_lora(walked, folder):
    assert walked["prefilled"] == "ohwx " and walked["failures"] == []
    assert "可以训练" in walked["own"] and "checkpoint-20" in walked["own"]
    home = folder / "runs" / "小橘"
    assert len(list((home / "照片").glob("*.txt"))) == 12
    assert list(home.glob("第 1 次/checkpoint-20/pytorch_lora_weights.safetensors"))


def test_dark_theme_is_legible(walked):
    assert len(walked["contrast"]) >= 3 and min(walked["contrast"]) >= 4.5


def test_after_a_restart_one_section_goes_on(walked):
    failures, said = walked["found"]
    assert "前面还没有跑的 1 格，已经替你补跑了" in said
    assert failures == [] and "第 1 次" in said and "checkpoint-20" in said, "作品和练过的都还在"


def test_console_has_no_errors(walked):
    assert walked["errors"] == []
