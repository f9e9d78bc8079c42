"""Weights in safetensors: written by the converter, read wherever ``MODEL.WEIGHTS`` is."""

import sys
from pathlib import Path

import pytest
import torch
from test_checkpoint_files import equal, release_file, small_model

from defcn_d2.utils.errors import UserError
from defcn_d2.weights.checkpointer import Checkpointer
from defcn_d2.weights.convert import convert
from defcn_d2.weights.reader import CheckpointError, read_checkpoint

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A checkpoint, and its weights in safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    source = release_file(folder / "release.pth", small_model("POTO-3DMF.yaml"))
    target = str(folder / "weights.safetensors")
    convert(source, target)
    return source, target


def test_weights_survive_the_format(files: tuple[str, str], tmp_path: Path) -> None:
    source, target = files
    expected, found = small_model("POTO-3DMF.yaml"), small_model("POTO-3DMF.yaml")
    Checkpointer(expected).load(source)
    Checkpointer(found, complete=True).resume_or_load(target, resume=False)
    assert equal(found, expected)
    back = str(tmp_path / "back.pth")
    convert(target, back)
    assert torch.load(back)["model"].keys() == torch.load(source)["model"].keys() - {
        "pixel_mean",
        *(f"anchor_generator.cell_anchors.{i}" for i in range(5)),
    }


def test_the_mark_of_a_start_survives(files: tuple[str, str], tmp_path: Path) -> None:
    target = str(tmp_path / "start.safetensors")
    convert(files[0], target, partial=True)
    assert read_checkpoint(target)["partial"] and "partial" not in read_checkpoint(files[1])
    Checkpointer(small_model("POTO.yaml")).resume_or_load(target, resume=False)
    with pytest.raises(CheckpointError, match="unexpected: head.max3d"):
        Checkpointer(small_model("POTO.yaml")).resume_or_load(files[1], resume=False)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_damage_is_noticed(files: tuple[str, str], tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(Path(files[1]).read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cut.safetensors' is damaged or no checkpoint"):
        read_checkpoint(str(path))


def test_what_is_missing_is_named(files: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="'none.safetensors' do not exist"):
        Checkpointer(small_model("POTO.yaml")).load("none.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match="pip install safetensors"):
        read_checkpoint(files[1])
