"""The 3D max filter composed of PyTorch operators: the reference, the fallback, the ONNX form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .arguments import check_arguments


def max_filter_3d_reference(
    levels: Sequence[Tensor], tau: int = 2, kernel_size: int = 3
) -> list[Tensor]:
    """3D max filter as a composition of resize, maximum and max pooling.

    Same arguments, result and errors as :func:`defcn_d2.ops.max_filter_3d`, and the same order
    among equal values. In half precision the resized values are rounded before they are compared,
    so that there are more equal ones.
    """
    check_arguments(levels, tau, kernel_size)
    return compose(levels, tau, kernel_size)


def compose(levels: Sequence[Tensor], tau: int, kernel_size: int) -> list[Tensor]:
    """:func:`max_filter_3d_reference` for arguments that have been checked."""
    needs_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in levels)
    pool = _pool_in_order if needs_gradient and not torch.onnx.is_in_onnx_export() else _pool_merged
    outputs = []
    for index, level in enumerate(levels):
        if level.numel() == 0:
            outputs.append(level.clone())
            continue
        pooled = pool(_neighbours(levels, index, tau // 2), kernel_size)
        pooled = pooled.to(level.dtype)  # autocast pools in float32
        outputs.append(pooled.contiguous(memory_format=_format_of(level)))
    return outputs


def compose_plain(levels: Sequence[Tensor], tau: int, kernel_size: int) -> list[Tensor]:
    """:func:`compose` for inference, without a look at memory formats: those of symbolic sizes are
    conditions that an exported graph would carry."""
    return [
        _pool_merged(_neighbours(levels, index, tau // 2), kernel_size)
        for index in range(len(levels))
    ]


def _format_of(level: Tensor) -> torch.memory_format:
    if level.is_contiguous(memory_format=torch.channels_last) and not level.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _neighbours(levels: Sequence[Tensor], index: int, reach: int) -> list[Tensor]:
    """The level and its neighbours, finest first, all at the size of the level."""
    level = levels[index]
    resized = []
    for k in range(max(0, index - reach), min(len(levels), index + reach + 1)):
        if k == index:
            resized.append(level)
        elif 0 not in levels[k].shape[2:]:  # a map without cells has nothing to add
            size = level.shape[2:]
            resized.append(F.interpolate(levels[k], size, mode="bilinear", align_corners=False))
    return resized


def _pool_merged(neighbours: list[Tensor], kernel_size: int) -> Tensor:
    # The cheapest order PyTorch has: the maximum over the levels first, then one 2D pooling.
    merged = neighbours[0]
    for neighbour in neighbours[1:]:
        merged = torch.maximum(merged, neighbour)
    return F.max_pool2d(merged, kernel_size, stride=1, padding=kernel_size // 2)


def _pool_in_order(neighbours: list[Tensor], kernel_size: int) -> Tensor:
    # torch.maximum shares the gradient between equal values; one window over all levels gives it to
    # the first in the order level, row, column.
    stacked = torch.stack(neighbours, dim=2)
    padding = kernel_size // 2
    window = (len(neighbours), kernel_size, kernel_size)
    return F.max_pool3d(stacked, window, stride=1, padding=(0, padding, padding)).squeeze(2)
