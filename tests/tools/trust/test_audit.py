"""``tools/trust/audit.sh`` with a pip-audit that answers as told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

FAKE = """
import os, sys
with open(os.environ["CALLS"], "a") as file:
    print(*sys.argv[1:], file=file)
print(os.environ["CONSTRAINED" if "--requirement" in sys.argv else "INSTALLED"])
"""
FINE = {"name": "numpy", "version": "2.0", "vulns": []}
FLAW = {"id": "CVE-0", "fix_versions": ["2.1"], "aliases": [], "description": ""}
FLAWED = {"name": "pillow", "version": "2.0", "vulns": [FLAW]}
UNKNOWN = {"name": "scipy", "skip_reason": "not found"}
OWN = {"name": "detectron2", "skip_reason": "not found"}


def audit(folder: Path, installed: Any, constrained: Any) -> tuple[int, str, str]:
    """Exit status, output and the calls of pip-audit."""
    (folder / "pip_audit").mkdir()
    (folder / "pip_audit" / "__init__.py").touch()
    (folder / "pip_audit" / "__main__.py").write_text(FAKE)
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(folder),
        "CALLS": str(folder / "calls"),
        "INSTALLED": json.dumps(installed),
        "CONSTRAINED": json.dumps(constrained),
    }
    command = ["sh", str(ROOT / "tools" / "trust" / "audit.sh"), "--timeout", "5"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stderr == ""
    return result.returncode, result.stdout, (folder / "calls").read_text()


@pytest.mark.parametrize(
    "installed, constrained, status, lines",
    [
        ([FINE, OWN], [FINE], 0, ["installed: 1 of 1 packages checked, 0 known"]),
        ([FINE], [FINE, FLAWED], 1, ["constraints.txt: 2 of 2", "pillow 2.0: CVE-0, fixed in 2.1"]),
        ([FLAWED], [UNKNOWN], 1, ["1 known", "constraints.txt: 0 of 1 packages checked"]),
        ([UNKNOWN, FINE], [FINE], 3, ["installed: 1 of 2", "no data on them here: scipy"]),
    ],
)
def test_what_is_found(
    tmp_path: Path, installed: list, constrained: list, status: int, lines: list[str]
) -> None:
    found, output, calls = audit(
        tmp_path, {"dependencies": installed}, {"dependencies": constrained}
    )
    assert found == status
    assert all(line in output for line in lines), output
    assert [line.endswith("--timeout 5") for line in calls.splitlines()] == [True, True]


def test_a_failure_is_no_success(tmp_path: Path) -> None:
    status, output, _ = audit(tmp_path, "no network", {"dependencies": [FINE]})
    assert status == 3 and "installed: nothing was checked" in output


def test_without_pip_audit(tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text("raise ImportError")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    command = ["sh", str(ROOT / "tools" / "trust" / "audit.sh")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 3 and "pip install -e '.[trust]'" in result.stderr
