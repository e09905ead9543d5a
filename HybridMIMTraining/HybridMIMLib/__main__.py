"""``python -m HybridMIMLib``."""

import sys

from HybridMIMLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
