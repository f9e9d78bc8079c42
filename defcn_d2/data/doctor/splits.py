"""Data sets of a config as arrays, and notes of what is odd about them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode

from ...engine.datasets import Record, check_classes, load_records
from ..readers.findings import Findings, Kind
from ..readers.own_data import own_data


@dataclass(frozen=True, eq=False)
class Split:
    """A data set with M images and N objects, crowds apart.

    ``key`` is "TRAIN" or "TEST". ``sizes`` (M, 2) are width and height in pixels, ``boxes`` (N, 4)
    x1, y1, x2, y2 in pixels, ``labels`` (N,) indices into ``classes``, ``images`` (N,) those of
    the images. ``warnings`` are sentences of the reader.
    """

    key: str
    name: str
    records: list[Record]
    classes: list[str]
    sizes: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    images: npt.NDArray[np.int64]
    warnings: list[str]
    findings: Findings

    @property
    def title(self) -> str:
        return f"DATASETS.{self.key} {self.name!r}"

    def counts(self) -> npt.NDArray[np.int64]:
        """(K,) numbers of objects by class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def file(self, image: int) -> str:
        """The quoted name of an image, below the folder of images where that is known."""
        root, file = MetadataCatalog.get(self.name).get("image_root"), self.records[image]
        return repr(file["file_name"].removeprefix(f"{root}{os.sep}"))

    def object(self, index: int) -> str:
        """An object in a message: its image, class and box."""
        box = ", ".join(f"{x:g}" for x in self.boxes[index].round(1))
        return f"{self.file(self.images[index])} ({self.classes[self.labels[index]]}, {box})"

    def note(
        self,
        what: str,
        things: Iterable[Any],
        describe: Callable[[Any], str],
        remedy: str,
        fatal: bool = False,
    ) -> None:
        """Add things to the findings, if there are any; see ``Kind``."""
        self.findings.add_all(Kind(f"{self.title}: {what}", remedy, fatal), things, describe)


def load_split(cfg: CfgNode, key: str, name: str, findings: Findings) -> Split:
    """Load the data set ``name`` of ``DATASETS``'s ``key``.

    Raises:
        UserError: it cannot be read as a whole.
    """
    own = own_data(name)
    if own is not None:
        check_classes(cfg, name)
        records, warnings = own.read().records(), own.read().warnings
    else:
        records, warnings = load_records(cfg, [name], False), []
    objects = [
        (image, x["category_id"], BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS))
        for image, record in enumerate(records)
        for x in record.get("annotations", ())
        if not x.get("iscrowd", 0)
    ]
    return Split(
        key,
        name,
        records,
        list(MetadataCatalog.get(name).thing_classes),
        np.array([(x["width"], x["height"]) for x in records], np.int64).reshape(-1, 2),
        np.array([box for _, _, box in objects], np.float64).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int64),
        np.array([image for image, _, _ in objects], np.int64),
        warnings,
        findings,
    )
