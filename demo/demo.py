"""Draw detections on images, a video or a webcam's pictures: ``python demo/demo.py --help``."""

import sys

from defcn_d2.demo import run

if __name__ == "__main__":
    sys.exit(run())
