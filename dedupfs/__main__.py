"""``python -m dedupfs``: the same as the command ``dedupfs``."""

import sys

from dedupfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
