"""Prediction-aware one-to-one assignment, POTO (arXiv 2012.03544, section 3.2)."""

from functools import partial

from detectron2.structures import Instances

from ...config.rules import check_argument, numbers, one_of
from ...structures import Assignment, Predictions, Priors
from . import functional as F
from .costs import prediction_quality
from .many_pairs import scored_pairs
from .pairs import AllPairs, argmax_pairs, hungarian_pairs
from .registry import MATCHER_REGISTRY, BatchMatcher


@MATCHER_REGISTRY.register(default=["MATCHER"])
class POTO(BatchMatcher):
    """One location per ground truth, chosen by the predictions themselves.

    Among the locations in the central region of a box, the one-to-one assignment of the highest
    total quality  p^(1 - a) * iou^a.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.8,
        radius: float = 1.5,
        solver: str = "hungarian",
        keep_unreachable: bool = False,
        enlarge_tiny: bool = False,
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
            enlarge_tiny: in regions, sides below the finest stride count as the second (STAL).
        """
        check_argument("alpha", alpha, numbers("[0, 1]"))
        check_argument("radius", radius, numbers("[0, inf)"))
        check_argument("solver", solver, one_of("hungarian", "argmax"))
        if solver == "argmax":
            check_argument("keep_unreachable", keep_unreachable, _not_with_argmax)
        self.alpha = alpha
        self.radius = radius
        self.solver = solver
        self.keep_unreachable = keep_unreachable
        self.enlarge_tiny = enlarge_tiny

    def match_batch(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        if self.keep_unreachable:
            return [
                self._match_dense(priors, predictions[i], gt) for i, gt in enumerate(gt_instances)
            ]
        score = partial(prediction_quality, alpha=self.alpha)
        pairs, quality = scored_pairs(
            priors, predictions, gt_instances, self.radius, score, self.enlarge_tiny
        )
        resolve = argmax_pairs if self.solver == "argmax" else hungarian_pairs
        return resolve(pairs, quality)

    def _match_dense(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        quality = prediction_quality(predictions, AllPairs.of(gt), self.alpha)
        allowed = F.inside_center(priors, gt.gt_boxes.tensor, self.radius, self.enlarge_tiny)
        return Assignment(F.hungarian_dense(quality, allowed))


def _not_with_argmax(key: str, value: bool) -> str | None:
    if not value:
        return None
    return f"{key} is True, which the solver 'argmax' cannot do; set it to False"
