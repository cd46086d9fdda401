"""``python -m lightning_lopt`` is the command ``lightning-lopt``."""

import sys

from lightning_lopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
