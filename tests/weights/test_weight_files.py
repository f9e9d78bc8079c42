"""Files of weights from strangers: no code of theirs runs, damage is noticed, all else loads."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_backbone
from helpers import make_cfg
from torch import nn

from defcn_d2.weights import reader
from defcn_d2.weights.checkpointer import Checkpointer
from defcn_d2.weights.reader import CheckpointError, read_checkpoint


class Attack:
    """Unpickled, it makes a folder, and is a dict of weights."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.sign),)


def write_pickle(path: Path, content: Any) -> str:
    path.write_bytes(pickle.dumps(content, 2))
    return str(path)


def zoo_file(path: Path, **extra: Any) -> str:
    weights = {"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)}
    return write_pickle(path, {"model": weights, "__author__": "Model Zoo", **extra})


@pytest.mark.parametrize("suffix", ["pth", "pth of old", "pkl", "pyth"])
def test_an_attack_fails(suffix: str, tmp_path: Path) -> None:
    sign, path = tmp_path / "executed", tmp_path / f"weights.{suffix[:4].strip()}"
    content = {"model": {}, "__author__": "x", "model_state": {}, "extra": Attack(sign)}
    if suffix == "pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix != "pth of old")
    with pytest.raises(CheckpointError, match=r"holds an object of (posix|nt)\.mkdir") as error:
        Checkpointer(nn.Linear(2, 1)).load(str(path))
    assert repr(str(path)) in str(error.value) and "\n" not in str(error.value)
    assert ("MODEL.WEIGHTS_MAY_RUN_CODE" in str(error.value)) is (suffix == "pkl")
    assert not sign.exists()
    if suffix == "pkl":
        DetectionCheckpointer(nn.Linear(2, 1))._load_file(str(path))
    else:
        torch.load(path, weights_only=False)
    assert sign.exists()  # the attack itself is sound


@pytest.mark.parametrize("why", ["MODEL.WEIGHTS_MAY_RUN_CODE", "model zoo"])
def test_code_runs_where_the_user_or_the_catalog_says_so(
    why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sign, model = tmp_path / "executed", nn.Linear(2, 1)
    path = zoo_file(tmp_path / "weights.pkl", extra=Attack(sign))
    checkpointer = Checkpointer(model, may_run_code=why != "model zoo")
    if why == "model zoo":
        checkpointer._path = "detectron2://backbones/weights.pkl"
    content = checkpointer._load_file(path)
    assert content["model"]["weight"].shape == (1, 2)
    assert sign.exists()
    (warning,) = [x for x in caplog.records if x.levelno == logging.WARNING]
    assert path in warning.getMessage() and why in warning.getMessage()


def test_no_code_runs_where_none_is_needed(tmp_path: Path, monkeypatch: Any) -> None:
    """Neither the switch nor the catalog lets Python's pickle read a file that is safe."""
    monkeypatch.setattr(pickle, "load", None)
    path, model = zoo_file(tmp_path / "weights.pkl"), nn.Linear(2, 1)
    Checkpointer(model, may_run_code=True).load(path)
    assert torch.equal(model.weight, torch.ones(1, 2))


def caffe2_weights() -> dict[str, Any]:
    random = np.random.default_rng(0)
    shapes = {
        "conv1_w": (8, 3, 7, 7),
        "res_conv1_bn_s": (8,),
        "res_conv1_bn_b": (8,),
        "res2_0_branch2a_w": (8, 8, 3, 3),
        "res2_0_branch2b_w": (8, 8, 3, 3),
    }
    weights = {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}
    return {**weights, "conv1_w_momentum": weights["conv1_w"]}


def zoo_files() -> dict[str, Any]:
    weights = caffe2_weights()
    return {
        "backbone.pkl": weights,
        "detector.pkl": {"blobs": weights, "cfg": "MODEL:\n  TYPE: x"},
        "matched.pkl": {
            "model": OrderedDict({"stem.conv1.weight": weights["conv1_w"]}),
            "__author__": "torchvision",
            "matching_heuristics": True,
        },
        "classifier.pkl": {
            "model": {"stem.conv1.weight": weights["conv1_w"], "head.fc.weight": np.ones((2, 8))},
            "__author__": "somebody",
            "matching_heuristics": True,
        },
        "zoo.pkl": {
            "model": {"bottom_up.stem.conv1.weight": weights["conv1_w"].astype(">f4")},
            "__author__": "Detectron2 Model Zoo",
        },
        "tensors.pkl": {
            "model": {"bottom_up.stem.conv1.weight": torch.from_numpy(weights["conv1_w"])},
            "__author__": "somebody",
        },
        "pycls.pyth": {
            "model_state": {
                "stem.conv1.weight": torch.from_numpy(weights["conv1_w"]),
                "stem.conv1.norm.num_batches_tracked": torch.tensor(3),
            }
        },
    }


@pytest.mark.parametrize("name", zoo_files())
def test_files_of_model_zoos_load_as_in_detectron2(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if path.suffix == ".pyth":
        torch.save(zoo_files()[name], path)
    else:
        write_pickle(path, zoo_files()[name])
    narrow = (
        "MODEL.BACKBONE.NAME",
        "build_defcn_narrow_fpn_backbone",
        "MODEL.FPN.OUT_CHANNELS",
        32,
    )
    ours = build_backbone(make_cfg("POTO.yaml", *narrow, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8))
    theirs, before = copy.deepcopy(ours), copy.deepcopy(ours.state_dict())
    DetectionCheckpointer(theirs).load(str(path))
    Checkpointer(ours).load(str(path))
    expected = theirs.state_dict()
    changed = [key for key in before if not torch.equal(before[key], expected[key])]
    assert "bottom_up.stem.conv1.weight" in changed
    if name in ("backbone.pkl", "detector.pkl"):
        assert len(changed) >= 4
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())


def flipped(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_a_flipped_bit_is_noticed_in_every_record(tmp_path: Path) -> None:
    """Also where torch itself does not: within the weights."""
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.rand(100)}, "iteration": 7}, path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [(x, archive.read(x)) for x in archive.infolist()]
    for record, content in records:
        place = whole.index(content, record.header_offset + len(record.filename))
        for offset in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(whole)
            flipped(path, place + offset, 3)
            with pytest.raises(CheckpointError, match=re.escape(repr(str(path)))) as error:
                read_checkpoint(str(path))
            assert record.filename in str(error.value)
    (record, content) = max(records, key=lambda x: len(x[1]))
    path.write_bytes(whole)
    flipped(path, whole.index(content) + 10)
    torch.load(path)  # if this fails, torch has learned it, and the check here can go


def test_an_archive_that_unfolds_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1_000_000)}}, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record))
    with pytest.raises(CheckpointError, match="is a compressed archive"):
        read_checkpoint(str(path))


class Large:
    """A tensor of many elements in a storage of one."""

    def __reduce__(self) -> Any:
        arguments = (torch.ones(1).storage(), 0, (10_000_000,), (1,), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.pth"
    for archive in (True, False):
        torch.save({"model": Large()}, path, _use_new_zipfile_serialization=archive)
        with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
            read_checkpoint(str(path))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("x.pkl", [1, 2], "holds a list, no dict of weights"),
        ("x.pkl", {"blobs": 3}, "holds a int, no dict of weights"),
        ("x.pkl", {"model": None, "__author__": "x"}, "holds a NoneType, no dict of weights"),
        ("x.pkl", {"conv": "text"}, "holds a str under 'conv'"),
        ("x.pkl", {3: np.ones(1)}, "holds a ndarray under 3"),
        ("x.pth", {"model": {"conv": {}}}, "holds a dict under 'conv'"),
        ("x.pth", {"iteration": 3}, "holds a int under 'iteration'"),
        ("x.pyth", {"model": {}}, "has no 'model_state'"),
        ("x.pyth", {"model_state": 3}, "holds a int, no dict of weights"),
    ],
)
def test_what_is_no_dict_of_weights_is_named(
    name: str, content: Any, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if path.suffix == ".pkl":
        write_pickle(path, content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=re.escape(f"{str(path)!r} {problem}")):
        Checkpointer(nn.Linear(1, 1)).load(str(path))


def test_bytes_that_are_missing_at_the_beginning_of_an_archive(tmp_path: Path) -> None:
    """Python's reader of archives takes that for a place before the file."""
    path = tmp_path / "model.pth"
    torch.save({"model": {"weight": torch.rand(100)}}, path)
    whole = path.read_bytes()
    for start, end in ((4, 5), (64, 128), (10, 700)):
        path.write_bytes(whole[:start] + whole[end:])
        with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
            read_checkpoint(str(path))


@pytest.mark.parametrize("name", ["x.pth", "x.pkl"])
def test_files_that_need_too_much_memory_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*args: Any, **kwargs: Any) -> Any:
        raise MemoryError

    path = tmp_path / name
    path.write_bytes(pickle.dumps({"model": np.ones(2), "__author__": "x"}, 2))
    monkeypatch.setattr(torch, "load", too_large)
    monkeypatch.setattr(reader, "loads", too_large)
    with pytest.raises(CheckpointError, match="needs more memory than there is, or is damaged"):
        Checkpointer(nn.Linear(1, 1)).load(str(path))


def test_a_pickle_that_fails_where_code_may_run_is_named(tmp_path: Path) -> None:
    path = write_pickle(tmp_path / "x.pkl", {"model": Path("/"), "__author__": "x"})
    content = Path(path).read_bytes().replace(b"pathlib", b"nowhere")
    Path(path).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.pkl' cannot be read: ModuleNotFoundError"):
        Checkpointer(nn.Linear(1, 1), may_run_code=True).load(path)


def test_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_checkpoint(str(tmp_path))


def test_the_state_of_another_optimizer_is_named(tmp_path: Path) -> None:
    def checkpointer(*layers: nn.Module) -> Checkpointer:
        optimizer = torch.optim.SGD([y for x in layers for y in x.parameters()], lr=1.0)
        return Checkpointer(layers[0], str(tmp_path), optimizer=optimizer)

    checkpointer(nn.Linear(2, 1)).save("model")
    with pytest.raises(CheckpointError) as error:
        checkpointer(nn.Linear(2, 1), nn.Linear(1, 1)).resume_or_load("", resume=True)
    message = str(error.value)
    assert (
        f"the content of {str(tmp_path / 'model.pth')!r} does not fit (ValueError: load" in message
    )
    assert "choose a checkpoint of this model and config" in message


def test_a_checkpointer_can_go_on_after_a_damaged_file(tmp_path: Path) -> None:
    good, bad = zoo_file(tmp_path / "good.pkl"), tmp_path / "bad.pth"
    bad.write_bytes(b"PK\x03\x04")
    checkpointer = Checkpointer(nn.Linear(2, 1))
    with pytest.raises(CheckpointError):
        checkpointer.load(str(bad))
    checkpointer.load(good)
    assert torch.equal(checkpointer.model.weight, torch.ones(1, 2))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"model_0000009.pth\n", "model_0000009.pth"),
        (b"../../elsewhere/model.pth", "model.pth"),
        (b"/elsewhere/model.pth", "model.pth"),
        (b"", ""),
        (b"model\xff\x00.pth", "model\ufffd\x00.pth"),
    ],
)
def test_last_checkpoint_names_a_file_of_its_folder(
    content: bytes, name: str, tmp_path: Path
) -> None:
    (tmp_path / "last_checkpoint").write_bytes(content)
    checkpointer = Checkpointer(nn.Linear(2, 1), str(tmp_path))
    assert checkpointer.get_checkpoint_file() == os.path.join(tmp_path, name)
    with pytest.raises(CheckpointError, match="last_checkpoint in OUTPUT_DIR"):
        checkpointer.resume_or_load("", resume=True)


def test_no_last_checkpoint(tmp_path: Path) -> None:
    assert Checkpointer(nn.Linear(2, 1), str(tmp_path)).get_checkpoint_file() == ""
