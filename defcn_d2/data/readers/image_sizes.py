"""Sizes of images, read from their headers and remembered until the file changes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ...utils.files import write_atomically
from ..errors import DatasetError
from ..image_limit import no_pillow_limit
from ..image_reading import upright_size
from ..json_fields import LIMIT, parse_json

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # width, height in pixels
State = tuple[int, int]  # of a file: time of its last change in nanoseconds, number of bytes
_SHARED = (".yaml", ".yml")  # a data.yaml is that of all splits, which have a folder each
_SHOWN = 5  # files named in an error


def image_sizes(root: Path, names: Sequence[str], annotations: Path) -> dict[str, Size]:
    """The sizes of the images ``names`` below ``root``, turned upright.

    They are remembered in a file beside ``annotations``, or in the user's cache folder where that
    cannot be written; an image that was written since is read again. Raises DatasetError, with the
    number of images and the first ones, where images are missing or cannot be read.
    """
    known: dict[str, tuple[Size, State]] = {}
    for cache in _cache_files(root, annotations):
        known = {**_read_cache(cache, root), **known}
    with no_pillow_limit(), ThreadPoolExecutor(8) as pool:  # waiting for a disk is most of it
        states = dict(zip(names, pool.map(_state, (root / name for name in names)), strict=True))
        # an image that is gone has the size that it had
        new = [x for x in states if x not in known or states[x] not in (None, known[x][1])]
        if not new:
            return {name: known[name][0] for name in names}
        found = pool.map(_size_or_reason, (root / name for name in new))
        progress = tqdm(found, f"sizes of images in {root}", len(new), unit="image")
        results = dict(zip(new, progress, strict=True))
    read = {name: size for name, size in results.items() if isinstance(size, tuple)}
    if len(read) < len(new):
        reasons = [f"{name} ({why})" for name, why in results.items() if isinstance(why, str)]
        more = ", ..." if len(reasons) > _SHOWN else ""
        raise DatasetError(
            f"{len(reasons)} of the {len(names)} images that {annotations} names cannot be read in "
            f"{root}: {', '.join(reasons[:_SHOWN])}{more}. Put them there, or name their folder."
        )
    kept = {name: item for name, item in known.items() if name in states}
    # states of before the reading: what is written meanwhile is read again
    kept |= {name: (size, states[name] or (0, 0)) for name, size in read.items()}
    _write_cache(_cache_files(root, annotations), root, kept)
    return {name: kept[name][0] for name in names}


def _state(path: Path) -> State | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _size_or_reason(path: Path) -> Size | str:
    try:
        with Image.open(path) as image:
            return upright_size(image)
    except FileNotFoundError:
        return "missing"
    except Exception as error:  # PIL raises many kinds for damaged and for hostile files
        return str(error) or type(error).__name__


def _cache_files(root: Path, annotations: Path) -> list[Path]:
    user = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "defcn_d2"
    key = sha256(f"{annotations.resolve()}\n{root.resolve()}".encode()).hexdigest()[:16]
    shared = annotations.suffix.lower() in _SHARED
    name = f"{annotations.name}.{key}" if shared else annotations.name
    return [annotations.with_name(f"{name}.sizes.json"), user / f"sizes-{key}.json"]


def _read_cache(path: Path, root: Path) -> dict[str, tuple[Size, State]]:
    """Sizes in a cache file of images in ``root``; none where it is absent or damaged."""
    try:
        content = parse_json(path.read_bytes())
        if content["root"] == str(root.resolve()):
            known = {name: ((w, h), (t, n)) for name, (w, h, t, n) in content["images"].items()}
            sides = [side for size, _ in known.values() for side in size]
            if all(type(side) is int and 0 < side < LIMIT for side in sides):
                return known
            raise ValueError("sizes that no image has")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s is damaged: reading the sizes of the images again", path)
    return {}


def _write_cache(paths: Sequence[Path], root: Path, known: dict[str, tuple[Size, State]]) -> None:
    images = {name: (*size, *state) for name, (size, state) in known.items()}
    content = json.dumps({"root": str(root.resolve()), "images": images}).encode()
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            return
        except OSError as error:
            logger.info("cannot keep the sizes of the images in %s: %s", path, error.strerror)
