"""Soft labels and weights by how clean an anchor is (arXiv 1912.05086)."""

from detectron2.structures import Instances
from torch import Tensor

from ...config.rules import check_argument, numbers, whole_numbers
from ...structures import Assignment, Predictions, Priors
from ..box_ops import iou, pairwise_iou
from . import functional as F
from .registry import MATCHER_REGISTRY

# Least mean, range and 1 - x that are divided by.
EPS = 1e-6


@MATCHER_REGISTRY.register()
class NoisyAnchors:
    """The k priors of highest IoU with a ground truth, each as foreground as it is clean.

    A prior that some ground truth chooses learns the one that it overlaps most itself. All other
    priors, and those that overlap nothing, are background. Of the candidates of an image, in which
    a prior counts as often as it was chosen, cleanliness compares the IoU of the predicted box and
    the score of the class with their means. The quality is the soft label of the class, from the
    mean IoU for the least clean to 1; the weights, of mean 1, emphasise the cleanest. Both are
    without gradient.
    """

    gives_quality = True

    def __init__(
        self,
        *,
        topk: int = 30,
        alpha: float = 0.75,
        anchor_scale: float = 0.0,
        warmup: float = 0.0,
    ):
        """
        Args:
            topk: candidates of a ground truth; of equal ones the first.
            alpha: weight of the IoU beside the score, in [0, 1].
            anchor_scale: side of a square in strides that stands for the prior at each location,
                which has to lie inside the ground truth then; 0: the prior itself, wherever it is.
            warmup: share of the training in which the IoU is that of the prior, as predicted boxes
                say little at first.
        """
        check_argument("topk", topk, whole_numbers("[1, inf)"))
        check_argument("alpha", alpha, numbers("[0, 1]"))
        check_argument("anchor_scale", anchor_scale, numbers("[0, inf)"))
        check_argument("warmup", warmup, numbers("[0, 1]"))
        self.topk = topk
        self.alpha = alpha
        self.anchor_scale = anchor_scale
        self.warmup = warmup
        self.progress = 0.0

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        overlap = self._overlap(priors, gt_boxes)  # (M, R)
        chosen = F.first_topk(overlap, self.topk) & (overlap > 0)
        gt_idxs = F.best_gt(overlap, (overlap > 0) & chosen.any(dim=0))  # (R,)

        # Candidates, those of one ground truth after the other.
        locations = chosen.nonzero()[:, 1]  # (C,)
        of_gts = gt_idxs[locations]
        if self.progress < self.warmup:
            fit = overlap[of_gts, locations]
        else:
            fit = iou(predictions.boxes[locations], gt_boxes[of_gts]).float()
        scores = predictions[(locations,)].scores()  # (C, K)
        scores = scores.gather(1, gt.gt_classes[of_gts][:, None]).squeeze(1)
        fit, scores = fit.nan_to_num(0), scores.nan_to_num(0)  # of predictions not finite
        labels, weights = cleanliness(fit, scores, self.alpha)
        return Assignment(
            gt_idxs,
            quality=overlap.new_zeros(len(priors)).index_put_((locations,), labels),
            weights=overlap.new_ones(len(priors)).index_put_((locations,), weights),
        )

    def _overlap(self, priors: Priors, gt_boxes: Tensor) -> Tensor:
        """(M, R) IoU of the ground truths and what stands for the priors."""
        if not self.anchor_scale:
            return pairwise_iou(gt_boxes, priors.boxes)
        overlap = pairwise_iou(gt_boxes, F.square_anchors(priors, self.anchor_scale))
        return overlap * F.inside_box(priors, gt_boxes)


def cleanliness(fit: Tensor, scores: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Soft labels and weights of the C candidates of an image.

    With c = a fit / mean(fit) + (1 - a) score / mean(score) and C = mean(fit), the labels are
    C + (1 - C) (c - min c) / (max c - min c). The weights are made as c, from 1 / (1 - x).

    Args:
        fit, scores: (C,) in [0, 1]; C may be 0.
        alpha: a.

    Returns:
        (C,) in [0, 1] and (C,), both of the type of ``fit``.
    """

    def mixed(x: Tensor, y: Tensor) -> Tensor:
        x, y = (z / z.mean().clamp(min=EPS) for z in (x, y))
        return alpha * x + (1 - alpha) * y

    clean = mixed(fit, scores)
    if not len(clean):
        return clean, clean
    low, high = clean.aminmax()
    mean = fit.mean()
    labels = mean + (1 - mean) * (clean - low) / (high - low).clamp(min=EPS)
    return labels.clamp(max=1), mixed(*(1 / (1 - x).clamp(min=EPS) for x in (fit, scores)))
