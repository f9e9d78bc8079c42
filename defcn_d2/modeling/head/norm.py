"""Normalisations of the heads, by name: Detectron2's, and group normalisation for every layout."""

import torch
from detectron2.layers import get_norm
from torch import Tensor, nn


def build_norm(norm: str, channels: int) -> nn.Module | None:
    """Build a normalisation of ``detectron2.layers.get_norm``; None for "".

    Args:
        channels: of the input; for "GN", in 32 groups, a multiple of 32.
    """
    return GroupNorm(32, channels) if norm == "GN" else get_norm(norm, channels)


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` that stays fast on a CPU where feature maps are channels_last.

    PyTorch's CPU kernels for that layout are the slow ones, those in bfloat16 by far: both copies
    into the usual layout and back cost less (``tools/benchmarks modes``, docs/performance.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        """
        Args:
            x: (N, channels, H, W), contiguous or channels_last.

        Returns:
            the same shape and layout.
        """
        if x.device.type != "cpu" or x.is_contiguous():
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
