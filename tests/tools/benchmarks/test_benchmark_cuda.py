"""Benchmarks of a GPU on stand-ins for what CUDA alone has, and those that serve it and the CPU."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import benchmarks.__main__ as benchmark
import pytest
import torch
from benchmarks import detectors, determinism, modes, op_cuda, synchronizations, timing
from test_benchmark_detectors import SMALL
from torch import nn

from defcn_d2 import ops
from defcn_d2.engine.mixed_precision import MixedPrecisionTrainer
from defcn_d2.modeling.head.norm import GroupNorm

compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")


class Event:
    """The host's clock in the part of ``torch.cuda.Event``."""

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.seconds = time.perf_counter()

    def synchronize(self) -> None:
        self.seconds += 0

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.seconds - self.seconds)


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detectors, "BACKBONE_OPTIONS", list(SMALL))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr("benchmarks.timing.gc.collect", lambda: 0)  # a second each among all tests
    for name in ("_sleep", "synchronize", "reset_peak_memory_stats", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    benchmark.main()


def rows(text: str) -> list[list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert len({len(line) for line in lines}) == 1
    return lines[1:]


@compiled_only
def test_table_of_the_operator_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_cuda, "FLUSH_BYTES", 2**10)
    monkeypatch.setattr(op_cuda, "COPY_BYTES", 2**20)
    monkeypatch.setattr(op_cuda, "CASES", ((1, "cold"), (1, "warm")))
    monkeypatch.setattr(op_cuda, "DTYPES", (torch.float32, torch.bfloat16))
    found = rows(op_cuda.run("cpu", 2, (32, 32)))
    assert len(found) == 2 * 2 * 2 * 4  # caches, dtypes, formats, passes
    assert {row[0] for row in found} == {"1, float32", "1, bfloat16"}
    assert {row[1].split(", ")[1] for row in found} == {"cold", "warm"}
    assert all(float(row[-1]) > 0 for row in found)


def test_cold_and_warm_calls() -> None:
    calls: list[int] = []
    flush = torch.ones(4)
    for given, number in ((flush, 1), (None, 2)):
        calls.clear()
        assert op_cuda.seconds(given, lambda: calls.append(int(flush.sum()))) >= 0
        assert calls == [0] * number  # flushed before the call


def test_wall_clock_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    assert timing.wall_clock_on("cuda")(lambda: order.append("call")) >= 0
    assert order == ["wait", "call", "wait"]
    assert timing.wall_clock_on("cpu") is timing.wall_clock


@compiled_only
def test_runs_that_differ(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run(monkeypatch, "determinism", "--runs", "2", "--image", "32", "32")
    found = rows(capsys.readouterr().out)
    assert len(found) == 3 * 2 * 2 + 3 and all(row[1:] == ["2", "0", "0.0e+00"] for row in found)
    monkeypatch.setattr(determinism, "compiled", lambda x: [y + torch.rand_like(y) for y in x])
    with pytest.raises(SystemExit, match="runs differ:\n"):
        run(monkeypatch, "determinism", "--runs", "2", "--image", "32", "32")
    with pytest.raises(SystemExit, match="--runs must be at least 2, got 1"):
        run(monkeypatch, "determinism", "--runs", "1")


def test_matching_of_some_objects(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run(monkeypatch, "matching", "--rounds", "2", "--objects", "3")
    assert [row[:2] for row in rows(capsys.readouterr().out)] == [["radius 1.5", "3"]]


def test_table_of_the_modes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    options = ["--image", "64", "64", "--batch", "1", "--rounds", "2", "--detector", "POTO"]
    run(monkeypatch, "modes", *options, "--modes", "float32", "float32, channels_last")
    found = rows(capsys.readouterr().out)
    assert [row[0] for row in found] == ["float32", "float32, channels_last"]
    assert found[0][2] == "1.00x" and float(found[0][3]) == pytest.approx(float(found[1][3]), 1e-3)
    with pytest.raises(SystemExit, match="--rounds must be at least 2"):
        run(monkeypatch, "modes", "--rounds", "1")
    with pytest.raises(SystemExit, match="--detector 'YOLO' is no config"):
        run(monkeypatch, "modes", "--detector", "YOLO")


@pytest.mark.parametrize("name, keys", modes.OPTIMIZERS.items())
def test_modes_of_adamw(name: str, keys: dict) -> None:
    inputs = detectors.make_inputs(1, (64, 64), 2)
    step = modes.OptimizerStep("shapes/POTO", f"float32, channels_last, {name}", inputs)
    assert isinstance(step.trainer.optimizer, torch.optim.AdamW) and step() > 0
    (group,) = step.trainer.optimizer.param_groups
    assert keys.items() <= group.items()


@pytest.mark.parametrize(
    "mode, kind", [("float32", GroupNorm), ("float32, PyTorch's GroupNorm", nn.GroupNorm)]
)
def test_modes_of_group_norm(mode: str, kind: type) -> None:
    inputs = detectors.make_inputs(1, (64, 64), 2)
    step = modes.OptimizerStep("shapes/POTO", mode, inputs)
    norms = [x for x in step.trainer.model.modules() if isinstance(x, nn.GroupNorm)]
    assert norms and {type(x) for x in norms} == {kind} and step() > 0


def test_a_mode_with_another_loss_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = {"float32": 1.0, "bfloat16": 1.2}

    class Step:
        def __init__(self, detector: str, mode: str, inputs: list[dict]):
            self.mode = mode

        def __call__(self) -> float:
            return losses[self.mode]

        def assert_compiled(self) -> None: ...

    monkeypatch.setattr(modes, "OptimizerStep", Step)
    with pytest.raises(AssertionError, match="1.2"):
        run(monkeypatch, "modes", "--image", "64", "64", "--modes", *losses)


def test_a_step_in_a_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = detectors.make_inputs(1, (64, 64), 2)
    step = modes.OptimizerStep("POTO", "bfloat16, channels_last, compiled", inputs)
    assert isinstance(step.trainer, MixedPrecisionTrainer) and step.trainer.dtype == torch.bfloat16
    assert step.trainer.model.channels_last and step.trainer.model.compilation is not None
    step.assert_compiled()
    step.compiled[0]._compiled_call_impl = None  # as where torch.compile has failed
    with pytest.raises(AssertionError, match="torch.compile failed"):
        step.assert_compiled()

    step = modes.OptimizerStep("POTO", "float32", inputs)
    first = step()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 164)
    assert step.peak_bytes() == 64
    assert step() == pytest.approx(first, rel=0.02)  # the weights have hardly moved


class Entry(NamedTuple):
    key: str
    count: int


def test_calls_of_cuda_are_counted() -> None:
    entries = [
        *(Entry("cudaStreamSynchronize", 3), Entry("cudaEventSynchronize", 1)),
        *(Entry("cudaDeviceSynchronize", 2), Entry("Memcpy DtoH (Device -> Pageable)", 5)),
        *(Entry("Memcpy HtoD (Pageable -> Device)", 7), Entry("cudaLaunchKernel", 20)),
        *(Entry("cudaLaunchKernelExC", 2), Entry("aten::add", 9)),
    ]
    assert list(synchronizations.counted(entries).values()) == [4, 5, 7, 22]


def test_lines_that_wait() -> None:
    def call() -> None:
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    ((place, count),) = synchronizations.waiting_lines(call).items()
    assert count == 2 and place.startswith(f"tests/tools/benchmarks/{Path(__file__).name}:")


def test_table_of_the_synchronisations(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = argparse.Namespace(device="cpu", image=[64, 64], batch=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        synchronizations.run(arguments)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(detectors, "names", lambda: ["POTO", detectors.RETINANET])
    counts = dict.fromkeys(synchronizations.COUNTED, 1)
    monkeypatch.setattr(synchronizations, "count_calls", lambda call: call() and counts)
    _, first, second = synchronizations.run(arguments).split("\n\n")
    assert [row[0] for row in rows(first)] == ["POTO", detectors.RETINANET]
    assert second == "| detector | line that waits | times |\n|---|---|---|"
    counts["kernels"] = 0
    with pytest.raises(SystemExit, match="sees no CUDA calls"):
        synchronizations.run(arguments)
