"""Files of data that tools/trust/fuzz_files.py damages: whole ones, their readers, the judgement.

A kind writes whole files into a folder, of which one is damaged at a time, and reads them as the
project does. What it reads is judged: against the whole files where damage must be noticed, by
what makes sense where it cannot be, as a digit of a number in a JSON file.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from defcn_d2.data import DatasetError, load_crowdhuman
from defcn_d2.data.image_limit import ImageTooLarge, check_pixels
from defcn_d2.data.readers import coco
from defcn_d2.evaluation.results import read_results
from fuzzing.file_damage import CHANGES, DAMAGE, Damage

WIDTH, HEIGHT = 64, 48
_JSON = (".json", ".odgt")


class Wrong(Exception):
    """The content read is not that of the file."""


class Kind(ABC):
    """A kind of files; ``damaged`` are the names of those that are damaged, below the folder."""

    name: str
    damaged: tuple[str, ...]
    #: What a reader may raise, with a message that names the file.
    errors: tuple[type[Exception], ...] = (DatasetError,)

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True)
        self.write()
        self.whole = {name: (folder / name).read_bytes() for name in self.damaged}
        self.expected = self.read()

    @abstractmethod
    def write(self) -> None:
        """Write whole files."""

    @abstractmethod
    def read(self) -> Any:
        """The project's reader, applied to the files."""

    def judge(self, found: Any) -> str:
        """Outcome for a file that was read without an error.

        Raises:
            Wrong: it should not have been, or not so.
        """
        raise Wrong("damage that was not noticed")

    def ways(self, name: str) -> Mapping[str, Damage]:
        """How a file is damaged."""
        return {**DAMAGE, **CHANGES} if name.endswith(_JSON) else DAMAGE

    def names(self, message: str, name: str) -> bool:
        """Whether an error names the damaged file, in one line of a length that can be read."""
        first, *rest = message.split("\n")
        is_list = all(line.startswith("  ") for line in rest)  # of weights that do not fit
        return str(self.folder / name) in first and is_list and len(first) < 2000


class CocoFile(Kind):
    name = "COCO JSON"
    damaged = ("annotations.json",)

    def write(self) -> None:
        (self.folder / "images" / "deep").mkdir(parents=True)
        names = ["a.png", "deep/b.png", "deep/c.png", "empty.png"]
        for name in names:
            Image.new("RGB", (WIDTH, HEIGHT)).save(self.folder / "images" / name)
        boxes: list[tuple[int, int, list[float]]] = [
            (31, 3, [4, 6, 20, 30]),
            (31, 7, [30.5, 10.25, 24, 20]),
            (11, 7, [2, 2, 40, 40]),
        ]
        content = {
            "info": {"year": 2026, "contributor": "nobody"},
            "images": [
                {"id": 10 * i + 1, "file_name": name, "width": WIDTH, "height": HEIGHT}
                for i, name in zip((3, 1, 2, 0), names)
            ],
            "categories": [{"id": 20, "name": "bird"}, {"id": 3, "name": "cat"}]
            + [{"id": 7, "name": "dog", "supercategory": "animal"}],
            "annotations": [
                {"id": 100 + i, "image_id": image, "category_id": category, "bbox": box}
                | {"area": box[2] * box[3], "iscrowd": int(i == 2), "segmentation": []}
                for i, (image, category, box) in enumerate(boxes)
            ],
        }
        (self.folder / self.damaged[0]).write_text(json.dumps(content))

    def read(self) -> Any:
        coco._read.cache_clear()
        return coco.read_coco(self.folder / self.damaged[0], self.folder / "images")

    def judge(self, found: Any) -> str:
        records = found.records()
        boxes = [x["bbox"] for record in records for x in record["annotations"]]
        content = json.loads((self.folder / self.damaged[0]).read_bytes())
        left_out = len(content["annotations"]) - len(boxes)
        if len(content["images"]) != len(records) or left_out and not found.warnings:
            raise Wrong(f"{left_out} annotations that nobody told of")
        judge_boxes(boxes)
        root = (self.folder / "images").resolve()
        for record in records:
            if not Path(record["file_name"]).resolve().is_relative_to(root):
                raise Wrong(f"an image outside, {record['file_name']!r}")
        with contextlib.redirect_stdout(io.StringIO()):
            api = COCO()
            api.dataset = found.ground_truth()
            api.createIndex()
        same = records == self.expected.records() and found.categories == self.expected.categories
        return "the same" if same and not found.warnings else "told" if found.warnings else "other"


def judge_boxes(boxes: list[list[float]]) -> None:
    """Raise ``Wrong`` for a box that is none."""
    for box in boxes:
        if not (len(box) == 4 and all(map(math.isfinite, box)) and min(box[2:]) >= 0):
            raise Wrong(f"a box {box}")


class OdgtFile(Kind):
    name = "CrowdHuman odgt"
    damaged = ("annotation.odgt",)

    def write(self) -> None:
        def person(*box: float, **extra: int) -> dict[str, Any]:
            return {"tag": "person", "fbox": box, "hbox": [0, 0, 1, 1], "extra": extra}

        size = {"width": WIDTH, "height": HEIGHT}
        lines = [
            {"ID": "273271,1a0d", "gtboxes": [person(10, 20, 30, 40), person(-5, -8, 30.5, 90)]},
            {"ID": "b", "gtboxes": [{"tag": "mask", "fbox": [0, 0, 5, 5]}, person(1, 1, 2, 2)]},
            {"ID": "deep/c", "gtboxes": [person(1, 1, 9, 9, ignore=1)]},
        ]
        path = self.folder / self.damaged[0]
        path.write_text("".join(json.dumps({**line, **size}) + "\n" for line in lines))

    def read(self) -> Any:
        return load_crowdhuman(self.folder / self.damaged[0], self.folder / "images")

    def judge(self, found: Any) -> str:
        content = (self.folder / self.damaged[0]).read_bytes()
        lines = [json.loads(line) for line in content.split(b"\n") if line.strip()]
        counts = [len(record["annotations"]) for record in found]
        if [len(line["gtboxes"]) for line in lines] != counts:
            raise Wrong("boxes or images that nobody told of")
        judge_boxes([x["bbox"] for record in found for x in record["annotations"]])
        return "the same" if found == self.expected else "other"


class ResultsFile(Kind):
    name = "results JSON"
    damaged = ("results.json",)

    def write(self) -> None:
        results = [
            {"image_id": i % 3, "category_id": i, "bbox": [i, 2.5, 30, 4], "score": 1 / (i + 1)}
            for i in range(6)
        ]
        (self.folder / self.damaged[0]).write_text(json.dumps(results))

    def read(self) -> Any:
        return read_results(self.folder / self.damaged[0], range(3))

    def judge(self, found: Any) -> str:
        content = json.loads((self.folder / self.damaged[0]).read_bytes())
        rows = np.concatenate([np.zeros((0, 6)), *found.values()])
        if len(rows) != len(content) or not np.isfinite(rows).all():
            raise Wrong("detections that are missing, or not finite")
        same = found.keys() == self.expected.keys() and all(
            np.array_equal(found[key], self.expected[key]) for key in found
        )
        return "the same" if same else "other"


class ImageFile(Kind):
    """Checks of an image before it is decoded."""

    name = "image's header"
    damaged = ("image.png", "image.jpg")
    errors = (OSError, ImageTooLarge)

    def write(self) -> None:
        pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
        for name in self.damaged:
            Image.fromarray(pixels).save(self.folder / name)

    def read(self) -> Any:
        for name in self.damaged:
            check_pixels(str(self.folder / name), WIDTH * HEIGHT)
        return None

    def judge(self, found: Any) -> str:
        return "the same"  # as far as the reader looks


DATA: tuple[type[Kind], ...] = (CocoFile, OdgtFile, ResultsFile, ImageFile)
