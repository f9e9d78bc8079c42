"""Networks of timm as backbones: levels, what is frozen, weights, and what contradicts a config."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from helpers import make_cfg, random_inputs
from torch import Tensor, nn

from defcn_d2.config.rules import ConfigError
from defcn_d2.engine.ema import WeightsEMA
from defcn_d2.weights.checkpointer import Checkpointer
from defcn_d2.weights.convert import convert
from defcn_d2.weights.reader import CheckpointError

timm = pytest.importorskip("timm")

LIGHT = "light/POTO.yaml"
NAME = "tf_efficientnet_lite0"
# Channels of the maps of stride 8, 16, 32; some names in checkpoints; parts frozen at 2.
NETWORKS = {
    LIGHT: (
        (40, 112, 320),
        ["conv_stem.weight", "blocks.0.0.bn1.weight", "blocks.6.0.bn3.running_var"],
        ("conv_stem.", "blocks.0.", "blocks.1."),
    ),
    "CSPResNet50-POTO.yaml": (
        (256, 512, 1024),
        ["stem_conv1.conv.weight", "stages_3.conv_transition.bn.bias"],
        ("stem_", "stages_0."),
    ),
    "CSPDarknet53-POTO.yaml": (
        (256, 512, 1024),
        ["stem_conv1.conv.weight", "stages_4.conv_transition.bn.bias"],
        ("stem_", "stages_0.", "stages_1."),
    ),
}


def light_cfg(*opts: object) -> CfgNode:
    return make_cfg(LIGHT, "MODEL.DEFCN.NUM_CLASSES", 3, "MODEL.DEFCN.NUM_CONVS", 1, *opts)


def randomized(module: nn.Module) -> nn.Module:
    """With statistics and factors of norms that differ from those at the start."""
    for name, value in module.state_dict().items():
        if name.endswith(("running_var", "weight")) and value.dim() == 1:
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(std=0.1)
    return module


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of the whole network, by timm's names."""
    torch.manual_seed(0)
    return randomized(timm.create_model(NAME)).state_dict()


@pytest.mark.parametrize("config", NETWORKS)
def test_levels_names_and_frozen_parts(config: str) -> None:
    channels, names, frozen = NETWORKS[config]
    with torch.device("meta"):
        backbone = build_backbone(make_cfg(config))
    shapes = backbone.bottom_up.output_shape()
    assert list(shapes) == ["res3", "res4", "res5"]
    assert tuple(x.channels for x in shapes.values()) == channels
    assert [x.stride for x in shapes.values()] == [8, 16, 32]
    assert [x.stride for x in backbone.output_shape().values()] == [8, 16, 32, 64, 128]
    assert {f"bottom_up.body.{name}" for name in names} <= set(backbone.state_dict())
    for name, parameter in backbone.bottom_up.body.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
    assert all(parameter.requires_grad for parameter in backbone.fpn_lateral3.parameters())


def test_frozen_norms_keep_their_activations_and_statistics(weights: dict[str, Tensor]) -> None:
    """A step changes no statistics, and the maps in training are those of timm in inference."""
    torch.manual_seed(0)
    model = build_model(light_cfg()).train()
    body = model.backbone.bottom_up.body
    twin = timm.create_model(NAME, features_only=True, out_indices=(2, 3, 4)).eval()
    twin.load_state_dict(weights, strict=False)
    own = model.backbone.bottom_up.own_names(weights)
    model.backbone.bottom_up.load_state_dict(own)
    images = torch.randn(2, 3, 64, 96)
    maps = model.backbone.bottom_up(images)
    for actual, expected in zip(maps.values(), twin(images), strict=True):
        error = (actual - expected).abs().max()
        assert error < 1e-4 * expected.abs().max()
    assert not [m for m in body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    before = {name: value.clone() for name, value in body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    sum(model(random_inputs([(64, 64)] * 2, [2, 0], 3)).values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    optimizer.step()
    for name, value in body.state_dict().items():
        trained = ".bn" not in name and not name.startswith(("bn1", *NETWORKS[LIGHT][2]))
        assert torch.equal(value, before[name]) != trained, name

    with torch.autocast("cpu", torch.bfloat16):
        losses = model(random_inputs([(64, 64)], [2], 3))
    assert all(loss.isfinite() for loss in losses.values())
    ema = WeightsEMA(model, 0.5)
    ema.update()
    with ema.weights_in_model():
        assert torch.equal(body.bn1.running_var, before["bn1.running_var"])


@pytest.mark.parametrize("norm, kind", [("BN", "BatchNormAct2d"), ("SyncBN", "SyncBatchNormAct")])
def test_trained_norms(norm: str, kind: str) -> None:
    """Those of frozen parts do not count along."""
    with torch.device("meta"):
        body = build_backbone(light_cfg("MODEL.TIMM.NORM", norm)).bottom_up.body
        free = build_backbone(light_cfg("MODEL.TIMM.NORM", norm, "MODEL.BACKBONE.FREEZE_AT", 0))
    assert type(body.bn1).__name__ == "FrozenBatchNormAct2d"
    assert type(body.blocks[1][1].bn3).__name__ == "FrozenBatchNormAct2d"
    assert type(body.blocks[2][0].bn1).__name__ == kind
    assert all(parameter.requires_grad for parameter in free.parameters())
    assert type(free.bottom_up.body.bn1).__name__ == kind


def test_what_no_map_depends_on_is_frozen() -> None:
    opts = ("MODEL.FPN.IN_FEATURES", ["res2", "res3"], "MODEL.BACKBONE.FREEZE_AT", 1)
    with torch.device("meta"):
        bottom_up = build_backbone(light_cfg(*opts)).bottom_up
    assert {k: x.stride for k, x in bottom_up.output_shape().items()} == {"res2": 4, "res3": 8}
    for name, parameter in bottom_up.body.named_parameters():
        assert parameter.requires_grad == name.startswith(("blocks.1.", "blocks.2.")), name


def test_any_number_of_channels() -> None:
    opts = ("MODEL.PIXEL_MEAN", [0.0], "MODEL.PIXEL_STD", [1.0], "INPUT.FORMAT", "L")
    features = build_backbone(light_cfg(*opts))(torch.randn(1, 1, 64, 64))
    assert features["p3"].shape == (1, 64, 8, 8)


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (["INPUT.FORMAT", "BGR"], f"INPUT.FORMAT is 'BGR', but MODEL.TIMM.NAME '{NAME}"),
        (
            ["MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675]],
            r"MODEL.PIXEL_MEAN is \[103.53, 116.28, 123.675\], but MODEL.TIMM.NAME '.*' takes "
            r"\[127.5, 127.5, 127.5\]",
        ),
        (["MODEL.PIXEL_STD", [1.0, 1.0, 1.0]], r"MODEL.PIXEL_STD is \[1.0, 1.0, 1.0\], but"),
        (["MODEL.TIMM.NAME", "resnet81"], "MODEL.TIMM.NAME 'resnet81' is unknown; did you mean"),
        (["MODEL.TIMM.NAME", f"{NAME}.in2k"], f"is unknown; one of: {NAME}.in1k"),
        (
            ["MODEL.TIMM.NAME", "vit_tiny_patch16_224"],
            r"MODEL.FPN.IN_FEATURES is \['res3', 'res4', 'res5'\], but must be of .*: res4$",
        ),
        (["MODEL.FPN.IN_FEATURES", ["res4", "res3"]], "in its order"),
        (
            ["MODEL.FPN.IN_FEATURES", []],
            r"is \[\], but must be of the maps of .*: res1, res2, res3",
        ),
    ],
)
def test_contradictions(opts: list, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught, torch.device("meta"):
        build_backbone(light_cfg(*opts))
    assert "\n" not in str(caught.value)


def test_timm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package timm: pip install timm"):
        build_backbone(light_cfg())


# ------------------------------------------------------------------------------ weights


def test_a_file_of_timms_names(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": weights}, tmp_path / "timm.pth")
    model = build_model(light_cfg())
    Checkpointer(model).load(str(tmp_path / "timm.pth"))
    body = model.backbone.bottom_up.body
    assert all(torch.equal(value, weights[name]) for name, value in body.state_dict().items())

    other = {**weights, "conv_stem.weight": torch.zeros(32, 1, 3, 3)}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"conv_stem.weight has shape \(32, 1, 3, 3\)"):
        Checkpointer(model).load(str(tmp_path / "other.pth"))
    torch.save({"head.fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not weights of .*: conv_stem.weight is missing"):
        Checkpointer(model).load(str(tmp_path / "other.pth"))

    torch.save({"model": model.state_dict()}, tmp_path / "detector.pth")
    Checkpointer(build_model(light_cfg()), complete=True).load(str(tmp_path / "detector.pth"))


@pytest.mark.parametrize("config", [x for x in NETWORKS if x != LIGHT])
def test_names_that_timm_joins(config: str) -> None:
    cfg = make_cfg(config)
    with torch.device("meta"):
        whole = timm.create_model(cfg.MODEL.TIMM.NAME).state_dict()
        bottom_up = build_backbone(cfg).bottom_up
    given = {name: torch.empty(value.shape) for name, value in whole.items()}
    own = bottom_up.own_names(given)
    assert set(own) == set(bottom_up.state_dict())
    assert (
        own["body.stages_0.blocks.0.conv1.conv.weight"]
        is given["stages.0.blocks.0.conv1.conv.weight"]
    )


def test_download(weights: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for once, then kept."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    build = timm.create_model
    asked = []

    def downloading(name: str, pretrained: bool = False, **rest: object) -> nn.Module:
        network = build(name, **rest)
        if pretrained:
            asked.append(name)
            if name != f"{NAME}.in1k":
                raise ConnectionError("no way\nout")
            network.load_state_dict(weights)
        return network

    monkeypatch.setattr(timm, "create_model", downloading)
    model = build_model(light_cfg())
    for _ in range(2):
        Checkpointer(model).load(f"timm://{NAME}.in1k")
    assert asked == [f"{NAME}.in1k"]
    stem = model.backbone.bottom_up.body.conv_stem.weight
    assert torch.equal(stem, weights["conv_stem.weight"])
    with pytest.raises(CheckpointError, match="timm gives no weights of 'resnet18' .no way..; set"):
        Checkpointer(model).load("timm://resnet18")


def published(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-Lite0 by the names of the package index, whose order is that of timm."""
    names = ["_conv_stem", "_bn0"]
    for block in range(16):
        parts = ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        parts = parts if block == 0 else ["_expand_conv", "_bn0", *parts]
        names += [f"_blocks.{block}.{part}" for part in parts]
    names += ["_conv_head", "_bn1", "_fc"]
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    kinds = {"n": norm, "c": ["weight", "bias"]}  # of _bn0 and of _fc
    full = [
        f"{name}.{kind}"
        for name in names
        for kind in (["weight"] if "conv" in name else kinds[name.split("_")[-1][1]])
    ]
    return dict(zip(full, weights.values(), strict=True))


def slow_lite0(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits of EfficientNet-Lite0 from weights by the names of the package index."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = w[f"{name}.weight"]
        total = weight.shape[2] - stride  # as TensorFlow pads even sides, the rest at the end
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            w[f"{name}.{kind}"][:, None, None]
            for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    x = norm("_bn0", conv("_conv_stem", x, 2)).clamp(0, 6)
    for block in range(16):
        name, skip = f"_blocks.{block}", x
        if block:
            x = norm(f"{name}._bn0", conv(f"{name}._expand_conv", x)).clamp(0, 6)
        x = conv(f"{name}._depthwise_conv", x, 2 if block in (1, 3, 5, 11) else 1)
        x = norm(f"{name}._bn1", x).clamp(0, 6)
        x = norm(f"{name}._bn2", conv(f"{name}._project_conv", x))
        x = x + skip if x.shape == skip.shape else x
    x = norm("_bn1", conv("_conv_head", x)).clamp(0, 6).mean((2, 3))
    return F.linear(x, w["_fc.weight"], w["_fc.bias"])


def test_weights_of_the_package_index(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Converted by the command, they give timm's network the logits of theirs."""
    own = published(weights)
    source, target = str(tmp_path / "lite0.pth"), str(tmp_path / "timm.pth")
    torch.save(own, source, _use_new_zipfile_serialization=False)
    convert(source, target)
    network = timm.create_model(NAME).eval()
    network.load_state_dict(torch.load(target)["model"])
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(images), slow_lite0(own, images), rtol=1e-3, atol=1e-3)

    torch.save({**own, "_blocks.3._se_reduce.bias": torch.zeros(1)}, source)
    with pytest.raises(CheckpointError, match="_se_reduce.bias', which no EfficientNet-Lite has"):
        convert(source, target)


# ------------------------------------------------------------------------------ graphs


def test_compiled_and_exported_for_any_size() -> None:
    bottom_up = build_backbone(light_cfg()).bottom_up.eval()
    images = [torch.randn(1, 3, 64, 96), torch.randn(2, 3, 96, 160)]
    sizes = {0: torch.export.Dim("n")}
    sizes.update({i: 32 * torch.export.Dim(f"side{i}", min=1) for i in (2, 3)})
    with torch.no_grad():
        program = torch.export.export(bottom_up, (images[1],), dynamic_shapes=(sizes,))
        compiled = torch.compile(bottom_up, backend="eager", dynamic=True)
        for x in images:
            for other in (program.module(), compiled):
                for actual, expected in zip(other(x).values(), bottom_up(x).values(), strict=True):
                    torch.testing.assert_close(actual, expected)
    torch._dynamo.reset()
