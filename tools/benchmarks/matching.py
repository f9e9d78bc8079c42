"""POTO's matching: over the pairs that the prior allows against the full matrix."""

from __future__ import annotations

import argparse
import dataclasses
from functools import partial

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from benchmarks.matching_competitors import COMPETITORS, Problem, assert_equal
from benchmarks.op_competitors import pyramid_shapes
from benchmarks.timing import interleave, machine, markdown, wall_clock_on
from defcn_d2.modeling.matcher.pairs import center_pairs
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.structures import Predictions, Priors

DESCRIPTION = "POTO's qualities and assignment against the full matrix and scipy"
IMAGE = (800, 1344)
STRIDES = (8, 16, 32, 64, 128)
NUM_CLASSES = 80
COUNTS = (7, 20, 100, 300)
CROWD_COUNTS = (20, 100, 500)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``matching``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=11, help="repetitions of every call")
    parser.add_argument("--batch", type=int, default=1, help="images (default: 1)")
    parser.add_argument(
        "--objects", type=int, nargs="+", metavar="N", help="so many, with radius 1.5 alone"
    )


def run(arguments: argparse.Namespace) -> str:
    """The table as Markdown."""
    if arguments.rounds < 2 or arguments.batch < 1:
        raise SystemExit("--rounds must be at least 2 and --batch at least 1")
    header = ["prior", "ground truths", "pairs", *(f"{name}, ms" for name in COMPETITORS)]
    header += [f"against the {name}" for name in list(COMPETITORS)[:-1]]
    rows = []
    settings = [("radius 1.5", 1.5, count) for count in arguments.objects or COUNTS]
    if not arguments.objects:
        settings += [("whole box (crowd)", 0.0, count) for count in CROWD_COUNTS]
    with torch.no_grad():
        for name, radius, count in settings:
            problem = make_problem(arguments.batch, count, radius, arguments.device)
            assert_equal(problem)
            calls = {key: partial(call, problem) for key, call in COMPETITORS.items()}
            samples = interleave(calls, arguments.rounds, wall_clock_on(arguments.device))
            *others, own = (sample.median for sample in samples.values())
            rows.append(
                [name, str(count), str(num_pairs(problem)), *map(str, samples.values())]
                + [f"{other / own:.0f}x" for other in others]
            )
    images = "1 image" if arguments.batch == 1 else f"{arguments.batch} images"
    place = f"{images} of {IMAGE[0]}x{IMAGE[1]}, {len(problem.priors)} locations"
    note = f"{machine(arguments.device)}; {place}."
    return f"{note}\n\n{markdown(header, rows)}"


def make_problem(batch: int, num_gts: int, radius: float, device: str = "cpu") -> Problem:
    """Random predictions around their locations, as a head with 3D Max Filtering gives them.

    The ground truths are of all sizes and 80 classes; with radius 0, people in a crowd, 1 class.
    """
    torch.manual_seed(num_gts)
    num_classes = NUM_CLASSES if radius else 1
    priors = make_priors()
    shape = (batch, len(priors))
    ltrb = torch.rand(*shape, 4).double() * 4 * priors.strides[:, None]
    boxes = torch.cat([priors.centers - ltrb[..., :2], priors.centers + ltrb[..., 2:]], dim=-1)
    predictions = Predictions(
        cls_logits=(2 * torch.randn(*shape, num_classes) - 2).to(device),
        boxes=boxes.to(device),
        quality_logits=2 * torch.randn(*shape).to(device),
    )
    gt_instances = []
    for _ in range(batch):
        gt = Instances(IMAGE)
        gt.gt_boxes = Boxes(_people(num_gts) if radius == 0 else _objects(num_gts))
        gt.gt_classes = torch.randint(num_classes, (num_gts,))
        gt_instances.append(gt.to(device))
    priors = dataclasses.replace(
        priors, boxes=priors.boxes.to(device), strides=priors.strides.to(device)
    )
    return Problem(priors, predictions, gt_instances, POTO(radius=radius))


def make_priors() -> Priors:
    """The points of the levels P3 to P7."""
    boxes, strides, shapes = [], [], pyramid_shapes(*IMAGE)
    for stride, (rows, columns) in zip(STRIDES, shapes):
        corners = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1) * stride
        boxes.append(torch.cat([corners, corners + stride], dim=1).float())
        strides.append(torch.full((rows * columns,), float(stride)))
    sizes = [len(level) for level in boxes]
    return Priors(torch.cat(boxes), torch.cat(strides), sizes, shapes)


def _objects(count: int) -> Tensor:
    """(count, 4) xyxy, sides of 16 to 400 pixels, evenly on a logarithmic scale."""
    return _placed(16 * 25 ** torch.rand(count, 2))


def _people(count: int) -> Tensor:
    """(count, 4) xyxy, 40 to 320 pixels high and two fifths as wide."""
    return _placed((40 * 8 ** torch.rand(count, 1)) * torch.tensor([0.4, 1.0]))


def _placed(sizes: Tensor) -> Tensor:
    limits = torch.tensor([IMAGE[1], IMAGE[0]])
    corners = torch.rand(len(sizes), 2) * (limits - sizes)
    return torch.cat([corners, corners + sizes], dim=1)


def num_pairs(problem: Problem) -> int:
    """Pairs that the prior allows."""
    pairs = center_pairs(problem.priors, problem.gt_instances, problem.matcher.radius)
    return int(pairs.allowed.sum())
