"""One-to-one assignment by the training loss itself (arXiv 2012.03544, table 2)."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from ...config.rules import check_argument, numbers
from ...structures import Assignment, Predictions, Priors
from ..box_ops import giou
from . import functional as F
from .costs import focal_cost, focal_problems
from .many_pairs import scored_pairs
from .pairs import AllPairs, Pairs, hungarian_pairs
from .registry import MATCHER_REGISTRY, BatchMatcher

# Score of a pair that is not allowed, of the original release: one pair more is worth any cost.
NOT_ALLOWED = -1e8


@MATCHER_REGISTRY.register()
class ForegroundLoss(BatchMatcher):
    """One location per ground truth, the assignment of the lowest total loss.

    The loss of a pair is the focal loss over all classes and a multiple of the GIoU loss. Only
    locations in the central region of a box are allowed; as many ground truths as possible get one.
    """

    def __init__(
        self,
        *,
        radius: float = 1.5,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        keep_unreachable: bool = False,
        enlarge_tiny: bool = False,
    ):
        """
        Args:
            radius: half the side of the central region in strides; 0: the whole box.
            giou_weight: factor of the GIoU loss in the cost.
            focal_alpha, focal_gamma: of the focal loss in the cost.
            keep_unreachable: a ground truth whose region holds no location takes an arbitrary
                other one, as in the original release; by default it stays unmatched.
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("radius", radius, numbers("[0, inf)"))
        check_argument("giou_weight", giou_weight, numbers("[0, inf)"))
        check_argument("focal_alpha", focal_alpha, numbers("[0, 1]"))
        check_argument("focal_gamma", focal_gamma, numbers("[0, inf)"))
        self.radius = radius
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.keep_unreachable = keep_unreachable
        self.enlarge_tiny = enlarge_tiny

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        return focal_problems(cfg, key)

    def match_batch(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        if self.keep_unreachable:
            return [
                self._match_dense(priors, predictions[i], gt) for i, gt in enumerate(gt_instances)
            ]
        pairs, score = scored_pairs(
            priors, predictions, gt_instances, self.radius, self._score, self.enlarge_tiny
        )
        return hungarian_pairs(pairs, score, NOT_ALLOWED)

    def _score(self, predictions: Predictions, pairs: Pairs | AllPairs) -> Tensor:
        """Minus the cost of each pair."""
        cost = focal_cost(predictions, pairs, self.focal_alpha, self.focal_gamma)
        return -(cost + self.giou_weight * (1 - pairs.overlap(giou, predictions.boxes.float())))

    def _match_dense(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        allowed = F.inside_center(priors, gt.gt_boxes.tensor, self.radius, self.enlarge_tiny)
        score = self._score(predictions, AllPairs.of(gt))
        return Assignment(F.hungarian_dense(score, allowed, NOT_ALLOWED))
