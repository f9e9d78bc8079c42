"""The comparison of overlapping neighbours: compiled against composed, and a module for scale."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks import op_cuda
from benchmarks.op_competitors import make_levels, pyramid_shapes
from benchmarks.timing import cpu_time, interleave, machine, markdown, ratio
from defcn_d2 import ops
from defcn_d2.modeling.head.max_filtering import MaxFiltering

DESCRIPTION = "overlap_with_better against its composition and the 3D max filtering module"
IMAGE = (800, 1344)
CLASSES = (1, 7, 80)
COMPILED, COMPOSED, MODULE = "compiled", "composition", "3D max filtering"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``overlap``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=11, help="repetitions of every call")
    parser.add_argument("--image", type=int, nargs=2, default=IMAGE, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument(
        "--cpu-time", action="store_true", help="of all threads, for a processor busy otherwise"
    )


def run(arguments: argparse.Namespace) -> str:
    """The table as Markdown; ratios are medians of those of each round.

    Raises:
        SystemExit: the compiled operator is not there.
    """
    if arguments.rounds < 2:
        raise SystemExit(f"--rounds must be at least 2, got {arguments.rounds}")
    device = torch.device(arguments.device)
    if not ops.is_compiled(device.type):
        raise SystemExit(f"nothing to measure: {ops.report()}")
    rows = []
    for num_classes in CLASSES:
        timer = cpu_time if arguments.cpu_time else _timer(device)
        calls = _calls(num_classes, tuple(arguments.image), device)
        samples = interleave(calls, arguments.rounds, timer)
        rows.append(
            [str(num_classes), *(str(samples[name]) for name in (COMPOSED, COMPILED, MODULE))]
            + [f"{ratio(samples[name], samples[COMPILED]):.1f}x" for name in (COMPOSED, MODULE)]
        )
    header = ["classes", *(f"{name}, ms" for name in (COMPOSED, COMPILED, MODULE))]
    header += ["composition / compiled", "module / compiled"]
    height, width = arguments.image
    note = f"{machine(arguments.device)}; {ops.report()}; one image of {height}x{width}."
    return f"{note}\n\n{markdown(header, rows)}"


def _calls(
    num_classes: int, image: tuple[int, int], device: torch.device
) -> dict[str, Callable[[], object]]:
    """Competitor to call; asserts first that compiled and composed are equal."""
    shapes = pyramid_shapes(*image)
    boxes = make_boxes(shapes).to(device)
    logits = torch.randn(1, boxes.shape[1], num_classes, device=device)
    compiled = partial(ops.overlap_with_better, logits, boxes, shapes)
    composed = partial(ops.overlap_with_better_reference, logits, boxes, shapes)
    assert torch.equal(compiled(), composed())
    levels = make_levels(1, image, torch.float32, torch.contiguous_format, str(device))
    module = torch.no_grad()(partial(MaxFiltering(256).to(device).eval(), levels))
    return {COMPILED: compiled, COMPOSED: composed, MODULE: module}


def make_boxes(shapes: list[tuple[int, int]]) -> Tensor:
    """(1, R, 4): 8 strides wide, moved by a tenth of a stride: most of the own level overlap."""
    torch.manual_seed(0)
    parts = []
    for level, (height, width) in enumerate(shapes):
        stride = 8 * 2**level
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5
        corners = torch.cat([centers - 4, centers + 4], dim=1)
        parts.append(stride * (corners + 0.1 * torch.randn(corners.shape)))
    return torch.cat(parts)[None]


def _timer(device: torch.device) -> Callable[[Callable[[], object]], float] | None:
    if device.type == "cpu":
        return None
    flush = torch.empty(op_cuda.FLUSH_BYTES, dtype=torch.uint8, device=device)
    return partial(op_cuda.seconds, flush)
