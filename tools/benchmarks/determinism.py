"""Same arguments, same bits: the compiled operators over many runs, and against the CPU's."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.op_competitors import compiled, forward_and_backward, make_levels, pyramid_shapes
from benchmarks.op_cuda import DTYPES, FORMATS
from benchmarks.overlap import make_boxes
from benchmarks.timing import machine, markdown
from defcn_d2 import ops

DESCRIPTION = "the compiled operators give the same bits in every run"
NUM_CLASSES = 80

Operator = Callable[..., list[Tensor]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``determinism``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--runs", type=int, default=100, help="of every operator")
    parser.add_argument(
        "--image", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH")
    )


def run(arguments: argparse.Namespace) -> str:
    """The table as Markdown.

    Raises:
        SystemExit: the compiled operator is not there, or runs differ.
    """
    if arguments.runs < 2:
        raise SystemExit(f"--runs must be at least 2, got {arguments.runs}")
    if not ops.is_compiled(torch.device(arguments.device).type):
        raise SystemExit(f"nothing to try: {ops.report()}")
    rows, image = [], tuple(arguments.image)
    for name, operator, on_cpu in _cases(image):
        inputs = [x.to(arguments.device) for x in on_cpu]
        first = operator(*inputs)
        others = sum(
            not all(map(torch.equal, operator(*inputs), first)) for _ in range(arguments.runs - 1)
        )
        expected = operator(*on_cpu)
        far = max((a.cpu().float() - b.float()).abs().max().item() for a, b in zip(first, expected))
        rows.append([name, str(arguments.runs), str(others), f"{far:.1e}"])
    table = markdown(
        ["operator", "runs", "with other bits than the first", "farthest from the CPU"], rows
    )
    if any(row[2] != "0" for row in rows):
        raise SystemExit(f"runs differ:\n{table}")
    return f"{machine(arguments.device)}; {image[0]}x{image[1]}, 1 image.\n\n{table}"


def _cases(image: tuple[int, int]) -> Iterator[tuple[str, Operator, list[Tensor]]]:
    """Name, operator and its tensors on the CPU."""
    for dtype, (name, memory_format) in itertools.product(DTYPES, FORMATS.items()):
        label = f"{str(dtype).removeprefix('torch.')}, {name}"
        levels = make_levels(1, image, dtype, memory_format, "cpu")
        yield f"3D max filter, {label}", _forward, levels
        grads = [torch.randn_like(level) for level in levels]
        yield f"its gradient, {label}", _backward, [*levels, *grads]
    shapes = pyramid_shapes(*image)

    def overlap(logits: Tensor, boxes: Tensor) -> list[Tensor]:
        return [ops.overlap_with_better(logits, boxes, shapes)]

    boxes = make_boxes(shapes)
    for dtype in DTYPES:
        logits = torch.randn(1, boxes.shape[1], NUM_CLASSES).to(dtype)
        label = str(dtype).removeprefix("torch.")
        yield f"overlap with better neighbours, {label}", overlap, [logits, boxes]


def _forward(*levels: Tensor) -> list[Tensor]:
    return compiled(levels)


def _backward(*tensors: Tensor) -> list[Tensor]:
    """Gradients of the first half of the tensors, where the second half are those of the result."""
    half = len(tensors) // 2
    leaves = [level.detach().requires_grad_() for level in tensors[:half]]
    return forward_and_backward(compiled, leaves, list(tensors[half:]))
