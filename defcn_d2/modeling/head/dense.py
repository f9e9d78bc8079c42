"""The detection head: the same small network on every level."""

import math
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .max_filtering import MaxFiltering

QUALITY_BRANCHES = ("none", "filter", "centerness")


class Scale(nn.Module):
    """A learnable factor, one number."""

    def __init__(self, value: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([value]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class DeFCNHead(nn.Module):
    """Towers for classes and boxes, shared over the levels (method section 2).

    The names of the parameters are those of the original release.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        strides: list[int],
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        conv_bias: bool = True,
        prior_prob: float = 0.01,
        box_coding: str = "ltrb",
        norm_reg_targets: bool = True,
        quality_branch: str = "none",
        max_filtering: dict | None = None,
        checkpointing: bool = False,
    ):
        """
        Args:
            in_channels: of every feature map.
            strides: of the levels, in pixels, finest first.
            num_classes: K.
            num_convs, norm, conv_bias: of each tower; ``norm`` as in ``get_norm``.
            prior_prob: class probability of every location before training.
            box_coding: "ltrb" (distances in pixels) or "deltas" (of Box2BoxTransform, no scales).
            norm_reg_targets: distances are relu(x) * stride; else exp(x).
            quality_branch: "none", "filter" or "centerness"; both on the box tower.
            max_filtering: arguments of ``MaxFiltering`` besides the channels.
            checkpointing: keep the outputs of towers alone for the backward pass, which computes
                all between again (arXiv 1604.06174). Losses and gradients stay the same.
        """
        super().__init__()
        if quality_branch not in QUALITY_BRANCHES:
            raise ValueError(
                f"MODEL.DEFCN.QUALITY_BRANCH {quality_branch!r} is unknown; "
                f"one of: {', '.join(QUALITY_BRANCHES)}"
            )
        if norm == "GN" and in_channels % 32:
            raise ValueError(
                f"MODEL.DEFCN.NORM 'GN' needs a multiple of 32 channels, not {in_channels}; "
                "set MODEL.FPN.OUT_CHANNELS to one, or MODEL.DEFCN.NORM to 'BN'"
            )
        self.strides = strides
        self.box_coding = box_coding
        self.norm_reg_targets = norm_reg_targets
        self.cls_subnet = _tower(in_channels, num_convs, norm, conv_bias)
        self.bbox_subnet = _tower(in_channels, num_convs, norm, conv_bias)
        self.cls_score = _conv(in_channels, num_classes)
        self.bbox_pred = _conv(in_channels, 4)
        if box_coding == "ltrb":
            self.scales = nn.ModuleList(Scale() for _ in strides)
        self.quality_branch = quality_branch
        if quality_branch == "centerness":
            self.centerness = _conv(in_channels, 1)
        elif quality_branch == "filter":
            self.max3d = MaxFiltering(in_channels, **(max_filtering or {}))
            self.filter = _conv(in_channels, 1)
        self.checkpointing = checkpointing
        if checkpointing and any(isinstance(m, _BatchNorm) for m in self.modules()):
            raise ValueError(
                f"MODEL.DEFCN.HEAD_CHECKPOINTING is True, but MODEL.DEFCN.NORM {norm!r} or "
                "MAX_FILTERING.NORM has statistics of batches, which computing twice would count "
                "twice; set them to 'GN' or '', or HEAD_CHECKPOINTING to False"
            )
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict:
        node = cfg.MODEL.DEFCN
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(
                f"MODEL.DEFCN.IN_FEATURES {node.IN_FEATURES} have different numbers of channels "
                f"({sorted(channels)}); take the levels of one FPN"
            )
        strides = [shape.stride for shape in input_shape]
        if strides != sorted(set(strides)):
            raise ValueError(
                f"MODEL.DEFCN.IN_FEATURES {node.IN_FEATURES} have the strides {strides}, but must "
                "go from fine to coarse"
            )
        return {
            "in_channels": channels.pop(),
            "strides": strides,
            "num_classes": node.NUM_CLASSES,
            "num_convs": node.NUM_CONVS,
            "norm": node.NORM,
            "conv_bias": node.CONV_BIAS,
            "prior_prob": node.PRIOR_PROB,
            "box_coding": "ltrb" if node.PRIORS == "points" else "deltas",
            "norm_reg_targets": node.NORM_REG_TARGETS,
            "quality_branch": node.QUALITY_BRANCH,
            "max_filtering": {
                "kernel_size": node.MAX_FILTERING.KERNEL_SIZE,
                "tau": node.MAX_FILTERING.TAU,
                "norm": node.MAX_FILTERING.NORM,
            },
            "checkpointing": node.HEAD_CHECKPOINTING,
        }

    def forward(
        self, features: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """
        Args:
            features: (N, C, H_l, W_l) per level, finest first.

        Returns:
            per level class logits (N, K, H_l, W_l), box distances or deltas (N, 4, H_l, W_l), and
            quality logits (N, 1, H_l, W_l) or None without such a branch.
        """
        cls_logits = [self._recomputed(self._class_logits, x) for x in features]
        box_features = [self._recomputed(self.bbox_subnet, x) for x in features]
        box_deltas = [self._box_deltas(x, level) for level, x in enumerate(box_features)]
        quality = None
        if self.quality_branch == "centerness":
            quality = [self.centerness(x) for x in box_features]
        elif self.quality_branch == "filter":
            quality = self._recomputed(self._filter_logits, box_features)
        return cls_logits, box_deltas, quality

    def _class_logits(self, features: Tensor) -> Tensor:
        return self.cls_score(self.cls_subnet(features))

    def _filter_logits(self, box_features: list[Tensor]) -> list[Tensor]:
        return [self.filter(x) for x in self.max3d(box_features)]

    def _recomputed(self, function: Callable[[Any], Any], features: Tensor | list[Tensor]) -> Any:
        """``function(features)``, which the backward pass calls again if ``checkpointing``."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(features)
        # the reentrant one would make DistributedDataParallel see shared weights as ready twice;
        # nothing here draws random numbers, whose state need not be kept
        return checkpoint(function, features, use_reentrant=False, preserve_rng_state=False)

    def _box_deltas(self, features: Tensor, level: int) -> Tensor:
        deltas = self.bbox_pred(features)
        if self.box_coding != "ltrb":
            return deltas
        deltas = self.scales[level](deltas)
        if self.norm_reg_targets:
            return torch.relu(deltas) * self.strides[level]
        return torch.exp(deltas)


def _conv(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _tower(channels: int, num_convs: int, norm: str, bias: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(_conv(channels, channels, bias))
        if norm:
            layers.append(get_norm(norm, channels))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)
