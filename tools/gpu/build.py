"""Build the operators in place for the card that is there, and try that they load."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TRY = "from defcn_d2 import ops; print(ops.report()); raise SystemExit(not ops.is_compiled('cuda'))"


def main() -> None:
    """The command.

    Raises:
        SystemExit: the build failed, or what was built does not load.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    arguments = parser.parse_args()
    environment = {**os.environ, "FORCE_CUDA": "1"}
    if torch.cuda.is_available():  # one architecture instead of six
        major, minor = torch.cuda.get_device_capability()
        environment.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    start = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        raise SystemExit("the build failed, see above")
    seconds = time.monotonic() - start
    tried = subprocess.run(
        [sys.executable, "-c", TRY], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if tried.returncode:
        raise SystemExit(f"built, but not in use: {tried.stdout}{tried.stderr}")
    table = f"| build, s | report |\n|---|---|\n| {seconds:.0f} | {tried.stdout.strip()} |"
    arguments.output.write_text(table + "\n")


if __name__ == "__main__":
    main()
