"""``demo/onnx_demo.py`` where neither PyTorch nor Detectron2 can be imported."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL
from torch import nn

from defcn_d2 import export
from defcn_d2.config.load import load_config
from defcn_d2.engine import Predictor

SCRIPT = ROOT / "demo" / "onnx_demo.py"
spec = importlib.util.spec_from_file_location("onnx_demo", SCRIPT)
assert spec is not None and spec.loader is not None
onnx_demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(onnx_demo)

# A program that runs another one, and lets it import nothing of what training needs.
BARE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "defcn_d2", "PIL", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
sys.path.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Any:
    """(config, folder): model.pth there finds something everywhere, model.onnx is its export."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    opts = [*TINY_MODEL, "MODEL.WEIGHTS", str(folder / "model.pth")]
    cfg = load_config(CONFIG, opts)
    from detectron2.modeling import build_model

    model = build_model(cfg)
    nn.init.normal_(model.head.cls_score.weight, std=0.2)
    nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    arguments = ["--config-file", CONFIG, "--format", "onnx", "--output", folder / "model.onnx"]
    assert export.run([*map(str, arguments), *opts]) == 0
    return cfg, folder


def bare(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", BARE, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_images_without_pytorch(trained, tmp_path):
    _, folder = trained
    (tmp_path / "in").mkdir()
    for name, image in zip(("000000000139.jpg", "000000000285.png"), export.drawn_images(2)):
        cv2.imwrite(str(tmp_path / "in" / name), image)
    arguments = ["--input", tmp_path / "in", "--output", tmp_path / "out"]
    arguments += ["--json", tmp_path / "found.json", "--confidence-threshold", 0.001]
    done = bare("--model", folder / "model.onnx", *arguments)
    assert done.returncode == 0, done.stderr
    assert "000000000139.jpg: " in done.stdout and done.stderr == ""
    assert sorted(os.listdir(tmp_path / "out")) == ["000000000139.jpg", "000000000285.png"]
    plain = cv2.imread(str(tmp_path / "in" / "000000000285.png"))
    drawn = cv2.imread(str(tmp_path / "out" / "000000000285.png"))
    assert drawn.shape == plain.shape and (drawn != plain).any()
    entries = json.loads((tmp_path / "found.json").read_text())
    assert {entry["image_id"] for entry in entries} == {139, 285}
    assert set(entries[0]) == {"image_id", "file_name", "category_id", "bbox", "score"}
    assert all(min(entry["bbox"][2:]) > 0 for entry in entries)


def test_the_environment_is_bare():
    code = BARE.replace('runpy.run_path(sys.argv[0], run_name="__main__")', "import torch")
    done = subprocess.run([sys.executable, "-c", code, "x"], capture_output=True, text=True)
    assert "No module named 'torch'" in done.stderr


def test_detections_are_those_of_the_model(trained):
    """On an image that needs no resizing, which OpenCV does a little differently."""
    cfg, folder = trained
    image = cv2.resize(export.drawn_images(1)[0], (80, 64))
    detector = onnx_demo.Detector(str(folder / "model.onnx"), threshold=0.001)
    found = detector(image)
    wanted = Predictor(cfg)(image)
    compared = min(len(wanted), len(found.scores), 20)
    assert compared == 20
    assert np.allclose(found.scores[:20], wanted.scores[:20].numpy(), atol=1e-4)
    pairs = torch.cdist(torch.from_numpy(found.boxes), wanted.pred_boxes.tensor, p=float("inf"))
    assert pairs.min(dim=1).values[:20].max() < 0.05
    assert detector.class_names[:2] == ["ellipse", "ring"]


def test_nms_is_that_of_torchvision():
    from detectron2.layers import batched_nms

    generator = torch.Generator().manual_seed(0)
    corners = 50 * torch.rand(80, 2, generator=generator)
    boxes = torch.cat([corners, corners + 5 + 40 * torch.rand(80, 2, generator=generator)], 1)
    scores = torch.rand(80, generator=generator).sort(descending=True).values
    classes = torch.randint(2, (80,), generator=generator)
    assert Boxes(boxes).nonempty().all()
    wanted = batched_nms(boxes, scores, classes, 0.5).tolist()
    found = onnx_demo.Detections(boxes.numpy(), scores.numpy(), classes.numpy())
    assert onnx_demo.nms(found, 0.5) == wanted and len(wanted) < 80


def test_video(trained, tmp_path, capsys):
    _, folder = trained
    writer = onnx_demo.open_writer(tmp_path / "in.avi", 10.0, (48, 64))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    model = ["--model", str(folder / "model.onnx"), "--confidence-threshold", "0.001"]
    arguments = ["--input", str(tmp_path / "in.avi"), "--json", str(tmp_path / "a.json")]
    assert onnx_demo.main([*model, *arguments, "--output", str(tmp_path / "out")]) == 0
    assert "in.avi: 3 frames, see" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out") == ["in.mp4"]
    assert sum(1 for _ in onnx_demo.frames_of(str(tmp_path / "out" / "in.mp4"))) == 3
    os.rename(tmp_path / "in.avi", tmp_path / "camera.MTS")
    assert onnx_demo.main([*model, "--input", str(tmp_path / "camera.MTS"), *arguments[2:]]) == 0
    assert "camera.MTS: 3 frames" in capsys.readouterr().out
    numbers = {entry["image_id"] for entry in json.loads((tmp_path / "a.json").read_text())}
    assert numbers == {0, 1, 2}


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--model", "no.onnx", "--input", "a.png"], "model 'no.onnx' does not exist"),
        (["--model", "text.png", "--input", "a.png"], "model 'text.png' cannot be loaded"),
        (["--input", "nowhere/*.jpg"], "--input 'nowhere/*.jpg' holds no image"),
        (["--input", "no.mp4"], "--input 'no.mp4' does not exist"),
        (["--input", "text.mp4"], "--input 'text.mp4' has no frame"),
        (["--input", "text.mp4", "a.png"], "--input: give the video 'text.mp4' alone"),
        (["--input", "a.png", "--confidence-threshold", "2"], "--confidence-threshold is 2.0"),
        (["--input", "a.png", "--output", "text.png/x"], "cannot make the folder"),
        (["--input", "a.png", "--output", ""], "nowhere to put the detections"),
    ],
)
def test_mistakes(trained, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("text.png", "text.mp4"):
        Path(name).write_text("nothing")
    cv2.imwrite("a.png", np.zeros((9, 9, 3), np.uint8))
    model = [] if "--model" in arguments else ["--model", str(trained[1] / "model.onnx")]
    output = [] if "--output" in arguments else ["--output", "out"]
    assert onnx_demo.main([*model, *arguments, *output]) == 1
    assert f"error: {sentence}" in capsys.readouterr().err


def test_unreadable_image(trained, tmp_path, capsys):
    (tmp_path / "a.png").write_text("no image")
    model = ["--model", str(trained[1] / "model.onnx"), "--input", str(tmp_path)]
    assert onnx_demo.main([*model, "--output", str(tmp_path / "out")]) == 1
    output = capsys.readouterr().err
    assert "a.png' cannot be read as an image" in output
    assert output.splitlines()[-1] == "error: 1 of 1 images could not be read"


def test_foreign_model(tmp_path, capsys):
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    opset = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "x.onnx")
    arguments = ["--model", str(tmp_path / "x.onnx"), "--input", "a.png", "--output", "out"]
    assert onnx_demo.main(arguments) == 1
    assert "is not of defcn-export" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, option",
    [
        ("--input photos --output photos", "--output"),
        ("--input photos --output link", "--output"),
        ("--input photos/a.png --output hard.png", "--output"),
        ("--input hard.png --json photos/a.png", "--json"),
        ("--input photos --output new --json new/a.png", "--json"),
        ("--input photos --json model.onnx", "--json"),
        ("--input in.avi --output in.avi", "--output"),
    ],
)
def test_inputs_are_not_overwritten(tmp_path, monkeypatch, capsys, arguments, option):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    cv2.imwrite("photos/a.png", np.zeros((9, 9, 3), np.uint8))
    os.symlink("photos", "link")
    os.link("photos/a.png", "hard.png")
    for name in ("model.onnx", "in.avi"):
        Path(name).write_text("anything")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(onnx_demo, "Detector", lambda *args: pytest.fail("a model is loaded"))
    assert onnx_demo.main(["--model", "model.onnx", *arguments.split()]) == 1
    assert f"error: {option}" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
