"""A tiny model whose steps are compared up to rounding, with other ways to compute them."""

from __future__ import annotations

import torch
from detectron2.modeling import build_model
from helpers import make_cfg
from torch import nn

NUM_CLASSES = 3
_TINY = [
    # statistics of a batch are those of its own images, which is no matter of a trainer
    *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
    *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.DEFCN.NUM_CONVS", 1),
    *("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES),
]


def make_model(name: str, *opts: object) -> nn.Module:
    """Of a config of shapes, in training mode; every call gives the same weights."""
    torch.manual_seed(0)
    model = build_model(make_cfg(f"shapes/{name}.yaml", *_TINY, *opts))
    for module in model.head.modules():  # outputs that are not all alike
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.05)
    return model.train().double()  # in which rounding takes no ReLU to its other side
