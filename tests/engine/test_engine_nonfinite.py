"""A loss that is not finite: the message, the dump, and engine.replay, which runs it again."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_crowd, tiny_sets

from defcn_d2.engine import nonfinite, replay, run
from defcn_d2.engine.nonfinite import NonFiniteLoss
from defcn_d2.engine.reporting import describe
from defcn_d2.modeling.meta_arch import DeFCN


def train(folder, *opts):
    tiny_sets()
    arguments = ["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, "OUTPUT_DIR", str(folder)]
    return run([*arguments, *opts])


@pytest.fixture
def poisoned(monkeypatch):
    """Images become NaN for the model, after so many batches."""

    def set_up(fine=1):
        original, calls = DeFCN.preprocess_image, []

        def preprocess(self, inputs):
            images = original(self, inputs)
            calls.append(None)
            if len(calls) > fine:
                images.tensor.fill_(float("nan"))
            return images

        monkeypatch.setattr(DeFCN, "preprocess_image", preprocess)

    return set_up


def dump_of(folder):
    [path] = folder.glob("nonfinite_*.pth")
    return path


@pytest.mark.parametrize("keys", [[], ["SOLVER.ACCUMULATE", "2"], ["SOLVER.AMP.ENABLED", "True"]])
def test_training_stops_and_tells(tmp_path, poisoned, capsys, keys):
    if "SOLVER.AMP.ENABLED" in keys:
        keys = [*keys, "SOLVER.AMP.PRECISION", "bfloat16"]
    micro_batches = 2 if "SOLVER.ACCUMULATE" in keys else 1
    poisoned(micro_batches)
    assert train(tmp_path, *keys) == 1
    [error] = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert error.startswith("error: the loss became infinite or NaN at iteration 1 (loss_cls nan, ")
    dump = dump_of(tmp_path)
    assert dump.name == "nonfinite_0000001_rank0.pth"
    assert f"`python -m defcn_d2.engine.replay {dump}` runs this step again." in error
    assert "Lower SOLVER.BASE_LR" in error
    content = torch.load(dump, weights_only=True)
    images = [x for batch in content["batches"] for x in batch]
    assert len(content["batches"]) == micro_batches
    assert len(images) == 4
    assert re.findall(r"'(\S+?\.jpg)'", error) == [x["file_name"] for x in images]
    assert all(x["instances"]["gt_boxes"].shape[1] == 4 for x in images)
    assert content["losses"]["loss_cls"] != content["losses"]["loss_cls"]
    assert not (tmp_path / "model_final.pth").exists()


def test_replay_finds_the_weights(tmp_path, capsys):
    """A learning rate that is far too high."""
    rate = ["SOLVER.OPTIMIZER", "SGD", "SOLVER.BASE_LR", "1e12", "SOLVER.WARMUP_ITERS", "0"]
    assert train(tmp_path, *rate) == 1
    capsys.readouterr()
    dump = dump_of(tmp_path)
    assert replay.run([str(dump)]) == 3
    output = capsys.readouterr().out
    assert "losses then: loss_cls nan" in output and "losses now: loss_cls nan" in output
    assert "predictions: cls_logits has" in output and "running_var has" in output
    assert output.count("gradients: ") == replay._SHOWN + 1 and " more\n" in output


def test_replay_finds_the_image(tmp_path, poisoned, monkeypatch, capsys):
    poisoned()
    train(tmp_path, "SOLVER.IMS_PER_BATCH", "2")
    monkeypatch.undo()  # the fault was not in what the dump holds
    dump = dump_of(tmp_path)
    capsys.readouterr()
    assert replay.run([str(dump)]) == 0
    output = capsys.readouterr().out
    assert "all is finite this time" in output and output.count(" alone: loss_cls ") == 2
    content = torch.load(dump, weights_only=True)
    bad = content["batches"][0][1]
    bad["image"] = torch.full_like(bad["image"], float("nan"), dtype=torch.float32)
    torch.save(content, dump)
    assert replay.run(["--device", "cpu", str(dump), "SOLVER.BASE_LR", "0.1"]) == 1
    captured = capsys.readouterr()
    assert f"image {bad['file_name']!r}: pixels has" in captured.out
    assert (
        captured.err.startswith("error: image 1 of the batch") and bad["file_name"] in captured.err
    )


def test_extra_boxes_are_in_the_dump_and_replayed(tmp_path, poisoned, monkeypatch, capsys):
    tiny_crowd()
    poisoned()
    sets = ["DATASETS.TRAIN", "('tiny_crowd_train',)", "DATASETS.TEST", "('tiny_crowd_val',)"]
    keys = ["MODEL.DEFCN.NUM_CLASSES", "1", "DATASETS.EXTRA_BOXES", "['visible']"]
    assert train(tmp_path, *sets, *keys, "SOLVER.IMS_PER_BATCH", "2") == 1
    monkeypatch.undo()
    dump = dump_of(tmp_path)
    content = torch.load(dump, weights_only=True)
    gts = [x["instances"] for batch in content["batches"] for x in batch]
    for gt in gts:
        assert gt["gt_visible_boxes"].shape == gt["gt_boxes"].shape
        assert not torch.equal(gt["gt_visible_boxes"], gt["gt_boxes"])
    restored = replay.to_input(content["batches"][0][0])["instances"]
    assert torch.equal(restored.gt_visible_boxes.tensor, gts[0]["gt_visible_boxes"])
    gts[0]["gt_visible_boxes"][0, 2] = float("inf")
    torch.save(content, dump)
    capsys.readouterr()
    assert replay.run([str(dump)]) == 1  # refused by the model as well
    captured = capsys.readouterr()
    assert "gt_visible_boxes has 1 of" in captured.out
    assert "gt_visible_boxes[0] is [" in captured.err


def test_replay_of_something_else(tmp_path, capsys):
    assert replay.run([str(tmp_path / "none.pth")]) == 1
    assert "does not exist; give the file that the training has named" in capsys.readouterr().err
    torch.save({"model": {}}, tmp_path / "weights.pth")
    assert replay.run([str(tmp_path / "weights.pth")]) == 1
    assert "is no dump of this version" in capsys.readouterr().err


def test_of_several_processes_the_one_with_the_cause_tells(monkeypatch):
    monkeypatch.setattr(nonfinite, "_HEAD_START", 0.0)
    monkeypatch.setattr(nonfinite.comm, "get_world_size", lambda: 2)
    fine = {"loss": torch.tensor(1.0)}
    with NonFiniteLoss.raise_unless_finite(fine, []) as losses:
        assert losses is fine
    with pytest.raises(NonFiniteLoss) as info, NonFiniteLoss.raise_unless_finite(fine, []):
        raise FloatingPointError("the mean over processes is")
    info.value.iteration = 3
    assert "the loss of another process became infinite or NaN at iteration 3" in str(info.value)
    bad = {"loss": torch.tensor(1.0), "other": torch.tensor(float("inf"))}
    with (
        pytest.raises(NonFiniteLoss) as info,
        NonFiniteLoss.raise_unless_finite(bad, [[{"file_name": "a.jpg"}]]),
    ):
        pass
    assert "(other inf), with the images 'a.jpg'" in describe(info.value)


def test_no_room_for_a_dump(tmp_path, poisoned, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nonfinite.torch, "save", full)
    poisoned()
    assert train(tmp_path) == 1
    error = capsys.readouterr().err
    assert "(no dump: [Errno 28] No space left on device" in error
