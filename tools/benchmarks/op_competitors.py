"""The 3D max filter three times: as the original composes it, as PyTorch does it best, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from defcn_d2 import ops

Filter = Callable[[Sequence[Tensor]], list[Tensor]]

TAU, KERNEL_SIZE = 2, 3


def _resized(levels: Sequence[Tensor], own: int) -> list[Tensor]:
    level, reach = levels[own], TAU // 2
    return [
        level
        if k == own
        else F.interpolate(levels[k], level.shape[2:], mode="bilinear", align_corners=False)
        for k in range(max(0, own - reach), min(len(levels), own + reach + 1))
    ]


def original(levels: Sequence[Tensor]) -> list[Tensor]:
    """Resize, stack, MaxPool3d, and of its slices the level's own."""
    outputs = []
    for own in range(len(levels)):
        stacked = torch.stack(_resized(levels, own), dim=2)
        pooled = F.max_pool3d(
            stacked, (TAU + 1, KERNEL_SIZE, KERNEL_SIZE), 1, (TAU // 2, *[KERNEL_SIZE // 2] * 2)
        )
        outputs.append(pooled[:, :, min(own, TAU // 2)])
    return outputs


def best_composition(levels: Sequence[Tensor]) -> list[Tensor]:
    """The maximum over the resized levels first, then one MaxPool2d."""
    outputs = []
    for own in range(len(levels)):
        merged, *others = _resized(levels, own)
        for other in others:
            merged = torch.maximum(merged, other)
        outputs.append(F.max_pool2d(merged, KERNEL_SIZE, 1, KERNEL_SIZE // 2))
    return outputs


def compiled(levels: Sequence[Tensor]) -> list[Tensor]:
    """The operator of this package."""
    return ops.max_filter_3d(levels, TAU, KERNEL_SIZE)


COMPETITORS: dict[str, Filter] = {
    "original": original,
    "best composition": best_composition,
    "compiled": compiled,
}


def pyramid_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes of P3 to P7 for an image whose sides are multiples of 32."""
    shapes = [(height // 8, width // 8)]
    while len(shapes) < 5:
        shapes.append(((shapes[-1][0] + 1) // 2, (shapes[-1][1] + 1) // 2))
    return shapes


def make_levels(
    batch: int,
    image: tuple[int, int],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    device: str,
) -> list[Tensor]:
    """Normally distributed levels with 256 channels."""
    torch.manual_seed(0)
    return [
        torch.randn(batch, 256, *shape)
        .to(device=device, dtype=dtype)
        .contiguous(memory_format=memory_format)
        for shape in pyramid_shapes(*image)
    ]


def forward_and_backward(
    max_filter: Filter, leaves: list[Tensor], grads: list[Tensor]
) -> list[Tensor]:
    """Gradients of ``leaves``."""
    return list(torch.autograd.grad(max_filter(leaves), leaves, grads))


def assert_equal(levels: list[Tensor]) -> None:
    """The competitors' outputs agree up to rounding, their gradients on the first image.

    The gradients are compared on float64 values of their own: where two are equal, or differ by the
    rounding of float32 alone, each of the competitors may rightly see another winner.
    """
    tolerance = 1e-5 if levels[0].dtype == torch.float32 else 2e-2
    doubles = [torch.randn_like(x[:1], dtype=torch.float64).requires_grad_() for x in levels]
    grads = [torch.randn_like(level) for level in doubles]
    expected = original(levels)
    expected_gradients = forward_and_backward(original, doubles, grads)
    for max_filter in (best_composition, compiled):
        for pair in zip(max_filter(levels), expected, strict=True):
            torch.testing.assert_close(*pair, rtol=0, atol=tolerance)
        gradients = forward_and_backward(max_filter, doubles, grads)
        for pair in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(*pair, rtol=0, atol=1e-11)
