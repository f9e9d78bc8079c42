"""The small form of fault_test.py, and what it would say of a run that lost something."""

import random

import fault_bench
import fault_test
import pytest
import torch


def test_trainings_survive(capsys):
    cases = ["kills", "full-disk"]
    assert fault_test.main(["--kills", "2", "--steps", "12", "--only", *cases]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 4 and "| kills | 2 kills in " in table
    assert "FAILED" not in table


def test_differences():
    def state(*weights):
        return {"model": {"a": torch.tensor(weights), "b": torch.zeros(1)}, "iteration": 3}

    expected = state(1.0, 2.0)
    assert fault_bench.differences(state(1.0, 2.0), expected) == []
    assert fault_bench.differences(state(1.0, 2.0000002), expected) == ["/model/a"]
    assert fault_bench.differences({**state(1.0, 2.0), "iteration": 4}, expected) == ["/iteration"]
    assert fault_bench.differences({"model": {}, "iteration": 3}, expected) == ["/model"]


def test_a_case_that_fails_is_told(monkeypatch, capsys):
    def broken(bench, number):
        raise AssertionError("weights differ")

    monkeypatch.setattr(fault_bench.Bench, "prepare", lambda self: None)
    monkeypatch.setitem(fault_test.CASES, "data", broken)
    assert fault_test.main(["--only", "data"]) == 1
    assert "| data | FAILED: weights differ |" in capsys.readouterr().out


def test_a_run_that_ends_otherwise_fails(tmp_path, monkeypatch):
    bench = fault_bench.Bench(tmp_path, 1, random.Random(0), {"model": {"a": torch.ones(1)}})
    monkeypatch.setattr(fault_bench.Bench, "finish", lambda self, output: (0, ""))
    monkeypatch.setattr(fault_bench, "final_state", lambda output: {"model": {"a": torch.zeros(1)}})
    with pytest.raises(AssertionError, match="not the same: /model/a"):
        bench.must_end_alike(tmp_path)
