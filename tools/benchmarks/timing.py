"""Timing of competitors in turn, and where it was done."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Sample:
    """Seconds of one competitor; as text its median and quartiles in milliseconds."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median in milliseconds."""
        return statistics.median(self.seconds) * 1e3

    def __str__(self) -> str:
        low, _, high = (second * 1e3 for second in statistics.quantiles(self.seconds, n=4))
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        return f"{self.median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def interleave(
    competitors: Mapping[str, Callable[[], object]],
    rounds: int,
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> dict[str, Sample]:
    """Time every competitor once a round, so that a change of load hits all of them.

    Args:
        competitors: name to the call to measure; each is called once before.
        rounds: at least 2.
        timer: seconds of one call; the wall clock by default.
    """
    timer = timer or wall_clock
    for call in competitors.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    order = list(competitors)
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order:
                seconds[name].append(timer(competitors[name]))
            order.append(order.pop(0))  # nobody always follows the same neighbour
    finally:
        gc.enable()
    return {name: Sample(values) for name, values in seconds.items()}


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds of one call, without the time to free its results."""
    start = time.perf_counter()
    results = call()
    elapsed = time.perf_counter() - start
    del results
    return elapsed


def cpu_time(call: Callable[[], object]) -> float:
    """Seconds that all threads of this process work in one call, whatever else the machine does."""
    start = time.process_time()
    call()
    return time.process_time() - start


def wall_clock_on(device: str) -> Callable[[Callable[[], object]], float]:
    """A timer: seconds of one call until the device has done it."""
    if device == "cpu":
        return wall_clock

    def timer(call: Callable[[], object]) -> float:
        torch.cuda.synchronize()

        def done() -> object:
            result = call()
            torch.cuda.synchronize()
            return result

        return wall_clock(done)

    return timer


def ratio(sample: Sample, other: Sample) -> float:
    """How many times the other's time this one takes: the median of the rounds."""
    return statistics.median(a / b for a, b in zip(sample.seconds, other.seconds, strict=True))


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, where the system tells it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "a CPU"


def machine(device: str) -> str:
    """The processor or the GPU, and how much of it is used."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
