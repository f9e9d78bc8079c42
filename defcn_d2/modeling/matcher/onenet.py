"""Minimum-cost assignment, OneNet (arXiv 2012.05780, section 3.2)."""

from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.structures import Instances

from ...config.components import own_node
from ...config.rules import check_argument, numbers, value_of
from ...structures import Assignment, Predictions, Priors
from ..box_ops import pairwise_giou
from . import functional as F
from .costs import class_probability, focal_difference_cost, focal_problems, l1_cost
from .pairs import AllPairs
from .registry import MATCHER_REGISTRY


@MATCHER_REGISTRY.register()
class OneNet:
    """Every ground truth its location of lowest cost, anywhere in the image.

    The cost adds up class, distance of the coordinates and GIoU. A location that several want
    goes to the one of lower cost; the others stay unmatched.
    """

    def __init__(
        self,
        *,
        cls_weight: float = 2.0,
        l1_weight: float = 5.0,
        giou_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ):
        """
        Args:
            cls_weight, l1_weight, giou_weight: factors in the cost.
            focal_alpha, focal_gamma: of the class cost.
        """
        for name, factor in (
            ("cls_weight", cls_weight),
            ("l1_weight", l1_weight),
            ("giou_weight", giou_weight),
        ):
            check_argument(name, factor, numbers("[0, inf)"))
        check_argument("focal_alpha", focal_alpha, numbers("[0, 1]"))
        check_argument("focal_gamma", focal_gamma, numbers("[0, inf)"))
        self.cls_weight = cls_weight
        self.l1_weight = l1_weight
        self.giou_weight = giou_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        yield from focal_problems(cfg, key)
        place = key.removesuffix(".MATCHER")
        criterion = value_of(cfg, place).CRITERION
        normalizer = own_node(criterion).get("NORMALIZER", "gts")
        if normalizer != "gts":
            yield (
                f"{place}.CRITERION.{criterion.NAME}.NORMALIZER is {normalizer!r}, but "
                f"{cls.__name__} divides its losses by the number of ground truths; set it to 'gts'"
            )

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        gt_boxes, boxes = gt.gt_boxes.tensor, predictions.boxes.float()
        probability = class_probability(predictions, AllPairs.of(gt))  # (M, R)
        cost = (  # (M, R)
            self.cls_weight * focal_difference_cost(probability, self.focal_alpha, self.focal_gamma)
            + self.l1_weight * l1_cost(gt_boxes, boxes, gt.image_size)
            - self.giou_weight * pairwise_giou(gt_boxes, boxes)
        )
        return Assignment(F.best_gt(-cost, F.topk(-cost, k=1)))
