"""Trainings that end early: when, with what files, and when they are resumed."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from process_groups import in_group
from test_train_net import metrics
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.engine import Trainer
from defcn_d2.engine.best_checkpoint import BestCheckpoint
from defcn_d2.engine.early_stopping import EarlyStopping
from defcn_d2.weights.checkpointer import Checkpointer


class Scripted(Trainer):
    """Its evaluations give these values of "bbox/AP", one after the other."""

    values: list[float]
    evaluations = 0

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        cls.evaluations += 1
        return OrderedDict(bbox={"AP": cls.values[cls.evaluations - 1]})


def train(folder: Path, values: list[float], *opts: str, resume: bool = False) -> Scripted:
    """A training of at most 12 steps that is evaluated every second one."""
    tiny_sets()
    cfg = load_config(
        CONFIG,
        [
            *(*TINY_MODEL, *TINY_SETS, "SOLVER.IMS_PER_BATCH", "1", "SOLVER.MAX_ITER", "12"),
            *("TEST.EVAL_PERIOD", "2", "SOLVER.CHECKPOINT_BEST", "bbox/AP"),
            *("TEST.EARLY_STOPPING.PATIENCE", "2", "OUTPUT_DIR", str(folder), *opts),
        ],
    )
    folder.mkdir(exist_ok=True)
    kind = type("ScriptedRun", (Scripted,), {"values": values})
    trainer = kind(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def steps(folder: Path) -> int:
    return torch.load(folder / "model_final.pth", weights_only=True)["iteration"] + 1


def test_the_training_ends_after_two_evaluations_without_a_better_one(tmp_path, caplog):
    caplog.set_level("INFO", "defcn_d2")
    ema = ("MODEL.EMA.ENABLED", "True")
    trainer = train(tmp_path, [10, float("nan"), 30, 20, 30, 99], *ema)
    assert trainer.evaluations == 5 and steps(tmp_path) == 10
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    assert (tmp_path / "model_ema.pth").exists()
    assert json.loads((tmp_path / "best_checkpoint").read_text())["iteration"] == 5
    assert "bbox/AP was best at iteration 5, and not better in 2 evaluations since" in caplog.text
    rows = metrics(tmp_path)
    assert [x["bbox/AP"] for x in rows if "bbox/AP" in x][-1] == 30  # the last one is written
    assert max(x["iteration"] for x in rows) == 9

    # resumed, it is at its end, as a finished one: evaluated again
    again = train(tmp_path, [20], *ema, resume=True)
    assert again.evaluations == 1 and steps(tmp_path) == 10
    # with more patience it goes on, and counts from the same best one; the last step ends it
    more = ("TEST.EARLY_STOPPING.PATIENCE", "3")
    assert train(tmp_path, [20], *ema, *more, resume=True).evaluations == 1
    assert steps(tmp_path) == 12


def test_a_killed_run_goes_on_counting(tmp_path):
    """Nine steps of one that was best at the fourth: the next evaluation is the third since."""
    few = ("SOLVER.MAX_ITER", "9", "TEST.EARLY_STOPPING.PATIENCE", "9")
    train(tmp_path, [10, 30, 20, 20, 20], *few)
    patience = ("TEST.EARLY_STOPPING.PATIENCE", "3")
    assert train(tmp_path, [20], *patience, resume=True).evaluations == 1
    assert steps(tmp_path) == 10


def test_without_a_number_or_with_better_ones_nothing_ends(tmp_path):
    nothing = [float("nan")] * 6
    assert train(tmp_path / "a", nothing).evaluations == 6 and steps(tmp_path / "a") == 12
    assert train(tmp_path / "b", [1, 0, 2, 1, 3, 2]).evaluations == 6
    assert steps(tmp_path / "b") == 12


def test_without_patience_there_is_no_hook(tmp_path):
    trainer = train(tmp_path, [3, 2, 1, 0, 0, 0], "TEST.EARLY_STOPPING.PATIENCE", "0")
    assert trainer.early_stopping is None and trainer.evaluations == 6


def due_of_a_member(folder: Path) -> list[bool]:
    """What each process says; only the main one knows of the evaluations of this part."""
    best = BestCheckpoint(Checkpointer(nn.Linear(1, 1), str(folder)), "bbox/AP")
    best.go_on()  # 100, as the earlier part has found
    early, found = EarlyStopping(best, patience=2, period=10), [best.iteration == 100]
    if comm.is_main_process():
        best.iteration = 120
    return [*found, *(early.is_due(iteration) for iteration in (120, 130, 139, 140))]


@pytest.mark.parametrize("number", [1, 2])
def test_all_processes_agree_with_the_main_one(tmp_path, number):
    note = {"metric": "bbox/AP", "value": 1.0, "iteration": 100}
    (tmp_path / "best_checkpoint").write_text(json.dumps(note))
    found = in_group(number, due_of_a_member, tmp_path, tmp_path)
    assert found == [[True, False, False, False, True]] * number
