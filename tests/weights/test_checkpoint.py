"""Names and shapes of the original release, from the method's table, against our models."""

from collections.abc import Iterator

import pytest
import torch
from detectron2.modeling import build_model
from helpers import make_cfg
from torch import Tensor, nn

from defcn_d2 import convert_cvpods_state_dict

Shape = tuple[int, ...]


def frozen_norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.norm.{part}", (channels,)


def conv(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def resnet50() -> Iterator[tuple[str, Shape]]:
    yield "stem.conv1.weight", (64, 3, 7, 7)
    yield from frozen_norm("stem.conv1", 64)
    channels = 64
    for stage, num_blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        width = 64 * 2 ** (stage - 2)
        for i in range(num_blocks):
            block = f"res{stage}.{i}"
            layers = {
                "conv1": (width, channels, 1, 1),
                "conv2": (width, width, 3, 3),
                "conv3": (4 * width, width, 1, 1),
            }
            if i == 0:
                layers["shortcut"] = (4 * width, channels, 1, 1)
            for name, shape in layers.items():
                yield f"{block}.{name}.weight", shape
                yield from frozen_norm(f"{block}.{name}", shape[0])
            channels = 4 * width


def fpn() -> Iterator[tuple[str, Shape]]:
    for level, channels in ((3, 512), (4, 1024), (5, 2048)):
        yield from conv(f"fpn_lateral{level}", 256, channels, 1, 1)
        yield from conv(f"fpn_output{level}", 256, 256, 3, 3)
    yield from conv("top_block.p6", 256, 256, 3, 3)
    yield from conv("top_block.p7", 256, 256, 3, 3)


def head(num_classes: int, variant: str) -> Iterator[tuple[str, Shape]]:
    for tower in ("cls_subnet", "bbox_subnet"):
        for i in (0, 3, 6, 9):
            yield from conv(f"{tower}.{i}", 256, 256, 3, 3)
            yield from conv(f"{tower}.{i + 1}", 256)
    yield from conv("cls_score", num_classes, 256, 3, 3)
    yield from conv("bbox_pred", 4, 256, 3, 3)
    if variant != "anchor":
        for level in range(5):
            yield f"scales.{level}.scale", (1,)
    if variant == "centerness":
        yield from conv("centerness", 1, 256, 3, 3)
    if variant.startswith("3dmf"):
        yield from conv("max3d.conv", 256, 256, 3, 3)
        yield from conv("filter", 1, 256, 3, 3)
    if variant == "3dmf":
        yield from conv("max3d.norm", 256)


def release(num_classes: int, variant: str) -> dict[str, Tensor]:
    """Every tensor holds a number of its own."""
    shapes = {
        **{f"backbone.bottom_up.{name}": shape for name, shape in resnet50()},
        **{f"backbone.{name}": shape for name, shape in fpn()},
        **{f"head.{name}": shape for name, shape in head(num_classes, variant)},
    }
    if variant == "anchor":
        shapes |= {f"anchor_generator.cell_anchors.{level}": (1, 4) for level in range(5)}
    return {name: torch.tensor(float(i)).expand(shapes[name]) for i, name in enumerate(shapes)}


def assert_loaded(model: nn.Module, weights: dict[str, Tensor]) -> None:
    model.load_state_dict(convert_cvpods_state_dict(weights), strict=True)
    for name, tensor in model.state_dict().items():
        assert (tensor == weights[name]).all(), name


@pytest.mark.parametrize(
    ("config", "num_classes", "variant"),
    [
        ("POTO.yaml", 80, "plain"),
        ("POTO-3DMF.yaml", 80, "3dmf"),
        ("POTO-3DMF-Aux.yaml", 80, "3dmf"),
        ("POTO-3DMF-wo-GN.yaml", 80, "3dmf without norm"),
        ("FCOS.yaml", 80, "centerness"),
        ("Anchor.yaml", 80, "anchor"),
        ("crowdhuman/POTO-3DMF-Aux.yaml", 1, "3dmf"),
    ],
)
def test_state_of_the_release_loads_strictly(config: str, num_classes: int, variant: str) -> None:
    assert_loaded(build_model(make_cfg(config)), release(num_classes, variant))


def test_prefix_and_file_around_the_state() -> None:
    weights = release(80, "anchor")
    plain = convert_cvpods_state_dict(weights)
    assert plain.keys() == {name for name in weights if not name.startswith("anchor_generator")}
    parallel = {f"module.{name}": tensor for name, tensor in weights.items()}
    file = {"model": parallel, "optimizer": {"state": {}}, "scheduler": {}, "iteration": 269999}
    for state in (parallel, file, {"model": weights}):
        before = list(state)
        converted = convert_cvpods_state_dict(state)
        assert list(state) == before
        assert converted.keys() == plain.keys()
        assert all(converted[name] is weights[name] for name in plain)


def test_pixel_statistics_are_dropped() -> None:
    weights = release(80, "plain")
    statistics = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    assert convert_cvpods_state_dict(weights | statistics).keys() == weights.keys()


def test_state_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"none of 2 names begins with 'head.' \(first: fc"):
        convert_cvpods_state_dict({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"none of 0 names .* \(first: none\)"):
        convert_cvpods_state_dict({})


def test_state_of_another_variant_does_not_load() -> None:
    model = build_model(make_cfg("POTO.yaml"))
    with pytest.raises(RuntimeError, match="head.max3d.conv.weight"):
        model.load_state_dict(convert_cvpods_state_dict(release(80, "3dmf")), strict=True)
