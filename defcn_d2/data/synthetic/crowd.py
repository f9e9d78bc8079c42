"""The built-in crowd: people-like figures of one class in heaps, labelled as CrowdHuman labels.

``shapes_crowd_train`` (2,000 images) and ``shapes_crowd_val`` (300) are drawn on first use under
``$DETECTRON2_DATASETS``; ``python -m defcn_d2.data.synthetic.crowd`` makes sets of other sizes.

The figures of a heap stand so close that NMS at 0.6, applied to the ground truth itself, would
drop one in ten of them. A full box is the extent of the whole figure, hidden parts and parts
outside the image included; a visible box that of the pixels seen, at least ``MIN_VISIBLE`` of the
figure's area. To be ignored are throngs of figures too small to be distinguished (tag ``mask``) and
translucent reflections (tag ``person``, ``extra.ignore``).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..builtin import SHAPES_CROWD
from .figures import (
    Canvas,
    Stencil,
    distinct_color,
    generator,
    regular,
    scaled_and_turned,
    stencil,
    tight_box,
)
from .generation import Record, command_line
from .shapes import SIDES

MIN_VISIBLE = 0.2  # of a figure's full area, against figures in front and the image's border
HEIGHTS = (28.0, 150.0)  # pixels, mean height of the figures of a heap: log-uniform
SLENDERNESS = (0.38, 0.5)  # width over height
HEAPS = (1, 5)  # heaps an image
HEAP_SIZE = (2, 8)  # figures a heap
SPREAD = 0.35  # how far from a heap's middle its figures stand, in their widths
IGNORED_CHANCE = 0.35  # chance of a throng, and of a reflection, in an image

HEAD = regular(32) * (0.5, 0.24) - (0, 0.76)
_SIDE = np.array([(0.45, -0.5), (0.85, -0.42), (1, -0.15), (0.8, 1)])
BODY = np.concatenate([_SIDE, _SIDE[::-1] * (-1, 1)])


def draw(split: str, seed: int, index: int) -> tuple[np.ndarray, Record]:
    """Image ``index`` of a split: BGR (H, W, 3) uint8, and its record.

    The record holds ``width``, ``height`` and ``gtboxes`` as an .odgt line has them: first what is
    to be ignored, then the figures from back to front.
    """
    rng = generator("shapes_crowd", split, seed, index)
    canvas = Canvas.with_ground(rng, SIDES)
    boxes = []
    for paint in (_paint_throng, _paint_reflection):
        if rng.random() < IGNORED_CHANCE:
            boxes.append(paint(rng, canvas))
    people = _paint_heaps(rng, canvas)
    shares = canvas.visible_areas() / np.array(canvas.full_areas)
    for number, (figure, head) in enumerate(people):
        visible = tight_box(canvas.owner == number)
        boxes.append(_label("person", figure.box, visible, head.box, shares[number] < 0.95))
    for number, box in enumerate(boxes):
        box["extra"]["box_id"] = number
    return canvas.pixels, {"width": canvas.width, "height": canvas.height, "gtboxes": boxes}


def _label(
    tag: str, full: Any, visible: Any, head: Any, hidden: bool = False, **extra: int
) -> Record:
    occluded = int(hidden)
    return {
        "tag": tag,
        "fbox": full,
        "vbox": visible,
        "hbox": head,
        "extra": {"occ": occluded, **extra},
        "head_attr": {"ignore": 0, "occ": occluded, "unsure": 0},
    }


def _person(
    rng: np.random.Generator, x: float, y: float, height: float, width: float
) -> tuple[Stencil, Stencil]:
    """The figure around (x, y), almost upright, and its head alone."""
    head, body = scaled_and_turned([HEAD, BODY], width, height, rng.normal(0, 0.06))
    return stencil([head, body], (x, y)), stencil([head], (x, y))


def _paint_heaps(rng: np.random.Generator, canvas: Canvas) -> list[tuple[Stencil, Stencil]]:
    """Paint the people, those whose feet are higher in the image first; their figures and heads."""
    places = []
    for _ in range(rng.integers(*HEAPS, endpoint=True)):
        middle = rng.uniform(0.1, 0.9, 2) * (canvas.width, canvas.height)
        mean_height = math.exp(rng.uniform(*np.log(HEIGHTS)))
        for _ in range(rng.integers(*HEAP_SIZE, endpoint=True)):
            height = mean_height * rng.uniform(0.85, 1.15)
            width = height * rng.uniform(*SLENDERNESS)
            x, y = middle + rng.normal(0, SPREAD, 2) * width
            places.append((y + height / 2, x, y, height, width))
    people = []
    for _, *place in sorted(places):
        figure, head = _person(rng, *place)
        if canvas.leaves_visible(figure, MIN_VISIBLE):
            canvas.paint(rng, figure, distinct_color(rng, canvas.colors, 90))
            people.append((figure, head))
    return people


def _paint_throng(rng: np.random.Generator, canvas: Canvas) -> Record:
    """Paint many figures too small to be distinguished; returns the label of their region."""
    width, height = (int(v) for v in rng.uniform((40, 20), (110, 40)))
    left, top = (
        int(v) for v in rng.uniform((0, 0), (canvas.width - width, canvas.height - height))
    )
    for y in np.sort(rng.uniform(top + 6, top + height - 6, width * height // 40)):
        x, size = rng.uniform(left + 4, left + width - 4), rng.uniform(8, 11)
        figure, _ = _person(rng, x, y, size, 0.45 * size)
        canvas.paint(rng, figure, distinct_color(rng, canvas.colors, 60), owned=False)
    region = [left, top, width, height]
    return _label("mask", region, region, region, ignore=1)


def _paint_reflection(rng: np.random.Generator, canvas: Canvas) -> Record:
    """Paint a translucent figure; returns its label."""
    height = rng.uniform(40, 120)
    x, y = rng.uniform(0.2, 0.8, 2) * (canvas.width, canvas.height)
    figure, head = _person(rng, x, y, height, 0.45 * height)
    canvas.paint(rng, figure, distinct_color(rng, canvas.colors, 90), opacity=0.4, owned=False)
    return _label("person", figure.box, figure.box, head.box, ignore=1)


def annotate(records: list[Record]) -> str:
    """The records of a set as .odgt lines."""
    lines = [
        {
            "ID": Path(record["file_name"]).stem,
            "width": record["width"],
            "height": record["height"],
            "gtboxes": record["gtboxes"],
        }
        for record in records
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(command_line(SHAPES_CROWD))
