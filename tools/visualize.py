"""Pictures that explain a detector: ``python tools/visualize.py --help``, see docs/pictures.md."""

import os
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
# Read when torch is imported: threads that wait for work sleep, see defcn_d2/engine/cpu.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports

from defcn_d2.visualization.visualize_command import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run())
