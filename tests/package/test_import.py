"""Importing the package: what it needs, and what it leaves alone."""

import subprocess
import sys

from helpers import ROOT


def test_without_detectron2_the_remedy_is_told() -> None:
    code = "import sys; sys.modules['detectron2'] = None; import defcn_d2"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: defcn_d2 needs Detectron2, which is not installed; install it with "
        "`python tools/setup/install_detectron2.py` or as its INSTALL.md says"
    )
