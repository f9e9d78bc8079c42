"""COCO's figures by faster-coco-eval against pycocotools, on generated detections."""

from __future__ import annotations

import argparse
import contextlib
import io
from functools import partial
from typing import Any

import numpy as np
from pycocotools.coco import COCO

from benchmarks.timing import cpu_time, interleave, machine, markdown, wall_clock
from defcn_d2.evaluation.coco_limit import FASTER, PYCOCOTOOLS, eval_class

DESCRIPTION = "COCO's evaluation by faster-coco-eval against pycocotools"
CLASSES, OBJECTS, SIDE = 80, 7, 640  # of COCO: classes, objects an image on average, pixels
CHECKED = 200  # images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``evaluation``."""
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of every call")
    parser.add_argument("--images", type=int, default=5000, help="generated images [%(default)s]")
    parser.add_argument("--detections", type=int, default=100, help="an image [%(default)s]")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of all threads, for a processor busy otherwise"
    )


def run(arguments: argparse.Namespace) -> str:
    """The table as Markdown; on some images both are equal to 1e-9 before anything is timed.

    Raises:
        SystemExit: faster-coco-eval is not installed.
    """
    if arguments.rounds < 2 or arguments.images < 1 or arguments.detections < 1:
        raise SystemExit("--rounds must be at least 2, --images and --detections at least 1")
    limit = arguments.detections
    try:
        kinds = {name: eval_class(name, limit) for name in (PYCOCOTOOLS, FASTER)}
    except ImportError as error:
        raise SystemExit(f"nothing to measure: {error}; pip install {FASTER}") from error
    few = make_detections(min(CHECKED, arguments.images), limit)
    ours, theirs = (evaluate(kinds[name], *few) for name in (FASTER, PYCOCOTOOLS))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    problem = make_detections(arguments.images, limit)
    calls = {name: partial(evaluate, kind, *problem) for name, kind in kinds.items()}
    samples = interleave(calls, arguments.rounds, cpu_time if arguments.cpu_time else wall_clock)
    ratio = samples[PYCOCOTOOLS].median / samples[FASTER].median
    header = ["images", "detections an image", *(f"{name}, ms" for name in kinds), "ratio"]
    row = [str(arguments.images), str(limit), *map(str, samples.values()), f"{ratio:.1f}x"]
    return f"{machine('cpu')}.\n\n{markdown(header, [row])}"


def evaluate(kind: type, truth: COCO, results: list[dict[str, Any]]) -> np.ndarray:
    """COCO's figures of detections in its results format, as an evaluation computes them."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = kind(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def make_detections(
    images: int, per_image: int, classes: int = CLASSES
) -> tuple[COCO, list[dict[str, Any]]]:
    """Ground truth of some objects an image, and detections near them or anywhere.

    Half of the detections are objects moved and resized at random, of which the nearer score
    higher; a tenth of those have another class.
    """
    rng = np.random.default_rng(0)
    truth, results = COCO(), []
    annotations: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        count = rng.poisson(OBJECTS)
        boxes, labels = _boxes(rng, count), rng.integers(1, classes + 1, count)
        crowd = rng.random(count) < 0.01
        for box, label, is_crowd in zip(boxes.tolist(), labels.tolist(), crowd.tolist()):
            entry = {"id": len(annotations) + 1, "image_id": image, "category_id": label}
            entry |= {"bbox": box, "area": box[2] * box[3], "iscrowd": int(is_crowd)}
            annotations.append(entry)
        near = per_image // 2 if count else 0
        chosen = rng.integers(0, max(count, 1), near)
        shift = rng.exponential(0.15, (near, 1))
        moved = boxes[chosen] + shift * boxes[chosen][:, [2, 3, 2, 3]] * rng.normal(0, 1, (near, 4))
        found = np.concatenate([moved.clip(min=1), _boxes(rng, per_image - near)])
        numbers = rng.integers(1, classes + 1, per_image)
        numbers[:near] = np.where(rng.random(near) < 0.1, numbers[:near], labels[chosen])
        scores = rng.random(per_image)
        scores[:near] *= np.exp(-2 * shift[:, 0])
        scores[near:] *= 0.3
        for box, label, score in zip(found.tolist(), numbers.tolist(), scores.tolist()):
            entry = {"image_id": image, "category_id": label, "bbox": box, "score": score}
            results.append(entry)
    truth.dataset = {
        "info": {},
        "images": [{"id": i, "width": SIDE, "height": SIDE} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": str(i)} for i in range(1, classes + 1)],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth, results


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) x, y, width, height: sides of 8 to 400 pixels, evenly on a logarithmic scale."""
    sides = 8 * 50 ** rng.random((count, 2))
    return np.concatenate([rng.random((count, 2)) * (SIDE - sides), sides], axis=1)
