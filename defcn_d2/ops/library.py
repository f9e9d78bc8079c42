"""Finds and loads the compiled operators, and says what became of it."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import registration

SWITCH = "DEFCN_D2_OPS"
PACKAGE = Path(__file__).resolve().parent.parent
NOT_BUILT = "it was not built (installing defcn_d2 builds it where PyTorch and a compiler are)"
BUILD_RECORD = Path(__file__).resolve().parent / "_build.json"  # written by setup.py


@dataclass
class Library:
    """The compiled part as this process found it.

    Attributes:
        missing: for each device type that has no compiled operator, the reason.
        build: what ``setup.py`` recorded; empty where it never ran.
    """

    missing: dict[str, str]
    build: dict[str, Any]
    _handle: torch.library.Library | None = None
    _warned: set[str] = field(default_factory=set)

    def supports(self, device_type: str) -> bool:
        """Reports if tensors on this type of device run through the compiled operator."""
        return device_type in ("cpu", "cuda") and device_type not in self.missing

    def warn_once(self, device_type: str) -> None:
        """Say why the composition is used; silent where it was asked for by the environment."""
        if device_type in self._warned or os.environ.get(SWITCH) == "off":
            return
        self._warned.add(device_type)
        reason = self.missing.get(device_type, f"there is no kernel for {device_type!r} devices")
        warnings.warn(
            "the 3D max filter and the comparison of overlapping neighbours run as compositions of "
            f"PyTorch operators, several times slower than compiled: {reason} "
            f"(set {SWITCH}=off to silence this)",
            stacklevel=3,
        )

    def report(self) -> str:
        """One line: which implementation is in use on each device, and how it was built."""
        parts = []
        for device_type, name in (("cpu", "CPU"), ("cuda", "CUDA")):
            if device_type in self.missing:
                parts.append(f"{name} composed ({self.missing[device_type]})")
            elif device_type == "cpu":
                parts.append(f"CPU compiled ({torch.ops.defcn_d2.cpu_capability()})")
            else:
                parts.append(f"CUDA compiled ({self.build.get('cuda_archs', 'unknown archs')})")
        built = [
            f"{key} {self.build[key]}" for key in ("torch", "cxx", "nvcc") if self.build.get(key)
        ]
        return ", ".join(parts) + (f"; built with {', '.join(built)}" if built else "")


def load() -> Library:
    """Load what was built. Never raises for a missing or broken build: the reason is kept."""
    switch = os.environ.get(SWITCH, "")
    if switch not in ("", "on", "off"):
        raise ValueError(f"{SWITCH} must be 'on' or 'off', got {switch!r}")
    build = _read_build_record()
    if switch == "off":
        missing = dict.fromkeys(("cpu", "cuda"), f"{SWITCH}=off")
        return Library(missing, build, registration.register_composition())
    errors = build.get("errors", {})
    reason = _load_file("_C", errors.get("cpu"))
    if reason is not None:
        missing = dict.fromkeys(("cpu", "cuda"), reason)
        return Library(missing, build, registration.register_composition())
    handle = registration.register()
    reason = _why_no_cuda(build) or _load_file("_C_cuda", errors.get("cuda"))
    return Library({} if reason is None else {"cuda": reason}, build, handle)


def _read_build_record() -> dict[str, Any]:
    try:
        record = json.loads(BUILD_RECORD.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _why_no_cuda(build: dict[str, Any]) -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    built_with = build.get("nvcc")
    if built_with and built_with.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"it was built with CUDA {built_with}, this PyTorch has {torch.version.cuda}"
    return None


def _load_file(stem: str, build_error: str | None) -> str | None:
    """Load ``defcn_d2/<stem>.*``; return why that failed, or None."""
    found = sorted(PACKAGE.glob(f"{stem}.*so")) or sorted(PACKAGE.glob(f"{stem}.*pyd"))
    if not found:
        return f"its build failed: {build_error}" if build_error else NOT_BUILT
    try:
        torch.ops.load_library(str(found[0]))
    except (OSError, RuntimeError) as error:
        return f"{found[0].name} does not load: {str(error).splitlines()[0]}"
    return None
