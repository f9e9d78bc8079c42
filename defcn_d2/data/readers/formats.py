"""Formats of annotations, told apart by their path: COCO's, YOLO's and Pascal VOC's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from . import voc, yolo
from .coco_entries import parse
from .findings import Findings

YOLO_SUFFIXES = (".yaml", ".yml")


def is_yolo(path: Path) -> bool:
    """Checks for a ``data.yaml`` of YOLO's format."""
    return path.suffix.lower() in YOLO_SUFFIXES


def is_voc(path: Path) -> bool:
    """Checks for a folder of xml files, or a list of some of them."""
    return path.is_dir() or path.suffix.lower() == ".txt"


def default_images(path: Path, split: str) -> str:
    """The folder of images that annotations lead to, for ``split``, "train" or "val".

    It is "" for COCO's format, which says nothing of it.

    Raises:
        DatasetError: it is not there, or not known.
    """
    for is_format, module in ((is_yolo, yolo), (is_voc, voc)):
        if is_format(path):
            return module.image_folder(path, split)
    return ""


def version(path: Path, image_root: Path) -> int:
    """A number that changes with the files that annotations consist of.

    Raises:
        DatasetError: ``path``, or a folder that has to be searched, cannot be read.
    """
    try:
        path.stat()
        names = [str(path)]
        for is_format, module in ((is_yolo, yolo), (is_voc, voc)):
            if is_format(path):
                names = module.files(path, image_root)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    return hash(tuple((name, _state(name)) for name in names))


def _state(name: str) -> tuple[int, int] | None:
    try:
        state = os.stat(name)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def read_content(
    path: Path, image_root: Path, classes: Sequence[str], findings: Findings
) -> dict[str, list[Any]]:
    """The lists ``categories``, ``images`` and ``annotations`` of COCO's format, of any format.

    Mistakes in single entries are added to ``findings``.

    Args:
        classes: names of the classes of the training data, which those of VOC's files must be;
            none: the names are those of these files.

    Raises:
        DatasetError: the annotations cannot be read at all.
    """
    if is_yolo(path):
        return yolo.read(path, image_root, findings)
    if is_voc(path):
        return voc.read(path, image_root, findings, classes)
    return parse(path)
