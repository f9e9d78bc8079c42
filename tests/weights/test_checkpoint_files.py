"""Files of weights: all variants of the release, misfits, damage, hostile content, kills."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from helpers import ROOT, make_cfg
from torch import nn

from defcn_d2.weights.checkpointer import (
    CheckpointError,
    DeFCNCheckpointer,
    read_checkpoint,
    replacing,
)
from defcn_d2.weights.release import convert_cvpods_state_dict, describe_weights, fitting_configs

sys.path.append(str(ROOT / "tools"))
import convert_checkpoint

CONFIGS = ROOT / "configs"
RELEASE = sorted(
    str(path.relative_to(CONFIGS))
    for path in (*CONFIGS.glob("*.yaml"), *CONFIGS.glob("crowdhuman/*.yaml"))
    if not path.name.startswith("Base-")
)
LEAVES = RELEASE + sorted(
    f"shapes/{path.name}"
    for path in CONFIGS.glob("shapes/*.yaml")
    if not path.name.startswith("Base-")
)
# Heads of full width and with all their convs are slow to make and to write.
NARROW = ("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.DEFCN.NUM_CONVS", 1)


def small_model(config: str, *opts: object) -> Any:
    """A model with the names of a config's state, on a narrow backbone."""
    narrow = (
        *("MODEL.BACKBONE.NAME", "build_defcn_narrow_fpn_backbone"),
        *("MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8),
    )
    return build_model(make_cfg(config, *narrow, *NARROW, *opts))


def release_file(path: Path, model: nn.Module, prefix: str = "") -> str:
    """A file as the release has them: other state beside the weights, derived state within."""
    weights = OrderedDict((prefix + name, value) for name, value in model.state_dict().items())
    for level in range(5):
        weights[f"{prefix}anchor_generator.cell_anchors.{level}"] = torch.zeros(1, 4)
    weights[f"{prefix}pixel_mean"] = torch.zeros(3, 1, 1)
    training = {
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{}]},
        "scheduler": {"last_epoch": 9, "milestones": (1, 2)},
        "iteration": 9,
    }
    torch.save({"model": weights, **training}, path)
    return str(path)


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("config", RELEASE)
def test_a_release_file_loads_as_it_is_and_converted(
    config: str, prefix: str, tmp_path: Path
) -> None:
    original = small_model(config)
    path = release_file(tmp_path / "release.pth", original, prefix)
    direct = small_model(config)
    assert not equal(direct, original)
    DeFCNCheckpointer(direct).resume_or_load(path, resume=False)
    assert equal(direct, original)

    converted = small_model(config)
    converted.load_state_dict(convert_cvpods_state_dict(torch.load(path)), strict=True)
    assert equal(converted, original)


@functools.cache
def settings_and_configs(config: str) -> tuple[dict, list[str]]:
    """What is read from the weights of a config's own model."""
    with torch.device("meta"):
        weights = META_ARCH_REGISTRY.get("DeFCN")(make_cfg(config)).state_dict()
    return describe_weights(weights), fitting_configs(weights)


def test_one_class_is_not_always_that_of_crowds() -> None:
    """Of a variant that no config has for CrowdHuman, those for other data are told."""
    weights = {
        "backbone.bottom_up.res2.0.conv3.weight": torch.zeros(1),
        "head.cls_score.weight": torch.zeros(1, 8, 3, 3),
        "head.cls_subnet.0.weight": torch.zeros(8, 8, 3, 3),
        "head.scales.0.scale": torch.zeros(1),
    }
    assert fitting_configs(weights) == ["configs/OneNet.yaml"]
    weights["head.cls_subnet.0.bias"] = torch.zeros(8)
    assert fitting_configs(weights) == ["configs/crowdhuman/POTO.yaml"]


@pytest.mark.parametrize("config", LEAVES)
def test_the_config_of_weights_is_found_from_them(config: str) -> None:
    settings, configs = settings_and_configs(config)
    cfg = make_cfg(config)
    node = cfg.MODEL.DEFCN
    expected = {
        "MODEL.DEFCN.NUM_CLASSES": node.NUM_CLASSES,
        "MODEL.FPN.OUT_CHANNELS": cfg.MODEL.FPN.OUT_CHANNELS,
        "MODEL.DEFCN.NUM_CONVS": node.NUM_CONVS,
        "MODEL.DEFCN.CONV_BIAS": node.CONV_BIAS,
        "MODEL.DEFCN.PRIORS": node.PRIORS,
        "MODEL.DEFCN.QUALITY_BRANCH": node.QUALITY_BRANCH,
    }
    if node.QUALITY_BRANCH == "filter":
        expected["MODEL.DEFCN.MAX_FILTERING.NORM"] = node.MAX_FILTERING.NORM
    assert settings == expected
    assert f"configs/{config}" in configs
    for other in configs:  # the others that are named have the same
        assert settings_and_configs(other.removeprefix("configs/"))[0] == expected


MISFITS = [
    ("POTO-3DMF.yaml", "POTO.yaml", "QUALITY_BRANCH 'filter' (the config: 'none')", "max3d.conv"),
    ("POTO.yaml", "POTO-3DMF.yaml", "QUALITY_BRANCH 'none' (the config: 'filter')", "max3d.norm"),
    ("POTO-3DMF.yaml", "POTO-3DMF-wo-GN.yaml", "MAX_FILTERING.NORM 'GN'", "max3d.norm"),
    ("FCOS.yaml", "POTO.yaml", "QUALITY_BRANCH 'centerness'", "head.centerness.weight"),
    ("Anchor.yaml", "POTO.yaml", "PRIORS 'anchors' (the config: 'points')", "head.scales.4.scale"),
    ("OneNet.yaml", "POTO.yaml", "CONV_BIAS False", "head.cls_subnet.0.bias: none in the file"),
    (
        "crowdhuman/POTO.yaml",
        "POTO.yaml",
        "NUM_CLASSES 1 (the config: 80)",
        "head.cls_score.weight: (1, 32, 3, 3) in the file, (80, 32, 3, 3) in the model",
    ),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "setting", "misfit"), MISFITS, ids=[f"{a}-{b}" for a, b, *_ in MISFITS]
)
def test_weights_of_another_variant_are_refused_with_the_config_that_fits(
    theirs: str, ours: str, setting: str, misfit: str, tmp_path: Path
) -> None:
    path = release_file(tmp_path / "release.pth", small_model(theirs))
    model = small_model(ours)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        DeFCNCheckpointer(model).load(path)
    sentence, *misfits = str(error.value).splitlines()
    assert repr(path) in sentence
    assert setting in sentence
    assert f"configs/shapes/{Path(theirs).name}" in sentence  # its backbone is narrow
    assert any(misfit in line for line in misfits)
    assert not any("anchor_generator" in line or "pixel_mean" in line for line in misfits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_differs_is_listed_where_no_setting_tells_it(tmp_path: Path) -> None:
    path = release_file(tmp_path / "wide.pth", small_model("POTO.yaml"))
    with pytest.raises(CheckpointError, match=r"res2\.0\.conv1\.weight: \(8, 8, 3, 3\) in the f"):
        DeFCNCheckpointer(small_model("POTO.yaml", "MODEL.RESNETS.STEM_OUT_CHANNELS", 4)).load(path)


def test_partial_weights_leave_the_rest_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    original = small_model("crowdhuman/POTO.yaml")
    source = release_file(tmp_path / "release.pth", original, "module.")
    target = tmp_path / "partial.pth"
    assert convert_checkpoint.main([source, str(target), "--partial"]) == 0
    assert "fits: configs/shapes/POTO.yaml" in capsys.readouterr().out
    model = small_model("POTO.yaml")
    before = model.head.cls_score.weight.clone()
    DeFCNCheckpointer(model).load(str(target))
    assert torch.equal(model.head.cls_score.weight, before)
    assert torch.equal(model.head.bbox_pred.weight, original.head.bbox_pred.weight)


def test_weights_of_a_backbone_alone_load_as_in_detectron2(tmp_path: Path) -> None:
    original = small_model("POTO.yaml")
    weights = {k: v for k, v in original.state_dict().items() if k.startswith("backbone.bottom_up")}
    torch.save(weights, tmp_path / "backbone.pth")
    model = small_model("POTO-3DMF.yaml")
    DeFCNCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    assert equal(model.backbone.bottom_up, original.backbone.bottom_up)


def test_convert_checkpoint_writes_the_weights_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    original = small_model("POTO-3DMF.yaml")
    source = release_file(tmp_path / "release.pth", original, "module.")
    target = tmp_path / "converted.pth"
    assert convert_checkpoint.main([source, str(target)]) == 0
    printed = capsys.readouterr().out
    assert "MODEL.DEFCN.QUALITY_BRANCH 'filter'" in printed
    content = torch.load(target)
    assert set(content) == {"model"}
    model = small_model("POTO-3DMF.yaml")
    model.load_state_dict(content["model"], strict=True)
    assert equal(model, original)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "is damaged or no checkpoint"),
        (b"<!DOCTYPE html><html>sign in</html>", "is damaged or no checkpoint"),
        ([1, 2], "holds a list, no dict of weights"),
        ({"model": {"backbone.weight": torch.zeros(1)}}, "'head.cls_score' is missing among 1"),
    ],
    ids=["missing", "empty", "web page", "list", "no detector"],
)
def test_convert_checkpoint_says_what_is_wrong(
    content: object, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, target = tmp_path / "source.pth", tmp_path / "target.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    assert convert_checkpoint.main([str(source), str(target)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert str(source) in said and problem in said
    assert not target.exists()


class Attack:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_file_runs(tmp_path: Path) -> None:
    sign = tmp_path / "executed"
    path = tmp_path / "hostile.pth"
    torch.save({"model": {}, "extra": Attack(sign)}, path)
    for read in (read_checkpoint, DeFCNCheckpointer(nn.Linear(1, 1)).load):
        with pytest.raises(CheckpointError, match=r"holds an object of (posix|nt)\.mkdir"):
            read(str(path))
    assert not sign.exists()
    torch.load(path, weights_only=False)
    assert sign.exists()  # the attack itself is sound


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_damaged_files_are_named(suffix: str, tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    path = tmp_path / f"weights{suffix}"
    torch.save({"model": model.state_dict()}, path)
    whole = path.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=re.escape(repr(str(path)))):
            DeFCNCheckpointer(model).load(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"weights 'nowhere\.pth' do not exist"):
        DeFCNCheckpointer(nn.Linear(1, 1)).load("nowhere.pth")


def test_a_checkpoint_of_ones_own_resumes(tmp_path: Path) -> None:
    cfg_opts = ("MODEL.RESNETS.NORM", "BN")  # with num_batches_tracked
    model = small_model("POTO.yaml", *cfg_opts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked.fill_(7)
    DeFCNCheckpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000001", iteration=1)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]

    again = small_model("POTO.yaml", *cfg_opts)
    other = torch.optim.SGD(again.parameters(), lr=0.1)
    checkpointer = DeFCNCheckpointer(again, str(tmp_path), optimizer=other)
    rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 1
    assert other.param_groups[0]["lr"] == 0.5
    assert equal(again, model)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    checkpointer = DeFCNCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    old = (tmp_path / "model.pth").read_bytes()
    with pytest.raises(AttributeError):  # a local function cannot be pickled
        checkpointer.save("model", broken=lambda: None)
    assert (tmp_path / "model.pth").read_bytes() == old
    with pytest.raises(KeyboardInterrupt), replacing(str(tmp_path / "model.pth")) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "model.pth").read_bytes() == old
    assert sorted(x.name for x in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_last_checkpoint_names_a_file_only_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = DeFCNCheckpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("first")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("second")
    assert (tmp_path / "last_checkpoint").read_text() == "first.pth"
    assert not (tmp_path / "second.pth").exists()
