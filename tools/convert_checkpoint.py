"""Convert weights of the original release, or of an EfficientNet-Lite, for MODEL.WEIGHTS.

python tools/convert_checkpoint.py IN OUT [--partial]
"""

import sys

from defcn_d2.weights.convert import run

if __name__ == "__main__":
    sys.exit(run())
