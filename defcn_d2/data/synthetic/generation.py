"""Generated data sets on disk: drawn on first use, checked at each use, repaired where damaged.

A set is a folder with ``images/``, an annotation file, and a journal (``records.jsonl``) with one
line per image: its checksum and its labels. The journal makes a killed run resumable and damage
visible: an image is drawn again when its line or its bytes are not what they should be. As images
depend on split, index and seed alone, two processes at work in one folder can only write the same
bytes; the lock merely saves the second one the work.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ...utils.errors import UserError
from .storage import Journal, digest, locked, write_atomically
from .workers import mapping

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class DatasetError(UserError, RuntimeError):
    """A data set cannot be made or read; the message names the folder or file and the remedy."""


def datasets_root() -> Path:
    """The folder of data sets, as Detectron2 has it: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


@dataclass(frozen=True)
class Recipe:
    """A kind of data set, drawn and labelled by ``module`` (imported at need). It has

    - ``draw(split, seed, index)``, which returns a BGR image (H, W, 3) uint8 and its record, a dict
      of JSON values;
    - ``annotate(records)``, the text of the annotation file from the records in order of index,
      each with ``index`` and ``file_name`` added.

    ``version`` must change whenever one of them gives something else; ``counts`` has the number of
    images of each split.
    """

    name: str
    version: int
    module: str
    annotation_file: str
    counts: Mapping[str, int]


@dataclass(frozen=True)
class _State:
    header: dict[str, Any]  # first entry of the journal of the set as it shall be
    records: dict[int, Record]  # of the images that are there and undamaged
    complete: bool


@dataclass(frozen=True)
class GeneratedSet:
    """A split of a recipe under ``root``, the folder that ``$DETECTRON2_DATASETS`` names.

    Where ``num_images`` or ``seed`` is None, the set is what was made there before, else the
    recipe's count of images, or seed 0.
    """

    recipe: Recipe
    root: Path
    split: str
    num_images: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.split not in self.recipe.counts:
            splits = " or ".join(self.recipe.counts)
            raise ValueError(f"the split of {self.recipe.name!r} is {splits}, got {self.split!r}")

    @property
    def folder(self) -> Path:
        return Path(self.root) / self.recipe.name / self.split

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def annotations(self) -> Path:
        return self.folder / self.recipe.annotation_file

    def ensure(self, workers: int | None = None) -> Path:
        """Draw what is missing or damaged, if anything; returns the path of the annotation file.

        ``workers`` processes share the work (default: one per core). Raises DatasetError where the
        folder cannot be written.
        """
        if self._state().complete:
            return self.annotations
        try:
            self.images.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                state = self._state()  # another process may have finished it meanwhile
                if not state.complete:
                    self._generate(state, workers or os.cpu_count() or 1)
        except OSError as error:
            raise DatasetError(
                f"cannot generate the data set {self.recipe.name!r} in {self.folder}: "
                f"{error.strerror or error}. Let $DETECTRON2_DATASETS name a folder that can be "
                "written and has free space."
            ) from error
        except BrokenExecutor as error:
            raise DatasetError(
                f"a process that drew images for {self.folder} was killed, perhaps for want of "
                "memory; what it had finished is kept: run it again"
            ) from error
        return self.annotations

    def _state(self) -> _State:
        """Read the journal and check all files against it."""
        found = self._journal().read()
        header = next((x for x in found.get("header", []) if isinstance(x, dict)), {})
        wanted = self._header(header)
        records: dict[int, Record] = {}
        if {**header, "num_images": 0} == {**wanted, "num_images": 0}:
            records = {x["index"]: x for x in found.get("record", []) if _is_record(x)}
        records = {
            index: record
            for index, record in records.items()
            if index < wanted["num_images"]
            and digest(self.images / record["file_name"]) == record["sha256"]
        }
        complete = header == wanted and len(records) == wanted["num_images"]
        if complete:
            complete = found.get("annotations") == [digest(self.annotations)]
        return _State(wanted, records, complete)

    def _header(self, found: dict[str, Any]) -> dict[str, Any]:
        """All that the content depends on; what this set leaves open is taken from ``found``."""
        num_images, seed = self.num_images, self.seed
        if num_images is None:
            num_images = found.get("num_images", self.recipe.counts[self.split])
        return {
            "name": self.recipe.name,
            "version": self.recipe.version,
            "split": self.split,
            "seed": found.get("seed", 0) if seed is None else seed,
            "num_images": num_images,
        }

    def _generate(self, state: _State, workers: int) -> None:
        header, records = state.header, dict(state.records)
        missing = [index for index in range(header["num_images"]) if index not in records]
        logger.info("generating %d images in %s", len(missing), self.images)
        painter = importlib.import_module(self.recipe.module)
        journal = self._journal()
        with (
            journal.rewriting(header=[header], record=list(records.values())),
            mapping(workers, len(missing)) as map_in_order,
        ):
            draw = functools.partial(painter.draw, self.split, header["seed"])
            drawn = map_in_order(functools.partial(_draw_one, draw, self.images), missing)
            title = f"{self.recipe.name} {self.split}"
            for record in tqdm(drawn, title, len(missing), unit="image"):
                records[record["index"]] = record
                journal.append("record", record)
            text = painter.annotate([records[index] for index in sorted(records)]).encode()
            write_atomically(self.annotations, text)
            journal.append("annotations", hashlib.sha256(text).hexdigest())

    def _journal(self) -> Journal:
        return Journal(self.folder / "records.jsonl")


def _is_record(value: Any) -> bool:
    """Whether ``_draw_one`` may have returned it: its image is in the folder of images."""
    if not isinstance(value, dict) or type(value.get("index")) is not int:
        return False
    has_checksum = isinstance(value.get("sha256"), str)
    return has_checksum and value.get("file_name") == _file_name(value["index"])


def _file_name(index: int) -> str:
    return f"{index:06d}.jpg"


def _draw_one(draw: Callable[[int], tuple[np.ndarray, Record]], folder: Path, index: int) -> Record:
    """Draw and write one image; returns its record with ``index``, ``file_name`` and ``sha256``."""
    import cv2  # here, as registering a set shall not need OpenCV

    image, record = draw(index)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    name = _file_name(index)
    # no sync for each of thousands of files: one that a power cut takes fails its checksum later
    write_atomically(folder / name, encoded, sync=False)
    sha256 = hashlib.sha256(encoded).hexdigest()
    return {"index": index, "file_name": name, "sha256": sha256, **record}


def command_line(recipe: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Make a set's splits as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {recipe.module}",
        description=f"Make, resize or repair the data set {recipe.name!r}; what is whole is kept.",
    )
    shown = "[%(default)s]"
    root = datasets_root()
    parser.add_argument("--root", type=Path, default=root, help=f"folder of data sets {shown}")
    for split, count in recipe.counts.items():
        parser.add_argument(f"--{split}", type=_whole, default=count, help=f"images {shown}")
    parser.add_argument("--seed", type=_whole, default=0, help=shown)
    parser.add_argument("--workers", type=_whole, help="processes [one per core]")
    args = parser.parse_args(arguments)
    try:
        for split in recipe.counts:
            if count := getattr(args, split):
                path = GeneratedSet(recipe, args.root, split, count, args.seed).ensure(args.workers)
                print(f"{count} images: {path}")
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)
