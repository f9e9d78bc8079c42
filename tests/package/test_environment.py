"""The environment report names this package and the implementation of its operator."""

import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.utils import collect_env

import defcn_d2
from defcn_d2 import ops
from defcn_d2.environment import add_to_environment_report

ROOT = Path(__file__).resolve().parents[2]


def test_line_appears_once_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_env, "collect_torch_env", lambda: "PyTorch built with:\n")
    add_to_environment_report()
    add_to_environment_report()
    lines = collect_env.collect_env_info().splitlines()
    (line,) = (line for line in lines if line.startswith("defcn_d2 "))
    assert line == lines[-1] and "PyTorch built with:" in lines
    assert line.startswith(f"defcn_d2 {defcn_d2.__version__} @") and line.endswith(ops.report())


def test_without_detectron2_the_remedy_is_told() -> None:
    code = "import sys; sys.modules['detectron2'] = None; import defcn_d2"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: defcn_d2 needs Detectron2, which is not installed; install it with "
        "`python tools/setup/install_detectron2.py` or as its INSTALL.md says"
    )


def test_module_prints_the_report() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "defcn_d2"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "sys.platform" in output and "3D max filter: CPU co" in output.splitlines()[-2]
