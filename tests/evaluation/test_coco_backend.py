"""COCO's figures by faster-coco-eval are those of pycocotools."""

from __future__ import annotations

import contextlib
import io
import sys
from types import ModuleType

import numpy as np
import pytest
from benchmarks.evaluation import evaluate as coco_stats
from benchmarks.evaluation import make_detections
from coco_files import make_content
from test_own_data_evaluator import crowded, evaluate, evaluate_crowd, register

from defcn_d2.engine import evaluators
from defcn_d2.engine.evaluators import check_backend
from defcn_d2.evaluation.coco_limit import FASTER, PYCOCOTOOLS, eval_class
from defcn_d2.utils.errors import UserError

BACKEND = ("TEST.COCO_BACKEND", FASTER)


@pytest.mark.parametrize("limit", [20, 100, 150])
def test_all_figures_are_equal(limit):
    pytest.importorskip("faster_coco_eval")
    truth, results = make_detections(30, 150, classes=4)
    ours, theirs = (coco_stats(eval_class(x, limit), truth, results) for x in (FASTER, PYCOCOTOOLS))
    assert ours.shape == theirs.shape == (12,)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert 0.05 < theirs[0] < 0.95 and (theirs > 0).all()


def test_the_evaluator_takes_the_limit_on(tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    results = evaluate_crowd(tmp_path, 300, *BACKEND)["bbox"]
    assert [results[name] for name in ("AP", "APs", "AP-red")] == pytest.approx([100] * 3)
    assert "maxDets=300 ] = 1.000" in capsys.readouterr().out


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_own_data_with_crowds(tmp_path, shift):
    pytest.importorskip("faster_coco_eval")
    found = []
    for name, opts in (("a", BACKEND), ("b", ())):
        cfg, dataset = register(tmp_path / name, make_content(), *opts)
        found.append(evaluate(evaluators.build_evaluator(cfg, dataset), dataset, shift))
    assert found[0] == pytest.approx(found[1], abs=1e-7, nan_ok=True)  # percent


def test_ids_that_are_no_numbers_are_left_to_pycocotools(tmp_path, caplog, monkeypatch):
    fake = ModuleType("faster_coco_eval")
    fake.COCOeval_faster = object  # would fail
    monkeypatch.setitem(sys.modules, "faster_coco_eval", fake)
    content = crowded(3)
    for entry in (*content["images"], *content["annotations"]):
        key = "image_id" if "image_id" in entry else "id"
        entry[key] = f"image {entry[key]}"
    cfg, name = register(tmp_path, content, *BACKEND)
    with contextlib.redirect_stdout(io.StringIO()):
        found = evaluate(evaluators.build_evaluator(cfg, name), name)
    assert found["AP"] == pytest.approx(100)
    assert "evaluating by pycocotools: faster-coco-eval takes whole numbers" in caplog.text


def test_the_package_is_looked_for_before_anything_else(tmp_path, monkeypatch):
    cfg, _ = register(tmp_path, None, *BACKEND)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="TEST.COCO_BACKEND .*pip install faster-coco-eval"):
        check_backend(cfg)
    cfg, _ = register(tmp_path / "other")
    check_backend(cfg)
