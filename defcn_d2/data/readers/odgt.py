"""CrowdHuman's annotation format (.odgt), one JSON object per line: checked as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError
from ..json_fields import LIMIT, field, is_box, is_number, parse_json, short_repr
from .paths import check_name


class AnnotationError(DatasetError, ValueError):
    """A line of an annotation file is not what it should be; the message has its number."""


@dataclass(frozen=True)
class OdgtImage:
    """An annotated image; ``boxes`` (G, 4) are full boxes x, y, w, h in pixels, not clipped.

    ``ignored`` (G,) bool marks ignore regions: a tag other than ``person``, or ``extra.ignore``
    not zero. ``visible_boxes`` are the boxes of what is seen of each, None where there is no such
    box. ``size`` is (width, height), None where the line has none.
    """

    id: str
    boxes: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]
    visible_boxes: list[list[float] | None]
    size: tuple[int, int] | None

    @property
    def file_name(self) -> str:
        """The image's path below the folder of images."""
        return f"{self.id}.jpg"


def read_odgt(path: Path) -> list[OdgtImage]:
    """All images of an annotation file. AnnotationError names a bad line's file and number."""
    images: list[OdgtImage] = []
    first_lines: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            image = _image(line)
            if image.id in first_lines:
                raise ValueError(f"ID {image.id!r} stands in line {first_lines[image.id]} already")
        except ValueError as error:
            raise AnnotationError(f"{path}, line {number}: {error}") from None
        first_lines[image.id] = number
        images.append(image)
    if not images:
        raise AnnotationError(f"{path} holds no images: expected one JSON object per line")
    return images


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def _image(line: bytes) -> OdgtImage:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise ValueError(f"not a JSON object ({error})") from None
    image_id = field(value, "ID", str)
    try:
        check_name(image_id)
    except ValueError as error:
        raise ValueError(f"ID {error}; write it relative to that folder, without '..'") from None
    people = [_box(box, number) for number, box in enumerate(field(value, "gtboxes", list))]
    return OdgtImage(
        image_id,
        np.array([box for box, _, _ in people], np.float64).reshape(-1, 4),
        np.array([ignored for _, ignored, _ in people], bool),
        [visible for _, _, visible in people],
        _size(value),
    )


def _box(value: Any, number: int) -> tuple[list[float], bool, list[float] | None]:
    """The full box of an entry of ``gtboxes``, whether it is an ignore region, the visible box.

    Only those who ask for visible boxes need them: without a good one it is None.
    """
    try:
        tag = field(value, "tag", str)
        full = field(value, "fbox", list)
        if not is_box(full):
            raise ValueError(f"fbox must be x, y, width, height in pixels, got {short_repr(full)}")
        extra = field(value, "extra", dict) if "extra" in value else {}
        ignore = extra.get("ignore", 0)
        if not (is_number(ignore) or isinstance(ignore, bool)):
            raise ValueError(f"extra.ignore must be a number, got {short_repr(ignore)}")
    except ValueError as error:
        raise ValueError(f"gtboxes[{number}]: {error}") from None
    visible = value.get("vbox")
    return full, tag != "person" or ignore != 0, visible if is_box(visible) else None


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
    if "width" not in value and "height" not in value:
        return None
    width, height = field(value, "width", int), field(value, "height", int)
    if not (0 < width < LIMIT and 0 < height < LIMIT):
        raise ValueError(f"no image has width {short_repr(width)} and height {short_repr(height)}")
    return width, height
