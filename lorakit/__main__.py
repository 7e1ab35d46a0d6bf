"""python -m lorakit：与命令 lorakit 相同。"""

import sys

from lorakit.cli import main

if __name__ == "__main__":
    sys.exit(main())
