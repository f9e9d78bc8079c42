"""Pictures that explain a detector: ``python tools/visualize.py --help``, see docs/pictures.md."""

import sys

from defcn_d2.visualization.visualize_command import run

if __name__ == "__main__":
    sys.exit(run())
