"""Nothing outside a component knows it by name: a new one is a file, a yaml and its tests."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest
import registries
from detectron2.modeling import BACKBONE_REGISTRY
from helpers import ROOT

import defcn_d2

FILES = [
    path
    for pattern in ("defcn_d2/**/*.py", "tools/**/*.py", "demo/*.py")
    for path in sorted(ROOT.glob(pattern))
]
#: Folders that name configs and matchers because each is a case of what they measure or try.
NAMED_CASES = ("tools/study", "tools/benchmarks", "tools/gpu", "tools/trust")


def components() -> dict[str, Path]:
    """Name of every component of the package to the file where it is defined."""
    kinds = {
        name: kind
        for registry in (*registries.REGISTRIES.values(), BACKBONE_REGISTRY)
        for name, kind in registry
        if kind.__module__.startswith("defcn_d2.")
    }
    return {name: Path(inspect.getfile(kind)) for name, kind in kinds.items()}


def without_configs(text: str) -> str:
    """The text without names of yaml files, such as shapes/POTO: those are no components."""
    names = sorted(defcn_d2.config_names(), key=len, reverse=True)
    plain = "|".join(re.escape(name) for name in names if name not in components())
    return re.sub(rf"\b(?:{plain})\b(?:\.yaml)?|\b[\w-]+\.yaml\b", "", text)


def strangers(path: Path, text: str) -> list[str]:
    """Names of components in the text of a file that has no business with them.

    A subclass names what it derives from, and a package what it exports.
    """
    exported = ()
    if path.name == "__init__.py":
        module = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        exported = getattr(importlib.import_module(module), "__all__", ())
    return [
        name
        for name, own in components().items()
        if own != path
        and name not in exported
        and re.search(rf"\b{name}\b", without_configs(text))
        and not re.search(rf"class \w+\(.*\b{name}\b", text)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_component_is_named_elsewhere(path: Path) -> None:
    if not path.relative_to(ROOT).as_posix().startswith(NAMED_CASES):
        assert strangers(path, path.read_text()) == []


def test_names_are_found() -> None:
    """In code, strings and comments; names of configs are not among them."""
    path = ROOT / "defcn_d2" / "engine" / "trainer.py"
    assert {"DeFCNHead", "FCOS", "build_defcn_narrow_fpn_backbone"} <= set(components())
    for text in ("isinstance(x, FCOS)", 'name == "FCOS"', "# as FCOS does"):
        assert strangers(path, text) == ["FCOS"]
    assert strangers(path, "such as shapes/FCOS, POTO-3DMF or POTO.yaml; FCOSHead") == []
    assert strangers(components()["FCOS"], "FCOS") == []
