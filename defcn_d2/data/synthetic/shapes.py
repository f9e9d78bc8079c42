"""The built-in data set in COCO format: turned, textured figures that partly cover each other.

``shapes_train`` (2,000 images) and ``shapes_val`` (300) are drawn on first use under
``$DETECTRON2_DATASETS``; ``python -m defcn_d2.data.synthetic.shapes`` makes sets of other sizes.

Labels follow COCO: a box is the tight box of the pixels of a figure that can be seen, ``area``
their number. A figure is placed only where every figure, itself included, still shows at least
``MIN_VISIBLE`` of its area, so nothing that can be seen goes without a label.

As with things in the world, looks give a hint: a class has its range of hues, which overlaps a
little with its neighbours' ranges. With it a small network learns the set within minutes on a CPU.
"""

from __future__ import annotations

import json
import math

import numpy as np

from ..builtin import SHAPES
from ..builtin import SHAPES_CLASSES as CLASSES
from .figures import (
    Canvas,
    Outline,
    arc,
    distinct_color,
    generator,
    regular,
    scaled_and_turned,
    stencil,
    tight_box,
)
from .generation import Record, command_line

MAX_FIGURES = 10
MIN_VISIBLE = 0.6  # of a figure's full area, against covering figures and the image's border
SIZES = (20.0, 200.0)  # pixels, diameter of the circle around a figure: log-uniform
SIDES = (192, 288)  # pixels, height and width of an image
HUE_SPREAD = 1.1 / 2  # half the width of a class' range of hues, in distances between classes


def _crescent(tip: float = 0.9, shift: float = 0.55) -> np.ndarray:
    """The unit disc less a disc around (``shift``, 0); its two ends are at the angles +-``tip``."""
    outer = arc(tip, 2 * math.pi - tip)
    x, y = math.cos(tip) - shift, math.sin(tip)
    inner = arc(-math.atan2(y, x), math.atan2(y, x) - 2 * math.pi) * math.hypot(x, y)
    return np.concatenate([outer, inner + (shift, 0)])


def _cross(arm: float = 0.3) -> np.ndarray:
    quarter = np.array([(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)])
    return np.concatenate([quarter, -quarter])


OUTLINES: dict[str, Outline] = {
    "ellipse": [regular(48)],
    "ring": [regular(48), regular(48) * 0.55],
    "crescent": [_crescent()],
    "rectangle": [regular(4) @ [[0.5**0.5, 0.5**0.5], [-(0.5**0.5), 0.5**0.5]]],
    "triangle": [regular(3)],
    "star": [regular(10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]],
    "cross": [_cross()],
}


def draw(split: str, seed: int, index: int) -> tuple[np.ndarray, Record]:
    """Image ``index`` of a split: BGR (H, W, 3) uint8, and its record.

    The record holds ``width``, ``height`` and ``figures``, from back to front: ``category`` (index
    in ``CLASSES``), ``bbox`` (x, y, w, h in pixels, tight around what is seen), ``area`` (pixels
    seen).
    """
    rng = generator("shapes", split, seed, index)
    canvas = Canvas.with_ground(rng, SIDES, saturation=0.3)
    categories: list[int] = []
    for _ in range(rng.integers(MAX_FIGURES, endpoint=True)):
        category = int(rng.integers(len(CLASSES)))
        if _place(rng, canvas, category):
            categories.append(category)
    figures = [
        {
            "category": category,
            "bbox": tight_box(canvas.owner == figure),
            "area": int(canvas.visible_areas()[figure]),
        }
        for figure, category in enumerate(categories)
    ]
    return canvas.pixels, {"width": canvas.width, "height": canvas.height, "figures": figures}


def _place(rng: np.random.Generator, canvas: Canvas, category: int, trials: int = 10) -> bool:
    """Paint a figure where nothing gets hidden too much; False if no such place was found."""
    outline = OUTLINES[CLASSES[category]]
    size = math.exp(rng.uniform(*np.log(SIZES)))
    turned_outline = scaled_and_turned(
        outline, size, size * rng.uniform(0.65, 1), rng.uniform(0, 2 * math.pi)
    )
    step = 360 / len(CLASSES)
    color = distinct_color(rng, canvas.colors, 90, (category * step, HUE_SPREAD * step))
    for _ in range(trials):
        center = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        figure = stencil(turned_outline, center)
        if canvas.leaves_visible(figure, MIN_VISIBLE):
            canvas.paint(rng, figure, color)
            return True
    return False


def annotate(records: list[Record]) -> str:
    """The records of a set as COCO instances: category ids from 1, image ids from 0."""
    images = [
        {"id": r["index"], "file_name": r["file_name"], "width": r["width"], "height": r["height"]}
        for r in records
    ]
    labels = [
        {
            "image_id": r["index"],
            "category_id": figure["category"] + 1,
            "bbox": figure["bbox"],
            "area": figure["area"],
            "iscrowd": 0,
        }
        for r in records
        for figure in r["figures"]
    ]
    annotations = [{"id": i, **label} for i, label in enumerate(labels, 1)]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories})


if __name__ == "__main__":
    raise SystemExit(command_line(SHAPES))
