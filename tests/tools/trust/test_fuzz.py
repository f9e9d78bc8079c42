"""A small form of ``fuzz.py``: batches by hypothesis, what failed once, and the tool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fuzz
import pytest
import torch
from fuzzing.batches import (
    MAX_GTS,
    MAX_LOGITS,
    MAX_PAIRS,
    MAX_SIDE,
    Recipe,
    draw,
    is_refused,
    level_shapes,
    make_inputs,
    make_predictions,
    make_priors,
)
from fuzzing.detectors import Detector, Violation, one_of_each, variant_configs
from fuzzing.faults import FAULTS, IMAGE_FAULTS, IMAGES
from fuzzing.values import BOXES, NOT_FINITE, PREDICTIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from defcn_d2.structures import Assignment

CONFIGS = one_of_each(variant_configs())  # the tool tries all
SIDES = st.one_of(st.integers(1, 40), st.integers(1, 300))
SMALL_SIDES = st.integers(1, 70)
ORDINARY = Recipe(seed=1, sizes=((70, 90),), counts=(5,))


@pytest.fixture(scope="module")
def detectors() -> dict[str, Detector]:
    return {name: Detector(cfg) for name, cfg in CONFIGS.items()}


def recipes(
    sides: st.SearchStrategy[int], **fields: st.SearchStrategy
) -> st.SearchStrategy[Recipe]:
    """Of one or two images."""
    return st.integers(1, 2).flatmap(
        lambda number: st.builds(
            Recipe,
            seed=st.integers(0, 2**32 - 1),
            sizes=st.tuples(*[st.tuples(sides, sides)] * number),
            counts=st.tuples(*[st.one_of(st.integers(0, 5), st.integers(0, 60))] * number),
            boxes=st.sampled_from(list(BOXES)),
            **fields,
        )
    )


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=20)
@given(
    recipes(
        SIDES,
        num_classes=st.sampled_from([1, 3, 80]),
        predictions=st.sampled_from(list(PREDICTIONS)),
        fault=st.one_of(st.just(""), st.just(""), st.sampled_from(FAULTS)),
    )
)
def test_predictions_and_ground_truth(
    name: str, detectors: dict[str, Detector], recipe: Recipe
) -> None:
    outcome = detectors[name].try_batch(recipe)
    finite = "reported" if recipe.predictions in NOT_FINITE else "learnt"
    assert outcome == ("refused" if is_refused(recipe) else finite)


@settings(max_examples=30)
@given(
    recipes(
        SMALL_SIDES,
        images=st.sampled_from(list(IMAGES)),
        predictions=st.just(""),
        fault=st.one_of(st.just(""), st.sampled_from(FAULTS + IMAGE_FAULTS)),
        variant=st.sampled_from(list(CONFIGS)),
    )
)
def test_whole_networks(detectors: dict[str, Detector], recipe: Recipe) -> None:
    detector = detectors[recipe.variant]
    assert detector.try_batch(recipe) == ("refused" if is_refused(recipe) else "learnt")
    refused = recipe.fault in IMAGE_FAULTS and recipe.fault != "no image"
    assert detector.try_inference(recipe) == ("refused" if refused else "detected")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "recipe",
    [
        # GIoU of 1 + 1e-16, by rounding: a loss just below 0
        Recipe(489274946, ((3, 3821),), (60,), 13, "huge", "perfect"),
        # soft labels of 1 + 1e-7, by rounding, and NaN
        Recipe(750, ((11, 300),), (2,), 1, "duplicated", "constant"),
        Recipe(0, ((1, 1), (6, 9)), (0, 1), 1, "ordinary", "all NaN"),
    ],
)
def test_what_failed_once(name: str, detectors: dict[str, Detector], recipe: Recipe) -> None:
    detectors[name].try_batch(recipe)


def test_recipes_are_the_same_every_time_and_differ() -> None:
    names = list(CONFIGS)
    drawn = [draw(0, index, names) for index in range(400)]
    assert drawn == [draw(0, index, names) for index in range(400)]
    assert drawn != [draw(1, index, names) for index in range(400)]
    for recipe in drawn:
        assert Recipe.from_json(recipe.to_json()) == recipe
        locations = sum(rows * columns for rows, columns in level_shapes(recipe.sizes))
        pairs, logits = sum(recipe.counts) * locations, len(recipe.sizes) * locations
        assert pairs <= MAX_PAIRS and logits * recipe.num_classes <= max(MAX_LOGITS, logits)
    seen = {label for recipe in drawn for label in recipe.labels}
    assert {f"ground truth: {name}" for name in BOXES} <= seen
    assert {f"predictions: {name}" for name in PREDICTIONS} <= seen
    assert {f"images: {name}" for name in IMAGES} <= seen
    sides = [side for recipe in drawn for size in recipe.sizes for side in size]
    counts = [count for recipe in drawn for count in recipe.counts]
    assert min(sides) == 1 and MAX_SIDE / 2 < max(sides) <= MAX_SIDE
    assert min(counts) == 0 and MAX_GTS / 2 < max(counts) <= MAX_GTS


@pytest.mark.parametrize("quality", [True, False])
def test_predictions_are_as_said(quality: bool) -> None:
    priors = make_priors(ORDINARY.sizes, anchors=False)
    for name in PREDICTIONS:
        recipe = replace(ORDINARY, predictions=name)
        predictions = make_predictions(recipe, priors, quality)
        assert predictions.cls_logits.shape == (1, len(priors), 3)
        assert (predictions.quality_logits is not None) == quality
        fault = predictions.nan_if_not_finite()
        assert bool(fault.isnan()) == (name in NOT_FINITE), name
    boxes = make_predictions(replace(ORDINARY, predictions="perfect"), priors, False).boxes
    truth = make_inputs(ORDINARY)[0]["instances"].gt_boxes.tensor
    assert torch.equal(boxes[0, :5].float(), truth)


class Broken:
    """A matcher with an answer of its own."""

    def __init__(self, gt_idxs: list[int], quality: float | None = None):
        self.gt_idxs, self.quality = gt_idxs, quality

    def match_batch(self, priors, predictions, gt_instances) -> list[Assignment]:
        idxs = torch.full((len(priors),), -1)
        idxs[: len(self.gt_idxs)] = torch.tensor(self.gt_idxs)
        quality = None if self.quality is None else torch.full((len(priors),), self.quality)
        return [Assignment(idxs, quality)] * len(gt_instances)


@pytest.mark.parametrize(
    ("variant", "gt_idxs", "quality", "message"),
    [
        ("POTO", [0, 1, 1], None, "a ground truth has several locations"),
        ("POTO", [0, -3], None, r"indices \[-3, -1, 0\] of 5"),
        ("POTO, unreachable kept", [0, 1], None, "2 of 5 are matched"),
        ("FCOS", [0, 1], 1.5, r"a quality outside of \[0, 1\]"),
        ("FCOS", [0, 1], float("nan"), r"a quality outside of \[0, 1\]"),
    ],
)
def test_a_wrong_assignment_is_found(
    variant: str, gt_idxs: list, quality: float | None, message: str
) -> None:
    detector = Detector(CONFIGS[variant])
    broken = Broken(gt_idxs, quality)
    detector.criteria[0].matcher.match_batch = broken.match_batch
    if variant == "FCOS":
        detector.criteria[0].matcher = type(
            "Other",
            (),
            {
                "__call__": lambda self, priors, predictions, gt: broken.match_batch(
                    priors, predictions, [gt]
                )[0]
            },
        )()
    with pytest.raises(Violation, match=message):
        detector.try_batch(ORDINARY)


def test_wrong_losses_and_gradients_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = Detector(CONFIGS["POTO"])
    losses = detector.model.losses

    def scaled(factor: float):
        return lambda *args: {name: loss * factor for name, loss in losses(*args).items()}

    for factor, recipe, message in [
        (float("inf"), ORDINARY, "losses {.*inf"),
        (-1.0, ORDINARY, "losses {"),
        (0.0, replace(ORDINARY, predictions="one NaN"), None),
        (1.0, replace(ORDINARY, fault="class K"), None),
    ]:
        detector.model.losses = scaled(factor)
        if message:
            with pytest.raises(Violation, match=message):
                detector.try_batch(recipe)
        else:
            assert detector.try_batch(recipe) in ("reported", "refused")
    numbers = {"loss_cls": torch.tensor(1.0)}
    detector.model.losses = lambda *args: numbers
    with pytest.raises(Violation, match="predictions are not finite, but .'loss_cls'. are numbers"):
        detector.try_batch(replace(ORDINARY, predictions="one NaN"))
    with pytest.raises(Violation, match="learnt what should have been refused"):
        detector.try_batch(replace(ORDINARY, fault="class K"))
    detector.model.losses = lambda priors, sets, inputs: {
        "loss_cls": (sets["main"].cls_logits.sum() * 0 + 0).sqrt(),
        "loss_box_reg": sets["main"].boxes.sum() * 0,
    }
    with pytest.raises(Violation, match="a gradient that is not finite"):
        detector.try_batch(ORDINARY)
    detector.model.losses = lambda priors, sets, inputs: {
        "loss_cls": sets["main"].cls_logits.sum() * 0
    }
    with pytest.raises(Violation, match="no gradient of the leaf"):
        detector.try_batch(ORDINARY)


def test_the_tool(tmp_path: Path, monkeypatch, capsys, detectors: dict[str, Detector]) -> None:
    """A failure is told, written, and found again; what follows it is tried all the same."""
    output = ["--output", str(tmp_path / "out")]
    monkeypatch.setattr(fuzz, "variant_configs", lambda: {"POTO": CONFIGS["POTO"]})
    assert fuzz.main(["--batches", "8", "--seed", "3", "--start", "2", *output]) == 0
    printed = capsys.readouterr().out
    assert "| all | 6 |" in printed
    assert "Seed 3, batches 2 to 7, 1 variants: 0 batches failed." in printed
    assert not (tmp_path / "out").exists()

    def stuck(self, recipe: Recipe) -> str:
        while recipe.seed == draw(3, 4, ["POTO"]).seed:
            pass
        return "learnt"

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "try_batch", stuck)
        arguments = ["--batches", "6", "--seed", "3", "--start", "3", "--limit", "0.2", *output]
        assert fuzz.main(arguments) == 1
        captured = capsys.readouterr()
        assert "3-4.json: POTO: TooSlow: took more than 0 s" in captured.err
        assert "1 batches failed" in captured.out and "| all | 3 | 0 | 2 |" in captured.out
        assert fuzz.main(["--replay", str(tmp_path / "out" / "3-4.json"), "--limit", "0.2"]) == 1
        assert "TooSlow: took more than" in capsys.readouterr().out
    assert fuzz.main(["--replay", str(tmp_path / "out" / "3-4.json")]) == 0

    (tmp_path / "a.json").write_text('{"seed": 1, "sizes": 5}')
    for name in ("a.json", "missing.json"):
        with pytest.raises(SystemExit, match=f"--replay .*{name} is no file of a failed batch"):
            fuzz.main(["--replay", str(tmp_path / name)])


def test_an_interrupt_tells_how_to_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(fuzz, "variant_configs", lambda: {"POTO": CONFIGS["POTO"]})

    def interrupt(self, recipe: Recipe) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "try_batch", interrupt)
    fuzz.main(["--batches", "9", "--seed", "3", "--start", "5", "--output", str(tmp_path)])
    assert "go on with --seed 3 --start 5" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(fuzz, "variant_configs", lambda: {"POTO": CONFIGS["POTO"]})
    assert fuzz.main(["--minutes", "0", "--output", str(tmp_path)]) == 0
    assert "batches 0 to -1" in capsys.readouterr().out
