"""The registry of criteria, and the criteria of a config."""

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...config.components import ComponentRegistry
from ..loss import build_class_loss
from ..matcher import build_matcher
from .normalization import SummedCriterion

CRITERION_REGISTRY = ComponentRegistry("CRITERION", given=["suffix"])
CRITERION_REGISTRY.__doc__ = """
Criteria: a set of predictions and the ground truth to losses.

A registered class derives from ``SummedCriterion``, is made from its keys,
``MODEL.DEFCN.CRITERION.<Name>``, and implements

    loss_sums(priors, predictions, gt_instances) -> dict[str, LossSum]

The builder gives it, where its constructor has such arguments: ``matcher`` and ``class_loss``, both
chosen beside it by the config; ``suffix``, for the names of its losses; ``num_classes``. Its
argument ``predictions`` (a key, "main" by default) names the set of the head that it takes.

    >>> from defcn_d2.modeling.criterion import CRITERION_REGISTRY, SummedCriterion
    >>> from defcn_d2.structures import LossSum
    >>> @CRITERION_REGISTRY.register()
    ... class ObjectCount(SummedCriterion):
    ...     def __init__(self, *, weight: float = 0.1, **arguments):
    ...         super().__init__(**arguments)
    ...         self.weight = weight
    ...     def loss_sums(self, priors, predictions, gt_instances):
    ...         found = predictions.scores().sum(dim=(1, 2))  # (N,)
    ...         numbers = found.new_tensor([len(gt) for gt in gt_instances])
    ...         total = self.weight * (found - numbers).abs().sum()
    ...         return {"loss_count": LossSum(total, found.new_tensor(len(found)))}
    >>> CRITERION_REGISTRY.keys_of("ObjectCount")
    {'weight': 0.1, 'predictions': 'main'}
"""


def build_criteria(cfg: CfgNode) -> nn.ModuleList:
    """The criteria that a config asks for: the main one and, if enabled, the auxiliary one."""
    node = cfg.MODEL.DEFCN
    criteria = [_build(node, "MODEL.DEFCN", node.NUM_CLASSES)]
    if node.AUX.ENABLED:
        criteria.append(_build(node.AUX, "MODEL.DEFCN.AUX", node.NUM_CLASSES, suffix="_aux"))
    return nn.ModuleList(criteria)


def _build(node: CfgNode, key: str, num_classes: int, **given: Any) -> SummedCriterion:
    """A criterion with the matcher and the class loss beside it in ``node``."""
    return CRITERION_REGISTRY.build(
        node.CRITERION,
        f"{key}.CRITERION",
        matcher=build_matcher(node.MATCHER, f"{key}.MATCHER"),
        class_loss=build_class_loss(node.LOSS, f"{key}.LOSS"),
        num_classes=num_classes,
        **given,
    )
