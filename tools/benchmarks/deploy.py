"""Image to detections on a CPU, batch 1: our exports, and other detectors in the same runtimes."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from torch import Tensor

from benchmarks import deploy_models, detectors
from benchmarks.deploy_runtimes import PYTORCH, RUNTIMES, Row, lacking, of_others, of_ours
from benchmarks.timing import Sample, interleave, machine, markdown, ratio
from defcn_d2.export import drawn_images

DESCRIPTION = "image to detections on a CPU: exports against PyTorch and other detectors"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Group:
    """Detectors that are compared.

    Attributes:
        ours: configs.
        others: names of ``deploy_models``; the first is what ours are compared with.
        image: (height, width).
    """

    ours: tuple[str, ...]
    others: tuple[str, ...]
    image: tuple[int, int]


OF_RESNET = (detectors.RETINANET, detectors.DETECTRON2_FCOS, *deploy_models.TORCHVISION[:2])
GROUPS = {
    "resnet50": Group(("POTO", "Peak"), OF_RESNET, (800, 1088)),
    "light-640": Group(("light/POTO", "light/Peak"), (), (480, 640)),
    "light-320": Group(("light/POTO", "light/Peak"), deploy_models.TORCHVISION[2:], (320, 320)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``deploy``."""
    parser.add_argument(
        "--groups", nargs="+", default=list(GROUPS), help=f"of: {', '.join(GROUPS)}"
    )
    parser.add_argument("--detectors", nargs="+", help="which of the groups' [all]")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), help="which [all]")
    parser.add_argument("--rounds", type=int, default=20, help="images of each [%(default)s]")
    parser.add_argument("--threads", type=int, default=1, help="of every runtime [%(default)s]")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: time on the processor, which other work on the machine disturbs little",
    )
    parser.add_argument(
        "--image", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="for all groups [their own]"
    )


def run(arguments: argparse.Namespace) -> str:
    """The tables as Markdown.

    Raises:
        SystemExit: an option is out of range.
    """
    of_groups = [name for group in GROUPS.values() for name in (*group.ours, *group.others)]
    options: dict[str, Iterable[str]] = {"groups": GROUPS, "runtimes": RUNTIMES}
    options["detectors"] = dict.fromkeys(of_groups)
    for option, known in options.items():
        for name in getattr(arguments, option) or ():
            if name not in known:
                raise SystemExit(f"--{option} {name!r} is unknown; of: {', '.join(known)}")
    if arguments.rounds < 2:
        raise SystemExit(f"--rounds must be at least 2, got {arguments.rounds}")
    if arguments.threads < 1:
        raise SystemExit(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.image and (min(arguments.image) < 32 or any(x % 32 for x in arguments.image)):
        raise SystemExit(
            f"--image must be two multiples of 32, got {arguments.image[0]} {arguments.image[1]}"
        )
    torch.set_num_threads(arguments.threads)
    kind = {"wall": "", "cpu": " on the processor"}[arguments.clock]
    parts = [
        f"{machine('cpu')}; float32 and INT8, batch 1, times{kind}. In every detector "
        f"{deploy_models.CANDIDATES} pairs of location and class score above "
        f"{deploy_models.THRESHOLD}, the limit of all; weights are random."
    ]
    for runtime in arguments.runtimes:
        if lacking(runtime):
            parts.append(f"{runtime} is left out; not installed: {', '.join(lacking(runtime))}.")
    for name in arguments.groups:
        group = GROUPS[name]
        image = tuple(arguments.image or group.image)
        parts.append(f"**{name}**, {image[0]} x {image[1]}:\n\n{_table(group, image, arguments)}")
    return "\n\n".join(parts)


def _table(group: Group, sides: tuple[int, int], arguments: argparse.Namespace) -> str:
    clock = CLOCKS[arguments.clock]
    runtimes = [runtime for runtime in arguments.runtimes if not lacking(runtime)]
    images = [_image(x, sides) for x in drawn_images(4)]
    rows: dict[tuple[str, str], Row] = {}
    for name in (*group.ours, *group.others):
        if name == detectors.DETECTRON2_FCOS and name not in detectors.names():
            continue
        if arguments.detectors and name not in arguments.detectors:
            continue
        peer = deploy_models.build(name, images[0])
        if name in group.ours:
            of_peer = of_ours(peer, runtimes, images, clock)
        else:
            of_peer = of_others(peer, runtimes, clock)
        rows |= {(name, runtime): row for runtime, row in of_peer.items()}
    calls: dict[Any, Callable[[], Any]] = {key: row.call for key, row in rows.items()}
    calls |= {(*key, ""): row.ending for key, row in rows.items() if row.ending}
    timer = functools.partial(_seconds, clock=clock)
    samples = interleave(calls, arguments.rounds, timer)
    base = next((name for name in group.others if (name, PYTORCH) in samples), None)
    header = ["detector", "runtime", "ms", "PyTorch takes", "after the head"]
    header += [f"{base} takes"] if base else []
    return markdown(header, [_cells(key, rows[key], samples, base) for key in rows])


def _cells(key: Any, row: Row, samples: dict[Any, Sample], base: str | None) -> list[str]:
    name, runtime = key
    sample = samples[key]
    after = Sample(row.inside[-len(sample.seconds) :]) if row.inside else samples.get((*key, ""))
    cells = [name, runtime, str(sample)]
    eager = samples.get((name, PYTORCH))
    cells.append(f"{ratio(eager, sample):.2f}x" if eager else "-")
    cells.append(f"{100 * ratio(after, sample):.1f} %" if after else "-")
    if base:
        same = (base, runtime) in samples
        theirs = samples[base, runtime if same else PYTORCH]
        cells.append(f"{ratio(theirs, sample):.2f}x" + ("" if same else f" ({PYTORCH})"))
    return cells


def _image(drawn: Any, sides: tuple[int, int]) -> Tensor:
    """(3, H, W) float32 of an image that is drawn."""
    pixels = cv2.resize(drawn, sides[::-1])
    return torch.from_numpy(pixels).permute(2, 0, 1).float().contiguous()


def _seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    results = call()
    elapsed = clock() - start
    del results
    return elapsed
