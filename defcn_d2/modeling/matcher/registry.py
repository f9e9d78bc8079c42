"""The registry of matchers and their calling contract."""

from typing import Any, Protocol

from detectron2.config import CfgNode
from detectron2.structures import Instances

from ...config.components import ComponentRegistry
from ...structures import Assignment, Predictions, Priors

MATCHER_REGISTRY = ComponentRegistry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers: which ground truth each prior of an image learns.

A registered class is made from the keys of its own config node, ``MODEL.DEFCN.MATCHER.<Name>``,
which are its keyword arguments, and is then called once an image, without gradient:

    matcher(priors: Priors, predictions: Predictions, gt: Instances) -> Assignment

with the predictions of that image and M >= 1 ground truths (``gt_boxes``, ``gt_classes``). A
matcher that gains by seeing all images of a batch at once derives from ``BatchMatcher``, whose
``match_batch`` is called instead. A matcher with an attribute ``progress`` has it set to the share
of the training done before each step.

Class attributes, all optional: ``priors`` ("points" or "anchors", where it works on one kind
alone) and ``gives_quality`` (whether assignments have one).

    >>> from defcn_d2.modeling.matcher import MATCHER_REGISTRY, functional as F
    >>> from defcn_d2.modeling.matcher.costs import nearness
    >>> from defcn_d2.structures import Assignment
    >>> @MATCHER_REGISTRY.register()
    ... class NearestLocations:
    ...     def __init__(self, *, few: int = 3):
    ...         self.few = few
    ...     def __call__(self, priors, predictions, gt):
    ...         near = nearness(priors, gt.gt_boxes.tensor)
    ...         return Assignment(F.best_gt(near, F.topk(near, self.few)))
    >>> MATCHER_REGISTRY.keys_of("NearestLocations")
    {'few': 3}
"""


class Matcher(Protocol):
    """A matcher as criteria call it; see ``MATCHER_REGISTRY``."""

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment: ...


class BatchMatcher:
    """Base of matchers that work on a whole batch; one image is a batch of one."""

    def match_batch(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        """
        Args:
            predictions: of all N images.
            gt_instances: N with M >= 0 ground truths each.

        Returns:
            N assignments; all background where there is no ground truth.
        """
        raise NotImplementedError

    def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
        return self.match_batch(priors, predictions[None], [gt])[0]


def build_matcher(node: CfgNode, key: str = "MODEL.DEFCN.MATCHER", **given: Any) -> Matcher:
    """The matcher that ``node.NAME`` names; see ``ComponentRegistry.build``."""
    return MATCHER_REGISTRY.build(node, key, **given)
