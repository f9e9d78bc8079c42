"""The head against a transcription in functional calls; its names, initial values and errors."""

import math

import pytest
import torch
from helpers import make_priors, tiny_cfg
from torch import Tensor
from torch.nn import functional as F

from defcn_d2.modeling.head import build_heads
from defcn_d2.modeling.head.dense import DeFCNHead, flatten
from defcn_d2.structures import Priors

STRIDES = [8, 16, 32]


def make_head(**options: object) -> DeFCNHead:
    arguments: dict = {
        "in_channels": 32,
        "strides": STRIDES,
        "num_classes": 5,
        "num_convs": 2,
        **options,
    }
    return DeFCNHead(**arguments)


def make_features(channels: int = 32) -> list[Tensor]:
    return [torch.randn(2, channels, *size) for size in ((9, 11), (5, 6), (3, 3))]


def maps_of(head: DeFCNHead, features: list[Tensor]) -> dict[str, list[Tensor]]:
    return head.maps(*head.towers(features))


def randomise(head: DeFCNHead) -> dict[str, Tensor]:
    """Weights that differ from each other, and scales from 1; returns the state dict."""
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    return head.state_dict()


def slow_tower(weights: dict[str, Tensor], name: str, x: Tensor, num_convs: int = 2) -> Tensor:
    for i in range(num_convs):
        conv, norm = f"{name}.{3 * i}", f"{name}.{3 * i + 1}"
        x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=1)
        x = F.group_norm(x, 32, weights[f"{norm}.weight"], weights[f"{norm}.bias"])
        x = F.relu(x)
    return x


def slow_conv(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


@pytest.mark.parametrize("norm_reg_targets", [True, False])
def test_outputs_of_all_levels(norm_reg_targets: bool) -> None:
    head = make_head(quality_branch="centerness", norm_reg_targets=norm_reg_targets)
    weights = randomise(head)
    features = make_features()
    maps = maps_of(head, features)
    assert set(maps) == {"cls_logits", "boxes", "quality_logits"}
    for level, (x, stride) in enumerate(zip(features, STRIDES, strict=True)):
        box_tower = slow_tower(weights, "bbox_subnet", x)
        deltas = slow_conv(weights, "bbox_pred", box_tower) * weights[f"scales.{level}.scale"]
        deltas = F.relu(deltas) * stride if norm_reg_targets else deltas.exp()
        expected_logits = slow_conv(weights, "cls_score", slow_tower(weights, "cls_subnet", x))
        torch.testing.assert_close(maps["cls_logits"][level], expected_logits)
        torch.testing.assert_close(maps["boxes"][level], deltas)
        centerness = slow_conv(weights, "centerness", box_tower)
        torch.testing.assert_close(maps["quality_logits"][level], centerness)


def test_filter_comes_from_max_filtering_of_the_box_tower() -> None:
    head = make_head(quality_branch="filter")
    weights = randomise(head)
    features = make_features()
    quality = maps_of(head, features)["quality_logits"]
    filtered = head.max3d([slow_tower(weights, "bbox_subnet", x) for x in features])
    for level, x in enumerate(filtered):
        torch.testing.assert_close(quality[level], slow_conv(weights, "filter", x))


def test_anchor_deltas_are_the_plain_output() -> None:
    head = make_head(box_coding="deltas")
    weights = randomise(head)
    assert not any(name.startswith("scales") for name in weights)
    features = make_features()
    maps = maps_of(head, features)
    assert set(maps) == {"cls_logits", "boxes"}
    for level, x in enumerate(features):
        expected = slow_conv(weights, "bbox_pred", slow_tower(weights, "bbox_subnet", x))
        torch.testing.assert_close(maps["boxes"][level], expected)


@pytest.mark.parametrize("num_classes", [1, 80])
def test_shapes_also_of_single_cells(num_classes: int) -> None:
    head = make_head(num_classes=num_classes, quality_branch="filter")
    features = [torch.randn(3, 32, 1, 1) for _ in STRIDES]
    maps = maps_of(head, features)
    for level in range(3):
        assert maps["cls_logits"][level].shape == (3, num_classes, 1, 1)
        assert maps["boxes"][level].shape == (3, 4, 1, 1)
        assert maps["quality_logits"][level].shape == (3, 1, 1, 1)


def test_towers_without_bias_or_norm() -> None:
    names = set(make_head(conv_bias=False).state_dict())
    assert "cls_subnet.0.weight" in names
    assert "cls_subnet.0.bias" not in names
    assert {"cls_score.bias", "bbox_pred.bias"} <= names
    plain = make_head(norm="")
    assert set(plain.cls_subnet.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    plain.towers(make_features())


@pytest.mark.parametrize("quality_branch", ["filter", "centerness"])
def test_initial_values(quality_branch: str) -> None:
    head = make_head(in_channels=64, quality_branch=quality_branch)
    for name, parameter in head.named_parameters():
        if parameter.dim() == 4:
            bound = 6 * 0.01 / math.sqrt(2 * parameter.numel())  # six deviations of the estimate
            assert abs(parameter.std().item() - 0.01) < bound, name
            assert abs(parameter.mean().item()) < math.sqrt(2) * bound, name
        elif name == "cls_score.bias":
            torch.testing.assert_close(parameter, torch.full_like(parameter, -math.log(99)))
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:  # factors of norms and scales
            assert (parameter == 1).all(), name


def test_initial_class_probability() -> None:
    head = make_head(prior_prob=0.2)
    for logits in maps_of(head, make_features())["cls_logits"]:
        assert logits.sigmoid().mean().item() == pytest.approx(0.2, abs=0.02)


def test_levels_of_the_config() -> None:
    cfg = tiny_cfg("MODEL.DEFCN.NUM_CLASSES", 11, "MODEL.DEFCN.MAX_FILTERING.TAU", 4)
    (head,) = build_heads(cfg, 32, [4, 8], num_anchors=1)
    assert type(head) is DeFCNHead
    assert head.strides == [4, 8]
    assert len(head.scales) == 2
    assert head.cls_score.out_channels == 11
    assert head.max3d.tau == 4


def test_errors() -> None:
    known = "centerness, filter, none"
    with pytest.raises(ValueError, match=f"quality_branch 'iou' is unknown; one of: {known}"):
        make_head(quality_branch="iou")
    with pytest.raises(ValueError, match="norm 'GN' needs a multiple of 32 channels, not 48"):
        make_head(in_channels=48)


def gradients_and_saved_bytes(head: DeFCNHead, features: list[Tensor]) -> tuple[dict, int]:
    """Of a loss that takes all outputs; bytes that the graph keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    head.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        levels = [x for output in maps_of(head, features).values() for x in output]
        loss = sum((x * x.detach().sin()).sum() for x in levels)
    parameters = {x.untyped_storage().data_ptr() for x in head.parameters()}
    saved = sum(size for pointer, size in kept.items() if pointer not in parameters)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return {"loss": loss.detach(), **gradients}, saved


@pytest.mark.parametrize("quality_branch", ["none", "filter", "centerness"])
def test_checkpointing_keeps_less_and_changes_nothing(quality_branch: str) -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        head = make_head(
            quality_branch=quality_branch, num_convs=4, head_checkpointing=checkpointing
        )
        for module in head.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=0.1)
        results.append(gradients_and_saved_bytes(head, make_features()))
    (expected, all_bytes), (found, fewer_bytes) = results
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert fewer_bytes < 0.5 * all_bytes


def test_checkpointing_computes_twice_in_training_alone() -> None:
    head = make_head(head_checkpointing=True)
    calls = []
    head.cls_subnet[0].register_forward_hook(lambda *args: calls.append(1))
    features = make_features()
    with torch.no_grad():
        maps_of(head, features)
    assert len(calls) == len(features)
    calls.clear()
    sum(x.sum() for x in maps_of(head, features)["cls_logits"]).backward()
    assert len(calls) == 2 * len(features)


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "BN"},
        {"norm": "SyncBN"},
        {"quality_branch": "filter", "max_filtering": {"norm": "BN"}},
    ],
)
def test_checkpointing_needs_norms_without_statistics(options: dict) -> None:
    make_head(**options)
    with pytest.raises(ValueError, match="head_checkpointing is True, but .* set them to 'GN'"):
        make_head(head_checkpointing=True, **options)
    make_head(head_checkpointing=True, norm="")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_anchors", [1, 3])
def test_cells_and_anchors_become_locations(
    num_anchors: int, memory_format: torch.memory_format
) -> None:
    """Level by level, row-major, the anchors of a cell after each other; in float32 or wider."""
    levels = [torch.randn(2, num_anchors * 5, *size) for size in ((3, 4), (1, 2))]
    expected = [
        [
            level[image, anchor * 5 : (anchor + 1) * 5, i, j]
            for level in levels
            for i in range(level.shape[2])
            for j in range(level.shape[3])
            for anchor in range(num_anchors)
        ]
        for image in range(2)
    ]
    laid_out = [level.contiguous(memory_format=memory_format) for level in levels]
    flat = flatten(laid_out, num_anchors)
    assert torch.equal(flat, torch.stack([torch.stack(of_image) for of_image in expected]))
    assert flatten([x.bfloat16() for x in levels], num_anchors).dtype == torch.float32
    assert flatten([x.double() for x in levels], num_anchors).dtype == torch.float64


def test_maps_of_a_subclass_become_predictions_of_its_own() -> None:
    """Of the four steps a subclass overrides one; what it adds has a shape of (N, R, ...)."""

    class WithVisibleBoxes(DeFCNHead):
        def maps(self, cls_features: list[Tensor], box_features: list[Tensor]) -> dict:
            maps = super().maps(cls_features, box_features)
            return {**maps, "visible": [x[:, :4] for x in box_features]}

    features = make_features()
    head = WithVisibleBoxes(in_channels=32, strides=STRIDES, num_classes=5, num_convs=1)
    shapes = [(x.shape[2], x.shape[3]) for x in features]
    sizes = [rows * columns for rows, columns in shapes]
    centers = torch.rand(sum(sizes), 2)
    priors = Priors(torch.cat([centers, centers + 1], dim=1), torch.ones(sum(sizes)), sizes, shapes)
    (found,) = head(features, priors).values()
    assert set(found.extra) == {"visible"}
    expected = flatten([x[:, :4] for x in head.towers(features)[1]])
    assert torch.equal(found.extra["visible"], expected)
    assert found.cls_logits.shape == (2, sum(sizes), 5)


@pytest.mark.parametrize("quality_branch", ["none", "filter", "centerness"])
def test_quality_of_the_predictions(quality_branch: str) -> None:
    """Its logits, and whether they are centerness, come with the predictions."""
    priors = make_priors(72, 88, strides=(8, 16, 32))
    head = make_head(quality_branch=quality_branch)
    features = [torch.randn(2, 32, *shape) for shape in priors.level_shapes]
    predictions = head(features, priors)["main"]
    assert predictions.centerness == (quality_branch == "centerness")
    maps = maps_of(head, features)
    if quality_branch == "none":
        assert predictions.quality_logits is None
    else:
        quality = flatten(maps["quality_logits"]).squeeze(-1)
        assert torch.equal(predictions.quality_logits, quality)
