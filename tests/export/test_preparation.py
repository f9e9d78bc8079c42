"""Batch norms are folded into convolutions, wherever they are called after one."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn

from defcn_d2.export.preparation import fold_batch_norms


def randomized(model: nn.Module) -> nn.Module:
    """Weights and statistics that folding has to get right, in inference mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval().requires_grad_(False)


def folded(model: nn.Module, *inputs: Tensor) -> nn.Module:
    """A copy with its norms folded, that gives the same."""
    other = copy.deepcopy(model)
    fold_batch_norms(other)
    torch.testing.assert_close(other(*inputs), model(*inputs), rtol=1e-4, atol=1e-4)
    return other


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if hasattr(module, "running_var")]


def test_norms_of_detectron2():
    conv = Conv2d(3, 4, 3, bias=False, norm=FrozenBatchNorm2d(4))
    model = randomized(nn.Sequential(conv, nn.GroupNorm(2, 4)))
    other = folded(model, torch.randn(2, 3, 6, 7))
    assert other[0].norm is None and isinstance(other[1], nn.GroupNorm)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "cspresnet50"])
@pytest.mark.parametrize("frozen", [False, True])
def test_norms_of_timm_leave_their_activation(name, frozen):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, features_only=True, out_indices=(0, 1))
    if frozen:
        model = timm.layers.freeze_batch_norm_2d(model)
    model = randomized(model)
    assert len(norms(model)) > 4
    assert norms(folded(model, torch.randn(1, 3, 64, 64))) == []


class Calls(nn.Module):
    """A convolution and a norm, with an activation on top in a part of its own."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.last = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.ReLU6())

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.kind == "the sum decides" and y.sum() > 1e9:
            return y
        if self.kind == "two norms":
            return self.last(self.norm(y) + self.norm(self.conv(x.relu())))
        if self.kind == "also without":
            return self.last(self.norm(y) + y)
        if self.kind == "not at once":
            return self.last(self.norm(y.relu()))
        return self.last(self.norm(y))


@pytest.mark.parametrize(
    "kind, left",
    [
        ("plain", []),
        ("two norms", ["norm"]),
        ("also without", ["norm"]),
        ("not at once", ["norm"]),
        ("the sum decides", ["norm"]),  # which no tracing follows; its parts are folded
    ],
)
def test_norms_that_are_not_folded(kind, left):
    assert norms(folded(randomized(Calls(kind)), torch.randn(2, 3, 5, 4))) == left


def test_norms_without_statistics_stay():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)).eval()
    other = folded(model, torch.randn(2, 3, 5, 4))
    assert isinstance(other[1], nn.BatchNorm2d)
