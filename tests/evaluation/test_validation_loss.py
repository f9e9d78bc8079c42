"""``WithLosses`` and ``LossEvaluator`` against the losses of the whole data set as one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from helpers import random_inputs
from process_groups import in_group
from test_nms_gap import equal
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.engine import Trainer
from defcn_d2.evaluation.nms_gap import WithAndWithoutNMS
from defcn_d2.evaluation.validation_loss import LossEvaluator, WithLosses
from defcn_d2.modeling.criterion.normalization import evaluate_criteria
from defcn_d2.utils.errors import UserError

LOSS = ("TEST.LOSS", "True")


def tiny_model(*opts: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(load_config(CONFIG, [*TINY_MODEL, *opts])).eval()


def evaluated(outputs: list[dict]) -> dict[str, float]:
    evaluator = LossEvaluator()
    for output in outputs:
        evaluator.process([{}], [output])
    return evaluator.evaluate()


@pytest.mark.parametrize("with_nms", [False, True])
def test_losses_and_detections_of_one_pass(with_nms):
    model = tiny_model()
    inputs = random_inputs([(64, 64)] * 4, [2, 0, 5, 1], 7)
    plain = WithAndWithoutNMS(model, 0.6) if with_nms else model
    with torch.no_grad():
        priors, sets = model.predict_all(model.preprocess_image(inputs).tensor)
        gts = [x["instances"] for x in inputs]
        expected = evaluate_criteria(model.criteria, priors, sets, gts)
        outputs = WithLosses(plain)(inputs[:1]) + WithLosses(plain)(inputs[1:])
        wanted = plain(inputs[:1]) + plain(inputs[1:])
    found = evaluated(outputs)
    assert found.pop("val_loss") == pytest.approx(float(sum(expected.values())), rel=1e-5)
    assert set(found) == {f"val_{name}" for name in expected}
    for name, loss in expected.items():
        assert found[f"val_{name}"] == pytest.approx(float(loss), rel=1e-5), name
    for output, detections in zip(outputs, wanted, strict=True):
        assert all(equal(output[key], detections[key]) for key in detections)


def test_images_without_ground_truth_have_no_loss():
    model = tiny_model()
    inputs = random_inputs([(64, 64)] * 2, [2, 3], 7)
    del inputs[1]["instances"]
    with torch.no_grad():
        first, second = WithLosses(model)(inputs)
    assert set(second) == {"instances"}
    assert evaluated([first, second]) == evaluated([first])
    assert evaluated([second]) == {}


def test_a_set_of_training_alone_has_no_loss():
    dual = ["MODEL.DEFCN.HEAD.NAME", "DualHead", "MODEL.DEFCN.AUX.CRITERION.AuxiliaryCriterion"]
    model = tiny_model(*dual[:2], f"{dual[2]}.PREDICTIONS", "one_to_many")
    with torch.no_grad():
        found = evaluated(WithLosses(model)(random_inputs([(64, 64)], [2], 7)))
    assert set(found) == {"val_loss", "val_loss_cls", "val_loss_box_reg"}


def test_another_model():
    with pytest.raises(UserError, match="TEST.LOSS is True, but MODEL.META_ARCH.* is Linear"):
        WithLosses(nn.Linear(1, 1))


def evaluate_tiny(folder: Path) -> dict:
    """Results of an evaluation with losses, in this process or this one of a group."""
    tiny_sets()
    cfg = load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, *LOSS, "OUTPUT_DIR", str(folder)])
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    assert model.training
    results = Trainer.test(cfg, model)
    assert model.training
    return dict(results)


def test_two_processes_have_the_losses_of_one(tmp_path):
    first, second = in_group(2, evaluate_tiny, tmp_path, tmp_path / "two")
    expected = evaluate_tiny(tmp_path / "one")
    assert not second
    assert expected["val_loss"] > 0 and expected["val_loss_cls"] > 0
    for name in (name for name in expected if name.startswith("val_loss")):
        assert first[name] == pytest.approx(expected[name])
    assert first["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert first.get("f1") == pytest.approx(expected.get("f1"))
