"""3D Max Filtering: suppress all but the strongest location in space and scale."""

import torch
from torch import Tensor, nn

from ...config.rules import check_argument, norm_of, numbers
from ...ops import max_filter_3d
from .norm import build_norm


class MaxFiltering(nn.Module):
    """3D Max Filtering over the levels of a pyramid (arXiv 2012.03544, section 3.3, eq. 5).

    With y = conv(x), shared over the levels, each location takes the maximum of y over its
    spatial window on its own and the neighbouring levels (resized to its own), and returns
    ReLU(norm(maximum + x)).
    """

    def __init__(self, channels: int, kernel_size: int = 3, tau: int = 2, norm: str = "GN"):
        """
        Args:
            channels: of the inputs and outputs.
            kernel_size: side of the spatial window in cells, odd.
            tau: levels that take part besides the own, tau / 2 on each side; even.
            norm: a normalisation of ``detectron2.layers.get_norm``, "" for none.

        Raises:
            ValueError: ``tau``, ``kernel_size`` or the channels for the norm are not as above.
        """
        super().__init__()
        check_argument("max_filtering.kernel_size", kernel_size, numbers("[1, inf)", 2, 1))
        check_argument("max_filtering.tau", tau, numbers("[0, inf)", divisor=2))
        check_argument("max_filtering.norm", norm, norm_of(channels))
        self.kernel_size = kernel_size
        self.tau = tau
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm = build_norm(norm, channels)
        nn.init.normal_(self.conv.weight, std=0.01)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """
        Args:
            features: (N, channels, H_l, W_l) per level, finest first; at least one level.

        Returns:
            per level the same shape, non-negative.
        """
        maxima = max_filter_3d([self.conv(x) for x in features], self.tau, self.kernel_size)
        sums = [maximum + x for maximum, x in zip(maxima, features)]
        if self.norm is not None:
            sums = [self.norm(x) for x in sums]
        return [torch.relu(x) for x in sums]
