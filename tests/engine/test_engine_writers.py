"""Trackers of experiments, by stand-ins for their packages; pictures for all writers."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage, TensorboardXWriter
from helpers import make_cfg
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.config.load import load_config
from defcn_d2.engine import Trainer, pictures
from defcn_d2.engine.pictures import DetectionPictures, draw
from defcn_d2.engine.preflight import check
from defcn_d2.engine.writers import TRACKERS, ForgetPictures, Tracker, check_packages
from defcn_d2.utils.errors import UserError
from defcn_d2.visualization.colors import class_color

Log = list[tuple[str, Any]]


def as_package(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What stand-ins for wandb and mlflow are told: figures, pictures, begin and end."""
    told: Log = []

    def init(**keys: Any) -> SimpleNamespace:
        told.append(("begin", keys))
        return SimpleNamespace(
            id=keys["id"] or "first",
            define_metric=lambda name, step_metric: None,
            log=lambda figures: told.append(("log", figures)),
            finish=lambda: told.append(("end", None)),
        )

    as_package(monkeypatch, "wandb", init=init, Image=lambda pixels: pixels)

    def start_run(**keys: Any) -> SimpleNamespace:
        told.append(("begin", {"id": keys["run_id"], "name": keys["run_name"]}))
        return SimpleNamespace(info=SimpleNamespace(run_id=keys["run_id"] or "first"))

    as_package(
        monkeypatch,
        "mlflow",
        set_tracking_uri=lambda uri: told.append(("uri", uri)),
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name, artifact_location: told.append(("at", artifact_location)),
        set_experiment=lambda name: told.append(("project", name)),
        start_run=start_run,
        log_text=lambda text, file: told.append((file, text)),
        log_metrics=lambda figures, step: told.append(("log", {**figures, "iteration": step})),
        log_image=lambda pixels, key, step: told.append(("log", {key: pixels, "iteration": step})),
        end_run=lambda: told.append(("end", None)),
    )
    for name in ("WANDB_MODE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return told


def tracker(package: str, folder: Path, resumed: bool = False) -> Tracker:
    opts = ["OUTPUT_DIR", str(folder), "LOG.PROJECT", "mine"]
    return TRACKERS[package](make_cfg("shapes/POTO.yaml", *opts), lambda: resumed)


@pytest.mark.parametrize("package", TRACKERS)
def test_figures_and_pictures_are_kept_once(package: str, log: Log, tmp_path: Path) -> None:
    writer = tracker(package, tmp_path)
    writer.close()
    assert not log  # nothing was written, so nothing has begun
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 3.0)
        writer.write()
        storage.step()
        storage.put_scalar("loss", 1.0)
        storage.put_scalar("bbox/AP-(x)", 40.0, smoothing_hint=False)
        storage.put_image("detections/a.jpg", np.full((3, 5, 6), 7, np.uint8))
        writer.write()
        ForgetPictures().write()
        writer.write()
    writer.close()
    figures = [x for kind, x in log if kind == "log"]
    name = {"wandb": "bbox/AP-(x)", "mlflow": "bbox/AP-_x_"}[package]
    assert figures[:2] == [
        {"loss": 3.0, "iteration": 0},
        {"loss": 2.0, name: 40.0, "iteration": 1},  # smoothed
    ]
    assert figures[2]["iteration"] == 1 and figures[2]["detections/a.jpg"].shape == (5, 6, 3)
    assert len(figures) == 3 and log[-1] == ("end", None)


@pytest.mark.parametrize("package", TRACKERS)
def test_a_resumed_training_goes_on_in_its_run(package: str, log: Log, tmp_path: Path) -> None:
    """Another training in the same folder begins a run of its own."""
    for resumed in (True, False, True):
        with EventStorage(0):
            tracker(package, tmp_path, resumed).write()
    ids = [x["id"] for kind, x in log if kind == "begin"]
    assert ids == [None, None, "first"]
    assert (tmp_path / f"{package}_run.txt").read_text() == "first"


def test_they_are_offline_unless_told(log: Log, tmp_path: Path, monkeypatch) -> None:
    def begin() -> list[Any]:
        log.clear()
        for package in TRACKERS:
            with EventStorage(0):
                tracker(package, tmp_path / "run").write()
        return log

    (tmp_path / "run").mkdir()
    told = dict(begin()[:1] + [x for x in log if x[0] in ("uri", "at", "project", "config.yaml")])
    assert told["begin"]["mode"] == "offline" and told["begin"]["dir"] == str(tmp_path / "run")
    assert told["begin"]["name"] == "run" and told["begin"]["project"] == told["project"] == "mine"
    assert told["begin"]["config"]["SOLVER"]["MAX_ITER"] > 0 and "MAX_ITER" in told["config.yaml"]
    assert told["uri"] == f"sqlite:///{tmp_path}/run/mlflow.db"
    assert told["at"] == f"file://{tmp_path}/run/mlflow"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker")
    assert begin()[0][1]["mode"] == "online" and "uri" not in dict(log)


@pytest.mark.parametrize("package", TRACKERS)
def test_a_missing_package_is_told_before_anything_starts(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    tiny_sets()
    cfg = load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, "LOG.WRITERS", f"['{package}']"])
    with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}, or"):
        check(cfg, default_argument_parser().parse_args([]))
    check_packages(["tensorboard"])


def test_the_writers_of_a_training(tmp_path: Path, log: Log) -> None:
    tiny_sets()

    def kinds(names: str) -> list[type]:
        keys = ["OUTPUT_DIR", str(tmp_path), "LOG.WRITERS", names]
        cfg = load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, *keys])
        trainer = SimpleNamespace(cfg=cfg, max_iter=4, checkpointer=SimpleNamespace(resumed=False))
        return [type(x) for x in Trainer.build_writers(trainer)][2:]

    assert kinds("[]") == [ForgetPictures]
    assert kinds("['tensorboard']") == [TensorboardXWriter]
    assert kinds("['tensorboard', 'wandb']") == [TRACKERS["wandb"], TensorboardXWriter]


def train(folder: Path, *opts: str, resume: bool = False) -> Trainer:
    tiny_sets()
    keys = ["OUTPUT_DIR", str(folder), "MODEL.EMA.ENABLED", "True", "SOLVER.CHECKPOINT_PERIOD", "2"]
    torch.manual_seed(0)
    trainer = Trainer(load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, *keys, *opts]))
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def test_a_training_with_pictures(log: Log, tmp_path: Path) -> None:
    """They come by period and at the end, go on after a break, and change nothing."""
    opts = ["LOG.WRITERS", "['wandb']", "VIS_PERIOD", "2"]
    seen = train(tmp_path / "seen", "SOLVER.MAX_ITER", "3", *opts)
    shown = [x for kind, x in log if kind == "log" and any("detections/" in k for k in x)]
    assert [x["iteration"] for x in shown] == [1] * 4 + [2] * 4
    names = [next(iter(x)) for x in shown]
    assert names[:4] == names[4:] and len(set(names)) == 4
    assert all(max(x[name].shape) == 480 for name, x in zip(names, shown))
    train(tmp_path / "seen", "SOLVER.MAX_ITER", "4", *opts, resume=True)
    assert [x["id"] for kind, x in log if kind == "begin"] == [None, "first"]
    plain = train(tmp_path / "plain", "SOLVER.MAX_ITER", "3", "LOG.WRITERS", "[]")
    for one, other in zip(seen.model.parameters(), plain.model.parameters()):
        assert torch.equal(one, other)


def test_only_the_first_process_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others enter the block with the averaged weights, which is for all."""
    entered = []
    cfg = make_cfg("shapes/POTO.yaml", "VIS_PERIOD", 2)
    hook = DetectionPictures(cfg, lambda record: pytest.fail("an image is loaded"))

    class Block:
        def __enter__(self):
            entered.append(hook.trainer.iter)

        def __exit__(self, *error):
            pass

    hook.trainer = SimpleNamespace(iter=0, max_iter=4, evaluated_weights=Block)
    monkeypatch.setattr(pictures.comm, "is_main_process", lambda: False)
    for hook.trainer.iter in range(4):
        hook.after_step()
    assert entered == [1, 3]


def test_what_is_drawn() -> None:
    """As many of the best detections as there are objects, at the picture's size; no crowds."""
    box = {"bbox": [10, 10, 20, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    crowd = {**box, "bbox": [60, 60, 20, 20], "iscrowd": 1}
    record = {"width": 120, "height": 60, "annotations": [box, crowd]}
    found = Instances(
        (240, 480),
        pred_boxes=Boxes(torch.tensor([[300.0, 60, 400, 160], [100, 60, 200, 160]])),
        scores=torch.tensor([0.2, 0.9]),
        pred_classes=torch.tensor([3, 2]),
    )
    picture = draw(np.zeros((240, 480, 3), np.uint8), found, record, list("abcd"))
    assert picture.shape == (240, 480, 3)

    def has(number: int, x: slice, y: slice) -> bool:
        color = [int(class_color(number)[i : i + 2], 16) for i in (1, 3, 5)]
        return bool((picture[y, x] == color).all(axis=-1).any())

    whole = slice(None)
    assert has(1, slice(38, 42), slice(44, 116)) and has(1, slice(118, 122), slice(44, 116))
    assert has(2, slice(98, 102), slice(64, 156)) and not has(3, whole, whole)
    assert not picture[170:, :].any()  # where the crowd is, and nothing else
    nothing = draw(np.zeros((240, 480, 3), np.uint8), found[:0], {**record, "annotations": []}, [])
    assert not nothing.any()
