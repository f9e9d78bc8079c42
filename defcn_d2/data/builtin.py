"""Registration of the built-in data sets; what draws them is imported at a set's first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .generation import GeneratedSet, Recipe

SHAPES_CLASSES = ("ellipse", "ring", "crescent", "rectangle", "triangle", "star", "cross")
SHAPES = Recipe(
    "shapes", 1, "defcn_d2.data.shapes", "annotations.json", {"train": 2000, "val": 300}
)
SHAPES_CROWD = Recipe(
    "shapes_crowd", 1, "defcn_d2.data.shapes_crowd", "annotation.odgt", {"train": 2000, "val": 300}
)


def register_shapes(
    name: str, root: str | Path, split: str, num_images: int | None = None, seed: int | None = None
) -> None:
    """Register a set of figures (see `shapes.py`) with Detectron2; it is drawn when asked for.

    It lies in `root`/shapes/`split`, split "train" or "val". Without `num_images` and `seed` it is
    what was made there before, else 2,000 or 300 images of seed 0.
    """
    figures = GeneratedSet(SHAPES, Path(root), split, num_images, seed)

    def load() -> list[dict[str, Any]]:
        from detectron2.data.datasets import load_coco_json

        return load_coco_json(str(figures.ensure()), str(figures.images), name)

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        json_file=str(figures.annotations),
        image_root=str(figures.images),
        thing_classes=list(SHAPES_CLASSES),
        evaluator_type="coco",
    )
