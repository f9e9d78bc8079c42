"""One-to-few assignment with soft labels that fade during training (arXiv 2303.11567)."""

import torch
from detectron2.structures import Instances

from ...config.rules import check_argument, numbers, whole_numbers
from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import class_probability, prediction_quality
from .pairs import AllPairs
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class OneToFew:
    """One certain location per ground truth, and a few ambiguous ones.

    Every ground truth takes the k locations in the central region of its box of highest quality
    p^(1 - a) * iou^a  above 0; one that several take goes to the one of highest quality. Of those
    left, the best is certain: label and weight 1. The soft label of the others is  T p / max p
    over them, where T falls from ``start`` to ``end`` in the training. The quality is the label.
    """

    gives_quality = True

    def __init__(
        self,
        *,
        alpha: float = 0.8,
        radius: float = 1.5,
        topk: int = 7,
        start: float = 0.6,
        end: float = 0.2,
        weight: float = 0.4,
        enlarge_tiny: bool = False,
    ):
        """
        Args:
            alpha: weight a of the IoU in the quality, in [0, 1].
            radius: half the side of the central region in strides; 0: the whole box.
            topk: locations that each ground truth takes.
            start, end: largest soft label of ambiguous locations, at the start and at the end of
                the training, in between linearly.
            weight: factor of the class loss of ambiguous locations.
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("alpha", alpha, numbers("[0, 1]"))
        check_argument("radius", radius, numbers("[0, inf)"))
        check_argument("topk", topk, whole_numbers("[1, inf)"))
        check_argument("start", start, numbers("[0, 1]"))
        check_argument("end", end, numbers("[0, 1]"))
        check_argument("weight", weight, numbers("[0, inf)"))
        self.alpha = alpha
        self.radius = radius
        self.topk = topk
        self.start = start
        self.end = end
        self.weight = weight
        self.enlarge_tiny = enlarge_tiny
        self.progress = 0.0

    @property
    def largest_label(self) -> float:
        """T, of the best of the ambiguous locations."""
        return self.start + (self.end - self.start) * self.progress

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        pairs = AllPairs.of(gt)
        quality = prediction_quality(predictions, pairs, self.alpha)  # (M, R)
        inside = F.inside_center(priors, gt.gt_boxes.tensor, self.radius, self.enlarge_tiny)
        allowed = inside & (quality > 0) & quality.isfinite()
        quality = quality.masked_fill(~allowed, -1)
        gt_idxs = F.best_gt(quality, allowed & F.topk(quality, self.topk))  # (R,)

        own = gt_idxs == torch.arange(len(gt), device=gt_idxs.device)[:, None]  # (M, R)
        certain = own & F.topk(quality.masked_fill(~own, -1), 1)
        ambiguous = own & ~certain
        p = class_probability(predictions, pairs).masked_fill(~ambiguous, 0)
        highest = p.amax(dim=1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)  # (M, 1)
        labels = self.largest_label * p / highest
        labels = torch.where(certain, 1.0, labels)
        return Assignment(
            gt_idxs,
            quality=labels.amax(dim=0),  # of the only one that is not 0
            weights=torch.where(ambiguous.any(dim=0), self.weight, 1.0),
        )
