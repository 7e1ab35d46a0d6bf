"""设置：groups 是各项与说明，read 读 YAML 和 --set，explain 把报错说成中文，load 是唯一的入口。"""

from lorakit.config.load import (
    Config,
    differences,
    fields,
    load_config,
    preset_for,
    presets,
    template,
)

__all__ = [
    "Config", "differences", "fields", "load_config", "preset_for", "presets", "template",
]  # fmt: skip
