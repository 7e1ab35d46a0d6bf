"""缓存：记录 -> 编码好的图与描述，只编码一次。keys 由什么算出，store 存取，build 编码。"""

from lorakit.cache.build import Dataset, Item, prepare

__all__ = ["Dataset", "Item", "prepare"]
