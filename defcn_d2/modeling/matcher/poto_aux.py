"""The one-to-many assignment of the auxiliary loss (arXiv 2012.03544, section 3.4)."""

from detectron2.structures import Instances

from ...config.rules import check_argument, numbers, whole_numbers
from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import prediction_quality
from .pairs import AllPairs
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register(default=["AUX.MATCHER"])
class POTOAux:
    """Several locations per ground truth: the adaptive threshold of arXiv 1912.02424.

    The k best qualities  p^(1 - a) * iou^a  of each level are candidates, also outside the box;
    foreground are those of at least mean + standard deviation that lie inside it. p is the plain
    class probability, without the filter.
    """

    def __init__(self, *, alpha: float = 0.8, topk: int = 9, enlarge_tiny: bool = False):
        """
        Args:
            alpha: weight of the IoU in the quality, in [0, 1].
            topk: candidates per level.
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("alpha", alpha, numbers("[0, 1]"))
        check_argument("topk", topk, whole_numbers("[1, inf)"))
        self.alpha = alpha
        self.topk = topk
        self.enlarge_tiny = enlarge_tiny

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes = gt.gt_boxes.tensor
        quality = prediction_quality(predictions, AllPairs.of(gt), self.alpha, fused=False)
        candidates = F.topk_per_level(quality, self.topk, priors.level_sizes)
        foreground = candidates & F.above_mean_std(quality, candidates)
        foreground &= F.inside_box(priors, gt_boxes, self.enlarge_tiny)
        return Assignment(F.best_gt(quality, foreground))
