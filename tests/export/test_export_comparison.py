"""How far the detections of an export are from the model's, and how long its calls take."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from defcn_d2.export.benchmark import latency
from defcn_d2.export.comparison import (
    FLOAT32,
    Detections,
    Difference,
    Tolerance,
    difference_above,
    difference_by_rank,
    mutual_difference,
)


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


FIRST, SECOND, THIRD = (0, 0, 9, 9, 0.9, 1), (5, 5, 20, 30, 0.8, 0), (1, 2, 3, 4, 0.1, 1)


def test_comparison_knows_what_differs():
    wanted = detections(FIRST, SECOND, THIRD)

    def faults(*rows: Any) -> list[str]:
        return mutual_difference(detections(*rows), wanted, 3, FLOAT32).faults(FLOAT32)

    assert faults(FIRST, SECOND, THIRD) == []
    assert faults(SECOND, FIRST, THIRD) == []  # in another order
    assert faults(FIRST, SECOND, (7, 7, 8, 8, 0.1, 0)) == []  # another one at the cut
    assert "'boxes' differ by 0.5 pixels" in faults((0, 0, 9, 9.5, 0.9, 1), SECOND, THIRD)[0]
    assert "'classes' differ: 2 of 4" in faults((0, 0, 9, 9, 0.9, 2), SECOND, THIRD)[0]
    assert "'classes' differ" in faults((0, 0, 9, 9, 0.91, 1), SECOND, THIRD)[0]
    assert "'boxes'" in faults((float("nan"), 0, 9, 9, 0.9, 1), SECOND, THIRD)[0]
    assert "'scores' differ by inf" in Difference(scores=float("inf")).faults(FLOAT32)[0]
    loose = Tolerance(scores=0.02, boxes=0.1, relative=0.1)
    assert mutual_difference(detections((0, 0, 9, 9.5, 0.91, 1)), wanted, 3, loose).too_far == 0


def test_lists_of_different_length_differ():
    one, two = detections(FIRST), detections(FIRST, SECOND)
    assert difference_by_rank(one, two) == Difference(compared=2, missing=1)
    assert difference_by_rank(two, one) == Difference(compared=1, missing=1)
    assert difference_by_rank(two, two) == Difference()
    assert difference_above(detections(), two, 0.0, FLOAT32) == Difference(compared=2, missing=2)
    assert difference_above(detections(), two, 0.85, FLOAT32) == Difference(compared=1, missing=1)
    assert difference_above(detections(), two, 0.9, FLOAT32) == Difference()


def test_latency_is_the_median_of_five_calls_or_more(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def run(batch: torch.Tensor) -> None:
        assert not torch.is_grad_enabled()
        calls.append(batch)
        now[0] += (50.0, 0.002, 0.001, 0.009, 0.003, 0.004, 0.005)[len(calls) - 1]

    batch = torch.zeros(1)
    assert latency(run, batch, seconds=0.0) == pytest.approx(3.0)  # the first is for nothing
    assert len(calls) == 6 and all(x is batch for x in calls)
    calls.clear()
    assert latency(run, batch, seconds=0.02) == pytest.approx(3.5)
    assert len(calls) == 7
