"""Checks of a whole file in COCO's format: images that are not there, odd boxes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ...utils.box_fields import annotation_key
from ..errors import DatasetError
from .coco_entries import CocoBox, CocoImage
from .findings import Findings, Kind
from .missing_files import missing_files

_MISSING = Kind("images that are not there", "put them there or correct the folder of images")
_BACKSLASH = Kind(
    "images that are not there, whose names have backslashes", "write '/', which all systems take"
)
_SWAPPED = Kind(
    "images whose width and height are swapped in the file",
    "write them as they are after the turn of the image's EXIF orientation; where the boxes were "
    "drawn without that turn, remove the orientation from the images",
)
_OTHER_SIZE = Kind(
    "images of another size than the file says",
    "put the annotated images there, or make width, height and boxes those of the images",
)
_NO_AREA = Kind("boxes without area in their image", "they are left out", fatal=False)
_OUTSIDE = Kind(
    "boxes of which more than half lies outside their image",
    "is 'bbox' x, y, width and height in pixels of the image?",
    fatal=False,
)
_CROWDS = Kind(
    "boxes of groups of objects or of what is ignored ('iscrowd' or 'ignore' is 1), which nothing "
    "is learned from",
    "set both to 0 for single objects",
    fatal=False,
)
_FEW = 10  # boxes, which may have any values by chance

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def find_missing(images: Sequence[CocoImage], image_root: Path, findings: Findings) -> None:
    """Images that are not in their folder.

    Raises:
        DatasetError: the folder itself is not there, or one in it cannot be read.
    """
    files = [str(image_root / image.file_name) for image in images]
    try:
        os.listdir(image_root)
        for file in missing_files(files, folders_may_miss=True):
            findings.add(_BACKSLASH if "\\" in file and os.sep == "/" else _MISSING, repr(file))
    except OSError as error:
        raise DatasetError(
            f"the folder of images {str(error.filename)!r} cannot be read ({error.strerror}): put "
            "it there, or correct its name"
        ) from error


def check_sizes(path: Path, image_root: Path, images: Sequence[CocoImage]) -> None:
    """Raise ``DatasetError`` where the file ``path`` gives images another size than they have.

    All headers are read, with progress shown, and remembered: see ``image_sizes``.
    """
    from .image_sizes import image_sizes

    try:
        found = image_sizes(image_root, [image.file_name for image in images], path)
    except DatasetError as error:
        raise DatasetError(f"{error} Or set DATALOADER.ON_ERROR skip") from error
    findings = Findings()
    for image in images:
        size = found[image.file_name]
        if image.size is None or image.size == size:
            continue
        kind = _SWAPPED if image.size == size[::-1] else _OTHER_SIZE
        said, real = (f"{width} x {height}" for width, height in (image.size, size))
        findings.add(kind, f"{image.file_name!r} ({real}, not {said})")
    fatal = findings.sentences(fatal=True)
    if fatal:
        raise DatasetError(f"{path}: {'. '.join(fatal)}")


def check_unit(path: Path, boxes: Floats, sizes: Integers) -> None:
    """Raise ``DatasetError`` where boxes are something else than x, y, width, height in pixels.

    Args:
        path: the file, for the message.
        boxes: (N, 4) as they stand there.
        sizes: (N, 2) width and height of the image of each.
    """
    far = boxes[:, :2] + boxes[:, 2:]
    if (far <= 1).all() and (boxes > 0).any():
        raise DatasetError(
            f"{path}: no box reaches further than 1 pixel, as if 'bbox' were fractions of the "
            "image; write x, y, width and height in pixels"
        )
    # Taken for x, y, width, height, two corners reach beyond the image if they are near its end.
    corners = (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sizes + 1).all()
    if corners and len(boxes) >= _FEW and (far > 1.1 * sizes).any(axis=1).mean() > 0.1:
        raise DatasetError(
            f"{path}: many boxes reach beyond their image, and all look as if 'bbox' were the "
            "corners x1, y1, x2, y2; write x, y, width and height"
        )


def useful_boxes(
    boxes: Floats, sizes: Integers, entries: Sequence[CocoBox], findings: Findings
) -> npt.NDArray[np.bool_]:
    """Mask (N,) bool of the boxes with an area in their image; reports those with little of it.

    Args:
        boxes: (N, 4) x, y, width, height in pixels.
        sizes: (N, 2) width and height of the image of each.
        entries: the N annotations, for the messages.
    """
    sides = (np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)).clip(0)
    inside, whole = sides.prod(axis=1), boxes[:, 2:].clip(0).prod(axis=1)

    def describe(index: int) -> str:
        width, height = sizes[index]
        entry = entries[index]
        return f"annotation {entry.id!r} ({entry.box} in an image of {width} x {height})"

    useful = inside > 0
    findings.add_all(_NO_AREA, np.flatnonzero(~useful), describe)
    findings.add_all(_OUTSIDE, np.flatnonzero(useful & (inside < 0.5 * whole)), describe)
    return useful


def add_crowds(entries: Sequence[CocoBox], findings: Findings) -> None:
    """Count the boxes that are no objects: the reason where a file has no others."""
    crowds = (entry for entry in entries if entry.crowd)
    findings.add_all(_CROWDS, crowds, lambda entry: f"annotation {entry.id!r}")


def lacking_boxes(entries: Sequence[CocoBox], names: Sequence[str]) -> list[str]:
    """A sentence for each name of an extra box that objects, crowds apart, do not have."""
    findings = Findings()
    for name in names:
        key = annotation_key(name)
        findings.add_all(
            Kind(
                f"annotations without {key!r}, which DATASETS.EXTRA_BOXES asks for",
                f"add it to them, or leave {name!r} out there",
            ),
            (entry for entry in entries if not entry.crowd and key not in entry.extra_boxes),
            lambda entry: f"annotation {entry.id!r}",
        )
    return findings.sentences(fatal=True)
