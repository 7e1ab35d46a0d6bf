"""底模从哪里来：随包的、本地的、两个模型站；用到哪部分才下载哪部分。"""

from lorakit.hub.find import INDEX, REPO, Model, absent, find, locate, refused
from lorakit.hub.single import single

__all__ = ["INDEX", "REPO", "Model", "absent", "find", "locate", "refused", "single"]
