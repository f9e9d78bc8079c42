"""A mapper whose errors name the image, and what becomes of images that cannot be loaded."""

import math
from collections.abc import Callable, Sequence
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, dataset_mapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from ..utils.box_fields import annotation_key
from .extra_boxes import ExtraBoxesMapper, extra_box_names
from .image_limit import check_pixels
from .image_reading import read_image

Record = dict[str, Any]

#: Key of an image that was skipped, in the input that takes its place: its name and why.
SKIPPED = "skipped"


class ImageError(ValueError):
    """An image, or what is annotated in it, cannot be loaded; one line that names it."""


class ImageMapper(DatasetMapper):
    """Detectron2's mapper with images by ``read_image`` of this project, which it cannot be given.

    Its own method runs among other names, so that neither version of it has to be repeated here.
    ``INPUT.SCALE_JITTER`` takes the place of the resizing by ``INPUT.MIN_SIZE_TRAIN``.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        node = cfg.INPUT.SCALE_JITTER
        if is_train and node.ENABLED:
            jitter = [
                T.ResizeScale(*node.RANGE, node.SIZE, node.SIZE),
                T.RandomCrop("absolute", (node.SIZE, node.SIZE)),
            ]
            resize = [type(x) for x in arguments["augmentations"]].index(T.ResizeShortestEdge)
            arguments["augmentations"][resize : resize + 1] = jitter
        return arguments

    __call__ = FunctionType(
        DatasetMapper.__call__.__code__,
        {
            **vars(dataset_mapper),
            "utils": SimpleNamespace(**{**vars(detection_utils), "read_image": read_image}),
        },
    )


class CheckedMapper:
    """Loads an image with its annotations; what goes wrong is an ``ImageError``."""

    def __init__(
        self,
        mapper: Callable[[Record], Record | None],
        max_pixels: int = 0,
        extra_boxes: Sequence[str] = (),
    ):
        """
        Args:
            mapper: from a record in Detectron2's standard format to an input of a model.
            max_pixels: ``INPUT.MAX_PIXELS``.
            extra_boxes: names of ``DATASETS.EXTRA_BOXES`` that objects must have.
        """
        self.mapper = mapper
        self.max_pixels = max_pixels
        self.extra_boxes = extra_boxes

    @classmethod
    def from_config(
        cls, cfg: CfgNode, is_train: bool, ground_truth: bool = False
    ) -> "CheckedMapper":
        """Around Detectron2's mapper; extra boxes are for training, as ground truth is.

        Args:
            ground_truth: give it in evaluation as well, at the size for tests.
        """
        names = extra_box_names(cfg) if is_train or ground_truth else ()
        mapper = ImageMapper(cfg, is_train)
        if ground_truth and not is_train:
            resize = detection_utils.build_augmentation(cfg, is_train=False)
            mapper = ImageMapper(cfg, is_train=True, augmentations=resize)
        return cls(
            ExtraBoxesMapper(mapper, names) if names else mapper, cfg.INPUT.MAX_PIXELS, names
        )

    def __call__(self, record: Record) -> Record | None:
        try:
            check_annotations(record.get("annotations", ()), self.extra_boxes)
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


def check_annotations(annotations: Sequence[Record], extra_boxes: Sequence[str] = ()) -> None:
    """Refuse boxes that no augmentation can be applied to.

    Boxes without an area are left to Detectron2, which leaves them out: COCO has some.

    Args:
        annotations: of an image, in Detectron2's standard format.
        extra_boxes: names of ``DATASETS.EXTRA_BOXES``; crowds need none.

    Raises:
        ValueError: a box is not four finite numbers, an extra one is missing, or the class is no
            number from 0.
    """
    for number, annotation in enumerate(annotations):
        sides = 4 + (annotation.get("bbox_mode") == BoxMode.XYWHA_ABS)
        keys = [] if annotation.get("iscrowd", 0) else map(annotation_key, extra_boxes)
        for key in ("bbox", *keys):
            if key != "bbox" and key not in annotation:
                raise ValueError(
                    f"annotation {number} has no {key!r}, which DATASETS.EXTRA_BOXES asks for"
                )
            box = annotation[key]
            if len(box) != sides or not all(math.isfinite(x) for x in box):
                raise ValueError(
                    f"annotation {number} has the {key} {list(box)}, not 4 finite numbers"
                )
        if not annotation["category_id"] >= 0:
            raise ValueError(f"annotation {number} has the class {annotation['category_id']}")


class BlankWhereBroken:
    """Mapper for evaluations with ``DATALOADER.ON_ERROR`` "skip": broken images become black.

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
