"""tools/benchmarks matching, on a few locations."""

from __future__ import annotations

import sys

import benchmarks.__main__ as benchmark
import pytest
from benchmarks import matching, matching_competitors


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "IMAGE", (416, 448))
    monkeypatch.setattr(matching, "COUNTS", (3,))
    monkeypatch.setattr(matching, "CROWD_COUNTS", (40,))


def test_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "matching", "--rounds", "2", "--batch", "2"])
    benchmark.main()
    note, _, *table = capsys.readouterr().out.splitlines()
    assert "2 images of 416x448, 3887 locations" in note
    assert [line.split(" | ")[:2] for line in table[2:]] == [
        ["| radius 1.5", "3"],
        ["| whole box (crowd)", "40"],
    ]
    assert all(line.count("x |") == 2 for line in table[2:])


@pytest.mark.parametrize("competitor", ["careful", "over_pairs"])
@pytest.mark.parametrize("radius", [0.0, 1.5])
def test_unequal_results_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, competitor: str, radius: float
) -> None:
    problem = matching.make_problem(batch=2, num_gts=5, radius=radius)
    matching_competitors.assert_equal(problem)
    results = matching_competitors.over_pairs(problem)
    results[1][results[1] == 3] = -1
    monkeypatch.setattr(matching_competitors, competitor, lambda problem: results)
    with pytest.raises(AssertionError):
        matching_competitors.assert_equal(problem)


def test_numbers_that_measure_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "matching", "--rounds", "1"])
    with pytest.raises(SystemExit, match="--rounds must be at least 2"):
        benchmark.main()
