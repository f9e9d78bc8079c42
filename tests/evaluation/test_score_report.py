"""The score report of an evaluation: its numbers, its files, and when there is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from html_page import Page
from test_own_data_evaluator import evaluate_crowd, register
from tiny_data import CONFIG, tiny_sets

from defcn_d2.config.load import load_config
from defcn_d2.engine import evaluators
from defcn_d2.evaluation.judged import judge
from defcn_d2.evaluation.score_report import FILE, score_report
from defcn_d2.visualization.score_page import draw_confusion, score_table


def test_perfect_detections(tmp_path):
    """200 objects of one class found at scores from 1 to 0.1; of the other there are none."""
    results = evaluate_crowd(tmp_path, 300, "TEST.SCORE_REPORT", "page")
    assert results["f1"] == pytest.approx(100) and results["f1_threshold"] == pytest.approx(0.1)
    folder = tmp_path / "out"
    stored = json.loads((folder / "thresholds.json").read_text())
    assert stored["threshold"] == results["f1_threshold"] and stored["f1"] == pytest.approx(1)
    assert stored["classes"] == {"red": results["f1_threshold"], "blue": None}
    report = json.loads((folder / "inference" / FILE).read_text())
    assert report["overall"]["objects"] == 200 and report["confusion"][0] == [200, 0, 0]
    assert report["classes"][1]["f1"] == 0 and len(report["classes"][0]["precisions"]) == 101
    path = folder / "inference" / "score_report.html"
    text = path.read_text()
    assert len(Page(path).pictures) == 2 and "<th>red</th><td>200</td><td>0.100</td>" in text
    assert (folder / "inference" / "score_report_2.png").read_bytes().startswith(b"\x89PNG")


def test_with_nms_the_report_is_of_what_the_model_gives(tmp_path):
    """Both sets of detections are evaluated, and the same here."""
    results = evaluate_crowd(tmp_path, 300, "TEST.WITH_NMS", "True")
    assert results["f1"] == pytest.approx(100) and "nms_gap" in results
    assert (tmp_path / "out" / "inference" / FILE).is_file()
    assert not (tmp_path / "out" / "inference" / "score_report.html").exists()


def test_none_is_asked_for(tmp_path):
    results = evaluate_crowd(tmp_path, 300, "TEST.SCORE_REPORT", "none")
    assert set(results) == {"bbox"} and not (tmp_path / "out" / "thresholds.json").exists()


def test_nothing_is_found(tmp_path):
    cfg, name = register(tmp_path)
    evaluator = evaluators.build_evaluator(cfg, name)
    evaluator.reset()
    for i in range(4):
        evaluator.process([{"image_id": i}], [{}])
    (folder := tmp_path / "out" / "inference").mkdir(parents=True, exist_ok=True)
    (folder / "coco_instances_results.json").write_text("[]")
    *_, report = evaluator._evaluators
    assert report.evaluate() == {"f1": 0.0}
    assert not (tmp_path / "out" / "thresholds.json").exists()


def test_metrics_are_known_before_the_training():
    tiny_sets()
    opts = ["DATASETS.TEST", "('tiny_val',)", "TEST.LOSS", "True"]
    names = evaluators.metric_names(load_config(CONFIG, opts))
    assert {"f1", "f1_threshold", "val_loss"} <= set(names)
    assert "val_loss" not in evaluators.metric_names(load_config(CONFIG, opts[:2]))
    both = [opts[0], "('tiny_val','shapes_val')"]
    assert "tiny_val/f1" in evaluators.metric_names(load_config(CONFIG, both))
    none = [*opts[:2], "TEST.SCORE_REPORT", "none"]
    assert "f1" not in evaluators.metric_names(load_config(CONFIG, none))


def test_names_are_text_and_the_matrix_is_drawn_as_it_is():
    boxes, one = np.array([[0.0, 0, 9, 9]]), np.array([0])
    judged = judge("a", boxes, one, np.array([False]), boxes, np.array([0.75]), one)
    report, _ = score_report([judged], ["<b>$&"])
    assert "<th>&lt;b&gt;$&amp;</th><td>1</td><td>0.750</td>" in score_table(report)
    axes = draw_confusion(["<b>$&"], np.array(report["confusion"])).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1"]
    assert [x.get_text() for x in axes.get_xticklabels()] == [r"<b>\$&", "missed"]
