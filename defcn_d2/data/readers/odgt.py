"""CrowdHuman's annotation format (.odgt), one JSON object per line: checked as it is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError
from ..json_fields import parse_json
from .paths import check_name

LIMIT = 1e7  # pixels: a coordinate beyond it is a mistake


class AnnotationError(DatasetError, ValueError):
    """A line of an annotation file is not what it should be; the message has its number."""


@dataclass(frozen=True)
class OdgtImage:
    """An annotated image; ``boxes`` (G, 4) are full boxes x, y, w, h in pixels, not clipped.

    ``ignored`` (G,) bool marks ignore regions: a tag other than ``person``, or ``extra.ignore``
    not zero. ``size`` is (width, height), None where the line does not tell.
    """

    id: str
    boxes: npt.NDArray[np.float64]
    ignored: npt.NDArray[np.bool_]
    size: tuple[int, int] | None

    @property
    def file_name(self) -> str:
        """The image's path below the folder of images."""
        return f"{self.id}.jpg"


def read_odgt(path: Path) -> list[OdgtImage]:
    """All images of an annotation file. AnnotationError tells a bad line's file and number."""
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
        np.array([box for box, _ in people], np.float64).reshape(-1, 4),
        np.array([ignored for _, ignored in people], bool),
        _size(value),
    )


def _box(value: Any, number: int) -> tuple[list[float], bool]:
    """The full box of an entry of ``gtboxes``, and whether it is an ignore region."""
    try:
        tag = field(value, "tag", str)
        full = field(value, "fbox", list)
        if not is_box(full):
            raise ValueError(f"fbox must be x, y, width, height in pixels, got {shown(full)}")
        extra = field(value, "extra", dict) if "extra" in value else {}
        ignore = extra.get("ignore", 0)
        if not (is_number(ignore) or isinstance(ignore, bool)):
            raise ValueError(f"extra.ignore must be a number, got {shown(ignore)}")
    except ValueError as error:
        raise ValueError(f"gtboxes[{number}]: {error}") from None
    return full, tag != "person" or ignore != 0


def _size(value: dict[str, Any]) -> tuple[int, int] | None:
    if "width" not in value and "height" not in value:
        return None
    width, height = field(value, "width", int), field(value, "height", int)
    if not (0 < width < LIMIT and 0 < height < LIMIT):
        raise ValueError(f"no image has width {shown(width)} and height {shown(height)}")
    return width, height


_NAMES: dict[type | tuple[type, ...], str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "a whole number",
    (int, str): "a whole number or a string",
}


def field(value: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """The value of key ``name`` of a JSON object; ValueError unless there, and of this kind."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {shown(value)}")
    if name not in value:
        found = [key if key.isidentifier() else repr(key) for key in list(value)[:10]]
        keys = f" (its keys: {', '.join(found)})" if value else ""
        raise ValueError(f"{name!r} is missing{keys}")
    if not isinstance(value[name], kind) or isinstance(value[name], bool):
        raise ValueError(f"{name!r} must be {_NAMES[kind]}, got {shown(value[name])}")
    if isinstance(value[name], str) and not _is_text(value[name]):
        raise ValueError(f"{name!r} has a character that no file can hold, {shown(value[name])}")
    return value[name]


def _is_text(value: str) -> bool:
    r"""Whether it can be encoded: JSON can hold halves of characters, such as "\ud800"."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_box(value: Any) -> bool:
    """Four numbers x, y, w, h, the latter two not negative."""
    numbers = isinstance(value, list) and len(value) == 4 and all(is_number(v) for v in value)
    return numbers and min(value[2:]) >= 0


def is_number(value: Any) -> bool:
    """Finite and sensible; NaN and infinities, which Python's JSON accepts, are not."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and -LIMIT < value < LIMIT
    )


def shown(value: Any) -> str:
    """A value for an error message, cut if long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} of great depth"
    return text if len(text) <= 60 else text[:57] + "..."
