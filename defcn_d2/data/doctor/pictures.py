"""Pictures: unreadable ones, duplicates within and across data sets, odd modes, sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from PIL import Image
from tqdm import tqdm

from ..image_limit import check_pixels
from ..image_reading import plain_image
from .splits import Split

TINY = 32  # pixels, the coarsest step of most backbones
LONG = 5  # longer by shorter side
ALIKE = 2  # of 64 signs, in which versions of a picture differ
PLAIN = 56  # of 64 signs that are alike in a picture without structure


class Picture(NamedTuple):
    """A file: ``mode`` of Pillow, ``size`` in pixels, ``digest`` of the pixels.

    ``signs`` (64,) are 1 or -1, of the differences between neighbours in the picture of 9 x 8.
    """

    mode: str
    size: tuple[int, int]
    digest: bytes
    signs: npt.NDArray[np.float32]


#: Pictures by their index in the data set.
Pictures = dict[int, Picture]


def check_pictures(cfg: CfgNode, splits: Sequence[Split]) -> None:
    """Read all images, and note what is odd about files, pixels and sizes."""
    pictures = [_read_all(cfg, split) for split in splits]
    for split, read in zip(splits, pictures, strict=True):
        _check_files(cfg, split, read)
    for i, j in combinations_with_replacement(range(len(splits)), 2):
        _check_duplicates(splits[i], pictures[i], splits[j], pictures[j])


def _read_all(cfg: CfgNode, split: Split) -> Pictures:
    files = [record["file_name"] for record in split.records]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda file: _read(file, cfg.INPUT.MAX_PIXELS), files)
        results = list(tqdm(found, f"images of {split.name}", len(files), unit="image"))
    split.note(
        "images that cannot be read",
        [i for i, x in enumerate(results) if isinstance(x, str)],
        lambda i: f"{split.file(i)} ({results[i]})",
        "mend or remove them",
        fatal=cfg.DATALOADER.ON_ERROR != "skip",
    )
    return {i: x for i, x in enumerate(results) if isinstance(x, Picture)}


def _read(file: str, max_pixels: int) -> Picture | str:
    """The picture in a file, or why it cannot be read."""
    try:
        check_pixels(file, max_pixels)
        with PathManager.open(file, "rb") as stream, Image.open(stream) as image:
            mode, plain = image.mode, plain_image(image).convert("RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        return " ".join(str(error).removeprefix(f"{file!r} ").split()) or type(error).__name__
    coarse = np.asarray(plain.convert("L").resize((9, 8)), np.int16)
    signs = np.where(coarse[:, 1:] > coarse[:, :-1], np.float32(1), np.float32(-1)).ravel()
    digest = blake2b(f"{plain.size}".encode() + plain.tobytes(), digest_size=16).digest()
    return Picture(mode, plain.size, digest, signs)


def _check_files(cfg: CfgNode, split: Split, pictures: Pictures) -> None:
    def size(i: int) -> str:
        return "{} ({} x {})".format(split.file(i), *pictures[i].size)

    gray = all(x.mode == "L" for x in pictures.values())
    odd = [i for i, x in pictures.items() if x.mode != ("L" if gray else "RGB")]
    remedy = "they are read as RGB, without transparency: save them so, if that is not meant"
    split.note(
        "images of another mode than RGB, or L of all",
        odd,
        lambda i: f"{split.file(i)} ({pictures[i].mode})",
        remedy,
    )
    other = [i for i, x in pictures.items() if x.size != tuple(split.sizes[i].tolist())]
    remedy = "put the annotated images there"
    stops = cfg.DATALOADER.ON_ERROR != "skip"
    split.note("images of another size than annotations say", other, size, remedy, stops)
    tiny = [i for i, x in pictures.items() if min(x.size) < TINY]
    split.note(f"images with a side below {TINY} pixels", tiny, size, "look at them")
    long = [i for i, x in pictures.items() if max(x.size) > LONG * min(x.size)]
    remedy = "cut them into tiles, as resizing to INPUT.MAX_SIZE makes their objects small"
    split.note(f"images more than {LONG} times as long as wide", long, size, remedy)


def _check_duplicates(first: Split, known: Pictures, second: Split, others: Pictures) -> None:
    """Note pictures of ``second`` that ``first`` has, or of one data set those that come again."""
    within, apart = first is second, first.key != second.key
    places: dict[bytes, int] = {}
    for i, picture in known.items():
        places.setdefault(picture.digest, i)
    same = {j: places[x.digest] for j, x in others.items() if x.digest in places}
    same = {j: i for j, i in same.items() if not within or i < j}
    near: dict[int, int] = {}
    for i, j in _alike(known, others):
        if j not in same and (not within or i < j):
            near.setdefault(j, i)
    where = "the same data set" if within else first.title
    remedy = "remove them" + "; else figures tell how well images are remembered" * apart
    for what, found, fatal in (
        (f"images with the very pixels of others in {where}", same, apart),
        (f"images that look like others in {where}", near, False),
    ):
        names = [f"{second.file(j)} (as {first.file(i)})" for j, i in found.items()]
        second.note(what, names, str, remedy, fatal)


def _alike(known: Pictures, others: Pictures) -> Iterator[tuple[int, int]]:
    """Pairs of indices of pictures that have structure, and hardly another one."""
    kept = [
        {i: x.signs for i, x in pictures.items() if abs(x.signs.sum()) < PLAIN}
        for pictures in (known, others)
    ]
    mine, theirs = (np.array([*x.values()], np.float32).reshape(-1, 64) for x in kept)
    rows, columns = list(kept[0]), list(kept[1])
    for start in range(0, len(theirs), 256):  # of all together the table could fill the memory
        agreement = mine @ theirs[start : start + 256].T
        for row, column in np.argwhere(agreement >= 64 - 2 * ALIKE):
            yield rows[row], columns[start + column]
