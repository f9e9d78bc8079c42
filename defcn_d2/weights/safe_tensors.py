"""Weights in files of the package safetensors, which hold arrays and text and nothing else."""

from collections.abc import Mapping
from typing import Any

import torch

from ..utils.errors import UserError

SUFFIX = ".safetensors"
_PARTIAL = "partial"


def _package() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(
            f"{SUFFIX} files need a package that is not installed: pip install safetensors"
        ) from error
    return safetensors


def read_safetensors(path: str) -> dict[str, Any]:
    """The content of a file, as ``read_checkpoint`` gives it.

    Returns:
        "model" (name to tensor, on the CPU) and, where the file is marked so, "partial".

    Raises:
        UserError: the package is not installed.
        ValueError: the file is damaged, or no such file.
        OSError: it cannot be opened.
    """
    package = _package()
    open(path, "rb").close()  # with the system's own words where that fails
    try:
        with package.safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
            marks = file.metadata() or {}
    except package.SafetensorError as error:
        raise ValueError(str(error)) from error
    return {"model": weights, **({_PARTIAL: True} if marks.get(_PARTIAL) else {})}


def safetensors_bytes(weights: Mapping[str, torch.Tensor], partial: bool = False) -> bytes:
    """The content of a file with these weights; ``partial``: marked as a start for other models.

    Raises:
        UserError: the package is not installed.
    """
    marks = {"format": "pt", **({_PARTIAL: "True"} if partial else {})}
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    return _package().torch.save(contiguous, metadata=marks)
