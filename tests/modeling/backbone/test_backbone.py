"""Backbones: P6 and P7 from P5, sizes, channels, what is frozen, names and initial values."""

import math

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN
from helpers import make_cfg, tiny_cfg
from torch.nn import functional as F


@pytest.fixture(scope="module")
def resnet50() -> FPN:
    return build_backbone(make_cfg("POTO-3DMF-Aux.yaml"))


def test_levels_of_the_narrow_backbone() -> None:
    backbone = build_backbone(tiny_cfg())
    shapes = backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {
        "p3": 8,
        "p4": 16,
        "p5": 32,
        "p6": 64,
        "p7": 128,
    }
    assert {shape.channels for shape in shapes.values()} == {64}
    assert backbone.size_divisibility == 32
    features = backbone(torch.randn(2, 3, 96, 160))
    sizes = [tuple(features[name].shape) for name in ("p3", "p4", "p5", "p6", "p7")]
    assert sizes == [
        (2, 64, 12, 20),
        (2, 64, 6, 10),
        (2, 64, 3, 5),
        (2, 64, 2, 3),
        (2, 64, 1, 2),
    ]


def test_coarse_levels_come_from_p5() -> None:
    backbone = build_backbone(tiny_cfg()).eval()
    features = backbone(torch.randn(1, 3, 128, 64))
    top = backbone.top_block
    p6 = F.conv2d(features["p5"], top.p6.weight, top.p6.bias, stride=2, padding=1)
    p7 = F.conv2d(F.relu(p6), top.p7.weight, top.p7.bias, stride=2, padding=1)
    torch.testing.assert_close(features["p6"], p6)
    torch.testing.assert_close(features["p7"], p7)


def test_coarse_levels_of_another_device_follow_its_autocast() -> None:
    """On a CPU they are in float32 also in mixed precision; elsewhere there is no reason to."""
    top = build_backbone(tiny_cfg()).top_block
    c5 = torch.randn(1, 64, 4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert {x.dtype for x in top(c5.bfloat16())} == {torch.float32}
    top = top.to("meta", torch.bfloat16)
    levels = top(c5.to("meta", torch.bfloat16))
    assert [tuple(x.shape) for x in levels] == [(1, 64, 2, 3), (1, 64, 1, 2)]
    assert {(x.device.type, x.dtype) for x in levels} == {("meta", torch.bfloat16)}
    with pytest.raises(RuntimeError, match="[Dd]type|type"):  # no cast but autocast's
        top(c5.to("meta"))


def test_sum_fusion_with_nearest_neighbours() -> None:
    backbone = build_backbone(tiny_cfg()).eval()
    images = torch.randn(1, 3, 64, 96)
    features, bottom_up = backbone(images), backbone.bottom_up(images)

    def conv(name: str, x: torch.Tensor, padding: int) -> torch.Tensor:
        layer = getattr(backbone, name)
        return F.conv2d(x, layer.weight, layer.bias, padding=padding)

    merged = conv("fpn_lateral5", bottom_up["res5"], 0)
    torch.testing.assert_close(features["p5"], conv("fpn_output5", merged, 1))
    for level in (4, 3):
        upsampled = merged.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        merged = upsampled + conv(f"fpn_lateral{level}", bottom_up[f"res{level}"], 0)
        torch.testing.assert_close(features[f"p{level}"], conv(f"fpn_output{level}", merged, 1))


def test_channels_of_the_narrow_backbone() -> None:
    backbone = build_backbone(tiny_cfg("MODEL.RESNETS.STEM_OUT_CHANNELS", 8))
    shapes = backbone.bottom_up.output_shape()
    assert {name: shape.channels for name, shape in shapes.items()} == {
        "res3": 16,
        "res4": 32,
        "res5": 64,
    }
    assert all(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_number_of_input_channels(channels: int) -> None:
    cfg = tiny_cfg("MODEL.PIXEL_MEAN", [0.0] * channels, "MODEL.PIXEL_STD", [1.0] * channels)
    features = build_backbone(cfg)(torch.randn(2, channels, 32, 32))
    assert features["p3"].shape == (2, 64, 4, 4)


def test_fewer_levels_of_the_bottom_up() -> None:
    """The two levels on top follow the coarsest one, whichever that is."""
    cfg = tiny_cfg(
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4"]),
    )
    strides = {name: shape.stride for name, shape in build_backbone(cfg).output_shape().items()}
    assert strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}


def test_resnet_is_frozen_up_to_res2(resnet50: FPN) -> None:
    trained = {name for name, parameter in resnet50.named_parameters() if parameter.requires_grad}
    assert not [name for name in trained if "stem" in name or "res2" in name or "norm" in name]
    convs = {name for name in resnet50.state_dict() if name.endswith("weight")}
    convs = {name for name in convs if "norm" not in name and "stem" not in name}
    biases = {name for name in resnet50.state_dict() if name.endswith("bias")} - {
        name for name in resnet50.state_dict() if "norm" in name
    }
    assert trained == {name for name in convs if "res2" not in name} | biases


def test_resnet_strides_in_the_first_conv(resnet50: FPN) -> None:
    block = resnet50.bottom_up.res3[0]
    assert block.conv1.stride == (2, 2)
    assert block.conv2.stride == (1, 1)


def test_initial_values_of_the_fpn(resnet50: FPN) -> None:
    """kaiming_uniform_(a=1): uniform in +-sqrt(3 / fan_in)."""
    modules = [resnet50.top_block.p6, resnet50.top_block.p7]
    for level in (3, 4, 5):
        modules += [getattr(resnet50, f"fpn_{kind}{level}") for kind in ("lateral", "output")]
    for module in modules:
        bound = math.sqrt(3 / module.weight[0].numel())
        assert module.weight.abs().max().item() <= bound
        assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert (module.bias == 0).all()


def test_gradients_of_maps_of_one_cell_in_mixed_precision() -> None:
    """PyTorch leaves parts of them unwritten in bfloat16, which is seen by chance: ten times."""
    torch.manual_seed(0)
    backbone = build_backbone(tiny_cfg()).eval()
    images = torch.randn(2, 3, 64, 64)
    weight = backbone.top_block.p7.weight
    (expected,) = torch.autograd.grad(backbone(images)["p7"].square().sum(), weight)
    for _ in range(10):
        with torch.autocast("cpu", torch.bfloat16):
            features = backbone(images)
        assert features["p5"].dtype == torch.bfloat16
        assert features["p6"].dtype == features["p7"].dtype == torch.float32
        del features["p6"]
        nan = [torch.full((weight.numel(),), math.nan) for _ in range(8)]  # to be found as garbage
        del nan
        (actual,) = torch.autograd.grad(features["p7"].square().sum(), weight)
        torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.02 * expected.abs().max())
