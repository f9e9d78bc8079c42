"""Argument checks shared by the compiled operator's wrapper and the composition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SUPPORTED_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_arguments(levels: Sequence[Tensor], tau: int, kernel_size: int) -> None:
    """Raise one error that names the first thing wrong with the arguments of the 3D max filter.

    Raises:
        TypeError: something that is not a tensor, a dtype that is not floating point, mixed dtypes.
        ValueError: ``tau`` odd or negative, ``kernel_size`` even or not positive, a tensor that is
            not 4-D, levels that differ in device, N or C.
    """
    if tau < 0 or tau % 2:
        raise ValueError(f"tau must be even and >= 0 (tau / 2 levels on each side), got {tau}")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and >= 1, got {kernel_size}")
    if isinstance(levels, Tensor):
        raise TypeError("levels must be a list of tensors, one for each level, got a single tensor")
    for index, level in enumerate(levels):
        _check_level(index, level, levels[0])


def _check_level(index: int, level: Tensor, first: Tensor) -> None:
    if not isinstance(level, Tensor):
        raise TypeError(f"levels[{index}] must be a tensor, got {type(level).__name__}")
    if level.dim() != 4:
        raise ValueError(f"levels[{index}] must be (N, C, H, W), got shape {tuple(level.shape)}")
    if level.dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise TypeError(f"levels[{index}] is {level.dtype}; the 3D max filter takes {names}")
    if level.dtype != first.dtype:
        raise TypeError(
            f"levels must share one dtype: levels[0] is {first.dtype}, "
            f"levels[{index}] {level.dtype}"
        )
    if level.device != first.device:
        raise ValueError(
            f"levels must be on one device: levels[0] is on {first.device}, "
            f"levels[{index}] on {level.device}"
        )
    if level.shape[:2] != first.shape[:2]:
        raise ValueError(
            f"levels must share N and C: levels[0] has {tuple(first.shape[:2])}, "
            f"levels[{index}] {tuple(level.shape[:2])}"
        )
