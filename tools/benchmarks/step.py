"""A training step of our detectors against those of Detectron2 on the same backbone."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Mapping
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from benchmarks import detectors, step_memory
from benchmarks.profiling import profile_call
from benchmarks.timing import Sample, interleave, machine, markdown
from benchmarks.training_step import PHASES, TrainingStep

DESCRIPTION = "a training step against Detectron2's RetinaNet and FCOS"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``step``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=9, help="steps of every detector")
    parser.add_argument(
        "--image", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument("--objects", type=int, default=7, help="objects an image")
    parser.add_argument(
        "--detectors",
        nargs="+",
        default=None,
        metavar="NAME",
        help="these, which may be any config of configs/ for COCO",
    )
    parser.add_argument(
        "--base", default=detectors.RETINANET, metavar="NAME", help="of the ratios [%(default)s]"
    )
    parser.add_argument("--channels-last", action="store_true", help="memory format of all")
    parser.add_argument("--only", choices=("time", "memory"), help="one of the two tables")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="traces and the largest entries, no timing"
    )


def run(arguments: argparse.Namespace) -> str:
    """The tables as Markdown.

    Raises:
        SystemExit: an option is out of range, or names no detector.
    """
    image, names = tuple(arguments.image), _names(arguments)
    for option, least in (("rounds", 2), ("batch", 1), ("objects", 1)):
        if getattr(arguments, option) < least:
            value = getattr(arguments, option)
            raise SystemExit(f"--{option} must be at least {least}, got {value}")
    if min(image) < 32:
        raise SystemExit(f"--image must be at least 32 32, got {image[0]} {image[1]}")
    inputs = detectors.make_inputs(arguments.batch, image, arguments.objects, arguments.device)
    memory_format = "channels_last" if arguments.channels_last else "contiguous"
    parts = [
        f"{machine(arguments.device)}; {arguments.batch} x 3 x {image[0]} x {image[1]}, "
        f"{arguments.objects} objects an image, R-50, float32, {memory_format}."
    ]
    on_cpu = arguments.device == "cpu"
    steps = {}
    if arguments.only != "memory" or not on_cpu:
        for name in names:
            model = detectors.build(name, arguments.device, arguments.channels_last)
            steps[name] = TrainingStep(model, inputs)
    with EventStorage(0):
        assert_sane(steps)
        if arguments.profile:
            return "\n\n".join(
                profile_call(name, step, arguments.profile, not on_cpu)
                for name, step in steps.items()
            )
        if arguments.only != "memory":
            parts.append(_time_table(time_phases(steps, arguments.rounds), arguments.base))
        if arguments.only != "time":
            size = (image, arguments.batch, arguments.objects, arguments.channels_last)
            peaks = {
                name: step_memory.peak_bytes(name, *size)
                if on_cpu
                else cuda_peak_bytes(steps[name])
                for name in names
            }
            parts.append(_memory_table(peaks, arguments.base))
    return "\n\n".join(parts)


def assert_sane(steps: Mapping[str, TrainingStep]) -> None:
    """Equal backbones give equal features; losses and gradients are finite, and not all zero."""
    features: dict[str, dict[str, torch.Tensor]] = {}
    for name, step in steps.items():
        losses, gradients = step.losses_and_gradients()
        assert all(loss.isfinite() and loss > 0 for loss in losses.values()), (name, losses)
        assert all(gradient.isfinite().all() for gradient in gradients.values()), name
        trained = {key for key, value in step.model.named_parameters() if value.requires_grad}
        assert trained == set(gradients), (name, trained - set(gradients))
        assert all(gradients[key].any() for key in gradients if "cls_score" in key), name
        with torch.no_grad():
            features[name] = step.model.backbone(step.model.preprocess_image(step.inputs).tensor)
    first = next(iter(features.values()), {})
    for of_detector in features.values():
        for level in first:
            torch.testing.assert_close(of_detector[level], first[level])


def time_phases(steps: Mapping[str, TrainingStep], rounds: int) -> dict[str, dict[str, Sample]]:
    """Detector to "step" and the parts to times; all detectors in turn."""
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in steps}

    def call(name: str) -> dict[str, float]:
        phases[name].append(steps[name]())
        return phases[name][-1]

    calls = {name: functools.partial(call, name) for name in steps}
    interleave(calls, rounds, lambda call: sum(call().values()))  # type: ignore[attr-defined]
    samples = {}
    for name, rows in phases.items():
        rows = rows[1:]  # the first is the warm-up
        samples[name] = {phase: Sample([row[phase] for row in rows]) for phase in PHASES}
        samples[name]["step"] = Sample([sum(row.values()) for row in rows])
    return samples


def _names(arguments: argparse.Namespace) -> list[str]:
    known = detectors.names()
    for name in arguments.detectors or []:
        if name not in known and not detectors.is_ours(name):
            known_here = f"{', '.join(known)}, or another config of configs/"
            raise SystemExit(f"--detectors {name!r} is unknown here; one of: {known_here}")
    return arguments.detectors or known


def cuda_peak_bytes(step: TrainingStep) -> int:
    """As ``step_memory.peak_bytes``, on the GPU of the step."""
    device = step.inputs[0]["image"].device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _time_table(samples: dict[str, dict[str, Sample]], base_name: str) -> str:
    """Ratios are to the base, where it takes part; medians of the ratios of each round."""
    base = samples.get(base_name)
    header = ["detector", "step, ms", *(f"{phase}, ms" for phase in PHASES)]
    rows = []
    for name, of_detector in samples.items():
        row = [name, str(of_detector["step"]), *(str(of_detector[phase]) for phase in PHASES)]
        if base:
            pairs = zip(of_detector["step"].seconds, base["step"].seconds)
            row.append(f"{statistics.median(own / other for own, other in pairs):.2f}x")
        rows.append(row)
    return markdown(header + [_against(base_name)] * bool(base), rows)


def _memory_table(peaks: dict[str, int], base_name: str) -> str:
    base = peaks.get(base_name)
    header = ["detector", "peak memory of a step beyond the weights, MiB"]
    rows = [
        [name, f"{peak / 2**20:.0f}"] + ([f"{peak / base:.2f}x"] if base else [])
        for name, peak in peaks.items()
    ]
    return markdown(header + [_against(base_name)] * bool(base), rows)


def _against(base: str) -> str:
    return f"against {base.removeprefix('Detectron2 ')}"
