"""Draw detections on images, a video or a webcam's pictures: ``python demo/demo.py --help``."""

import os
import sys
import warnings

# Read when torch is imported: threads that wait for work sleep, see defcn_d2/engine/cpu.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports

from defcn_d2.demo import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run())
