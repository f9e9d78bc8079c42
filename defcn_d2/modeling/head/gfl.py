"""Boxes whose sides are distributions: the head of Generalized Focal Loss (arXiv 2006.04388)."""

from typing import Any

import torch
from torch import Tensor

from ...config.rules import check_argument, whole_numbers
from .build import HEAD_REGISTRY
from .dense import DeFCNHead, conv3x3


@HEAD_REGISTRY.register()
class GFLHead(DeFCNHead):
    """Predicts a distribution of the distance to each side of a box; the box is its expectation.

    The distances are whole numbers of strides, 0 to ``reg_max``. ``extra["box_logits"]``, of shape
    (N, R, 4 * (reg_max + 1)), has the logits: those of left first, then top, right and bottom.
    """

    priors = "points"
    gives_box_logits = True

    def __init__(self, *, reg_max: int = 16, **shared: Any):
        """
        Args:
            reg_max: the largest distance, in strides of the location's level.
        """
        check_argument("reg_max", reg_max, whole_numbers("[1, inf)"))
        check_argument("box_bias", shared.get("box_bias", 0.0), _starts_uniform)
        check_argument("norm_reg_targets", shared.get("norm_reg_targets", True), _in_strides)
        super().__init__(**shared)
        self.reg_max = reg_max
        sides = 4 * self.num_anchors
        self.bbox_pred = conv3x3(shared["in_channels"], sides * (reg_max + 1))

    def maps(
        self, cls_features: list[Tensor], box_features: list[Tensor]
    ) -> dict[str, list[Tensor]]:
        maps = super().maps(cls_features, box_features)
        logits = maps["boxes"]  # (N, 4 * (reg_max + 1), H_l, W_l) each
        distances = [
            expected_bin(x.unflatten(1, (-1, self.reg_max + 1))) * stride
            for x, stride in zip(logits, self.strides)
        ]
        return {**maps, "boxes": distances, "box_logits": logits}

    def _box_deltas(self, features: Tensor, level: int) -> Tensor:
        return self.scales[level](self.bbox_pred(features))


def expected_bin(logits: Tensor) -> Tensor:
    """The expectations of distributions over the bins 0 to n.

    In float32 or wider, and by no product of matrices, whose factors mixed precision would round.

    Args:
        logits: (N, S, n + 1, H, W) float.

    Returns:
        (N, S, H, W) in [0, n].
    """
    probabilities = logits.softmax(2, dtype=torch.promote_types(logits.dtype, torch.float32))
    bins = torch.arange(logits.shape[2], device=logits.device, dtype=probabilities.dtype)
    return (probabilities * bins[:, None, None]).sum(2)


def _starts_uniform(key: str, value: float) -> str | None:
    if not value:
        return None
    return (
        f"{key} is {value}, but distributions of distances start uniform, at half their range; "
        "set it to 0"
    )


def _in_strides(key: str, value: bool) -> str | None:
    if value:
        return None
    return f"{key} is False, but distributions are of distances in strides; set it to True"
