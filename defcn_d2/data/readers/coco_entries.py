"""The entries of a file in COCO's format, one by one: what is understood, and what is not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...utils.box_fields import annotation_key
from ..errors import DatasetError
from ..json_fields import LIMIT, field, is_number, parse_json, short_repr
from .findings import Findings, Kind
from .paths import check_name

_LISTS = ("images", "annotations", "categories")

_BAD_ENTRY = Kind("entries that cannot be understood", "correct them")
_TWICE = {
    "images": Kind("ids that several images have", "give each image an id of its own"),
    "categories": Kind("ids that several categories have", "give each category an id of its own"),
    # an id of an annotation is a mere number, which nothing refers to
    "annotations": Kind("ids that several annotations have", "they are numbered anew", fatal=False),
}
_BAD_NAME = Kind(
    "images whose 'file_name' is no path below the folder of images",
    "write it relative to that folder, without '..'",
)
_BAD_AREA = Kind(
    "annotations whose 'area' is not a positive number",
    "that of their box is taken",
    fatal=False,
)
_SAME_NAME = Kind("names that several categories have", "is that meant?", fatal=False)
_SAME_FILE = Kind(
    "files that several images name",
    "what is labelled in one of them is background in the other",
    fatal=False,
)
_UNKNOWN_CATEGORY = Kind(
    "annotations whose 'category_id' is not among the categories",
    "add the categories or remove the annotations",
)
_OTHER_TYPE = Kind(
    "annotations whose 'image_id' is of another type than the ids of the images, as \"1\" for 1",
    "write both alike",
)
# a part of a larger set often has the annotations of the whole
_UNKNOWN_IMAGE = Kind(
    "annotations whose 'image_id' is not among the images", "they are left out", fatal=False
)


class CocoImage(NamedTuple):
    """An entry of ``images``; ``size`` is (width, height), None where it has none."""

    id: int | str
    file_name: str
    size: tuple[int, int] | None


class CocoBox(NamedTuple):
    """An entry of ``annotations``; ``box`` is x, y, width, height in pixels.

    ``area`` is that of the object (of its mask, where the file was made from masks), None where
    the entry has none. ``crowd``: a group of objects, by ``iscrowd``, or something to
    ``ignore``. ``extra_boxes`` are further ones by their keys, such as "visible_bbox".
    """

    id: int | str
    image_id: int | str
    category_id: int
    box: list[float]
    area: float | None
    crowd: bool
    extra_boxes: dict[str, list[float]]


def parse(path: Path) -> dict[str, list[Any]]:
    """The three lists of a file in COCO's format; DatasetError where it is none."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        return {name: field(content, name, list) for name in _LISTS}
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"{path} is not JSON, or is cut off ({error}): write or copy it again"
        ) from error
    except ValueError as error:
        raise DatasetError(
            f"{path} is not in COCO's format ({error}): expected a JSON object with the lists "
            f"{', '.join(_LISTS)}"
        ) from error


def read_categories(entries: list[Any], findings: Findings) -> dict[int, str]:
    """Names by id, in the order of the ids."""
    categories = list(_understood("categories", entries, findings))
    _find_repeated(_TWICE["categories"], (id for id, _ in categories), findings)
    _find_repeated(_SAME_NAME, (name for _, name in categories), findings)
    return dict(sorted(categories))


def read_images(entries: list[Any], findings: Findings) -> list[CocoImage]:
    """The images in the order of their ids, as Detectron2 has them."""
    images: list[CocoImage] = list(_understood("images", entries, findings))
    kinds = Counter(type(image.id) for image in images)
    if len(kinds) > 1:
        rare = min(kinds, key=lambda kind: kinds[kind])
        others = "strings" if rare is int else "whole numbers"
        odd = (image for image in images if type(image.id) is rare)
        findings.add_all(_BAD_ENTRY, odd, lambda x: f"image id {short_repr(x.id)} among {others}")
        images = [image for image in images if type(image.id) is not rare]
    _find_repeated(_TWICE["images"], (image.id for image in images), findings)
    _find_repeated(_SAME_FILE, (image.file_name for image in images), findings)
    return sorted(images, key=lambda image: image.id)  # type: ignore[arg-type, return-value]


def read_boxes(
    entries: list[Any],
    images: Iterable[CocoImage],
    categories: dict[int, str],
    findings: Findings,
    extra_boxes: Sequence[str] = (),
) -> list[CocoBox]:
    """The annotations of these images and categories, with the extra boxes of these names."""
    keys = [annotation_key(name) for name in extra_boxes]
    annotations: list[CocoBox] = list(_understood("annotations", entries, findings, keys))
    _find_repeated(_TWICE["annotations"], (a.id for a in annotations), findings)
    findings.add_all(
        _BAD_AREA,
        (x for x in entries if isinstance(x, dict) and not _is_area(x.get("area"))),
        lambda x: f"annotation {short_repr(x.get('id'))} ({short_repr(x['area'])})",
    )
    findings.add_all(
        _UNKNOWN_CATEGORY,
        (a for a in annotations if a.category_id not in categories),
        lambda a: f"annotation {short_repr(a.id)} ({a.category_id})",
    )
    known = {image.id for image in images}
    kinds = {type(id) for id in known}  # one at most: read_images leaves others out
    findings.add_all(
        _OTHER_TYPE,
        (a for a in annotations if kinds and type(a.image_id) not in kinds),
        lambda a: f"annotation {short_repr(a.id)} ({short_repr(a.image_id)})",
    )
    findings.add_all(
        _UNKNOWN_IMAGE,
        (a for a in annotations if a.image_id not in known and type(a.image_id) in kinds),
        lambda a: f"annotation {short_repr(a.id)} ({short_repr(a.image_id)})",
    )
    return [a for a in annotations if a.image_id in known and a.category_id in categories]


def _understood(
    name: str, entries: list[Any], findings: Findings, *arguments: Any
) -> Iterator[Any]:
    readers: dict[str, Callable[..., Any]]
    readers = {"categories": _category, "images": _image, "annotations": _annotation}
    for number, entry in enumerate(entries):
        try:
            yield readers[name](entry, *arguments)
        except _BoxError as error:
            findings.add(error.kind, f"annotation {short_repr(entry['id'])} ({error})")
        except _NameError as error:
            findings.add(_BAD_NAME, f"{name}[{number}] ({error})")
        except ValueError as error:
            findings.add(_BAD_ENTRY, f"{name}[{number}]: {error}")


class _BoxError(ValueError):
    """Not a box; the message is what is there."""

    def __init__(self, key: str, found: str):
        super().__init__(found)
        self.kind = Kind(
            f"annotations whose {key!r} is not four finite numbers, x, y, width and height in "
            "pixels",
            "correct or remove them",
        )


class _NameError(ValueError):
    """Not the name of an image; the message is what is there."""


def _category(entry: Any) -> tuple[int, str]:
    return _id(entry, "id", int), field(entry, "name", str)


def _id(entry: Any, key: str, kind: type | tuple[type, ...] = (int, str)) -> Any:
    value = field(entry, key, kind)
    if isinstance(value, int) and abs(value) >= 2**63:  # what arrays and other programs can hold
        raise ValueError(f"{key!r} must have no more than 64 bits, got {short_repr(value)}")
    return value


def _image(entry: Any) -> CocoImage:
    image_id, file_name = _id(entry, "id"), field(entry, "file_name", str)
    try:
        check_name(file_name)
    except ValueError:
        raise _NameError(short_repr(file_name)) from None
    size = None
    if "width" in entry or "height" in entry:
        size = field(entry, "width", int), field(entry, "height", int)
        if not (0 < min(size) and max(size) < LIMIT):
            raise ValueError(
                f"no image has width {short_repr(size[0])} and height {short_repr(size[1])}"
            )
    return CocoImage(image_id, file_name, size)


def _annotation(entry: Any, extra_keys: Sequence[str]) -> CocoBox:
    annotation_id = _id(entry, "id")
    image_id, category_id = _id(entry, "image_id"), _id(entry, "category_id", int)
    box = _box(entry, "bbox")
    extra_boxes = {key: _box(entry, key) for key in extra_keys if key in entry}
    for key in ("iscrowd", "ignore"):
        if entry.get(key, 0) not in (0, 1):
            raise ValueError(f"{key!r} must be 0 or 1, got {short_repr(entry[key])}")
    area = entry.get("area")
    return CocoBox(
        annotation_id,
        image_id,
        category_id,
        box,
        float(area) if area and _is_area(area) else None,
        bool(entry.get("iscrowd", 0) or entry.get("ignore", 0)),
        extra_boxes,
    )


def _box(entry: dict[str, Any], key: str) -> list[float]:
    if key not in entry:
        raise _BoxError(key, "it has none")
    box = entry[key]
    if not (isinstance(box, list) and len(box) == 4 and all(is_number(x) for x in box)):
        raise _BoxError(key, short_repr(box))
    return box


def _is_area(value: Any) -> bool:
    """Checks that a value is the area of an object in pixels, or absent: None, or 0."""
    if value is None or isinstance(value, bool):
        return value is None
    return isinstance(value, (int, float)) and 0 <= value < LIMIT**2


def _find_repeated(kind: Kind, values: Iterable[Any], findings: Findings) -> None:
    repeated = (value for value, count in Counter(values).items() if count > 1)
    findings.add_all(kind, repeated, short_repr)
