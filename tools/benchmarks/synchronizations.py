"""How often a training step waits for the GPU, by the profiler, and in which lines."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import detectors
from benchmarks.modes import OptimizerStep
from benchmarks.timing import machine, markdown

DESCRIPTION = "how often a training step waits for the GPU, and where"
ROOT = Path(__file__).resolve().parents[2]
#: Column to the beginnings of the profiler's names. ``cudaDeviceSynchronize`` is left out: the
#: profiler calls it itself.
COUNTED = {
    "synchronisations": ("cudaStreamSynchronize", "cudaEventSynchronize"),
    "copies to the host": ("Memcpy DtoH",),
    "copies from the host": ("Memcpy HtoD",),
    "kernels": ("cudaLaunchKernel", "cuLaunchKernel"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``synchronizations``."""
    parser.add_argument("--device", default="cuda", choices=["cuda"], help="a GPU is needed")
    parser.add_argument(
        "--image", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--batch", type=int, default=2, help="images a step")


def run(arguments: argparse.Namespace) -> str:
    """The tables as Markdown: counts of every detector, and the lines of ours that wait.

    Raises:
        SystemExit: there is no GPU, or the profiler cannot look at it.
    """
    if not torch.cuda.is_available():
        raise SystemExit("synchronizations needs a CUDA device, and PyTorch finds none")
    image = tuple(arguments.image)
    inputs = detectors.make_inputs(arguments.batch, image, 7, arguments.device)
    rows, places = [], []
    for name in detectors.names():
        step = OptimizerStep(name, "float32", inputs)
        step()  # allocations and choices of algorithms are done
        counts = count_calls(step)
        if not counts["kernels"]:
            raise SystemExit("the profiler sees no CUDA calls here (CUPTI is missing or forbidden)")
        rows.append([name, *(str(count) for count in counts.values())])
        if name in detectors.OURS:
            places += [[name, place, str(n)] for place, n in waiting_lines(step).most_common()]
    note = (
        f"{machine(arguments.device)}; {arguments.batch} x 3 x {image[0]} x {image[1]}, 7 objects "
        "an image; a training step with SGD, the images on the GPU before."
    )
    tables = [
        markdown(["detector", *COUNTED], rows),
        markdown(["detector", "line that waits", "times"], places),
    ]
    return "\n\n".join([note, *tables])


def count_calls(call: Callable[[], object]) -> dict[str, int]:
    """Calls of CUDA by the columns of ``COUNTED``."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return counted(profiler.key_averages())


def counted(entries: Iterable[Any]) -> dict[str, int]:
    """The sums over the profiler's entries, which have ``key`` and ``count``."""
    found = [(entry.key, entry.count) for entry in entries]
    return {
        column: sum(count for key, count in found if key.startswith(names))
        for column, names in COUNTED.items()
    }


def waiting_lines(call: Callable[[], object]) -> Counter[str]:
    """Lines of Python below which PyTorch waits for the device: ``file:line`` to a count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{_short(warning.filename)}:{warning.lineno}"
        for warning in caught
        if "synchronizing CUDA operation" in str(warning.message)
    )


def _short(file: str) -> str:
    """Relative to this checkout, or what follows ``site-packages``."""
    path = Path(file)
    if path.is_relative_to(ROOT) and "site-packages" not in file:
        return path.relative_to(ROOT).as_posix()
    return file.rpartition("site-packages/")[2]
