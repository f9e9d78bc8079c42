"""Detections in COCO's results format, beside the drawings."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.data import Metadata
from detectron2.structures import Instances

from ..data import DatasetError
from ..data.category_ids import category_ids
from ..utils.errors import UserError, as_user_error
from ..utils.files import write_atomically
from ..utils.printable import printable
from .inputs import make_folder


class Results:
    """The entries of a file, which appears when all are there.

    An entry has ``image_id``, ``file_name``, ``category_id``, ``bbox`` (x, y, width, height in
    pixels) and ``score``. Categories are those of the annotation file that the model was trained
    on; where no data set is known, the model's own numbers, from 0, which is printed.
    """

    def __init__(self, path: Path, metadata: Metadata):
        """
        Args:
            path: its folder is made.

        Raises:
            UserError: it cannot be a file, or the file of the categories is not there.
        """
        self.path = path.expanduser()
        if self.path.is_dir():
            raise UserError(f"--json {str(path)!r} is a folder: give a file")
        make_folder(self.path.parent, "--json")
        with as_user_error(DatasetError, "--json: {}"):
            self._categories = category_ids(metadata)
        if not self._categories:
            print(
                "--json: category_id is the model's number of the class, from 0, as the config "
                "names no data set with category ids",
                file=sys.stderr,
            )
        self._entries: list[dict[str, Any]] = []

    def add(self, image_id: int | str, file_name: str, found: Instances) -> None:
        """The detections of one image, or of one frame of the video ``file_name``."""
        for (x1, y1, x2, y2), score, number in zip(
            found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()
        ):
            entry = {
                "image_id": image_id,
                "file_name": file_name,
                "category_id": self._categories.get(number, number),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            self._entries.append(entry)

    def write(self) -> None:
        """Write all or nothing."""
        try:
            write_atomically(self.path, json.dumps(self._entries).encode())
        except OSError as error:
            raise UserError(f"cannot write --json {str(self.path)!r} ({error.strerror})") from error
        print(printable(f"{len(self._entries)} detections, see {self.path}"))


def image_ids(files: Sequence[str]) -> list[int]:
    """IDs of images: the numbers that their names are, as COCO's; else their places, from 0."""
    stems = [Path(file).stem for file in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(len(files)))
