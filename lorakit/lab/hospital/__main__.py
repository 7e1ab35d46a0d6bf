"""重做诊断室的病历：python -m lorakit.lab.hospital 文件夹 [名字……]。"""

import os
import sys
from pathlib import Path

os.environ.setdefault("LORAKIT_HEADLESS", "1")  # 不摆面板；要在导入之前

from lorakit.lab.hospital.record import main

main(Path(sys.argv[1]), sys.argv[2:])
