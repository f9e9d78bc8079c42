"""A mapper whose errors name the image, and what becomes of images that cannot be loaded."""

import math
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from .image_limit import check_pixels

Record = dict[str, Any]

#: Key of an image that was skipped, in the input that takes its place: its name and why.
SKIPPED = "skipped"


class ImageError(ValueError):
    """An image, or what is annotated in it, cannot be loaded; one line that names it."""


class CheckedMapper:
    """Loads an image with its annotations; what goes wrong is an ``ImageError``."""

    def __init__(self, mapper: Callable[[Record], Record | None], max_pixels: int = 0):
        """
        Args:
            mapper: from a record in Detectron2's standard format to an input of a model.
            max_pixels: ``INPUT.MAX_PIXELS``.
        """
        self.mapper = mapper
        self.max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool) -> "CheckedMapper":
        """Around Detectron2's ``DatasetMapper``."""
        return cls(DatasetMapper(cfg, is_train), cfg.INPUT.MAX_PIXELS)

    def __call__(self, record: Record) -> Record | None:
        try:
            check_annotations(record.get("annotations", ()))
            check_pixels(record["file_name"], self.max_pixels)
            return self.mapper(record)
        except MemoryError:
            raise
        except Exception as error:
            name = record.get("file_name", f"number {record.get('image_id')}")
            problem = " ".join(str(error).removeprefix(f"{name!r} ").split())
            problem = problem or type(error).__name__
            if type(error) in (KeyError, TypeError, IndexError, AttributeError):
                problem = f"{type(error).__name__}: {problem}"
            raise ImageError(f"image {str(name)!r} cannot be loaded: {problem}") from error


def check_annotations(annotations: list[Record]) -> None:
    """Refuse boxes that no augmentation can be applied to.

    Boxes without an area are left to Detectron2, which leaves them out: COCO has some.

    Raises:
        ValueError: a box is not four finite numbers, or its class is no number from 0.
    """
    for number, annotation in enumerate(annotations):
        box = annotation["bbox"]
        rotated = annotation.get("bbox_mode") == BoxMode.XYWHA_ABS
        if len(box) != 4 + rotated or not all(math.isfinite(x) for x in box):
            raise ValueError(f"annotation {number} has the box {list(box)}, not 4 finite numbers")
        if not annotation["category_id"] >= 0:
            raise ValueError(f"annotation {number} has the class {annotation['category_id']}")


class BlankWhereBroken:
    """For evaluations with ``DATALOADER.ON_ERROR`` "skip": a black image in place of a broken one.

    The image is evaluated, with whatever the model sees in black, which is nothing as a rule: its
    objects count as missed.
    """

    def __init__(self, mapper: CheckedMapper, channels: int):
        self.mapper = mapper
        self.channels = channels

    def __call__(self, record: Record) -> Record | None:
        try:
            return self.mapper(record)
        except ImageError as error:
            blank = torch.zeros(self.channels, 32, 32, dtype=torch.uint8)
            kept = {key: x for key, x in record.items() if key != "annotations"}
            height, width = record.get("height", 32), record.get("width", 32)
            return {**kept, "image": blank, "height": height, "width": width, SKIPPED: str(error)}
