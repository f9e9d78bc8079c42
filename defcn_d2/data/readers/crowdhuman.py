"""CrowdHuman for Detectron2: dataset dicts from .odgt files, and the data sets' registration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ...utils.box_fields import annotation_key
from ..errors import DatasetError
from .odgt import OdgtImage, read_odgt


def read_images(odgt: Path, image_root: Path | None) -> list[OdgtImage]:
    """The images of an .odgt file, each with its size: from its line, else from the image itself.

    Raises DatasetError where the file, or an image whose size must be read, is missing,
    AnnotationError for a bad line. ``image_root`` may be None where the lines have all sizes.
    """
    try:
        images = read_odgt(odgt)
    except OSError as error:
        raise DatasetError(f"cannot read {odgt}: {error.strerror}") from error
    unknown = [image.file_name for image in images if image.size is None]
    if not unknown:
        return images
    if image_root is None:
        raise DatasetError(
            f"{len(unknown)} of the {len(images)} lines of {odgt} have no width and height: "
            "name the folder of images, so that they can be read there"
        )
    from .image_sizes import image_sizes

    found = image_sizes(image_root, unknown, odgt)
    return [
        dataclasses.replace(image, size=image.size or found[image.file_name]) for image in images
    ]


def load_crowdhuman(odgt: Path, image_root: Path) -> list[dict[str, Any]]:
    """The dataset dicts of an .odgt file: full boxes of category 0, person; ``image_id`` is the ID.

    Visible boxes stand beside them, as ``visible_bbox``, for ``DATASETS.EXTRA_BOXES`` ["visible"].
    Ignore regions have ``iscrowd`` 1, by which Detectron2 keeps them out of training:
    ``DatasetMapper`` drops them, so that their area is background, as in the original. An image
    that has nothing else is left out where DATALOADER.FILTER_EMPTY_ANNOTATIONS says so.
    """
    dicts = []
    for image in read_images(odgt, image_root):
        assert image.size is not None
        width, height = image.size
        annotations = [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": 0,
                "iscrowd": int(ignored),
                **({annotation_key("visible"): visible} if visible else {}),
            }
            for box, ignored, visible in zip(
                image.boxes.tolist(), image.ignored, image.visible_boxes, strict=True
            )
        ]
        dicts.append(
            {
                "file_name": str(image_root / image.file_name),
                "image_id": image.id,
                "width": width,
                "height": height,
                "annotations": annotations,
            }
        )
    return dicts


def register_crowdhuman(
    name: str, odgt: str | Path, image_root: str | Path, prepare: Callable[[], Any] | None = None
) -> None:
    """Register a data set in CrowdHuman's format; ``prepare`` is called before it is read.

    Its metadata have ``evaluator_type`` "crowdhuman", ``odgt_file`` and ``image_root``, the folder
    in which the image of ID x is x.jpg.
    """

    def load() -> list[dict[str, Any]]:
        if prepare is not None:
            prepare()
        return load_crowdhuman(Path(odgt), Path(image_root))

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        odgt_file=str(odgt),
        image_root=str(image_root),
        thing_classes=["person"],
        evaluator_type="crowdhuman",
    )
