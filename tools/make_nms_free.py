"""Make a trained detector do without NMS: see docs/nms-free.md, or ``--help``."""

import sys

from defcn_d2.engine.nms_free import run

if __name__ == "__main__":
    sys.exit(run())
