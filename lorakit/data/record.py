"""一条记录：一张图和它的描述，数据文件夹里的一切最后都变成它。"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Record:
    """一张可以训练的图：路径、描述、转正后的 (宽, 高)、文件内容的 sha256、看上去的样子。"""

    path: Path
    caption: str
    size: tuple[int, int]
    digest: str
    look: bytes = field(default=b"", compare=False, repr=False)  # 只用来找几乎一样的图
    controls: tuple[Path, ...] = ()  # 编辑训练：改之前的图，一到三张
    control_sizes: tuple[tuple[int, int], ...] = ()
    control_digests: tuple[str, ...] = ()
    repeats: int = 1  # 它所在的来源的重复次数
    mask: Path | None = None  # 旁边的 _mask 图
