"""The head against a transcription in functional calls; its names, initial values and errors."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from helpers import tiny_cfg
from torch import Tensor
from torch.nn import functional as F

from defcn_d2.modeling.head.dense import DeFCNHead

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
    cls_logits, box_deltas, centerness = head(features)
    for level, (x, stride) in enumerate(zip(features, STRIDES, strict=True)):
        box_tower = slow_tower(weights, "bbox_subnet", x)
        deltas = slow_conv(weights, "bbox_pred", box_tower) * weights[f"scales.{level}.scale"]
        deltas = F.relu(deltas) * stride if norm_reg_targets else deltas.exp()
        expected_logits = slow_conv(weights, "cls_score", slow_tower(weights, "cls_subnet", x))
        torch.testing.assert_close(cls_logits[level], expected_logits)
        torch.testing.assert_close(box_deltas[level], deltas)
        torch.testing.assert_close(centerness[level], slow_conv(weights, "centerness", box_tower))


def test_filter_comes_from_max_filtering_of_the_box_tower() -> None:
    head = make_head(quality_branch="filter")
    weights = randomise(head)
    features = make_features()
    _, _, quality = head(features)
    filtered = head.max3d([slow_tower(weights, "bbox_subnet", x) for x in features])
    for level, x in enumerate(filtered):
        torch.testing.assert_close(quality[level], slow_conv(weights, "filter", x))


def test_anchor_deltas_are_the_plain_output() -> None:
    head = make_head(box_coding="deltas")
    weights = randomise(head)
    assert not any(name.startswith("scales") for name in weights)
    features = make_features()
    _, box_deltas, quality = head(features)
    assert quality is None
    for level, x in enumerate(features):
        expected = slow_conv(weights, "bbox_pred", slow_tower(weights, "bbox_subnet", x))
        torch.testing.assert_close(box_deltas[level], expected)


@pytest.mark.parametrize("num_classes", [1, 80])
def test_shapes_also_of_single_cells(num_classes: int) -> None:
    head = make_head(num_classes=num_classes, quality_branch="filter")
    features = [torch.randn(3, 32, 1, 1) for _ in STRIDES]
    cls_logits, box_deltas, quality = head(features)
    for level in range(3):
        assert cls_logits[level].shape == (3, num_classes, 1, 1)
        assert box_deltas[level].shape == (3, 4, 1, 1)
        assert quality[level].shape == (3, 1, 1, 1)


def test_towers_without_bias_or_norm() -> None:
    names = set(make_head(conv_bias=False).state_dict())
    assert "cls_subnet.0.weight" in names
    assert "cls_subnet.0.bias" not in names
    assert {"cls_score.bias", "bbox_pred.bias"} <= names
    plain = make_head(norm="")
    assert set(plain.cls_subnet.state_dict()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    plain(make_features())


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
    cls_logits, _, _ = head(make_features())
    for logits in cls_logits:
        assert logits.sigmoid().mean().item() == pytest.approx(0.2, abs=0.02)


def test_levels_of_the_config() -> None:
    cfg = tiny_cfg("MODEL.DEFCN.NUM_CLASSES", 11, "MODEL.DEFCN.MAX_FILTERING.TAU", 4)
    head = DeFCNHead(cfg, [ShapeSpec(channels=32, stride=stride) for stride in (4, 8)])
    assert head.strides == [4, 8]
    assert len(head.scales) == 2
    assert head.cls_score.out_channels == 11
    assert head.max3d.tau == 4


def test_errors() -> None:
    with pytest.raises(ValueError, match="QUALITY_BRANCH 'iou' is unknown; one of: none, filter"):
        make_head(quality_branch="iou")
    with pytest.raises(ValueError, match="NORM 'GN' needs a multiple of 32 channels, not 48"):
        make_head(in_channels=48)
    with pytest.raises(ValueError, match=r"different numbers of channels \(\[32, 64\]\)"):
        DeFCNHead(tiny_cfg(), [ShapeSpec(channels=c, stride=8) for c in (64, 32)])


def gradients_and_saved_bytes(head: DeFCNHead, features: list[Tensor]) -> tuple[dict, int]:
    """Of a loss that takes all outputs; bytes that the graph keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    head.zero_grad(set_to_none=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        levels = [x for output in head(features) if output is not None for x in output]
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
        head = make_head(quality_branch=quality_branch, num_convs=4, checkpointing=checkpointing)
        for module in head.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, std=0.1)
        results.append(gradients_and_saved_bytes(head, make_features()))
    (expected, all_bytes), (found, fewer_bytes) = results
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
    assert fewer_bytes < 0.5 * all_bytes


def test_checkpointing_computes_twice_in_training_alone() -> None:
    head = make_head(checkpointing=True)
    calls = []
    head.cls_subnet[0].register_forward_hook(lambda *args: calls.append(1))
    features = make_features()
    with torch.no_grad():
        head(features)
    assert len(calls) == len(features)
    calls.clear()
    sum(x.sum() for x in head(features)[0]).backward()
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
    with pytest.raises(ValueError, match="HEAD_CHECKPOINTING is True, but .* set them to 'GN'"):
        make_head(checkpointing=True, **options)
    make_head(checkpointing=True, norm="")
