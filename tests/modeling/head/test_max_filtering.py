"""3D Max Filtering against a literal MaxPool3d over the stacked levels, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from defcn_d2.modeling.head.max_filtering import MaxFiltering

SIZES = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=5)


def make_levels(sizes: list[tuple[int, int]], channels: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, channels, *size, generator=generator, dtype=torch.float64) for size in sizes
    ]


def make_module(channels: int, **options: object) -> MaxFiltering:
    """In float64, with weights of the size of 1."""
    module = MaxFiltering(channels, **options).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def slow_max_filtering(module: MaxFiltering, features: list[Tensor]) -> list[Tensor]:
    """All levels resized to level l, stacked, pooled in 3D; of that the slice of level l."""
    convolved = [module.conv(x) for x in features]
    reach, border = module.tau // 2, module.kernel_size // 2
    pool = nn.MaxPool3d(
        (module.tau + 1, module.kernel_size, module.kernel_size),
        stride=1,
        padding=(reach, border, border),
    )
    outputs = []
    for level, x in enumerate(features):
        # Beyond tau / 2 levels away a slice is outside of the window of level l.
        stack = [
            F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)
            for y in convolved
        ]
        z = pool(torch.stack(stack, dim=2))[:, :, level] + x
        if module.norm is not None:
            z = F.group_norm(z, 32, module.norm.weight, module.norm.bias)
        outputs.append(z.clamp(min=0))
    return outputs


@settings(max_examples=40)
@given(SIZES, st.sampled_from([0, 2, 4]), st.sampled_from([1, 3, 5]), st.booleans())
def test_against_max_pool_3d(
    sizes: list[tuple[int, int]], tau: int, kernel_size: int, normalised: bool
) -> None:
    channels = 32 if normalised else 3
    norm = "GN" if normalised else ""
    module = make_module(channels, tau=tau, kernel_size=kernel_size, norm=norm)
    features = make_levels(sizes, channels)
    expected = slow_max_filtering(module, features)
    for actual, slow in zip(module(features), expected, strict=True):
        torch.testing.assert_close(actual, slow, rtol=1e-10, atol=1e-10)


def test_pyramid_of_an_odd_image() -> None:
    """Sizes of P3 to P7 of 200x136 pixels, where a level is not half of the one before it."""
    module = make_module(32)
    features = make_levels([(25, 17), (13, 9), (7, 5), (4, 3), (2, 2)], 32)
    for actual, slow in zip(module(features), slow_max_filtering(module, features), strict=True):
        torch.testing.assert_close(actual, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("norm", ["GN", ""])
def test_gradients_against_max_pool_3d(norm: str) -> None:
    module = make_module(32, norm=norm)
    features = make_levels([(5, 6), (3, 3), (1, 2)], 32)
    for x in features:
        x.requires_grad_()
    inputs = [*features, *module.parameters()]
    targets = [torch.randn_like(x) for x in features]
    gradients = [
        torch.autograd.grad(
            sum((y * t).sum() for y, t in zip(outputs, targets, strict=True)), inputs
        )
        for outputs in (module(features), slow_max_filtering(module, features))
    ]
    for actual, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, slow, rtol=1e-9, atol=1e-9)


def test_gradcheck() -> None:
    module = make_module(2, norm="")
    features = make_levels([(3, 4), (2, 2), (1, 1)], 2)
    parameters = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    names = [name for name, _ in module.named_parameters()]

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, tensors[:2], strict=True))
        return tuple(torch.func.functional_call(module, weights, (list(tensors[2:]),)))

    assert torch.autograd.gradcheck(run, (*parameters, *(x.requires_grad_() for x in features)))


def test_only_neighbouring_levels_take_part() -> None:
    module = make_module(1, norm="")
    features = make_levels([(8, 8), (4, 4), (2, 2), (1, 1)], 1)
    before = module(features)
    features[0] = features[0] + 100
    after = module(features)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [True, True, False, False]


def test_names_and_initial_values() -> None:
    module = MaxFiltering(64)
    assert set(module.state_dict()) == {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
    assert set(MaxFiltering(64, norm="").state_dict()) == {"conv.weight", "conv.bias"}
    assert module.conv.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert (module.conv.bias == 0).all()
    assert module.norm.num_groups == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 3}, "tau is 3, but must be even and at least 0"),
        ({"tau": -2}, "tau is -2, but must be even and at least 0"),
        ({"kernel_size": 2}, "kernel_size is 2, but must be odd and at least 1"),
        ({"channels": 48}, "max_filtering.norm 'GN' needs a multiple of 32 channels, not 48"),
    ],
)
def test_errors_before_training(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaxFiltering(**{"channels": 32, **options})
