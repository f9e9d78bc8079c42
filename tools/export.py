"""Export a trained detector for other runtimes: see docs/export.md, or ``--help``."""

import sys

from defcn_d2.export import run

if __name__ == "__main__":
    sys.exit(run())
