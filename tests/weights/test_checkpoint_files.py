"""Files of weights: all variants of the release, misfits, damage, hostile content, kills."""

from __future__ import annotations

import logging
import os
import re
import runpy
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.modeling import build_model
from helpers import ROOT, make_cfg
from torch import nn

from defcn_d2.utils.files import replacing
from defcn_d2.weights import convert
from defcn_d2.weights.checkpointer import Checkpointer, load_weights
from defcn_d2.weights.fit import class_layers
from defcn_d2.weights.reader import CheckpointError, read_checkpoint
from defcn_d2.weights.release import convert_cvpods_state_dict

CONFIGS = ROOT / "configs"
RELEASE = sorted(
    str(path.relative_to(CONFIGS))
    for path in (*CONFIGS.glob("*.yaml"), *CONFIGS.glob("crowdhuman/*.yaml"))
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
    Checkpointer(direct).resume_or_load(path, resume=False)
    assert equal(direct, original)

    converted = small_model(config)
    converted.load_state_dict(convert_cvpods_state_dict(torch.load(path)), strict=True)
    assert equal(converted, original)


MISFITS = [
    ("POTO-3DMF.yaml", "POTO.yaml", "unexpected: head.max3d.conv.weight (32, 32, 3, 3)"),
    ("POTO.yaml", "POTO-3DMF.yaml", "missing: head.max3d.norm.weight (32,)"),
    ("POTO-3DMF.yaml", "POTO-3DMF-wo-GN.yaml", "unexpected: head.max3d.norm.weight (32,)"),
    ("FCOS.yaml", "POTO.yaml", "unexpected: head.centerness.weight (1, 32, 3, 3)"),
    ("Anchor.yaml", "POTO.yaml", "missing: head.scales.4.scale (1,)"),
    ("OneNet.yaml", "POTO.yaml", "missing: head.cls_subnet.0.bias (32,)"),
    (
        "crowdhuman/POTO.yaml",
        "POTO.yaml",
        "of another shape: head.cls_score.weight (1, 32, 3, 3), in the model (80, 32, 3, 3)",
    ),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "misfit"), MISFITS, ids=[f"{a}-{b}" for a, b, _ in MISFITS]
)
def test_weights_of_another_variant_are_refused(
    theirs: str, ours: str, misfit: str, tmp_path: Path
) -> None:
    path = release_file(tmp_path / "release.pth", small_model(theirs))
    model = small_model(ours)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        Checkpointer(model).load(path)
    sentence, *misfits = str(error.value).splitlines()
    assert f"weights {path!r} are of another model" in sentence
    assert "take the config that it was trained with, or" in sentence and "--partial" in sentence
    assert f"  {misfit}" in misfits
    assert not any("anchor_generator" in line or "pixel_mean" in line for line in misfits)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "config", ["POTO-3DMF.yaml", "Anchor.yaml", "AutoAssign.yaml", "Peak.yaml"]
)
def test_layers_of_other_classes_start_anew(
    config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In a training that starts, not in one that goes on, nor outside of training."""
    classes = ("MODEL.DEFCN.NUM_CLASSES", 3)
    path = release_file(tmp_path / "coco.pth", small_model(config))
    model = small_model(config, *classes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Checkpointer(model, num_classes=3).resume_or_load(path, resume=False)
    anew = [name for name, value in before.items() if torch.equal(model.state_dict()[name], value)]
    file = torch.load(path)["model"]
    of_classes = {name for name, value in before.items() if file[name].shape != value.shape}
    assert "head.cls_score.weight" in of_classes <= set(anew)
    for name, value in model.state_dict().items():
        assert name in of_classes or torch.equal(value, file[name]), name
    assert f"NUM_CLASSES 3: {', '.join(sorted(of_classes, key=list(before).index))} start anew" in (
        caplog.text
    )
    with pytest.raises(CheckpointError, match=f"{len(of_classes)} of another shape"):
        Checkpointer(model, num_classes=3).load(path)
    with pytest.raises(CheckpointError, match=f"{len(of_classes)} of another shape"):
        Checkpointer(model, complete=True).resume_or_load(path, resume=False)


@pytest.mark.parametrize(
    ("theirs", "opts"),
    [
        ("POTO.yaml", ()),
        ("POTO-3DMF.yaml", ("MODEL.FPN.OUT_CHANNELS", 64)),
        ("FCOS.yaml", ()),
    ],
)
def test_whatever_else_misfits_is_refused(theirs: str, opts: tuple, tmp_path: Path) -> None:
    path = release_file(tmp_path / "coco.pth", small_model(theirs, *opts))
    model = small_model("POTO-3DMF.yaml", "MODEL.DEFCN.NUM_CLASSES", 3)
    with pytest.raises(CheckpointError, match="are of another model"):
        Checkpointer(model, num_classes=3).resume_or_load(path, resume=False)


def test_layers_of_classes_have_one_other_number_of_them() -> None:
    own = {"a": torch.zeros(6, 4), "b": torch.zeros(3), "c": torch.zeros(2)}
    theirs = {"a": torch.zeros(160, 4), "b": torch.zeros(80), "c": torch.zeros(2)}
    assert class_layers(theirs, own, 3) == ["a", "b"]
    assert class_layers({**theirs, "b": torch.zeros(81)}, own, 3) == []  # not that of "a"
    assert class_layers({**theirs, "c": torch.zeros(80)}, own, 3) == []  # 2 is no multiple of 3
    assert class_layers({**theirs, "a": torch.zeros(160, 5)}, own, 3) == []
    assert class_layers({**theirs, "b": torch.zeros(())}, own, 3) == []
    assert class_layers(own, own, 3) == []


class OtherModel(nn.Module):
    """A detector with a head that this project does not have."""

    def __init__(self, width: int, names: int):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.ModuleDict({f"part{i}": nn.Linear(width, 1, False) for i in range(names)})


def test_misfits_of_any_head_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model": OtherModel(3, 12).state_dict()}, path)
    with pytest.raises(CheckpointError) as error:
        Checkpointer(OtherModel(3, 2)).load(str(path))
    sentence, *misfits = str(error.value).splitlines()
    assert "(0 missing, 10 unexpected, 0 of another shape)" in sentence
    assert misfits[0] == "  unexpected: head.part2.weight (1, 3)"
    assert misfits[8:] == ["  unexpected: 2 more"]
    with pytest.raises(CheckpointError, match="12 of another shape"):
        Checkpointer(OtherModel(4, 12)).load(str(path))
    Checkpointer(OtherModel(3, 12)).load(str(path))


def test_the_config_of_a_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    torch.save({"model": OtherModel(3, 1).state_dict()}, path)
    (tmp_path / "config.yaml").write_text("")
    for folder, config in ((tmp_path / "other", str(tmp_path / "config.yaml")), (tmp_path, "the")):
        with pytest.raises(CheckpointError, match=re.escape(f"take {config}")):
            Checkpointer(OtherModel(3, 2), str(folder)).load(str(path))


def test_partial_weights_leave_the_rest_as_it_is(tmp_path: Path) -> None:
    original = small_model("crowdhuman/POTO.yaml")
    source = release_file(tmp_path / "release.pth", original, "module.")
    target = tmp_path / "partial.pth"
    assert convert.run([source, str(target), "--partial"]) == 0
    model = small_model("POTO.yaml")
    before = model.head.cls_score.weight.clone()
    Checkpointer(model).load(str(target))
    assert torch.equal(model.head.cls_score.weight, before)
    assert torch.equal(model.head.bbox_pred.weight, original.head.bbox_pred.weight)


def test_weights_of_a_backbone_alone_load_as_in_detectron2(tmp_path: Path) -> None:
    original = small_model("POTO.yaml")
    weights = {k: v for k, v in original.state_dict().items() if k.startswith("backbone.bottom_up")}
    torch.save(weights, tmp_path / "backbone.pth")
    model = small_model("POTO-3DMF.yaml")
    Checkpointer(model).load(str(tmp_path / "backbone.pth"))
    assert equal(model.backbone.bottom_up, original.backbone.bottom_up)


def write_start(path: Path, kind: str, model: nn.Module) -> str:
    """A file that leaves parameters of the model, or all of them, without a value."""
    own = model.state_dict()
    weights = {
        "no name": {f"other.{name}": value for name, value in own.items()},
        "no shape": {k: torch.zeros(7, 1, 1, 1, 1) for k in own if k.startswith("backbone")},
        "backbone": {name: value for name, value in own.items() if name.startswith("backbone")},
        "partial": {k: v for k, v in own.items() if not k.startswith("head.cls_score")},
    }[kind]
    torch.save({"model": weights, **({"partial": True} if kind == "partial" else {})}, path)
    return str(path)


@pytest.mark.parametrize("kind", ["no name", "no shape", "backbone", "partial"])
def test_outside_training_every_parameter_comes_from_the_file(kind: str, tmp_path: Path) -> None:
    cfg = make_cfg("POTO.yaml", *NARROW, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8)
    cfg.MODEL.BACKBONE.NAME = "build_defcn_narrow_fpn_backbone"
    model = build_model(cfg)
    cfg.MODEL.WEIGHTS = write_start(tmp_path / "start.pth", kind, model)
    with pytest.raises(CheckpointError, match="give .* parameters.* whole detector") as error:
        load_weights(cfg, model)
    assert cfg.MODEL.WEIGHTS in str(error.value) and "\n  missing: " in str(error.value)


@pytest.mark.parametrize("kind", ["no name", "no shape", "backbone", "partial"])
def test_a_training_starts_from_what_fits_if_anything_does(kind: str, tmp_path: Path) -> None:
    model = small_model("POTO.yaml")
    path = write_start(tmp_path / "start.pth", kind, model)
    if kind in ("backbone", "partial"):
        Checkpointer(model).resume_or_load(path, resume=False)
    else:
        with pytest.raises(CheckpointError, match="give none of the model's") as error:
            Checkpointer(model).resume_or_load(path, resume=False)
        assert path in str(error.value)


def test_no_weights_are_no_start_of_an_evaluation() -> None:
    model = nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS is empty"):
        Checkpointer(model, complete=True).resume_or_load("", resume=False)
    Checkpointer(model).resume_or_load("", resume=False)


def test_convert_checkpoint_writes_the_weights_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = small_model("POTO-3DMF.yaml")
    source = release_file(tmp_path / "release.pth", original, "module.")
    target = tmp_path / "converted.pth"
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", source, str(target)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "tools" / "convert_checkpoint.py"), run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"{target}: ")
    content = torch.load(target)
    assert set(content) == {"model"}
    model = small_model("POTO-3DMF.yaml")
    model.load_state_dict(content["model"], strict=True)
    assert equal(model, original)


def test_convert_checkpoint_names_the_weights_that_it_takes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The averaged ones are what the run was evaluated with; a plain file has none."""
    source, target = str(tmp_path / "run.pth"), str(tmp_path / "plain.pth")
    live = {"head.scale": torch.ones(2, dtype=torch.float16)}
    average = {"updates": 3, "weights": {"head.scale": torch.full((2,), 0.5)}}
    torch.save({"model": live, "ema": average}, source)
    monkeypatch.setattr(logging.getLogger("defcn_d2"), "propagate", True)
    assert convert.run([source, target]) == 0
    assert torch.load(target)["model"]["head.scale"].tolist() == [1, 1]
    assert "holds averaged weights (EMA) as well" in caplog.text and "--ema" in caplog.text
    caplog.clear()
    assert convert.run([source, target, "--ema"]) == 0
    taken = torch.load(target)["model"]["head.scale"]
    assert taken.tolist() == [0.5, 0.5] and taken.dtype == torch.float16
    assert not caplog.text
    assert convert.run([target, source, "--ema"]) == 1
    assert "holds no averaged weights; leave out --ema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file"),
        (b"", "is damaged or no checkpoint"),
        (b"<!DOCTYPE html><html>sign in</html>", "is damaged or no checkpoint"),
        ([1, 2], "holds a list, no dict of weights"),
        ({"model": [1]}, "holds a list, no dict of weights"),
        ({"model": {"backbone.weight": torch.zeros(1)}}, "none of 1 names begins with 'head.'"),
    ],
    ids=["missing", "empty", "web page", "list", "list of weights", "no detector"],
)
def test_convert_checkpoint_says_what_is_wrong(
    content: object, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source, target = tmp_path / "source.pth", tmp_path / "target.pth"
    if isinstance(content, bytes):
        source.write_bytes(content)
    elif content is not None:
        torch.save(content, source)
    assert convert.run([str(source), str(target)]) == 1
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
    for read in (read_checkpoint, Checkpointer(nn.Linear(1, 1)).load):
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
            Checkpointer(model).load(str(path))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"weights 'nowhere\.pth' do not exist"):
        Checkpointer(nn.Linear(1, 1)).load("nowhere.pth")


def test_a_checkpoint_of_ones_own_resumes(tmp_path: Path) -> None:
    cfg_opts = ("MODEL.RESNETS.NORM", "BN")  # with num_batches_tracked
    model = small_model("POTO.yaml", *cfg_opts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model.backbone.bottom_up.stem.conv1.norm.num_batches_tracked.fill_(7)
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000001", iteration=1)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["last_checkpoint", "model_0000001.pth"]

    again = small_model("POTO.yaml", *cfg_opts)
    other = torch.optim.SGD(again.parameters(), lr=0.1)
    checkpointer = Checkpointer(again, str(tmp_path), optimizer=other)
    rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 1
    assert other.param_groups[0]["lr"] == 0.5
    assert equal(again, model)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    checkpointer = Checkpointer(model, str(tmp_path))
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
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path))
    checkpointer.save("first")

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("second")
    assert (tmp_path / "last_checkpoint").read_text() == "first.pth"
    assert not (tmp_path / "second.pth").exists()


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_convert_checkpoint_keeps_its_input(tmp_path: Path, capsys: Any, link: Any) -> None:
    source, other = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"model": {"x": torch.zeros(1)}, "optimizer": 1}, source)
    link(source, other)
    content = source.read_bytes()
    for target in (source, other):
        assert convert.run([str(source), str(target)]) == 1
        assert f"error: OUT: {str(target)!r} is an input itself" in capsys.readouterr().err
        assert source.read_bytes() == other.read_bytes() == content
