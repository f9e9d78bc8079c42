"""``tools/trust/compare_variants.py``: this commit equals itself, and what differs is named."""

import shutil
import subprocess

import compare_variants
import pytest
import torch
from helpers import ROOT

from defcn_d2 import get_config

HISTORY = (
    shutil.which("git")
    and not subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "-q", "--verify", "HEAD"], capture_output=True
    ).returncode
)


def record(**values: torch.Tensor) -> dict:
    weights = {"w": torch.zeros(2)}
    names = ["loss crowded a", "gradient crowded w", "buffer crowded b"]
    names += ["detections crowded 0 boxes"]
    found = dict(zip(names, [torch.ones(()), torch.ones(2), torch.zeros(1), torch.ones(3, 4)]))
    found.update({name.replace("_", " "): value for name, value in values.items()})
    return {"initial": weights, "weights": weights, "values": found}


def test_equal():
    sentence = "1 losses, 1 gradients, 1 buffers, 3 detections"
    assert compare_variants.comparison_of(record(), record()) == (True, f"{sentence}: equal")
    others = {**record(), "initial": {"w": torch.ones(2)}}
    equal, text = compare_variants.comparison_of(record(), others)
    assert equal and text.startswith(f"{sentence} (the weights of a new model")


def test_the_largest_difference_is_first():
    digit = torch.ones(()).nextafter(torch.tensor(2.0))
    changed = record(loss_crowded_a=digit, gradient_crowded_w=torch.tensor([1.0, 1.5]))
    equal, sentence = compare_variants.comparison_of(record(), changed)
    assert not equal
    assert sentence.endswith(
        "2 differ, 'gradient crowded w' differs by up to 0.5; "
        "'loss crowded a' differs by up to 1.19e-07"
    )


@pytest.mark.parametrize(
    ("after", "sentence"),
    [
        ({"loss crowded b": torch.ones(())}, "'loss crowded b' is new"),
        ({"loss crowded a": torch.ones(1)}, "'loss crowded a' is float32 (1,), was float32 ()"),
        ({"loss crowded a": torch.ones(()).double()}, "is float64 (), was float32 ()"),
        ({"loss crowded a": torch.tensor(float("nan"))}, "differs by up to nan"),
    ],
)
def test_differences(after, sentence):
    before = {"loss crowded a": torch.ones(())}
    (found,) = compare_variants.differences(before, {**before, **after})
    assert found.endswith(sentence)
    assert compare_variants.differences({**before, **after}, before)


def test_nothing_to_compare_is_no_equality():
    empty = record(detections_crowded_0_boxes=torch.zeros(0, 4))
    equal, sentence = compare_variants.comparison_of(empty, empty)
    assert not equal and "there are no detections to compare" in sentence


def test_an_error_or_other_parameters_are_named():
    broken = {"error": "ValueError: no", "weights": {}}
    assert compare_variants.comparison_of(broken, record()) == (False, "before: ValueError: no")
    assert compare_variants.comparison_of(record(), broken) == (False, "after: ValueError: no")
    cfg = get_config("shapes/POTO", [*compare_variants.SMALL, "MODEL.DEVICE", "cpu"])
    found = compare_variants.outputs_of(cfg, {"other": torch.ones(1)})
    assert found["error"].startswith("weights: 'other' is missing")


@pytest.mark.skipif(not HISTORY, reason="needs git and the repository's history")
def test_a_commit_equals_itself(capfd, monkeypatch):
    with compare_variants.checkout("HEAD") as tree:  # without what has not been committed
        monkeypatch.setattr(compare_variants, "ROOT", tree)
        assert compare_variants.main(["HEAD", "--variants", "shapes/POTO"]) == 0
        trees = subprocess.run(
            ["git", "-C", str(tree), "worktree", "list"], check=True, capture_output=True, text=True
        ).stdout
    output = capfd.readouterr().out
    before, after = output.splitlines()[:2]  # each process has the package of its own checkout
    assert after.startswith(f"{tree.resolve() / 'defcn_d2'}: operators: ")
    assert before.partition("/defcn_d2: ")[0] not in trees
    assert output.endswith("all 1 variants are equal to those of HEAD\n")


@pytest.mark.skipif(not HISTORY, reason="needs git and the repository's history")
def test_a_commit_that_is_not_there(capfd):
    with pytest.raises(SystemExit, match="error: git makes no work tree of 'none'"):
        compare_variants.main(["none"])
