"""Export a trained detector for other runtimes: see docs/export.md, or ``--help``."""

import os
import sys
import warnings

# Read when torch is imported: threads that wait for work sleep, see defcn_d2/engine/cpu.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports
warnings.filterwarnings("ignore", ".*torch.meshgrid")

from defcn_d2.export import run  # noqa: E402

if __name__ == "__main__":
    sys.exit(run())
