"""The three values that head, matchers, criteria and inference exchange.

Shape shorthand, used throughout the package:
    N: images in the batch
    R: priors (locations) over all levels, finest level first, row-major within a level
    K: foreground classes
    M: ground-truth boxes of one image
"""

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND = -1
IGNORE = -2


@dataclass(frozen=True)
class Priors:
    """Where predictions are made.

    A point is a prior box whose side is its stride, so that points and anchors share one type.

    Attributes:
        boxes: (R, 4) float, xyxy in pixels of the padded input.
        strides: (R,) float, stride of the level of each prior in pixels.
        level_sizes: number of priors per level; sums up to R.
        level_shapes: rows and columns of each level's grid, where cell (i, j) has its center at
            ((j + 0.5) * stride, (i + 0.5) * stride); None where the priors are no such grid. It
            lets matchers find the locations of a region without looking at all of them.
    """

    boxes: Tensor
    strides: Tensor
    level_sizes: list[int]
    level_shapes: list[tuple[int, int]] | None = None

    @property
    def centers(self) -> Tensor:
        """(R, 2) float, xy in pixels."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @property
    def level_strides(self) -> Tensor:
        """(L,) float, stride of each level in pixels."""
        return torch.stack([level[0] for level in self.strides.split(self.level_sizes)])

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class Predictions:
    """What the head says of every prior.

    Attributes:
        cls_logits: (N, R, K) float32, also in mixed precision, as ``quality_logits``.
        boxes: (N, R, 4) float, xyxy in pixels, decoded once and differentiable; in training
            float64, as GIoU loses digits where a tiny box has large coordinates.
        quality_logits: (N, R) float, or None where the head has no such branch: 3D Max
            Filtering's filter, or centerness.

    ``predictions[i]`` is image i: the same fields without N. Other indices go to every field, too:
    ``predictions[images, locations]`` are those of P pairs, and of one image ``predictions[None]``
    is a batch.
    """

    cls_logits: Tensor
    boxes: Tensor
    quality_logits: Tensor | None = None

    def __getitem__(self, index: int | None | tuple[Tensor, ...]) -> "Predictions":
        quality = self.quality_logits
        return Predictions(
            self.cls_logits[index],
            self.boxes[index],
            None if quality is None else quality[index],
        )

    def __len__(self) -> int:
        return len(self.cls_logits)

    def nan_if_not_finite(self) -> Tensor:
        """0, or NaN if any value is NaN or infinite: scalar float32, without waiting for a GPU."""
        values = [self.boxes, self.cls_logits, self.quality_logits]
        sums = [x.detach().sum(dtype=torch.float64) for x in values if x is not None]
        return (torch.stack(sums) * 0).sum().float()

    def fused(self) -> Tensor:
        """Class logits with the quality branch folded in.

        Returns:
            (..., R, K) float32 logits z with sigmoid(z) = sigmoid(cls) * sigmoid(quality); the
            class logits in float32 where there is no quality branch.
        """
        cls_logits = self.cls_logits.float()
        if self.quality_logits is None:
            return cls_logits
        return fuse_logits(cls_logits, self.quality_logits.float().unsqueeze(-1))


def fuse_logits(a: Tensor, b: Tensor) -> Tensor:
    """Logit of sigmoid(a) * sigmoid(b), without leaving the logarithmic scale.

    From 1/p - 1 = e^-a + e^-b + e^(-a-b):  z = -logsumexp(-a, -b, -a-b).

    Args:
        a, b: float tensors that broadcast.
    """
    return -torch.logaddexp(torch.logaddexp(-a, -b), -a - b)


@dataclass(frozen=True)
class Assignment:
    """Which ground truth each prior of one image learns.

    Attributes:
        gt_idxs: (R,) int64, index of the ground truth, ``BACKGROUND`` or ``IGNORE``.
        quality: (R,) float in [0, 1], or None: weight of the box loss and target of the
            centerness branch; undefined where there is no ground truth.
    """

    gt_idxs: Tensor
    quality: Tensor | None = None
