"""Convert weights of the original release to a file for any Detectron2 tool.

python tools/convert_checkpoint.py IN OUT [--partial]
"""

import sys

from defcn_d2.weights.convert import run

if __name__ == "__main__":
    sys.exit(run())
