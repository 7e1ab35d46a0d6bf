"""命令行：一组命令一个文件，选项写在命令旁边；只解析、调用、说中文，真正的活都在库里。"""

from lorakit.cli.main import main

__all__ = ["main"]
