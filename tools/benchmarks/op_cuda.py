"""The 3D max filter on a GPU, against the time its memory traffic takes at the least."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.op_competitors import (
    COMPETITORS,
    assert_equal,
    forward_and_backward,
    make_levels,
)
from benchmarks.timing import Sample, interleave, machine, markdown

FLUSH_BYTES = 512 * 2**20  # more than any second-level cache holds
COPY_BYTES = 2**30  # that the bandwidth is measured with
WAIT_CYCLES = 3_000_000  # of the device, some 2 ms, in which the host queues a call
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: Batch and whether a call finds the second-level cache flushed, or as the call before left it.
CASES = ((2, "cold"), (2, "warm"), (16, "cold"))


def run(device: str, rounds: int, image: tuple[int, int]) -> str:
    """The table as Markdown."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
    timers = {"cold": partial(seconds, flush), "warm": partial(seconds, None)}
    bandwidth = _bandwidth(device, timers["cold"], rounds)
    rows = []
    for (batch, cache), dtype in itertools.product(CASES, DTYPES):
        for name, memory_format in FORMATS.items():
            levels = make_levels(batch, image, dtype, memory_format, device)
            rows += _rows(levels, f"{name}, {cache}", timers[cache], rounds, bandwidth)
            del levels
    header = ["batch, dtype", "format, cache", "pass", *(f"{name}, ms" for name in COMPETITORS)]
    header += ["against the original", "against the best composition", "times the floor"]
    note = (
        f"{machine(device)}; levels of {image[0]}x{image[1]}; the floor is the least traffic at "
        f"{bandwidth / 1e12:.2f} TB/s (copy)."
    )
    return f"{note}\n\n{markdown(header, rows)}"


def _rows(
    levels: list[Tensor],
    format_name: str,
    timer: Callable[[Callable[[], object]], float],
    rounds: int,
    bandwidth: float,
) -> list[list[str]]:
    grads = [torch.randn_like(level) for level in levels]
    assert_equal(levels)
    leaves = [level.clone().requires_grad_() for level in levels]
    outputs = {name: call(leaves) for name, call in COMPETITORS.items()}
    elements = sum(level.numel() for level in levels)
    read_and_write = 2 * levels[0].element_size() * elements

    def backward(name: str) -> object:
        return torch.autograd.grad(outputs[name], leaves, grads, retain_graph=True)

    modes: dict[str, tuple[dict[str, Callable[[], object]], int]] = {
        "inference": (
            {name: partial(call, levels) for name, call in COMPETITORS.items()},
            read_and_write,
        ),
        "training forward": (
            {name: partial(call, leaves) for name, call in COMPETITORS.items()},
            read_and_write + elements,
        ),
        "backward": (
            {name: partial(backward, name) for name in COMPETITORS},
            read_and_write + elements,
        ),
        "forward + backward": (
            {
                name: partial(forward_and_backward, call, leaves, grads)
                for name, call in COMPETITORS.items()
            },
            2 * (read_and_write + elements),
        ),
    }
    rows = []
    dtype = str(levels[0].dtype).removeprefix("torch.")
    for mode, (calls, least_bytes) in modes.items():
        samples: dict[str, Sample] = interleave(calls, rounds, timer)
        compiled = samples["compiled"].median
        rows.append(
            [f"{levels[0].shape[0]}, {dtype}", format_name, mode]
            + [str(samples[name]) for name in COMPETITORS]
            + [f"{samples[name].median / compiled:.1f}x" for name in list(COMPETITORS)[:2]]
            + [f"{compiled * 1e-3 / (least_bytes / bandwidth):.1f}"]
        )
    return rows


def seconds(flush: Tensor | None, call: Callable[[], object]) -> float:
    """Seconds on the device of one call.

    Args:
        flush: overwritten before, so that the second-level cache is cold; None: the call is made
            once more before, and its results freed, so that it is warm.
    """
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if flush is None:
        call()
    else:
        flush.zero_()
    torch.cuda._sleep(WAIT_CYCLES)  # the host is done queueing before the device begins
    start.record()
    results = call()
    end.record()
    end.synchronize()
    del results
    return start.elapsed_time(end) * 1e-3


def _bandwidth(device: str, timer: Callable[[Callable[[], object]], float], rounds: int) -> float:
    """Bytes a second of a large copy, read and written ones counted."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    sample = interleave({"copy": lambda: target.copy_(source)}, max(rounds, 2), timer)["copy"]
    return 2 * source.numel() / (sample.median * 1e-3)
