"""The registry of necks, and the neck of a config."""

from detectron2.config import CfgNode
from torch import nn

from ...config.components import ComponentRegistry

NECK_REGISTRY = ComponentRegistry("NECK", given=["in_channels", "strides"])
NECK_REGISTRY.__doc__ = """
Necks: feature maps to feature maps, between the backbone (an FPN, say) and the head.

A registered class is an ``nn.Module`` made from its keys, ``MODEL.DEFCN.NECK.<Name>``, and, where
its constructor has them, from ``in_channels`` and ``strides`` of the maps. It is called with the
maps (N, C, H_l, W_l), finest first, and returns as many of the same sizes. An attribute
``out_channels`` says how many channels they have, if not as many as before. ``NECK.NAME ""`` is
no neck.

    >>> from torch import nn
    >>> from defcn_d2.modeling.neck import NECK_REGISTRY
    >>> @NECK_REGISTRY.register()
    ... class Squeeze(nn.Module):
    ...     def __init__(self, *, in_channels, out_channels: int = 64):
    ...         super().__init__()
    ...         self.out_channels = out_channels
    ...         self.conv = nn.Conv2d(in_channels, out_channels, 1)
    ...     def forward(self, features):
    ...         return [self.conv(x) for x in features]
    >>> NECK_REGISTRY.keys_of("Squeeze")
    {'out_channels': 64}
"""


def build_neck(cfg: CfgNode, in_channels: int, strides: list[int]) -> nn.Module | None:
    """The neck that ``MODEL.DEFCN.NECK.NAME`` names, or None for ""."""
    node = cfg.MODEL.DEFCN.NECK
    if not node.NAME:
        return None
    return NECK_REGISTRY.build(node, "MODEL.DEFCN.NECK", in_channels=in_channels, strides=strides)
