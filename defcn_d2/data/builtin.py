"""Registration of the data sets; what draws or reads one is imported at its first use."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from .errors import DatasetError
from .readers.crowdhuman import register_crowdhuman
from .synthetic.generation import GeneratedSet, Recipe

SHAPES_CLASSES = ("ellipse", "ring", "crescent", "rectangle", "triangle", "star", "cross")
SHAPES = Recipe(
    "shapes", 3, "defcn_d2.data.synthetic.shapes", "annotations.json", {"train": 2000, "val": 300}
)
SHAPES_CROWD = Recipe(
    "shapes_crowd",
    1,
    "defcn_d2.data.synthetic.crowd",
    "annotation.odgt",
    {"train": 2000, "val": 300},
)


def register_shapes(
    name: str, root: str | Path, split: str, num_images: int | None = None, seed: int | None = None
) -> None:
    """Register a set of figures (see ``shapes.py``) with Detectron2; it is drawn when asked for.

    It lies in ``root``/shapes/``split``, split "train" or "val". Without ``num_images`` and
    ``seed`` it is what was made there before, else 2,000 or 300 images of seed 0.
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
        thing_dataset_id_to_contiguous_id={i + 1: i for i in range(len(SHAPES_CLASSES))},
        evaluator_type="coco",
    )


def register_shapes_crowd(
    name: str, root: str | Path, split: str, num_images: int | None = None, seed: int | None = None
) -> None:
    """Register a crowd of figures (see ``shapes_crowd.py``), in CrowdHuman's format.

    As ``register_shapes``; it lies in ``root``/shapes_crowd/``split``.
    """
    crowd = GeneratedSet(SHAPES_CROWD, Path(root), split, num_images, seed)
    register_crowdhuman(name, crowd.annotations, crowd.images, prepare=crowd.ensure)


def register_all(root: Path) -> None:
    """Register the built-in sets and CrowdHuman, all below ``root``."""
    for split in ("train", "val"):
        register_shapes(f"shapes_{split}", root, split)
        register_shapes_crowd(f"shapes_crowd_{split}", root, split)
        odgt = root / "crowdhuman" / f"annotation_{split}.odgt"
        register_crowdhuman(
            f"crowdhuman_{split}", odgt, odgt.parent / "Images", partial(_demand_crowdhuman, odgt)
        )


def _demand_crowdhuman(odgt: Path) -> None:
    if not odgt.is_file():
        raise DatasetError(
            f"{odgt} does not exist. Download CrowdHuman and put annotation_train.odgt, "
            "annotation_val.odgt and the folder Images there, or let $DETECTRON2_DATASETS name the "
            "folder that holds the folder crowdhuman."
        )
