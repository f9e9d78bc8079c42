"""Importing the package: what it needs, and what it leaves alone."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT


def test_without_detectron2_the_remedy_is_told() -> None:
    code = "import sys; sys.modules['detectron2'] = None; import defcn_d2"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: defcn_d2 needs Detectron2, which is not installed; install it as its "
        "INSTALL.md says or, from a clone of defcn_d2, with "
        "`python tools/setup/install_detectron2.py`"
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


def scripts_named(path: Path) -> list[str]:
    """Scripts of a clone that strings of a file name; docstrings and f-strings' values are none."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in docstrings
    ]
    return re.findall(r"(?:tools|demo)/\w[\w/]*\.(?:py|sh)|\btrain_net\.py", "\n".join(texts))


def test_messages_name_commands_that_an_installed_package_has() -> None:
    """What installs Detectron2 into a clone is the one script, and said to be of a clone."""
    files = [*sorted((ROOT / "defcn_d2").rglob("*.py")), ROOT / "demo" / "onnx_demo.py"]
    named = {path.relative_to(ROOT).as_posix(): scripts_named(path) for path in files}
    assert {name: scripts for name, scripts in named.items() if scripts} == {
        "defcn_d2/__init__.py": ["tools/setup/install_detectron2.py"]
    }


@pytest.mark.parametrize("module", ["defcn_d2.engine.replay", "defcn_d2.weights.convert"])
def test_commands_of_messages(module: str, tmp_path: Path) -> None:
    """Run as named, from a folder that is no clone, and without a warning of runpy."""
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and result.stderr == ""
    assert " ".join(result.stdout.split()).startswith(f"usage: python -m {module} [-h]")
