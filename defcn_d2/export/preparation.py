"""A model's layers made ready for a graph: batch norms folded into convolutions, float16."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_OF_A_FIXED_NORM = ("weight", "bias", "running_mean", "running_var", "eps")


def fold_batch_norms(model: nn.Module) -> None:
    """Fold batch norms that have statistics into the convolutions before them, in place.

    ``model`` is in inference mode. A norm is found as the ``norm`` of Detectron2's convolutions,
    and where a module calls it after a convolution whose result nothing else takes; the activation
    that timm's norms hold stays. Others are left as they are.
    """
    for conv in list(model.modules()):
        norm: Any = getattr(conv, "norm", None)
        if isinstance(conv, nn.Conv2d) and _is_fixed(norm):
            _fold(conv, norm)
            setattr(conv, "norm", None)  # noqa: B010  of Detectron2's class, which has no types
    _fold_called(model)


def _fold_called(module: nn.Module) -> None:
    """Fold norms that are called after convolutions, in the largest parts that can be traced."""
    if not any(_is_fixed(part) for part in module.modules()):
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever a module's own code says to what stands for a tensor
        for child in module.children():
            _fold_called(child)
        return
    parts = dict(module.named_modules())
    called = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(parts[str(node.target)] for node in called)
    for node in called:
        before, norm = node.args[0], parts[str(node.target)]
        if not (_is_fixed(norm) and isinstance(before, fx.Node) and before.op == "call_module"):
            continue
        conv = parts[str(before.target)]
        alone = len(before.users) == times[conv] == times[norm] == 1
        if isinstance(conv, nn.Conv2d) and alone:
            _fold(conv, norm)
            module.set_submodule(str(node.target), _rest(norm))


class _Tracer(fx.Tracer):
    """Convolutions and norms are called as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, nn.Conv2d)
            or _is_fixed(m)
            or super().is_leaf_module(m, module_qualified_name)
        )


def _is_fixed(norm: object) -> bool:
    """Whether it is a factor and a summand for each channel: it has statistics."""
    return isinstance(norm, nn.Module) and all(
        getattr(norm, name, None) is not None for name in _OF_A_FIXED_NORM
    )


def _rest(norm: Any) -> nn.Module:
    """The part of a norm that stays: timm's apply an activation, too."""
    return nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()


def _fold(conv: nn.Conv2d, norm: Any) -> None:
    statistics = norm.running_mean, norm.running_var, norm.eps
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, *statistics, norm.weight, norm.bias
    )
    conv.requires_grad_(False)


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
