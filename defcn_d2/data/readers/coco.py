"""Anybody's data, checked as a whole before anything is done with them.

They are in COCO's format, or become so (formats.py).

All findings in a file are reported at once: the mistakes with which training cannot work, or would
be silently wrong, as a ``DatasetError``; those with which it makes sense, as warnings.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.structures import BoxMode

from ..errors import DatasetError
from .coco_checks import add_crowds, check_unit, find_missing, lacking_boxes, useful_boxes
from .coco_entries import CocoImage, read_boxes, read_categories, read_images
from .findings import Findings
from .formats import is_voc, read_content, version


@dataclass(frozen=True, eq=False)
class CocoData:
    """The content of a file in COCO's format, without what is left out.

    The boxes, N in all, are in the order of their images: ``boxes`` (N, 4) are x, y, width and
    height in pixels; ``areas`` (N,) those of the objects, for the evaluation by size; ``crowd``
    (N,) bool; ``classes`` (N,) indices into the categories; ``image_indices`` (N,). ``sizes`` of
    the images are width and height. ``extra_boxes`` are N dicts of further boxes by their keys in
    annotations. ``warnings`` are sentences; those of ``lacking`` say which of the extra boxes
    objects do not have, which makes training impossible.
    """

    path: Path
    image_root: Path
    categories: dict[int, str]
    images: list[CocoImage]
    sizes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    classes: npt.NDArray[np.int64]
    image_indices: npt.NDArray[np.int64]
    extra_boxes: list[dict[str, list[float]]]
    warnings: list[str]
    lacking: list[str]

    def records(self) -> list[dict[str, Any]]:
        """Records in Detectron2's standard format, as by its ``load_coco_json``, without masks."""
        records: list[dict[str, Any]] = [
            {
                "file_name": os.path.join(self.image_root, image.file_name),
                "height": height,
                "width": width,
                "image_id": image.id,
                "annotations": [],
            }
            for image, (width, height) in zip(self.images, self.sizes.tolist(), strict=True)
        ]
        for box, crowd, label, image, extra_boxes in zip(
            self.boxes.tolist(),
            self.crowd.tolist(),
            self.classes.tolist(),
            self.image_indices.tolist(),
            self.extra_boxes,
            strict=True,
        ):
            records[image]["annotations"].append(
                {
                    "iscrowd": int(crowd),
                    "bbox": box,
                    "category_id": label,
                    "bbox_mode": BoxMode.XYWH_ABS,
                    **extra_boxes,
                }
            )
        return records

    def ground_truth(self) -> dict[str, Any]:
        """The content of a file for pycocotools, complete.

        Annotations are numbered from 1: COCO's evaluation takes a match with number 0 for none.
        """
        category_ids, image_ids = list(self.categories), [image.id for image in self.images]
        return {
            "info": {},
            "images": [
                {"id": image.id, "file_name": image.file_name, "width": width, "height": height}
                for image, (width, height) in zip(self.images, self.sizes.tolist(), strict=True)
            ],
            "categories": [{"id": id, "name": name} for id, name in self.categories.items()],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_ids[image],
                    "category_id": category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
                for number, (image, label, box, area, crowd) in enumerate(
                    zip(
                        self.image_indices.tolist(),
                        self.classes.tolist(),
                        self.boxes.tolist(),
                        self.areas.tolist(),
                        self.crowd.tolist(),
                        strict=True,
                    ),
                    start=1,
                )
            ],
        }


def read_coco(
    annotations: str | Path,
    image_root: str | Path,
    extra_boxes: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> CocoData:
    """Read and check annotations; remembered for as long as their files stay the same.

    Args:
        annotations: a file in COCO's format, or what ``formats.py`` makes one of.
        image_root: the folder that its ``file_name`` are relative to. Images without width
            and height in the file are read there.
        extra_boxes: names of ``DATASETS.EXTRA_BOXES``.
        classes: of the training data, in their order, where they are known: those of VOC's
            files must be among them. Other formats have an order of their own.

    Raises:
        DatasetError: the file or images are missing, or a mistake makes training impossible or
            silently wrong; the message has all of them, counted, with the first examples.
    """
    path, root = Path(annotations), Path(image_root)
    named = tuple(classes) if is_voc(path) else ()
    return _read(path, root, tuple(extra_boxes), named, version(path, root))


@functools.lru_cache(maxsize=4)
def _read(
    path: Path,
    image_root: Path,
    extra_boxes: tuple[str, ...],
    classes: tuple[str, ...],
    state: int,
) -> CocoData:
    # Entries one by one; mistakes that exclude training end here.
    findings = Findings()
    content = read_content(path, image_root, classes, findings)
    categories = read_categories(content["categories"], findings)
    images = read_images(content["images"], findings)
    entries = read_boxes(content["annotations"], images, categories, findings, extra_boxes)
    find_missing(images, image_root, findings)
    fatal = findings.sentences(fatal=True)
    if fatal:
        raise DatasetError(f"{path}: {'. '.join(fatal)}")

    # Boxes in the order of their images, checked against the sizes of these.
    places = {image.id: place for place, image in enumerate(images)}
    entries.sort(key=lambda entry: places[entry.image_id])
    indices = np.array([places[entry.image_id] for entry in entries], np.int64)
    sizes = _sizes(path, image_root, images)
    boxes = np.array([entry.box for entry in entries], np.float64).reshape(-1, 4)
    check_unit(path, boxes, sizes[indices])
    useful = useful_boxes(boxes, sizes[indices], entries, findings)
    crowd = np.array([entry.crowd for entry in entries], bool)
    if not (useful & ~crowd).any():
        add_crowds(entries, findings)
    warnings = findings.sentences(fatal=False)
    if not (useful & ~crowd).any():
        raise DatasetError(". ".join([f"{path} has no boxes that are of use", *warnings]))

    # The boxes that are of use, as arrays.
    areas = [entry.area or entry.box[2] * entry.box[3] for entry in entries]
    labels = {category: label for label, category in enumerate(categories)}
    return CocoData(
        path,
        image_root,
        categories,
        images,
        sizes,
        boxes[useful],
        np.array(areas, np.float64)[useful],
        crowd[useful],
        np.array([labels[entry.category_id] for entry in entries], np.int64)[useful],
        indices[useful],
        [entry.extra_boxes for entry, kept in zip(entries, useful, strict=True) if kept],
        warnings,
        lacking_boxes(entries, extra_boxes),
    )


def _sizes(path: Path, image_root: Path, images: Sequence[CocoImage]) -> npt.NDArray[np.int64]:
    """Widths and heights (number of images, 2), read from the images where ``path`` is silent."""
    unknown = [image.file_name for image in images if image.size is None]
    found = {}
    if unknown:
        from .image_sizes import image_sizes

        found = image_sizes(image_root, unknown, path)
    sizes = [image.size or found[image.file_name] for image in images]
    return np.array(sizes, np.int64).reshape(-1, 2)
