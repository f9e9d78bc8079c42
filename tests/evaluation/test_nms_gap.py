"""``WithAndWithoutNMS`` and ``NMSGapEvaluator`` against running and evaluating the model twice."""

from pathlib import Path

import pytest
import torch
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, inference_on_dataset
from detectron2.modeling import build_model
from helpers import random_inputs
from process_groups import in_group
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.engine import Trainer
from defcn_d2.evaluation.nms_gap import NMSGapEvaluator, WithAndWithoutNMS, nms_gap
from defcn_d2.utils.errors import UserError


def tiny_model(*opts: str) -> nn.Module:
    """A DeFCN with random weights, in evaluation, whose boxes overlap."""
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG, [*TINY_MODEL, *opts])).eval()
    nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    return model


def equal(a, b) -> bool:
    return (
        a.image_size == b.image_size
        and torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        and torch.equal(a.scores, b.scores)
        and torch.equal(a.pred_classes, b.pred_classes)
    )


@pytest.mark.parametrize("nms_type", ["none", "class_wise"])
def test_both_outputs_are_those_of_two_runs(nms_type):
    inputs = random_inputs([(64, 96), (50, 40)], [0, 0], 7)
    inputs[0].update(height=128, width=192)  # the output is scaled
    model = tiny_model("MODEL.DEFCN.NMS_TYPE", nms_type)
    with torch.no_grad():
        outputs = WithAndWithoutNMS(model, 0.3)(inputs)
        for key, thresh in (("instances", None), ("instances_nms", 0.3)):
            model.nms_thresh = thresh
            for output, expected in zip(outputs, model(inputs), strict=True):
                assert equal(output[key], expected["instances"])
    assert len(outputs[0]["instances_nms"]) > 0
    boxes = [set(map(tuple, x.pred_boxes.tensor.tolist())) for x in outputs[0].values()]
    assert boxes[0] != boxes[1]  # NMS had something to do


def test_topk_path_has_its_own_raw_detections():
    inputs = random_inputs([(64, 96)], [0], 7)
    model = tiny_model("MODEL.DEFCN.TOPK_ONLY_TEST", "True")
    with torch.no_grad():
        (output,) = WithAndWithoutNMS(model, 0.3)(inputs)
        (expected,) = model(inputs)
    assert equal(output["instances"], expected["instances"])
    assert 0 < len(output["instances_nms"]) < len(output["instances"])


def test_another_model_is_refused():
    with pytest.raises(UserError, match="TEST.WITH_NMS.*Conv2d"):
        WithAndWithoutNMS(nn.Conv2d(1, 1, 1), 0.6)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_mode_of_the_model(training):
    model = tiny_model().train(training)
    inputs = [random_inputs([(64, 64)], [0], 7)]
    modes = []

    class Modes(DatasetEvaluator):
        def process(self, inputs, outputs):
            modes.append(model.training)

    inference_on_dataset(WithAndWithoutNMS(model, 0.6), inputs, Modes())
    assert modes == [False]
    assert model.training == training


class Recorder(DatasetEvaluator):
    """Keeps what it is given, and returns fixed results."""

    def __init__(self, results):
        self.results = results
        self.calls = []

    def reset(self):
        self.calls.append("reset")

    def process(self, inputs, outputs):
        self.calls.append((inputs, outputs))

    def evaluate(self):
        return self.results


def test_evaluator_shares_out_and_reports_the_difference():
    without = Recorder({"bbox": {"AP": 40.0, "AP50": 60.0}})
    suppressed = Recorder({"bbox": {"AP": 41.5, "AP50": 61.0}})
    evaluator = NMSGapEvaluator(without, suppressed)
    evaluator.reset()
    evaluator.process(["in"], [{"instances": "raw", "instances_nms": "less"}])
    assert without.calls == ["reset", (["in"], [{"instances": "raw"}])]
    assert suppressed.calls == ["reset", (["in"], [{"instances": "less"}])]
    assert evaluator.evaluate() == {
        "bbox": {"AP": 40.0, "AP50": 60.0},
        "bbox_nms": {"AP": 41.5, "AP50": 61.0},
        "nms_gap": 1.5,
    }


@pytest.mark.parametrize("nothing", [None, {}])
def test_other_processes_have_no_results(nothing):
    assert NMSGapEvaluator(Recorder(nothing), Recorder(nothing)).evaluate() == nothing


def test_outputs_of_a_bare_model_are_refused():
    with pytest.raises(ValueError, match="instances_nms"):
        NMSGapEvaluator(Recorder({}), Recorder({})).process(["in"], [{"instances": "raw"}])


def test_gap_is_that_of_the_box_task():
    results = {"segm": {"AP": 1.0}, "bbox": {"AP": 5.0}}
    assert nms_gap(results, {"segm": {"AP": 9.0}, "bbox": {"AP": 4.0}}) == -1.0
    crowd = {"bbox": {"AP50": 80.0, "recall": 90.0}}
    assert nms_gap(crowd, {"bbox": {"AP50": 78.5, "recall": 85.0}}) == -1.5


def evaluate_tiny(folder: Path) -> dict:
    """Results of the tiny model on ``tiny_val``, with ``TEST.WITH_NMS``, by the trainer's way."""
    tiny_sets()
    opts = [*TINY_MODEL, *TINY_SETS, "TEST.WITH_NMS", "True", "OUTPUT_DIR", str(folder)]
    return Trainer.test(load_config(CONFIG, opts), tiny_model())


def test_trainer_evaluates_as_two_evaluations_do(tmp_path):
    results = evaluate_tiny(tmp_path)
    for key, thresh in (("bbox", None), ("bbox_nms", 0.6)):
        model = tiny_model()
        model.nms_thresh = thresh
        loader = Trainer.build_test_loader(
            load_config(CONFIG, [*TINY_MODEL, *TINY_SETS]), "tiny_val"
        )
        evaluator = COCOEvaluator("tiny_val", ("bbox",), use_fast_impl=False)
        expected = inference_on_dataset(model, loader, evaluator)["bbox"]
        assert results[key] == pytest.approx(expected, nan_ok=True)
    assert results["nms_gap"] == results["bbox_nms"]["AP"] - results["bbox"]["AP"]
    files = [
        tmp_path / "inference" / part / "coco_instances_results.json"
        for part in ("without_nms", "with_nms")
    ]
    assert files[0].read_bytes() != files[1].read_bytes()


def test_two_processes_have_the_results_of_one(tmp_path):
    first, second = in_group(2, evaluate_tiny, tmp_path, tmp_path / "two")
    assert second == {}
    expected = evaluate_tiny(tmp_path / "one")
    assert first["nms_gap"] == pytest.approx(expected["nms_gap"])
    assert first["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert first["bbox_nms"] == pytest.approx(expected["bbox_nms"], nan_ok=True)
