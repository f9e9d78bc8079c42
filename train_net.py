"""Train or evaluate a detector: see README.md, or ``python train_net.py --help``."""

import sys

from defcn_d2.engine import run

if __name__ == "__main__":
    sys.exit(run())
