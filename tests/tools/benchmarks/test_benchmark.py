"""tools/benchmarks: what it measures, on maps that are small."""

from __future__ import annotations

import sys
from pathlib import Path

import benchmarks.__main__ as benchmark
import pytest
import torch
from benchmarks import op, op_competitors, overlap
from benchmarks.op_memory import peak_bytes
from benchmarks.timing import Sample, interleave, markdown

from defcn_d2 import ops

compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")


def test_competitors_run_in_turn() -> None:
    calls: list[str] = []
    competitors = {name: lambda name=name: calls.append(name) for name in "abc"}  # type: ignore[misc]
    samples = interleave(competitors, 3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(sample.seconds) for name, sample in samples.items()} == dict.fromkeys(
        "abc", 3
    )


def test_sample_is_median_and_quartiles() -> None:
    assert str(Sample([0.001, 0.002, 0.003, 0.004, 0.1])) == "3.00 (1.50-52.00)"
    assert str(Sample([0.2, 0.25])) == "225 (188-262)"


def test_markdown() -> None:
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_pyramid_of_the_usual_image() -> None:
    assert op_competitors.pyramid_shapes(800, 1344) == [
        (100, 168),
        (50, 84),
        (25, 42),
        (13, 21),
        (7, 11),
    ]


@compiled_only
def test_table_of_the_operator(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(op, "IMAGE", (64, 96))
    monkeypatch.setattr(op, "SMALL_IMAGE", (32, 32))
    output = tmp_path / "table.md"
    arguments = ["benchmark.py", "op", "--rounds", "2", "--no-memory", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    printed = capsys.readouterr().out
    assert printed.strip() == output.read_text().strip()
    rows = [line for line in printed.splitlines() if "channels_last | forward + backward" in line]
    assert len(rows) == 4 and all(row.count("x |") == 2 for row in rows)


@compiled_only
def test_table_of_overlapping_neighbours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(overlap, "IMAGE", (64, 96))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "overlap", "--rounds", "2"])
    benchmark.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "x |" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| 1", "| 7", "| 80"]


@compiled_only
def test_unequal_results_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    levels = op_competitors.make_levels(1, (64, 64), torch.float32, torch.contiguous_format, "cpu")
    op_competitors.assert_equal(levels)
    monkeypatch.setattr(op_competitors, "compiled", lambda x: [2 * level for level in x])
    with pytest.raises(AssertionError):
        op_competitors.assert_equal(levels)


@compiled_only
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(("mode", "bytes_per_element"), [("inference", 4), ("training", 9)])
def test_peak_memory_is_the_results_and_a_byte_an_element(
    mode: str, bytes_per_element: int
) -> None:
    image, batch = (512, 512), 2
    elements = sum(
        batch * 256 * height * width for height, width in op_competitors.pyramid_shapes(*image)
    )
    peak = peak_bytes("compiled", mode, image, batch)
    assert peak == pytest.approx(bytes_per_element * elements, rel=0.1)
