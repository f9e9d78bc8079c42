"""A model's layers made ready for a graph: batch norms folded into convolutions, float16."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..utils.detectron2_compat import BatchNorm


def fold_batch_norms(model: nn.Module) -> None:
    """Fold batch norms into Detectron2's convolutions, in place.

    ``model`` is in inference mode. A norm without statistics or of another kind stays.
    """
    for conv in list(model.modules()):
        norm: Any = getattr(conv, "norm", None)
        foldable = isinstance(norm, FrozenBatchNorm2d) or (
            isinstance(norm, BatchNorm) and norm.track_running_stats
        )
        if isinstance(conv, nn.Conv2d) and foldable:
            _fold(conv, norm)


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    statistics = norm.running_mean, norm.running_var, norm.eps
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, *statistics, norm.weight, norm.bias
    )
    conv.requires_grad_(False)
    setattr(conv, "norm", None)  # noqa: B010  of Detectron2's class, which has no types


def to_half(model: nn.Module) -> None:
    """Make a model compute in float16, in place, except its normalisations.

    Their sums of squares leave the range of float16.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.GroupNorm, nn.LayerNorm)) or hasattr(child, "running_var"):
                setattr(parent, name, InFloat32(child))
    model.half()


class InFloat32(nn.Module):
    """A normalisation that computes in float32, between layers that do not."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "InFloat32":
        return self  # half() of what is around it passes by

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.to(torch.float32)).to(x.dtype)
