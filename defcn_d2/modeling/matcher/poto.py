"""Prediction-aware one-to-one assignment, POTO (arXiv 2012.03544, section 3.2)."""

from detectron2.config import CfgNode, configurable
from detectron2.structures import Instances
from torch import Tensor

from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import pair_quality, prediction_quality
from .many_pairs import scored_pairs
from .pairs import argmax_pairs, hungarian_pairs
from .registry import MATCHER_REGISTRY, BatchMatcher


@MATCHER_REGISTRY.register()
class POTO(BatchMatcher):
    """One location per ground truth, chosen by the predictions themselves.

    Among the locations in the central region of a box, the one-to-one assignment of the highest
    total quality  p^(1 - a) * iou^a.
    """

    @configurable
    def __init__(
        self,
        *,
        alpha: float = 0.8,
        radius: float = 1.5,
        solver: str = "hungarian",
        keep_unreachable: bool = False,
    ):
        """
        Args:
            alpha: weight a of the IoU in the quality, in [0, 1].
            radius: half the side of the central region in strides; 0: the whole box.
            solver: "hungarian", the exact optimum, or "argmax": each ground truth its best
                location, which goes to the one of highest quality where several want it.
            keep_unreachable: with "hungarian", a ground truth whose region holds no location
                takes an arbitrary other one, as in the original release; by default it stays
                unmatched.
        """
        if not 0 <= alpha <= 1:
            raise ValueError(f"MATCHER.ALPHA {alpha} is out of range; take one in [0, 1]")
        if radius < 0:
            raise ValueError(f"MATCHER.RADIUS {radius} is negative; take 0 or more strides")
        if solver not in ("hungarian", "argmax"):
            raise ValueError(f"MATCHER.SOLVER {solver!r} is unknown; one of: argmax, hungarian")
        self.alpha = alpha
        self.radius = radius
        self.solver = solver
        self.keep_unreachable = keep_unreachable

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "alpha": cfg.ALPHA,
            "radius": cfg.RADIUS,
            "solver": cfg.SOLVER,
            "keep_unreachable": cfg.KEEP_UNREACHABLE,
        }

    def match_batch(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        if self.keep_unreachable and self.solver == "hungarian":
            return [
                self._match_dense(priors, predictions[i], gt) for i, gt in enumerate(gt_instances)
            ]
        pairs, quality = scored_pairs(
            priors,
            gt_instances,
            self.radius,
            lambda pairs: pair_quality(predictions, pairs, self.alpha),
            lambda image, gt: self._quality(predictions[image], gt),
        )
        resolve = argmax_pairs if self.solver == "argmax" else hungarian_pairs
        return resolve(pairs, quality)

    def _quality(self, predictions: Predictions, gt: Instances) -> Tensor:
        """(M, R) of one image."""
        boxes, classes = gt.gt_boxes.tensor, gt.gt_classes
        return prediction_quality(predictions, boxes, classes, self.alpha, fused=True)

    def _match_dense(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        allowed = F.inside_center(priors, gt.gt_boxes.tensor, self.radius)
        return Assignment(F.hungarian_dense(self._quality(predictions, gt), allowed))
