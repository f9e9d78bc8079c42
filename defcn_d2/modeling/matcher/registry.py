"""The registry of matchers and their calling contract."""

import difflib
from typing import Protocol

from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.registry import Registry

from ...structures import Assignment, Predictions, Priors

MATCHER_REGISTRY = Registry("MATCHER")
MATCHER_REGISTRY.__doc__ = """
Matchers: which ground truth each prior of an image learns.

A registered class is built by ``from_config(cfg)`` from its own config node (the keys of
``MODEL.DEFCN.MATCHER``) and is then called once an image, without gradient:

    matcher(priors: Priors, predictions: Predictions, gt: Instances) -> Assignment

with the predictions of that image and M >= 1 ground truths (``gt_boxes``, ``gt_classes``).

A matcher that gains by seeing all images of a batch at once derives from ``BatchMatcher``, whose
``match_batch`` is called in its place.
"""


class Matcher(Protocol):
    """What a criterion expects of a matcher; see ``MATCHER_REGISTRY``."""

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


def build_matcher(cfg: CfgNode, key: str = "MODEL.DEFCN.MATCHER") -> Matcher:
    """Build the matcher that ``cfg.NAME`` names.

    Args:
        cfg: the config node of the matcher.
        key: where the node stands, for error messages.

    Raises:
        ValueError: the name is not registered.
    """
    names = sorted(name for name, _ in MATCHER_REGISTRY)
    if cfg.NAME not in names:
        hint = difflib.get_close_matches(cfg.NAME, names, n=1)
        raise ValueError(
            f"{key}.NAME {cfg.NAME!r} is unknown; one of: {', '.join(names)}"
            + (f" (did you mean {hint[0]!r}?)" if hint else "")
        )
    return MATCHER_REGISTRY.get(cfg.NAME)(cfg)
