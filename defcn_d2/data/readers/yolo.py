"""YOLO's format: ``data.yaml`` names the classes, and each image has a file of labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ..errors import DatasetError
from ..json_fields import short_repr
from .findings import Findings, Kind
from .image_files import image_files
from .image_sizes import image_sizes

_BAD_LINE = Kind(
    "lines of labels that cannot be understood",
    "write the number of the class and x, y of the centre, width and height of the box (or the "
    "corners of a polygon) as fractions of the image",
)
_NO_LABELS = Kind(
    "images without a file of labels", "they count as images without objects", fatal=False
)
_NO_IMAGE = Kind("files of labels whose image is not there", "they are left out", fatal=False)
_BOX, _LEAST_POLYGON = 4, 6  # numbers after that of the class
_TOLERANCE = 0.01  # of fractions: many writers round


def image_folder(path: Path, split: str) -> str:
    """The folder of images that ``data.yaml`` names for ``split``, "train" or "val".

    Raises:
        DatasetError: it names none, or one that is not there.
    """
    content = _read_yaml(path)
    given = content.get(split)
    root = path.parent / str(content.get("path") or "")
    # some writers give "../train/images" for train/images beside the file
    for name in (given, str(given).removeprefix("../")):
        for start in (root, path.parent):
            if isinstance(name, str) and name and (start / name).is_dir():
                return os.path.abspath(start / name)
    raise DatasetError(
        f"{path}: {split!r} is {_shown(given)}, and no folder of that name is there; correct it, "
        "or give the folder of images"
    )


def files(path: Path, image_root: Path) -> list[str]:
    """The files that the content of a set depends on, there or not."""
    return [str(path), *(_label_file(image_root / name) for name in image_files(image_root))]


def read(path: Path, image_root: Path, findings: Findings) -> dict[str, list[Any]]:
    """The content as of a file in COCO's format; ids of categories are YOLO's numbers.

    The id of an annotation is its file and line. Bad lines are added to ``findings``.

    Raises:
        DatasetError: ``path`` has no classes, or no image has a file of labels.
    """
    names, keypoints = _classes(path)
    images = image_files(image_root)
    labels = {name: _label_file(image_root / name) for name in images}
    lines = {name: found for name, file in labels.items() if (found := _lines(file)) is not None}
    if not lines:
        example = f", such as {next(iter(labels.values()))!r}" if labels else ""
        raise DatasetError(
            f"{path}: none of the {len(images)} images in {str(image_root)!r} has a file of "
            f"labels{example}; put them there, or correct the folder of images"
        )
    findings.add_all(_NO_LABELS, (name for name in images if name not in lines), repr)
    findings.add_all(_NO_IMAGE, _others(labels.values()), repr)
    sizes = image_sizes(image_root, images, path)
    annotations = []
    for number, name in enumerate(images, start=1):
        file = os.path.relpath(labels[name], path.parent)
        for line, text in lines.get(name, ()):
            try:
                label, (x, y, w, h) = _parse(text, names, keypoints)
            except ValueError as error:
                findings.add(_BAD_LINE, f"{file}:{line} ({error})")
                continue
            width, height = sizes[name]
            box = [x * width, y * height, w * width, h * height]
            place = {"id": f"{file}:{line}", "image_id": number}
            annotations.append({**place, "category_id": label, "bbox": box})
    return {
        "categories": [{"id": label, "name": name} for label, name in names.items()],
        "images": [
            {"id": number, "file_name": name, "width": sizes[name][0], "height": sizes[name][1]}
            for number, name in enumerate(images, start=1)
        ],
        "annotations": annotations,
    }


def _label_file(image: Path) -> str:
    """``labels`` instead of the last folder ``images``; beside the image where there is none."""
    file = os.path.abspath(image.with_suffix(".txt"))
    before, found, after = file.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}" if found else after


def _others(labels: Iterable[str]) -> Iterator[str]:
    """Files in the folders named labels that are none of these."""
    known = set(labels)
    for folder in sorted({os.path.dirname(file) for file in known}):
        if "labels" in Path(folder).parts and os.path.isdir(folder):
            names = sorted(name for name in os.listdir(folder) if name.endswith(".txt"))
            files = (os.path.join(folder, name) for name in names if name != "classes.txt")
            yield from (file for file in files if file not in known)


def _lines(file: str) -> list[tuple[int, str]] | None:
    """Number and text of the lines that are not empty; None where there is no such file."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = f"the labels {file!r} cannot be read ({error}); write them again"
        raise DatasetError(reason) from error
    return [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _parse(
    text: str, names: dict[int, str], keypoints: bool
) -> tuple[int, tuple[float, float, float, float]]:
    """Class and box x, y, width, height, as fractions; ValueError says what is wrong."""
    try:
        label, *values = map(float, text.split())
    except ValueError:
        raise ValueError(f"{short_repr(text)} are not numbers alone") from None
    if label not in names:
        raise ValueError(f"the class {label:g} is not among the {len(names)} of the yaml")
    if keypoints:
        values = values[:_BOX]
    if not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in values):  # NaN is not
        raise ValueError(f"{short_repr(text)} has numbers that are no fractions")
    if len(values) == _BOX:
        x, y, w, h = values
        return int(label), (x - w / 2, y - h / 2, max(w, 0.0), max(h, 0.0))
    if len(values) >= _LEAST_POLYGON and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return int(label), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    raise ValueError(f"{len(values)} numbers after the class are neither a box nor a polygon")


def _classes(path: Path) -> tuple[dict[int, str], bool]:
    """Names of the classes by their numbers, and whether lines end with keypoints."""
    content = _read_yaml(path)
    names = content.get("names")
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or not names:
        raise DatasetError(f"{path} has no 'names' of classes; give a list of them")
    if not all(type(number) is int and number >= 0 for number in names):
        raise DatasetError(f"{path}: the keys of 'names' must be the numbers of the classes")
    if content.get("nc", len(names)) != len(names):
        raise DatasetError(
            f"{path} has {len(names)} 'names', but 'nc' is {_shown(content['nc'])}; correct one"
        )
    texts = {k: str(x) if type(x) in (int, float) else x for k, x in sorted(names.items())}
    return texts, "kpt_shape" in content


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is not YAML ({reason}): correct or copy it again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is no data.yaml of YOLO's format, which has 'names' of classes")
    return content


def _shown(value: Any) -> str:
    # aliases make lists of lists that are too long to be written
    return repr(value) if isinstance(value, (str, int, float, type(None))) else "no name"
