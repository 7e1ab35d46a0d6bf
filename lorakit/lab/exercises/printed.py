"""读者的答案打印的话：留着最后一段，判完摆在结果下面；答案被停掉了也读得到。"""

import io
import mmap

COUNT = 8  # 字节；开头记着一共打印了多少，后面是最后的一段
ROOM = 8192  # 字节；最多留这么多
LINES, WIDE = 8, 120  # 给人看的：最后几行，一行最多几个字


class Printed(io.TextIOBase):
    """当 sys.stdout 用；内存和分出去的子进程共用，子进程被停掉，写下的也在。"""

    def __init__(self):
        self.shared = mmap.mmap(-1, COUNT + ROOM)

    @property
    def count(self) -> int:
        """一共打印了多少字节。"""
        return int.from_bytes(self.shared[:COUNT], "little")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        more = text.encode("utf-8", "backslashreplace")
        kept = (self._kept() + more)[-ROOM:]
        self.shared[COUNT : COUNT + len(kept)] = kept
        self.shared[:COUNT] = (self.count + len(more)).to_bytes(COUNT, "little")
        return len(text)

    def _kept(self) -> bytes:
        return self.shared[COUNT : COUNT + min(self.count, ROOM)]

    def text(self) -> str:
        """摆在结果下面的几行；什么也没有打印是空的。"""
        lines = [one for one in self._kept().decode("utf-8", "ignore").split("\n") if one.strip()]
        shown = [one if len(one) <= WIDE else f"{one[:WIDE]}……" for one in lines[-LINES:]]
        if len(shown) < 2:
            return "".join(f"你打印的：{one}" for one in shown)
        cut = len(lines) > LINES or self.count > ROOM
        which = f"（判题时你的函数要跑好几遍，这是最后 {len(shown)} 行）" if cut else ""
        head = f"你打印的{which}："
        return "\n".join([head, *(f"  {one}" for one in shown)])
