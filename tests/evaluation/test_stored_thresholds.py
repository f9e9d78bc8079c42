"""Where a confidence comes from."""

from __future__ import annotations

import pytest

from defcn_d2.evaluation.stored_thresholds import (
    find_confidence,
    keep_thresholds,
    write_thresholds,
)
from defcn_d2.utils.errors import UserError


def run_folder(folder, threshold, f1=0.5):
    write_thresholds(folder, {"threshold": threshold, "f1": f1})
    for name in ("model_final.pth", "model_best.pth", "config.yaml"):
        (folder / name).touch()
    return folder


def test_that_of_the_weights_themselves_of_their_folder_of_the_config(tmp_path):
    weights = run_folder(tmp_path / "weights", 0.4)
    config = run_folder(tmp_path / "config", 0.6) / "config.yaml"
    keep_thresholds(str(weights), "model_best")
    write_thresholds(weights, {"threshold": 0.2, "f1": 0.875})
    for name, expected in (("model_best", 0.4), ("model_final", 0.2), ("none", 0.6)):
        path = str(weights / f"{name}.pth")
        for wanted in ("auto", "best"):
            assert find_confidence(wanted, path, str(config))[0] == expected, name
    value, why = find_confidence("auto", str(weights / "model_final.pth"))
    assert why == f"confidence 0.200, by which F1 was 0.875: {weights / 'thresholds.json'}"


def test_nothing_is_stored(tmp_path, monkeypatch):
    weights = tmp_path / "model.pth"
    weights.touch()
    assert find_confidence("auto", str(weights), "POTO-3DMF") == (None, "")
    with pytest.raises(UserError, match="no thresholds.json beside the weights .*evaluate them"):
        find_confidence("best", str(weights))
    keep_thresholds(str(tmp_path), "model_best")  # nothing to keep
    # a short name or an address is no file of the current folder
    monkeypatch.chdir(run_folder(tmp_path / "here", 0.5))
    assert find_confidence("auto", "detectron2://x.pkl", "POTO-3DMF") == (None, "")
    assert find_confidence("auto", "model_final.pth")[0] == 0.5


def test_what_is_given_counts(tmp_path):
    weights = str(run_folder(tmp_path, 0.4) / "model_final.pth")
    assert find_confidence(0.7, weights) == (0.7, "")
    assert find_confidence(0, weights) == (0, "")
    assert find_confidence(None, weights) == (None, "")
    for wrong in (-0.1, 1.5, float("nan"), "beast"):
        with pytest.raises(UserError, match="the confidence is .*: give 0 to 1, or 'best'"):
            find_confidence(wrong, weights)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"threshold": 3, "f1": 1}', '{"threshold": "x", "f1": 1}']
)
def test_damaged_file(tmp_path, content):
    weights = run_folder(tmp_path, 0.4) / "model_final.pth"
    (tmp_path / "thresholds.json").write_text(content)
    with pytest.raises(UserError, match="holds no score in .*: evaluate again, or remove it"):
        find_confidence("auto", str(weights))
