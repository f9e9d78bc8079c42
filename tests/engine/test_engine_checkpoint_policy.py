"""Which checkpoints stay, which is the best, and which one a run goes on from."""

from __future__ import annotations

import json
import os

import pytest
import torch
from torch import nn

from defcn_d2.engine.best_checkpoint import BestCheckpoint
from defcn_d2.utils.errors import UserError
from defcn_d2.weights.checkpointer import Checkpointer
from defcn_d2.weights.reader import CheckpointError


def checkpointer(folder, **options):
    return Checkpointer(nn.Linear(2, 1), str(folder), **options)


def names(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".pth"))


def numbered(*numbers):
    return [f"model_{number:07d}.pth" for number in numbers]


def save(checkpointer, *numbers):
    for number in numbers:
        with torch.no_grad():
            checkpointer.model.weight.fill_(number)
        checkpointer.save(f"model_{number:07d}", iteration=number)


@pytest.mark.parametrize(
    "keep, left", [(0, (1, 3, 5, 7)), (1, (7,)), (2, (5, 7)), (9, (1, 3, 5, 7))]
)
def test_the_last_ones_stay(tmp_path, keep, left):
    save(checkpointer(tmp_path, keep=keep), 1, 3, 5, 7)
    assert names(tmp_path) == numbered(*left)
    assert (tmp_path / "last_checkpoint").read_text() == numbered(7)[0]


def test_other_files_stay(tmp_path):
    files = ["model_best.pth", "other_0000001.pth", "model_1.pth.bak"]
    for name in files:
        (tmp_path / name).touch()
    ours = checkpointer(tmp_path, keep=1)
    save(ours, 1, 2)
    ours.save("model_best", tag=False)
    assert set(os.listdir(tmp_path)) == {*files, *numbered(2), "last_checkpoint"}
    ours.save("model_final", iteration=2)
    assert names(tmp_path) == ["model_best.pth", "model_final.pth", "other_0000001.pth"]


def test_what_was_just_saved_stays_though_later_ones_are_there(tmp_path):
    """A run that went back, as its last checkpoint was damaged, or was started anew."""
    ours = checkpointer(tmp_path, keep=2)
    save(ours, 7, 9, 2, 3, 4)
    assert names(tmp_path) == numbered(3, 4, 7, 9)


def resumed(folder):
    ours = checkpointer(folder)
    content = ours.resume_or_load("", resume=True)
    assert ours.resumed
    assert ours.model.weight.eq(content["iteration"]).all()
    return content["iteration"]


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def test_a_run_goes_on_from_the_newest_that_can_be_read(tmp_path, caplog):
    save(checkpointer(tmp_path), 1, 3, 5)
    assert resumed(tmp_path) == 5 and "going on from" not in caplog.text
    cut(tmp_path / numbered(5)[0])
    assert resumed(tmp_path) == 3
    assert "model_0000005.pth' is damaged" in caplog.text and "going on from the one" in caplog.text
    caplog.clear()
    (tmp_path / "last_checkpoint").unlink()
    assert resumed(tmp_path) == 3 and "last_checkpoint names no checkpoint" in caplog.text
    (tmp_path / "last_checkpoint").write_text("model_0000009.pth")
    assert resumed(tmp_path) == 3
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")  # its word counts
    assert resumed(tmp_path) == 1


def test_a_run_does_not_silently_begin_anew(tmp_path):
    save(checkpointer(tmp_path), 1, 3)
    for path in tmp_path.glob("*.pth"):
        cut(path)
    with pytest.raises(CheckpointError, match="model_0000001.pth' is damaged"):
        checkpointer(tmp_path).resume_or_load("", resume=True)


def test_weights_of_another_model_are_not_passed_over(tmp_path):
    save(checkpointer(tmp_path), 1, 3)
    torch.save(
        {"model": {"head.cls_score.weight": torch.zeros(3, 2, 3, 3)}}, tmp_path / numbered(3)[0]
    )
    with pytest.raises(CheckpointError, match="are of another model"):
        checkpointer(tmp_path).resume_or_load("", resume=True)


def test_without_a_checkpoint_the_weights_are_loaded(tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.full((1, 2), 8.0), "bias": torch.zeros(1)}}, weights)
    for resume in (False, True):
        ours = checkpointer(tmp_path / "none")
        ours.resume_or_load(str(weights), resume=resume)
        assert ours.model.weight.eq(8).all() and not ours.resumed
    assert ours.last_name() == ""


def best(folder, metric="bbox/AP"):
    found = BestCheckpoint(checkpointer(folder), metric)
    found.go_on()
    return found


def evaluate(found, value, iteration):
    with torch.no_grad():
        found.checkpointer.model.weight.fill_(value)
    found.consider({"bbox": {"AP": value}, "nms_gap": 1.0}, iteration)


def test_the_best_is_kept(tmp_path):
    found = best(tmp_path)
    for iteration, value in enumerate([20.0, 30.0, 25.0, float("nan")]):
        evaluate(found, value, iteration)
    note = json.loads((tmp_path / "best_checkpoint").read_text())
    assert note == {"metric": "bbox/AP", "value": 30.0, "iteration": 1}
    saved = torch.load(tmp_path / "model_best.pth")
    assert saved["iteration"] == 1 and saved["model"]["weight"].eq(30).all()
    assert not (tmp_path / "last_checkpoint").exists()
    # and in a run that goes on
    again = best(tmp_path)
    evaluate(again, 29.0, 4)
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == 1
    evaluate(again, 31.0, 5)
    assert torch.load(tmp_path / "model_best.pth")["iteration"] == 5
    other = best(tmp_path, "-nms_gap")  # of another metric
    assert other.best is None


def test_the_lowest_may_be_the_best(tmp_path):
    found = best(tmp_path, "-bbox/AP")
    for iteration, value in enumerate([20.0, 30.0, 15.0]):
        evaluate(found, value, iteration)
    assert json.loads((tmp_path / "best_checkpoint").read_text())["value"] == 15


def test_unknown_metric_and_no_evaluation(tmp_path):
    found = best(tmp_path, "bbox/Ap")
    found.consider({}, 1)  # of all processes but the main one
    message = r"SOLVER.CHECKPOINT_BEST: there is no metric 'bbox/Ap'; .*did you mean 'bbox/AP'\?"
    with pytest.raises(UserError, match=message):
        evaluate(found, 1.0, 1)


def test_no_detections_give_no_number_yet(tmp_path):
    """COCO's evaluation has then no figures of single classes, and NaN for the others."""
    found, nothing = best(tmp_path, "bbox/AP-red"), dict.fromkeys(["AP", "AP50"], float("nan"))
    found.consider({"bbox": nothing}, 0)
    found.consider({"bbox": nothing, "bbox_nms": nothing, "nms_gap": float("nan")}, 1)
    assert found.best is None and names(tmp_path) == []
    found.consider({"bbox": {"AP": 30.0, "AP50": 40.0, "AP-red": 20.0}}, 2)
    assert found.best == 20 and names(tmp_path) == ["model_best.pth"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"metric": "bbox/AP"}', '{"value": 3}'])
def test_damaged_note(tmp_path, content, caplog):
    (tmp_path / "best_checkpoint").write_text(content)
    assert best(tmp_path).best is None and "is damaged" in caplog.text
