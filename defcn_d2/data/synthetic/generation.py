"""Generated data sets: drawn on first use, into a folder beside their place, which then takes it.

``version.json`` in the folder of a set, written last, says what was drawn. A process that is killed
leaves at most the folder beside, which the next drawing removes. There is no repair: who has
damaged a set removes its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import portalocker
from tqdm import tqdm

from ..errors import DatasetError
from ..json_fields import parse_json

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_VERSION_FILE = "version.json"
_OLD_VERSION_FILE = "records.jsonl"  # of sets drawn before there was a version.json
_PATIENCE = 600.0  # seconds to wait for another process, before drawing beside it


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

    def ensure(self) -> Path:
        """Draw the set unless it is there; returns the path of the annotation file.

        Raises:
            DatasetError: the folder cannot be written, or holds something else.
        """
        if self._is_there():
            return self.annotations
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                if not self._is_there():  # another process may have drawn it meanwhile
                    self._replace()
        except OSError as error:
            raise DatasetError(
                f"cannot generate the data set {self.recipe.name!r} in {self.folder}: "
                f"{error.strerror or error}. Let $DETECTRON2_DATASETS name a folder that can be "
                "written and has free space."
            ) from error
        return self.annotations

    def _is_there(self) -> bool:
        found = self._found()
        return found == self._wanted(found)

    def _found(self) -> dict[str, Any]:
        """The content of the version file; empty where there is none."""
        try:
            found = parse_json((self.folder / _VERSION_FILE).read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _wanted(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """All that the content depends on; ``found`` decides what this set leaves open."""
        numbers = {"num_images": self.recipe.counts[self.split], "seed": 0}
        kept = {key: found[key] for key in numbers if _is_count(found.get(key))}
        given = {"num_images": self.num_images, "seed": self.seed}
        return {
            "name": self.recipe.name,
            "version": self.recipe.version,
            "split": self.split,
            **numbers,
            **kept,
            **{key: value for key, value in given.items() if value is not None},
        }

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the set, which goes with the process, however that ends.

        Where a file system has no locks, several processes may draw the set at once, each in a
        folder of its own.
        """
        lock = portalocker.Lock(str(self._beside(".lock")), "a", timeout=_PATIENCE)
        try:
            try:
                lock.acquire(fail_when_locked=True)
            except portalocker.AlreadyLocked:
                logger.info("another process is at work in %s: waiting for it", self.folder)
                lock.acquire()
            for leftover in self.folder.parent.glob(self._beside("-*").name):
                shutil.rmtree(leftover, ignore_errors=True)
        except portalocker.LockException as error:
            reason = error.args[0] if error.args else error
            logger.warning("%s cannot be locked (%s): going on without", self.folder, reason)
        try:
            yield
        finally:
            lock.release()

    def _beside(self, ending: str) -> Path:
        return self.folder.with_name(f".{self.split}{ending}")

    def _replace(self) -> None:
        """Draw the set and put it in its place, from which the one before is removed."""
        found = set(os.listdir(self.folder)) if self.folder.exists() else set()
        if found and not found & {_VERSION_FILE, _OLD_VERSION_FILE}:
            raise DatasetError(
                f"{self.folder} holds something else than a data set drawn by this package (it "
                f"has no {_VERSION_FILE}); move it away, or let $DETECTRON2_DATASETS name another "
                "folder"
            )
        with tempfile.TemporaryDirectory(
            prefix=self._beside("-").name, dir=self.folder.parent, ignore_cleanup_errors=True
        ) as beside:
            self._draw(Path(beside, "new"))
            if self.folder.exists():
                self.folder.rename(Path(beside, "old"))
            Path(beside, "new").rename(self.folder)

    def _draw(self, folder: Path) -> None:
        import cv2  # here, as registering a set shall not need OpenCV

        wanted = self._wanted(self._found())
        painter = importlib.import_module(self.recipe.module)
        (folder / "images").mkdir(parents=True)
        records = []
        title = f"{self.recipe.name} {self.split}"
        for index in tqdm(range(wanted["num_images"]), title, unit="image"):
            image, record = painter.draw(self.split, wanted["seed"], index)
            name = f"{index:06d}.jpg"
            encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            (folder / "images" / name).write_bytes(encoded)
            records.append({"index": index, "file_name": name, **record})
        (folder / self.recipe.annotation_file).write_bytes(painter.annotate(records).encode())
        (folder / _VERSION_FILE).write_text(json.dumps(wanted))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def command_line(recipe: Recipe, arguments: Sequence[str] | None = None) -> int:
    """Make a set's splits as the arguments say; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {recipe.module}",
        description=f"Draw the data set {recipe.name!r}, of any size; what is there so is kept.",
    )
    shown = "[%(default)s]"
    root = datasets_root()
    parser.add_argument("--root", type=Path, default=root, help=f"folder of data sets {shown}")
    for split, count in recipe.counts.items():
        parser.add_argument(f"--{split}", type=_whole, default=count, help=f"images {shown}")
    parser.add_argument("--seed", type=_whole, default=0, help=shown)
    args = parser.parse_args(arguments)
    try:
        for split in recipe.counts:
            if count := getattr(args, split):
                path = GeneratedSet(recipe, args.root, split, count, args.seed).ensure()
                print(f"{count} images: {path}")
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)
