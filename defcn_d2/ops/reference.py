"""The 3D max filter composed of PyTorch operators: the reference, the fallback, the ONNX form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from defcn_d2.ops.checks import check_arguments


def max_filter_3d_reference(
    levels: Sequence[Tensor], tau: int = 2, kernel_size: int = 3
) -> list[Tensor]:
    """3D max filter as a composition of resize, maximum and 2D max pooling.

    Same arguments, result and errors as :func:`defcn_d2.ops.max_filter_3d`. The maximum over the
    levels is taken before the one over the window, which is the cheapest order PyTorch has.
    """
    check_arguments(levels, tau, kernel_size)
    return compose(levels, tau, kernel_size)


def compose(levels: Sequence[Tensor], tau: int, kernel_size: int) -> list[Tensor]:
    """:func:`max_filter_3d_reference` for arguments that have been checked."""
    return [_filter_level(levels, index, tau // 2, kernel_size) for index in range(len(levels))]


def _filter_level(levels: Sequence[Tensor], index: int, reach: int, kernel_size: int) -> Tensor:
    level = levels[index]
    if level.numel() == 0:
        return level.clone()
    merged: Tensor | None = None
    for k in range(max(0, index - reach), min(len(levels), index + reach + 1)):
        if 0 in levels[k].shape[2:]:  # a map without cells has nothing to add
            continue
        resized = _resize(levels[k], level) if k != index else level
        merged = resized if merged is None else torch.maximum(merged, resized)
    assert merged is not None  # the level itself always takes part
    return F.max_pool2d(merged, kernel_size, stride=1, padding=kernel_size // 2)


def _resize(source: Tensor, target: Tensor) -> Tensor:
    resized = F.interpolate(source, target.shape[2:], mode="bilinear", align_corners=False)
    return resized.to(target.dtype)  # autocast would leave float32 behind
