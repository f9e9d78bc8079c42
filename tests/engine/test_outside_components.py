"""Components of a file outside of the package go through every command as those within it.

As in a user's own ``train.py``: the module is imported, then ``run`` of each command is called.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import registries
import torch
from detectron2.data import DatasetCatalog
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.demo.demo_command import run as run_demo
from defcn_d2.engine import Trainer, load_config, run
from defcn_d2.export.export_command import run as run_export
from defcn_d2.visualization.visualize_command import run as run_visualize

MODULE = "outside_components"
YAML = f"""
_BASE_: "{CONFIG}"
MODEL:
  DEFCN:
    NECK: {{NAME: "OutsideNeck", OutsideNeck: {{OUT_CHANNELS: 40}}}}
    HEAD: {{NAME: "OutsideHead", OutsideHead: {{LONGEST: 3.0}}}}
    MATCHER: {{NAME: "OutsideMatcher", OutsideMatcher: {{FEW: 5}}}}
    LOSS: {{NAME: "OutsideClassLoss", OutsideClassLoss: {{EPSILON: 0.5}}}}
    CRITERION:
      NAME: "OutsideCriterion"
      OutsideCriterion: {{OVERLAP_WEIGHT: 0.25, SOFT_LABELS: "quality"}}
    AUX: {{MATCHER: {{NAME: "OutsideMatcher", OutsideMatcher: {{FEW: 7}}}}}}
"""
OPTS = [*TINY_MODEL, *TINY_SETS, "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture(autouse=True, scope="module")
def _imported() -> Iterator[None]:
    tiny_sets()
    with registries.restored():
        sys.modules.pop(MODULE, None)
        importlib.import_module(MODULE)
        yield


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "own.yaml"
    path.write_text(YAML)
    return str(path)


@pytest.fixture(scope="module")
def folder(config_file: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: two steps, then two more by --resume, with a key as KEY VALUE."""
    folder = tmp_path_factory.mktemp("run")
    command = ["--config-file", config_file, *OPTS, "OUTPUT_DIR", str(folder)]
    command += ["MODEL.DEFCN.MATCHER.OutsideMatcher.FEW", "4", "TEST.WITH_NMS", "True"]
    assert run([*command, "SOLVER.MAX_ITER", "2"]) == 0
    (folder / "model_final.pth").rename(folder / "model_first.pth")
    (folder / "last_checkpoint").write_text("model_first.pth")
    assert run(["--resume", *command, "SOLVER.MAX_ITER", "4"]) == 0
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> list[str]:
    """Arguments of every command: the run's own config, and its weights."""
    weights = folder / "model_final.pth"
    return ["--config-file", str(folder / "config.yaml"), "--weights", str(weights)]


def values(config_file: str, *opts: str) -> dict[str, float]:
    """Those that the parts of the model of a config have."""
    model = Trainer.build_model(load_config(config_file, [*OPTS, *opts]))
    main, aux = model.criteria
    return {
        "neck": model.neck.out_channels,
        "head": model.head.longest,
        "matcher": main.matcher.few,
        "loss": main.class_loss.epsilon,
        "criterion": main.overlap_weight,
        "aux matcher": aux.matcher.few,
    }


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_keys_reach_the_parts_from_yaml_and_command_line(config_file: str) -> None:
    expected = {"neck": 40, "head": 3.0, "matcher": 5, "loss": 0.5, "criterion": 0.25}
    expected["aux matcher"] = 7
    assert values(config_file) == expected
    opts = [
        *("MODEL.DEFCN.NECK.OutsideNeck.OUT_CHANNELS", "24"),
        *("MODEL.DEFCN.HEAD.OutsideHead.LONGEST", "6.0"),
        *("MODEL.DEFCN.MATCHER.OutsideMatcher.FEW", "2"),
        *("MODEL.DEFCN.LOSS.OutsideClassLoss.EPSILON", "2.0"),
        *("MODEL.DEFCN.CRITERION.OutsideCriterion.OVERLAP_WEIGHT", "0.75"),
        *("MODEL.DEFCN.AUX.MATCHER.OutsideMatcher.FEW", "9"),
    ]
    assert values(config_file, *opts) == dict(zip(expected, (24, 6.0, 2, 2.0, 0.75, 9)))


def test_mistakes_in_their_keys_are_named(
    config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config-file", config_file, *OPTS, "OUTPUT_DIR", str(tmp_path)]
    assert run([*command, "MODEL.DEFCN.MATCHER.OutsideMatcher.FEWER", "2"]) == 1
    assert "did you mean 'MODEL.DEFCN.MATCHER.OutsideMatcher.FEW'" in capsys.readouterr().err
    assert run([*command, "MODEL.DEFCN.HEAD.NAME", "OutsideHat"]) == 1
    assert "MODEL.DEFCN.HEAD.NAME 'OutsideHat' is unknown" in capsys.readouterr().err


def test_train_and_resume(folder: Path) -> None:
    assert "Starting training from iteration 2" in (folder / "log.txt").read_text()
    first, last = (torch.load(folder / f"model_{x}.pth")["model"] for x in ("first", "final"))
    for name in ("neck.squeeze.weight", "head.everything.weight"):
        assert not torch.equal(first[name], last[name])
    losses = [x for x in metrics(folder) if "total_loss" in x]
    assert len(losses) == 2
    assert all(x["loss_overlap"] > 0 and x["loss_cls_aux"] > 0 for x in losses)
    # the matcher takes fewer locations as the training goes on, the resumed one too
    assert losses[-1]["num_foreground"] < losses[0]["num_foreground"]
    own = values(str(folder / "config.yaml"))
    assert (own["matcher"], own["head"], own["aux matcher"]) == (4, 3.0, 7)


def test_evaluate(folder: Path, model: list[str], tmp_path: Path) -> None:
    last = metrics(folder)[-1]
    expected = [
        ["bbox", "AP", last["bbox/AP"], 1e-6],
        ["bbox_nms", "AP", last["bbox_nms/AP"], 1e-6],
    ]
    command = ["--eval-only", *model, "OUTPUT_DIR", str(tmp_path)]
    assert run([*command, "TEST.EXPECTED_RESULTS", str(expected)]) == 0
    path = tmp_path / "inference" / "without_nms" / "coco_instances_results.json"
    entries = json.loads(path.read_text())
    assert entries and all(0 < entry["score"] <= 1 for entry in entries)


def test_export(model: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "model.pt2")
    assert run_export([*model, "--format", "exported", "--output", path]) == 0
    boxes, scores, _ = torch.export.load(path).module()(torch.rand(2, 3, 70, 90) * 255)
    assert boxes.shape[0] == 2 and (scores > 0).any()


def test_export_onnx(model: list[str], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = str(tmp_path / "model.onnx")
    assert run_export([*model, "--format", "onnx", "--output", path]) == 0
    assert runtime.InferenceSession(path).get_outputs()[0].name == "boxes"


@pytest.mark.parametrize("command", ["assignment", "scores"])
def test_draw(model: list[str], tmp_path: Path, command: str) -> None:
    assert run_visualize([command, *model, "--output", str(tmp_path)]) == 0
    assert (tmp_path / f"{command}.png").stat().st_size > 10_000
    page = (tmp_path / f"{command}.html").read_text()
    assert "OutsideMatcher" in page or command == "scores"


def test_demo(model: list[str], tmp_path: Path) -> None:
    image = DatasetCatalog.get("tiny_val")[0]["file_name"]
    drawn, found = tmp_path / "drawn.jpg", tmp_path / "found.json"
    arguments = ["--input", image, "--output", str(drawn), "--json", str(found)]
    assert run_demo([*model, *arguments, "--confidence-threshold", "0.001"]) == 0
    assert drawn.stat().st_size > 0 and json.loads(found.read_text())
