"""The 3D max filter: compiled operator against compositions of PyTorch's operators."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import op_cuda
from benchmarks.op_competitors import (
    COMPETITORS,
    assert_equal,
    forward_and_backward,
    make_levels,
)
from benchmarks.op_memory import peak_bytes
from benchmarks.timing import interleave, machine, markdown
from defcn_d2 import ops

DESCRIPTION = "the 3D max filter against its compositions"
IMAGE = (800, 1344)
SMALL_IMAGE = (192, 192)
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``op``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=11, help="repetitions of every call")
    parser.add_argument(
        "--image", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="this size alone"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory table")


def run(arguments: argparse.Namespace) -> str:
    """The tables as Markdown.

    Raises:
        SystemExit: the compiled operator is not there.
    """
    if arguments.rounds < 2:
        raise SystemExit(f"--rounds must be at least 2, got {arguments.rounds}")
    if not ops.is_compiled(torch.device(arguments.device).type):
        raise SystemExit(f"nothing to measure: {ops.report()}")
    if arguments.device != "cpu":
        return op_cuda.run(arguments.device, arguments.rounds, tuple(arguments.image or IMAGE))
    images = [tuple(arguments.image)] if arguments.image else [IMAGE, SMALL_IMAGE]
    parts = [f"{machine('cpu')}; {ops.report()}.", _time_table(images, arguments.rounds)]
    if not arguments.no_memory:
        parts.append(_memory_table(images[0]))
    return "\n\n".join(parts)


def _time_table(images: list[tuple[int, int]], rounds: int) -> str:
    header = ["image, batch", "format", "pass", *(f"{name}, ms" for name in COMPETITORS)]
    header += ["against the original", "against the best composition"]
    rows = []
    for image, batch in itertools.product(images, (2, 1)):
        repeat = rounds if image == IMAGE else 10 * rounds
        for format_name, memory_format in FORMATS.items():
            for mode, calls in _calls(batch, image, memory_format).items():
                samples = interleave(calls, repeat)
                compiled = samples["compiled"].median
                rows.append(
                    [f"{image[0]}x{image[1]}, {batch}", format_name, mode]
                    + [str(samples[name]) for name in COMPETITORS]
                    + [f"{samples[name].median / compiled:.1f}x" for name in list(COMPETITORS)[:2]]
                )
    return markdown(header, rows)


def _calls(
    batch: int, image: tuple[int, int], memory_format: torch.memory_format
) -> dict[str, dict[str, Callable[[], object]]]:
    """Mode to competitor to call; asserts first that all give the same."""
    levels = make_levels(batch, image, torch.float32, memory_format, "cpu")
    grads = [torch.randn_like(level) for level in levels]
    assert_equal(levels)
    leaves = [level.clone().requires_grad_() for level in levels]
    return {
        "inference": {name: partial(call, levels) for name, call in COMPETITORS.items()},
        "forward + backward": {
            name: partial(forward_and_backward, call, leaves, grads)
            for name, call in COMPETITORS.items()
        },
    }


def _memory_table(image: tuple[int, int]) -> str:
    rows = []
    for mode in ("inference", "training"):
        peaks = {name: peak_bytes(name, mode, image, 2) for name in COMPETITORS}
        rows.append(
            [mode, *(f"{peak / 2**20:.0f}" for peak in peaks.values())]
            + [f"{peaks['compiled'] / peaks['original']:.2f}"]
        )
    header = ["peak extra memory, MiB", *COMPETITORS, "compiled / original"]
    return markdown(header, rows)
