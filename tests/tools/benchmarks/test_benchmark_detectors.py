"""tools/benchmarks step and inference: what they measure, on small images and networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import benchmarks.__main__ as benchmark
import pytest
import torch
from benchmarks import detectors, head_outputs, inference, step, step_memory
from benchmarks.training_step import PHASES, TrainingStep
from detectron2.utils.events import EventStorage
from torch import nn

SMALL = ("MODEL.BACKBONE.NAME", "build_defcn_narrow_fpn_backbone", "MODEL.RESNETS.NORM", "BN")
SMALL += ("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.FPN.OUT_CHANNELS", "64")


@pytest.fixture(autouse=True)
def _small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "BACKBONE_OPTIONS", list(SMALL))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()


def make_steps(*names: str, image: tuple[int, int] = (64, 64)) -> dict[str, TrainingStep]:
    inputs = detectors.make_inputs(2, image, 3)
    return {name: TrainingStep(detectors.build(name), inputs) for name in names}


def test_table_of_the_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "step", "--rounds", "2", "--image", "64", "96", "--only", "time")
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0][2:] for row in rows[1:]] == detectors.names()
    assert {row.count("|") for row in rows} == {2 + 2 + len(PHASES)}
    (retinanet,) = (row for row in rows if detectors.RETINANET in row)
    assert retinanet.endswith(" 1.00x |")


def test_table_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {"POTO": 30 * 2**20, detectors.RETINANET: 40 * 2**20}
    monkeypatch.setattr(step_memory, "peak_bytes", lambda name, *size: peaks[name])
    run(monkeypatch, "step", "--only", "memory", "--detectors", *peaks)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| POTO | 30 | 0.75x |", f"| {detectors.RETINANET} | 40 | 1.00x |"]


def test_profile_of_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ["--image", "64", "64", "--detectors", "POTO-3DMF", "--profile", str(tmp_path)]
    run(monkeypatch, "step", *options)
    names = {
        event.get("name")
        for event in json.loads((tmp_path / "POTO-3DMF.json").read_text())["traceEvents"]
    }
    assert "aten::convolution_backward" in names
    table = (tmp_path / "POTO-3DMF.md").read_text().splitlines()
    assert len(table) == 2 + 10 and "aten::convolution_backward" in "".join(table)


def test_any_config_takes_part_and_the_base_is_chosen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peaks = {"AutoAssign": 60 * 2**20, "POTO": 30 * 2**20}
    monkeypatch.setattr(step_memory, "peak_bytes", lambda name, *size: peaks[name])
    run(monkeypatch, "step", "--only", "memory", "--base", "POTO", "--detectors", *peaks)
    rows = capsys.readouterr().out.splitlines()
    assert rows[-2:] == ["| AutoAssign | 60 | 2.00x |", "| POTO | 30 | 1.00x |"]
    assert rows[-4].endswith("| against POTO |")
    make_steps("AutoAssign")["AutoAssign"]()


@pytest.mark.parametrize("name", ["POTO-3DMF-Aux", detectors.RETINANET])
def test_parts_of_a_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks once a look: every part takes the ticks of its own looks."""
    (of_name,) = make_steps(name).values()
    ticks = iter(range(1000))
    monkeypatch.setattr("benchmarks.training_step.time.perf_counter", lambda: float(next(ticks)))
    with EventStorage(0):
        seconds = of_name()
    # Between forward and backward nothing counts. Ours calls matching twice, each time from losses.
    expected = [2, 2, 3, 1] if name in detectors.OURS else [3, 1, 1, 1]
    assert list(seconds.items()) == list(zip(PHASES, expected))
    assert all(parameter.grad is None for parameter in of_name.model.parameters())


def test_equal_backbones_and_sane_losses() -> None:
    steps = make_steps("POTO", detectors.RETINANET)
    with EventStorage(0):
        step.assert_sane(steps)
        with torch.no_grad():
            for parameter in steps["POTO"].model.backbone.parameters():
                parameter.mul_(1.5)
        with pytest.raises(AssertionError):
            step.assert_sane(steps)


def test_infinite_losses_are_not_timed() -> None:
    steps = make_steps("POTO")
    nn.init.constant_(steps["POTO"].model.head.cls_score.bias, float("inf"))
    with EventStorage(0), pytest.raises(AssertionError):
        step.assert_sane(steps)


def test_boxes_of_the_inputs_are_inside() -> None:
    (x,) = detectors.make_inputs(1, (64, 96), 50)
    boxes = x["instances"].gt_boxes.tensor
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 15.99 and boxes.min() >= 0
    assert (boxes.amax(dim=0) <= torch.tensor([96.0, 64, 96.001, 64.001])).all()


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_gradients_and_activations() -> None:
    peak = step_memory.peak_bytes("POTO", (256, 256), 1, 2)
    gradients = 4 * 32e6  # a ResNet-50 with FPN and head, frozen up to res2
    cells = sum((256 // stride) ** 2 for stride in head_outputs.STRIDES)
    towers = 4 * 256 * cells * 8 * 2  # of eight layers the inputs of convolution and normalisation
    assert gradients + towers < peak < 2 * (gradients + towers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (["step", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["step", "--objects", "0"], "--objects must be at least 1, got 0"),
        (["step", "--image", "16", "64"], "--image must be at least 32 32, got 16 64"),
        (["step", "--detectors", "YOLO"], "--detectors 'YOLO' is unknown here; one of: POTO, "),
        (["inference", "--rounds", "1"], "--rounds must be at least 2, got 1"),
        (
            ["inference", "--end-to-end-rounds", "1"],
            "--end-to-end-rounds must be 0 or at least 2, got 1",
        ),
        (["inference", "--image", "100", "64"], "--image must be two multiples of 32, got 100 64"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, *arguments)
    assert str(raised.value).startswith(message)


def test_table_of_inference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "OBJECTS", (2, 20))
    sizes = ["--rounds", "2", "--end-to-end-rounds", "2", "--image", "256", "320"]
    run(monkeypatch, "inference", *sizes)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [row.split(" | ")[0][2:] for row in rows]
    known = [*detectors.names(), inference.SORTED, inference.TOPK_ONLY]
    after_head = [name for name in inference.POST_PROCESSING if name in known]
    end_to_end = [name for name in inference.END_TO_END if name in known]
    assert names == ["after the head", *after_head, "image to detections", *end_to_end]


def test_scenes_have_objects_and_noise() -> None:
    few, many = (head_outputs.make_scene((256, 256), objects) for objects in (1, 200))
    assert 0.01 < few.share_above < many.share_above < 0.1
    boxes = few.ltrb[0] if few.cls_logits[0].max() > 0 else few.ltrb[1]
    assert boxes.min() > 0


def test_detections_that_differ_are_not_timed() -> None:
    scene = head_outputs.make_scene((128, 128), 10)
    models = {name: inference._after_head(name, "cpu") for name in ("POTO", inference.SORTED)}
    calls = {name: head_outputs.Playback(model, scene) for name, model in models.items()}
    with torch.no_grad():
        inference.assert_equal(calls)
        models[inference.SORTED].raw_detections.keywords["score_thresh"] = 0.3
        with pytest.raises(AssertionError):
            inference.assert_equal(calls)


@pytest.mark.parametrize("name", detectors.names())
def test_a_scene_is_the_same_at_every_call(name: str) -> None:
    call = head_outputs.Playback(detectors.build(name), head_outputs.make_scene((128, 128), 10))
    with torch.no_grad():
        first, second = call(), call()
    assert len(first) > 0
    assert first.scores.equal(second.scores)
    assert first.pred_boxes.tensor.equal(second.pred_boxes.tensor)
