"""Private parts of others are touched in utils/detectron2_compat.py alone."""

from __future__ import annotations

import ast
from pathlib import Path

from helpers import ROOT

PACKAGE = ROOT / "defcn_d2"
#: Files whose matter is a private part of PyTorch, or of Python.
EXCEPTIONS = {
    "utils/detectron2_compat.py",
    "modeling/compilation.py",  # torch.compile's state of a module and its errors
    "modeling/head/dense.py",  # the base class of batch norms
    "weights/pickles.py",  # Python's pickle reader, and how a tensor is rebuilt
}


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_parts(path: Path) -> list[str]:
    """Private names that a file imports, or takes from other objects than its own classes'."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and private(node.attr):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and f"{owner}.{node.attr}" != "os._exit":
                found.append(f"{owner}.{node.attr}")
        if isinstance(node, ast.ImportFrom) and not node.level:
            parts = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [".".join(parts)] if any(map(private, parts)) else []
    return found


def test_no_other_file_touches_private_parts() -> None:
    found = {str(path.relative_to(PACKAGE)): private_parts(path) for path in PACKAGE.rglob("*.py")}
    assert {name for name, parts in found.items() if parts} == EXCEPTIONS, found
