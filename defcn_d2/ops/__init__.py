"""Operators on pyramids: compiled where possible, composed of PyTorch's elsewhere."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..utils.detectron2_compat import is_transformed
from .arguments import check_arguments, check_overlap_arguments
from .library import load
from .peaks import compose_overlap, overlap_with_better_reference
from .peaks_plain import overlap_with_better_plain
from .reference import compose, compose_plain, max_filter_3d_reference

__all__ = [
    "is_compiled",
    "max_filter_3d",
    "max_filter_3d_reference",
    "overlap_with_better",
    "overlap_with_better_reference",
    "report",
    "standard_operators",
]

_library = load()
_standard = contextvars.ContextVar("standard operators only", default=False)


@contextlib.contextmanager
def standard_operators() -> Iterator[None]:
    """Within the block, operators are composed of PyTorch's own, for graphs to run elsewhere.

    For inference: the order among equal values, which gradients follow, is not kept.
    """
    token = _standard.set(True)
    try:
        yield
    finally:
        _standard.reset(token)


def max_filter_3d(levels: Sequence[Tensor], tau: int = 2, kernel_size: int = 3) -> list[Tensor]:
    """Maximum over a window in space and over the neighbouring levels (arXiv 2012.03544, sec. 3.4).

    Args:
        levels: L tensors of shape (N, C, H_l, W_l), finest first; one dtype (float32, float64,
            float16 or bfloat16), one device, contiguous or channels_last.
        tau: number of neighbouring levels, half of them on each side; even, >= 0.
        kernel_size: side of the spatial window in cells; odd. Cells outside the map do not count.

    Returns:
        L tensors shaped and laid out like ``levels``: at level l the maximum of the levels
        l - tau/2 to l + tau/2 that exist (and have cells), each resized bilinearly
        (``align_corners=False``) to level l's size.

    The compiled operator interpolates and compares float16 and bfloat16 in float32 and rounds once.
    NaN wins every comparison; an infinite value spreads as PyTorch's interpolation spreads it. The
    gradient goes to the winner, among equal ones to the first in the order level (finest first),
    row, column, and is the same in every run. There is no second derivative. Under transforms of
    ``torch.func``, PyTorch's operators take over, whose equal values of several levels share it.

    Raises:
        TypeError, ValueError: see :func:`defcn_d2.ops.arguments.check_arguments`.
    """
    check_arguments(levels, tau, kernel_size)
    if _standard.get() or not torch.compiler.is_compiling() and is_transformed():
        return compose_plain(levels, tau, kernel_size)
    if not levels or torch.onnx.is_in_onnx_export():  # ONNX has Resize, Max and MaxPool
        return compose(levels, tau, kernel_size)
    device_type = levels[0].device.type
    if _library.supports(device_type):
        return torch.ops.defcn_d2.max_filter_3d(levels, tau, kernel_size)
    if not torch.compiler.is_compiling():
        _library.warn_once(device_type)
    return compose(levels, tau, kernel_size)


def overlap_with_better(
    logits: Tensor, boxes: Tensor, level_shapes: Sequence[tuple[int, int]], tau: int = 2
) -> Tensor:
    """The largest IoU of a location's box with that of a neighbour that scores higher.

    A neighbour is better if its logit of the same class is higher; an equal one if it comes first.
    Neighbours are, on the own level, the other 8 cells of the 3 x 3 window; on the next coarser
    level, the 3 x 3 window around the cell that covers this one; on the next finer level, the
    4 x 4 cells around the 2 x 2 that this one covers. There is no gradient.

    Args:
        logits: (N, R, K), finest level first, row-major within a level; float32, float64, float16
            or bfloat16.
        boxes: (N, R, 4) xyxy, of any of these dtypes; float16 and bfloat16 are taken as float32.
        level_shapes: rows and columns of each level's grid; each has half the rows and columns of
            the one before, rounded up.
        tau: neighbouring levels that take part, 2 (one on each side) or 0.

    Returns:
        (N, R, K) in [0, 1], of the logits' dtype; 0 where no neighbour is better.

    The IoU is computed in the boxes' precision and rounded to that of the logits. A NaN logit is
    no better than another, and none is better than it; a box with a NaN overlaps none, nor does
    one of infinite or no area: there is no NaN in the result.

    Raises:
        TypeError, ValueError: see :func:`defcn_d2.ops.arguments.check_overlap_arguments`.
    """
    if _standard.get():
        with torch.no_grad():
            return overlap_with_better_plain(logits, boxes, level_shapes, tau)
    if torch.onnx.is_in_onnx_export():  # sizes may have no values
        return compose_overlap(logits, boxes, level_shapes, tau)
    check_overlap_arguments(logits, boxes, level_shapes, tau)
    if not torch.compiler.is_compiling() and is_transformed():
        return compose_overlap(logits, boxes, level_shapes, tau)
    device_type = logits.device.type
    if _library.supports(device_type):
        heights, widths = zip(*level_shapes, strict=True) if level_shapes else ((), ())
        with torch.no_grad():
            return torch.ops.defcn_d2.overlap_with_better(logits, boxes, heights, widths, tau)
    if not torch.compiler.is_compiling():
        _library.warn_once(device_type)
    return compose_overlap(logits, boxes, level_shapes, tau)


def is_compiled(device_type: str = "cpu") -> bool:
    """Reports if tensors on a type of device ("cpu", "cuda") run through the compiled operator."""
    return _library.supports(device_type)


def report() -> str:
    """One line for environment reports: which implementation is in use and how it was built."""
    return f"operators: {_library.report()}"
