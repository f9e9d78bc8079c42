"""Operators: the 3D max filter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from defcn_d2.ops.reference import max_filter_3d_reference

__all__ = ["max_filter_3d", "max_filter_3d_reference"]


def max_filter_3d(levels: Sequence[Tensor], tau: int = 2, kernel_size: int = 3) -> list[Tensor]:
    """Maximum over a window in space and over the neighbouring levels (arXiv 2012.03544, sec. 3.4).

    Args:
        levels: L tensors of shape (N, C, H_l, W_l), finest first; one floating-point dtype.
        tau: number of neighbouring levels, half of them on each side; even.
        kernel_size: side of the spatial window in cells; odd. Cells outside the map do not count.

    Returns:
        L tensors shaped like ``levels``: at level l the maximum of the levels l - tau/2 to
        l + tau/2 that exist, each resized bilinearly (align_corners False) to level l's size.
    """
    return max_filter_3d_reference(levels, tau, kernel_size)
