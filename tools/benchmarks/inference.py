"""Inference end to end, and what comes after the head alone, against Detectron2's detectors."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from benchmarks import detectors
from benchmarks.head_outputs import Playback, make_scene, spread_scores
from benchmarks.timing import Sample, interleave, machine, markdown, ratio, wall_clock
from defcn_d2.structures import Predictions, Priors

DESCRIPTION = "inference, and post-processing alone, against Detectron2's RetinaNet and FCOS"
OBJECTS = (10, 100, 1000)
SORTED = "POTO, all scores sorted"
TOPK_ONLY = "POTO, TOPK_ONLY_TEST"
#: What is compared after the head; names of ``detectors`` and two more ways with POTO's outputs.
POST_PROCESSING = (
    "POTO",
    TOPK_ONLY,
    "POTO-3DMF",
    "FCOS",
    SORTED,
    detectors.DETECTRON2_FCOS,
    detectors.RETINANET,
)
END_TO_END = ("POTO", "POTO-3DMF", "FCOS", detectors.DETECTRON2_FCOS, detectors.RETINANET)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``inference``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=25, help="repetitions of post-processing")
    parser.add_argument(
        "--end-to-end-rounds", type=int, default=5, help="images of every detector; 0: leave out"
    )
    parser.add_argument(
        "--image", type=int, nargs=2, default=(800, 1344), metavar=("HEIGHT", "WIDTH")
    )


def run(arguments: argparse.Namespace) -> str:
    """The tables as Markdown.

    Raises:
        SystemExit: an option is out of range.
    """
    height, width = image = tuple(arguments.image)
    if arguments.rounds < 2:
        raise SystemExit(f"--rounds must be at least 2, got {arguments.rounds}")
    if arguments.end_to_end_rounds in (1, *range(-9, 0)):
        raise SystemExit(
            f"--end-to-end-rounds must be 0 or at least 2, got {arguments.end_to_end_rounds}"
        )
    if height < 32 or width < 32 or height % 32 or width % 32:
        raise SystemExit(f"--image must be two multiples of 32, got {height} {width}")
    parts = [f"{machine(arguments.device)}; one image of {height}x{width}, float32."]
    with torch.no_grad():
        parts.append(_post_processing_table(image, arguments.rounds, arguments.device))
        if arguments.end_to_end_rounds:
            rounds = arguments.end_to_end_rounds
            parts.append(_end_to_end_table(image, rounds, arguments.device))
    return "\n\n".join(parts)


def _post_processing_table(image: tuple[int, int], rounds: int, device: str) -> str:
    known = detectors.names()
    names = [name for name in POST_PROCESSING if name in known or name in (SORTED, TOPK_ONLY)]
    base = detectors.DETECTRON2_FCOS if detectors.DETECTRON2_FCOS in names else detectors.RETINANET
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    shares = []
    models = {name: _after_head(name, device) for name in names}
    for objects in OBJECTS:
        scene = make_scene(image, objects, device)
        shares.append(f"{100 * scene.share_above:.1f} %")
        calls = {name: Playback(model, scene) for name, model in models.items()}
        assert_equal(calls)
        for name, sample in interleave(calls, rounds, _timer(device)).items():
            samples[name].append(sample)
    header = ["after the head", *(f"{objects} objects, ms" for objects in OBJECTS)]
    header += [f"{OBJECTS[-1]} against {OBJECTS[0]} objects", f"{base} takes"]
    middle = len(OBJECTS) // 2
    rows = [
        [name, *map(str, of_name), f"{of_name[-1].median / of_name[0].median:.2f}x"]
        + [f"{ratio(samples[base][middle], of_name[middle]):.1f}x"]
        for name, of_name in samples.items()
    ]
    note = f"Scores above 0.05: {', '.join(shares)} of all pairs of location and class."
    return f"{note}\n\n{markdown(header, rows)}"


def _end_to_end_table(image: tuple[int, int], rounds: int, device: str) -> str:
    inputs = detectors.make_inputs(1, image, 1, device)
    calls = {}
    for name in END_TO_END:
        if name in detectors.names():
            model = detectors.build(name, device)
            spread_scores(model, inputs)
            calls[name] = functools.partial(model, inputs)
            assert_sane(calls[name]()[0]["instances"])
    samples = interleave(calls, rounds, _timer(device))
    base = samples[detectors.RETINANET]
    rows = [[name, str(sample), f"{ratio(sample, base):.2f}x"] for name, sample in samples.items()]
    return markdown(["image to detections", "ms", "against RetinaNet"], rows)


def _after_head(name: str, device: str) -> Any:
    model: Any = detectors.build("POTO" if name in (SORTED, TOPK_ONLY) else name, device)
    if name == SORTED:
        model.raw_detections = functools.partial(
            sorted_candidates, score_thresh=model.score_thresh, topk=model.topk_candidates
        )
    model.topk_only = name == TOPK_ONLY
    return model


def sorted_candidates(
    priors: Priors,
    predictions: Predictions,
    image_sizes: list[tuple[int, int]],
    limit: int | None = None,
    *,
    score_thresh: float,
    topk: int,
) -> list[Instances]:
    """The candidates of one image as the method words it: sort all scores of a level.

    Stands in for ``DeFCN.raw_detections``, whatever ``limit``.
    """
    scores = predictions.fused().sigmoid()[0]
    found = []
    for level, boxes in zip(
        scores.split(priors.level_sizes), predictions.boxes[0].split(priors.level_sizes)
    ):
        values, pairs = level.reshape(-1).sort(descending=True)
        values, pairs = values[: min(topk, len(level))], pairs[: min(topk, len(level))]
        pairs = pairs[values > score_thresh]
        candidates = Instances(image_sizes[0])
        candidates.pred_boxes = Boxes(boxes[pairs // level.shape[1]])
        candidates.scores = values[: len(pairs)]
        candidates.pred_classes = pairs % level.shape[1]
        found.append(candidates)
    return [Instances.cat(found)]


def assert_equal(calls: Mapping[str, Callable[[], Instances]]) -> None:
    """Same detections without NMS, same detections with NMS; all of them sane.

    With centerness 1 the scores of Detectron2's FCOS are the square roots of the class scores, and
    so are ours.
    """
    detections = {name: call() for name, call in calls.items()}
    for found in detections.values():
        assert_sane(found)
    for own, other in (
        ("POTO", SORTED),
        ("POTO", TOPK_ONLY),
        ("POTO", "POTO-3DMF"),
        ("FCOS", detectors.DETECTRON2_FCOS),
    ):
        if own in detections and other in detections:
            _assert_same(detections[own], detections[other])


def assert_sane(found: Instances) -> None:
    """Detections there are, finite, best first."""
    boxes, scores = found.pred_boxes.tensor, found.scores
    assert len(found) and boxes.isfinite().all()
    assert (scores > 0).all() and (scores <= 1).all() and (scores.diff() <= 0).all()


def _assert_same(own: Instances, other: Instances) -> None:
    def ordered(found: Instances) -> tuple[Tensor, Tensor, Tensor]:
        # equal scores in one order
        boxes = found.pred_boxes.tensor
        order = sorted(range(len(found)), key=lambda i: (-scores(found)[i], boxes[i, 0].item()))
        return found.scores[order], boxes[order], found.pred_classes[order]

    def scores(found: Instances) -> list[float]:
        return [round(score, 5) for score in found.scores.tolist()]

    for a, b in zip(ordered(own), ordered(other), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-3)


def _timer(device: str) -> Callable[[Callable[[], object]], float]:
    def synchronized(call: Callable[[], object]) -> object:
        result = call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        return result

    def timer(call: Callable[[], object]) -> float:
        if isinstance(call, Playback):
            call.prepare()
            synchronized(lambda: None)
        return wall_clock(functools.partial(synchronized, call))

    return timer
