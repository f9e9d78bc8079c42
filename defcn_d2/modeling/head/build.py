"""The registry of heads, and the heads of a config."""

from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ...config.components import ComponentRegistry

#: Arguments that all heads share: keys at ``MODEL.DEFCN``, or what only the builder knows.
_SHARED = {
    "num_classes": "NUM_CLASSES",
    "num_convs": "NUM_CONVS",
    "norm": "NORM",
    "conv_bias": "CONV_BIAS",
    "prior_prob": "PRIOR_PROB",
    "box_bias": "BOX_BIAS",
    "norm_reg_targets": "NORM_REG_TARGETS",
    "quality_branch": "QUALITY_BRANCH",
    "head_checkpointing": "HEAD_CHECKPOINTING",
}

HEAD_REGISTRY = ComponentRegistry(
    "HEAD",
    given=[*_SHARED, "in_channels", "strides", "num_anchors", "box_coding", "max_filtering"],
)
HEAD_REGISTRY.__doc__ = """
Heads: feature maps and priors to sets of predictions.

A registered class is an ``nn.Module`` with

    forward(features: list[Tensor], priors: Priors) -> dict[str, Predictions]

where features are (N, C, H_l, W_l) a level, finest first. Inference takes the set "main"; criteria
take the one that their key ``PREDICTIONS`` names. The builder gives what all heads share:
``in_channels``, ``strides``, ``num_anchors`` (a location), ``box_coding`` and the keys of heads at
``MODEL.DEFCN``; a head has its own keys at ``MODEL.DEFCN.HEAD.<Name>``. Most derive from the dense
head and override one of its four steps. Class attributes, all optional: ``training_only``, names
of modules that an export leaves out; ``quality_branch_keys: dict[str, str]``, for each set with
another quality branch than ``MODEL.DEFCN.QUALITY_BRANCH`` the name of its own key, "" for none; and
``thins_out``, the name of the head of which this one is the form without NMS.

    >>> from torch import nn
    >>> from defcn_d2.modeling.head import HEAD_REGISTRY
    >>> from defcn_d2.modeling.head.dense import DeFCNHead
    >>> @HEAD_REGISTRY.register()
    ... class DroppedHead(DeFCNHead):
    ...     def __init__(self, *, dropout: float = 0.1, **shared):
    ...         super().__init__(**shared)
    ...         self.dropout = nn.Dropout2d(dropout)
    ...     def towers(self, features):
    ...         return super().towers([self.dropout(x) for x in features])
    >>> HEAD_REGISTRY.keys_of("DroppedHead")
    {'dropout': 0.1}
"""


def quality_branch_key(cfg: CfgNode, predictions: str) -> str:
    """The key of the quality branch of a set of predictions of the main head; "" for none."""
    name = cfg.MODEL.DEFCN.HEAD.NAME
    keys = getattr(HEAD_REGISTRY.get(name), "quality_branch_keys", {})
    if predictions not in keys:
        return "MODEL.DEFCN.QUALITY_BRANCH"
    return keys[predictions] and f"MODEL.DEFCN.HEAD.{name}.{keys[predictions]}"


def nms_free_head(name: str) -> str | None:
    """The form of a head without NMS; None where there is none."""
    forms = (own for own, kind in HEAD_REGISTRY if vars(kind).get("thins_out") == name)
    return next(forms, None)


def build_heads(cfg: CfgNode, in_channels: int, strides: list[int], num_anchors: int) -> list:
    """The main head and, where ``AUX.HEAD.NAME`` is set, that of the auxiliary loss.

    Args:
        in_channels, strides: of the feature maps, finest first.
        num_anchors: priors a location.
    """
    node = cfg.MODEL.DEFCN
    shared: dict[str, Any] = {name: node[key] for name, key in _SHARED.items()}
    shared.update(
        in_channels=in_channels,
        strides=strides,
        num_anchors=num_anchors,
        box_coding="ltrb" if node.PRIORS == "points" else "deltas",
        max_filtering={key.lower(): value for key, value in node.MAX_FILTERING.items()},
    )
    heads: list[nn.Module] = [HEAD_REGISTRY.build(node.HEAD, "MODEL.DEFCN.HEAD", **shared)]
    if node.AUX.ENABLED and node.AUX.HEAD.NAME:
        heads.append(HEAD_REGISTRY.build(node.AUX.HEAD, "MODEL.DEFCN.AUX.HEAD", **shared))
    return heads
