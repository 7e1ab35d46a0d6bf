"""lab.work()：问一次你的作品，以后每一本都接着用它。"""

from pathlib import Path

from lorakit.lab.display import headless, publish
from lorakit.lab.works import checkup, panel, shelf


def work(name: str = "", photos: str | Path | None = None, trigger: str = "") -> shelf.Work:
    """你的作品：头一次问（或照参数建），以后每一本都接着用它；没有就是样例。

    Args:
        name: 作品的名字，也是 runs 里的文件夹名；不写就是现在的那一件。
        photos: 照片的文件夹；不写就放在 runs/名字/照片。
        trigger: 触发词，例如 ohwx；画风可以不要。

    Raises:
        LorakitError: 名字写不成文件夹名，或没有那个照片文件夹。
    """
    if name:
        made = shelf.keep(name, photos, trigger)
        found = checkup.inspected(made) if made.pictures() else None
        publish(panel.static(made, found))
        return made
    if headless():  # 没人看时总用样例
        made = shelf.Work()
        publish(panel.static(made))
        return made
    made = shelf.current()
    panel.Panel(made).display()
    return made
