"""The lvis package beside today's NumPy."""

import importlib
import types
from typing import Any

import numpy


class _NumPy(types.ModuleType):
    """NumPy with ``float``, which it has dropped in version 1.24."""

    float = float

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)


def add_numpy_float() -> None:
    """Give lvis (0.5.3, the newest) ``np.float``, without which its evaluation fails.

    Raises:
        ImportError: the package is not installed.
    """
    importlib.import_module("lvis.eval").np = _NumPy("numpy")  # type: ignore[attr-defined]
