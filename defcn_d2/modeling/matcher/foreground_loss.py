"""One-to-one assignment by the training loss itself (arXiv 2012.03544, table 2)."""

from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import Tensor

from ...structures import Assignment, Predictions, Priors
from ..box_ops import giou, pairwise_giou
from . import functional as F
from .costs import focal_cost, pair_focal_cost
from .many_pairs import scored_pairs
from .pairs import Pairs, hungarian_pairs
from .registry import MATCHER_REGISTRY, BatchMatcher

# Score of a pair that is not allowed, of the original release: one pair more is worth any cost.
NOT_ALLOWED = -1e8


@MATCHER_REGISTRY.register()
class ForegroundLoss(BatchMatcher):
    """One location per ground truth, the assignment of the lowest total loss.

    The loss of a pair is the focal loss over all classes and a multiple of the GIoU loss. Only
    locations in the central region of a box are allowed; as many ground truths as possible get one.
    """

    @configurable
    def __init__(
        self,
        *,
        radius: float = 1.5,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        keep_unreachable: bool = False,
    ):
        """
        Args:
            radius: half the side of the central region in strides; 0: the whole box.
            giou_weight: factor of the GIoU loss in the cost.
            focal_alpha, focal_gamma: of the focal loss in the cost.
            keep_unreachable: a ground truth whose region holds no location takes an arbitrary
                other one, as in the original release; by default it stays unmatched.
        """
        if radius < 0:
            raise ValueError(f"MATCHER.RADIUS {radius} is negative; take 0 or more strides")
        self.radius = radius
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.keep_unreachable = keep_unreachable

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "radius": cfg.RADIUS,
            "giou_weight": cfg.COST_GIOU,
            "focal_alpha": cfg.FOCAL_ALPHA,
            "focal_gamma": cfg.FOCAL_GAMMA,
            "keep_unreachable": cfg.KEEP_UNREACHABLE,
        }

    def match_batch(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        if self.keep_unreachable:
            return [
                self._match_dense(priors, predictions[i], gt) for i, gt in enumerate(gt_instances)
            ]
        pairs, score = scored_pairs(
            priors,
            gt_instances,
            self.radius,
            lambda pairs: -self._pair_cost(predictions, pairs),
            lambda image, gt: -self._cost(predictions[image], gt),
        )
        return hungarian_pairs(pairs, score, NOT_ALLOWED)

    def _pair_cost(self, predictions: Predictions, pairs: Pairs) -> Tensor:
        """(P,) of all images."""
        boxes = predictions.boxes[pairs.images, pairs.locations].float()
        cost = pair_focal_cost(predictions, pairs, self.focal_alpha, self.focal_gamma)
        return cost + self.giou_weight * (1 - giou(pairs.gt_boxes, boxes))

    def _cost(self, predictions: Predictions, gt: Instances) -> Tensor:
        """(M, R) of one image."""
        cost = focal_cost(predictions, gt.gt_classes, self.focal_alpha, self.focal_gamma)
        overlap = pairwise_giou(gt.gt_boxes.tensor, predictions.boxes.float())
        return cost + self.giou_weight * (1 - overlap)

    def _match_dense(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        allowed = F.inside_center(priors, gt.gt_boxes.tensor, self.radius)
        return Assignment(F.hungarian_dense(-self._cost(predictions, gt), allowed, NOT_ALLOWED))
