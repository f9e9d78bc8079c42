"""The values that heads, matchers, criteria and inference exchange.

Shape shorthand, used throughout the package:
    N: images in the batch
    R: priors (locations) over all levels, finest level first, row-major within a level
    K: foreground classes
    M: ground-truth boxes of one image
    P: foreground pairs of a location and its ground truth, over all images
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

BACKGROUND = -1
IGNORE = -2


@dataclass(frozen=True)
class Priors:
    """The boxes at which predictions are made.

    A point is a prior box whose side is its stride, so that points and anchors share one type.

    Attributes:
        boxes: (R, 4) float, xyxy in pixels of the padded input.
        strides: (R,) float, stride of the level of each prior in pixels.
        level_sizes: number of priors per level; sums up to R.
        level_shapes: rows and columns of each level's grid, where cell (i, j) has its center at
            ((j + 0.5) * stride, (i + 0.5) * stride); None where the priors are no such grid, as
            with several anchors a location. It lets matchers find the locations of a region
            without looking at all of them.
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
    """A set of predictions of a head: one for every prior.

    Attributes:
        cls_logits: (N, R, K) float32, also in mixed precision, as ``quality_logits``.
        boxes: (N, R, 4) float, xyxy in pixels, decoded once and differentiable; in training
            float64, as GIoU loses digits where a tiny box has large coordinates.
        quality_logits: (N, R) float, or None where the head has no such branch: 3D Max
            Filtering's filter, or centerness.
        centerness: how the quality enters the score. False: the score is class times quality.
            True: it is the root of that product, and the best locations are chosen by class alone.
        extra: (N, R, ...) tensors of a head's own, by name, for its criterion.

    ``predictions[i]`` is image i: the same fields without N. Other indices go to every field, too:
    ``predictions[images, locations]`` are those of P pairs, and of one image ``predictions[None]``
    is a batch.
    """

    cls_logits: Tensor
    boxes: Tensor
    quality_logits: Tensor | None = None
    centerness: bool = False
    extra: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, index: int | None | tuple[Tensor, ...]) -> "Predictions":
        quality = self.quality_logits
        return replace(
            self,
            cls_logits=self.cls_logits[index],
            boxes=self.boxes[index],
            quality_logits=None if quality is None else quality[index],
            extra={name: value[index] for name, value in self.extra.items()},
        )

    def __len__(self) -> int:
        return len(self.cls_logits)

    def nan_if_not_finite(self) -> Tensor:
        """0, or NaN if any value is NaN or infinite: scalar float32, without waiting for a GPU."""
        values = [self.boxes, self.cls_logits, self.quality_logits, *self.extra.values()]
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

    def scores(self) -> Tensor:
        """The score of every class at every location: (..., R, K) float32 in [0, 1]."""
        quality = self.quality()
        quality = None if quality is None else quality.unsqueeze(-1)
        return combined_score(self.cls_logits.float().sigmoid(), quality, self.centerness)

    def quality(self) -> Tensor | None:
        """(..., R) probability of the quality branch in float32, or None without one."""
        return None if self.quality_logits is None else self.quality_logits.float().sigmoid()


def combined_score(probability: Tensor, quality: Tensor | None, centerness: bool) -> Tensor:
    """The rule of the score: class times quality; with centerness the root of that.

    Args:
        probability: float, of a class.
        quality: float that broadcasts with it, or None where there is no such branch.
        centerness: as of ``Predictions``.
    """
    if quality is None:
        return probability
    score = probability * quality
    return score.sqrt() if centerness else score


def fuse_logits(a: Tensor, b: Tensor) -> Tensor:
    """Logit of sigmoid(a) * sigmoid(b), without leaving the logarithmic scale.

    From 1/p - 1 = e^-a + e^-b + e^(-a-b):  z = -logsumexp(-a, -b, -a-b).

    Args:
        a, b: float tensors that broadcast.
    """
    return -torch.logaddexp(torch.logaddexp(-a, -b), -a - b)


@dataclass(frozen=True)
class Assignment:
    """The ground truth that each prior of one image learns.

    Attributes:
        gt_idxs: (R,) int64, index of the ground truth, ``BACKGROUND`` or ``IGNORE``.
        quality: (R,) float in [0, 1], or None: weight of the box loss and target of the
            centerness branch, or soft class label; undefined where there is no ground truth.
        weights: (R,) float, or None: factor of a location's losses; of which ones, the criterion
            says.
    """

    gt_idxs: Tensor
    quality: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class Foreground:
    """The P foreground pairs of a batch, gathered once for all losses of a criterion.

    Attributes:
        images, locations: (P,) int64, where each pair is.
        gt_idxs: (P,) int64, index into the ground truths of the whole batch, image after image.
        boxes: (P, 4) xyxy in pixels, predicted, with a gradient.
        gt_boxes: (P, 4) xyxy in pixels.
        gt_classes: (P,) int64.
        quality, weights: (P,) of the assignments, or None.
        count: scalar float64, what the losses of this worker add to the normaliser.
        box_weights: (P,) factors of the losses of boxes, or None for 1.
        box_count: scalar, the count of these losses: the sum of their factors, if there are any.
    """

    images: Tensor
    locations: Tensor
    gt_idxs: Tensor
    boxes: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    quality: Tensor | None
    weights: Tensor | None
    count: Tensor
    box_weights: Tensor | None
    box_count: Tensor

    @property
    def entries(self) -> Tensor:
        """(3, P) int64: image, location and class, the indices of the pairs into class logits."""
        return torch.stack([self.images, self.locations, self.gt_classes])


@dataclass(frozen=True)
class LossSum:
    """A loss before its division.

    Attributes:
        total: scalar with a gradient, float32 or float64: weight times the sum over the images of
            this worker.
        count: scalar without a gradient: what this worker adds to the normaliser, such as its
            foreground locations.
    """

    total: Tensor
    count: Tensor
