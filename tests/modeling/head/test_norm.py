"""Normalisations of the heads: the layers of Detectron2 and PyTorch, in every memory layout."""

import pytest
import torch
from detectron2.layers import get_norm
from torch import nn

from defcn_d2.modeling.head.norm import GroupNorm, build_norm

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def _with_gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y, *torch.autograd.grad((y * y.detach().sin()).sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_values_gradients_and_layout_are_those_of_pytorch(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    ours, theirs = GroupNorm(4, 12).to(dtype), nn.GroupNorm(4, 12).to(dtype)
    with torch.no_grad():
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(own.normal_())
    x = torch.randn(2, 12, 5, 7, dtype=dtype).contiguous(memory_format=layout)
    results = _with_gradients(ours, x)
    for own, expected in zip(results, _with_gradients(theirs, x), strict=True):
        torch.testing.assert_close(
            own,
            expected,
            rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5,
            atol=2e-2 if dtype == torch.bfloat16 else 1e-5,
        )
    assert results[0].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("shape", [(0, 12, 3, 3), (1, 12, 1, 1), (2, 12, 1, 4)])
def test_empty_batches_and_single_cells(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(GroupNorm(4, 12)(x), nn.GroupNorm(4, 12)(x))


def test_group_norm_by_name_has_the_parameters_of_detectron2() -> None:
    ours, theirs = build_norm("GN", 64), get_norm("GN", 64)
    assert isinstance(ours, GroupNorm) and theirs is not None
    assert (ours.num_groups, ours.num_channels, ours.eps) == (32, 64, theirs.eps)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("name", ["", "BN", "FrozenBN"])
def test_every_other_name_is_the_layer_of_detectron2(name: str) -> None:
    assert type(build_norm(name, 64)) is type(get_norm(name, 64))
