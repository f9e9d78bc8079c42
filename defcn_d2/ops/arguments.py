"""Argument checks shared by the compiled operators' wrappers and the compositions."""

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
    _check_dtype(f"levels[{index}]", level, "the 3D max filter")
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


def check_overlap_arguments(
    logits: Tensor, boxes: Tensor, level_shapes: Sequence[tuple[int, int]], tau: int
) -> None:
    """Raise one error for the first thing wrong with the arguments of ``overlap_with_better``.

    Raises:
        TypeError: something that is not a tensor, a dtype that is not floating point.
        ValueError: ``tau`` not 0 or 2, a tensor of another shape, tensors on two devices, levels
            that do not have half the size of the one before or not as many cells as there are
            logits.
    """
    if tau not in (0, 2):
        raise ValueError(f"tau must be 2 (one level on each side) or 0 (none), got {tau}")
    for name, tensor, shape in (("logits", logits, "(N, R, K)"), ("boxes", boxes, "(N, R, 4)")):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != 3:
            raise ValueError(f"{name} must be {shape}, got shape {tuple(tensor.shape)}")
        _check_dtype(name, tensor, "overlap_with_better")
    if boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            f"boxes must be (N, R, 4) with the N and R of logits, {tuple(logits.shape[:2])}, "
            f"got shape {tuple(boxes.shape)}"
        )
    if boxes.device != logits.device:
        raise ValueError(
            f"boxes must be on the device of logits, {logits.device}, but are on {boxes.device}"
        )
    _check_level_shapes(level_shapes, logits.shape[1])


def _check_level_shapes(level_shapes: Sequence[tuple[int, int]], num_cells: int) -> None:
    for index, (height, width) in enumerate(level_shapes):
        if height < 0 or width < 0:
            raise ValueError(f"level_shapes[{index}] cannot be {height} x {width}")
        if index == 0:
            continue
        half = tuple((size + 1) // 2 for size in level_shapes[index - 1])
        if (height, width) != half:
            raise ValueError(
                f"level_shapes[{index}] must be half of the one before, rounded up, "
                f"{half[0]} x {half[1]}, got {height} x {width}"
            )
    total = sum(height * width for height, width in level_shapes)
    if total != num_cells:
        raise ValueError(f"level_shapes have {total} cells, but logits have {num_cells}")


def _check_dtype(name: str, tensor: Tensor, taker: str) -> None:
    if tensor.dtype not in SUPPORTED_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED_DTYPES)
        raise TypeError(f"{name} is {tensor.dtype}; {taker} takes {names}")
