"""Task-aligned assignment (arXiv 2108.07755, section 3.2; arXiv 2405.14458, section 3.1)."""

import torch
from detectron2.structures import Instances
from torch import Tensor

from ...config.rules import check_argument, numbers, whole_numbers
from ...structures import BACKGROUND, Assignment, Predictions, Priors
from ..box_ops import ciou
from . import functional as F
from .costs import class_probability, nearness
from .pairs import AllPairs
from .registry import MATCHER_REGISTRY

# Of the division by the largest metric, as in the release of arXiv 2405.14458.
EPS = 1e-9


@MATCHER_REGISTRY.register()
class TaskAligned:
    """The locations in a box whose predictions are best for class and box together.

    Every ground truth takes its k best by  m = p^alpha * max(CIoU, 0)^beta.  A location that
    several take goes to the one of highest CIoU of all whose box it lies in. The quality is a soft
    class label, t = m / max m * max CIoU  over the locations of the ground truth.
    """

    gives_quality = True

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 6.0,
        topk: int = 10,
        keep: int = 0,
        enlarge_tiny: bool = False,
    ):
        """
        Args:
            alpha, beta: exponents of the class probability and of the CIoU.
            topk: locations that each ground truth takes; 1 is one-to-one. Where their metric is 0,
                nearer ones to the centre of the box come first.
            keep: so many of those that are left to it stay, the best ones; 0: all. One-to-one with
                a larger ``topk`` is 1: a ground truth that loses its best has others.
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("alpha", alpha, numbers("[0, inf)"))
        check_argument("beta", beta, numbers("[0, inf)"))
        check_argument("topk", topk, whole_numbers("[1, inf)"))
        check_argument("keep", keep, whole_numbers("[0, inf)"))
        self.alpha = alpha
        self.beta = beta
        self.topk = topk
        self.keep = keep
        self.enlarge_tiny = enlarge_tiny

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes, pairs = gt.gt_boxes.tensor, AllPairs.of(gt)
        overlap = pairs.overlap(ciou, predictions.boxes.float()).clamp(min=0)  # (M, R)
        metric = class_probability(predictions, pairs) ** self.alpha * overlap**self.beta
        allowed = F.inside_box(priors, gt_boxes, self.enlarge_tiny) & metric.isfinite()
        score = torch.where(metric > 0, metric, nearness(priors, gt_boxes))
        score = score.masked_fill(~allowed, -torch.inf)

        taken = allowed & F.topk(score, self.topk)
        contested = taken.sum(dim=0) > 1  # (R,)
        gt_idxs = F.best_gt(overlap, torch.where(contested, allowed, taken))
        if self.keep:
            own = gt_idxs == torch.arange(len(gt), device=gt_idxs.device)[:, None]  # (M, R)
            best = own & F.topk(score.masked_fill(~own, -torch.inf), self.keep)
            gt_idxs = torch.where(best.any(dim=0), gt_idxs, BACKGROUND)
        return Assignment(gt_idxs, quality=soft_targets(metric, overlap, gt_idxs))


def soft_targets(metric: Tensor, overlap: Tensor, gt_idxs: Tensor) -> Tensor:
    """t = m / max m * max IoU, the maxima over the locations of each ground truth.

    Args:
        metric, overlap: (M, R), at least 0 where assigned.
        gt_idxs: (R,) int64, index of the ground truth or ``BACKGROUND``.

    Returns:
        (R,) in [0, 1]; 0 for background.
    """
    foreground, idxs = gt_idxs >= 0, gt_idxs.clamp(min=0)  # (R,)
    own = torch.stack([metric, overlap]).gather(1, idxs.expand(2, 1, -1)).squeeze(1)  # (2, R)
    own = own.masked_fill(~foreground, 0)
    highest = own.new_zeros(2, len(metric)).scatter_reduce(1, idxs.expand(2, -1), own, "amax")
    best_metric, best_overlap = highest[:, idxs]  # (R,)
    return own[0] / (best_metric + EPS) * best_overlap
