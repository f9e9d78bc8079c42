"""Latency of an export beside PyTorch's."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .detector import Outputs


def latency(run: Callable[[Tensor], Outputs], batch: Tensor, seconds: float = 5.0) -> float:
    """Median time of a call in milliseconds, of at least five after one that does not count."""
    with torch.no_grad():
        run(batch)
        times: list[float] = []
        while len(times) < 5 or sum(times) < seconds:
            start = time.perf_counter()
            run(batch)
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
