"""Importing the package: what it needs, and what it leaves alone."""

import os
import subprocess
import sys

import pytest
from helpers import ROOT


def test_without_detectron2_the_remedy_is_told() -> None:
    code = "import sys; sys.modules['detectron2'] = None; import defcn_d2"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: defcn_d2 needs Detectron2, which is not installed; install it with "
        "`python tools/setup/install_detectron2.py` or as its INSTALL.md says"
    )


@pytest.mark.parametrize("before, policy", [("", "PASSIVE"), ("torch, ", None)])
def test_no_warning_greets_and_no_other_is_hidden(before: str, policy: str | None) -> None:
    """Threads that wait sleep, where torch can still be made to do so."""
    code = (
        f"import os, warnings, {before}defcn_d2.engine, defcn_d2.demo, defcn_d2.export\n"
        "import defcn_d2.visualization.visualize_command\n"
        "warnings.warn('`torch.jit.script` by the user', FutureWarning)\n"
        "print(os.environ.get('OMP_WAIT_POLICY'))"
    )
    environment = {key: x for key, x in os.environ.items() if key != "OMP_WAIT_POLICY"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.stdout.split() == [str(policy)]
    assert result.stderr == "<string>:3: FutureWarning: `torch.jit.script` by the user\n"
