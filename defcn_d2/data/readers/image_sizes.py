"""Sizes of images, read once from their headers and remembered."""

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
from ..image_reading import upright_size
from ..json_fields import LIMIT, parse_json

logger = logging.getLogger(__name__)

Size = tuple[int, int]  # width, height in pixels
_SHOWN = 5  # files named in an error


def image_sizes(root: Path, names: Sequence[str], annotations: Path) -> dict[str, Size]:
    """The sizes of the images ``names`` below ``root``, turned upright.

    They are remembered in a file beside ``annotations``, or in the user's cache folder where that
    cannot be written. Raises DatasetError, with the number of images and the first ones, where
    images are missing or cannot be read.
    """
    for cache in _cache_files(root, annotations):
        known = _read_cache(cache, root)
        if all(name in known for name in names):
            return {name: known[name] for name in names}
    with ThreadPoolExecutor(8) as pool:  # waiting for a disk is most of it
        found = pool.map(_size_or_reason, (root / name for name in names))
        progress = tqdm(found, f"sizes of images in {root}", len(names), unit="image")
        results = dict(zip(names, progress, strict=True))
    sizes = {name: size for name, size in results.items() if isinstance(size, tuple)}
    if len(sizes) < len(names):
        reasons = [f"{name} ({why})" for name, why in results.items() if isinstance(why, str)]
        more = ", ..." if len(reasons) > _SHOWN else ""
        raise DatasetError(
            f"{len(reasons)} of the {len(names)} images that {annotations} names cannot be read in "
            f"{root}: {', '.join(reasons[:_SHOWN])}{more}. Put them there, or name their folder."
        )
    _write_cache(_cache_files(root, annotations), root, sizes)
    return sizes


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
    return [annotations.with_name(f"{annotations.name}.sizes.json"), user / f"sizes-{key}.json"]


def _read_cache(path: Path, root: Path) -> dict[str, Size]:
    """Sizes in a cache file for images in ``root``; none where it is absent or damaged."""
    try:
        content = parse_json(path.read_bytes())
        if content["root"] == str(root.resolve()):
            sizes = {name: (w, h) for name, (w, h) in content["sizes"].items()}
            if all(type(side) is int and 0 < side < LIMIT for x in sizes.values() for side in x):
                return sizes
            raise ValueError("sizes that no image has")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        logger.warning("%s is damaged: reading the sizes of the images again", path)
    return {}


def _write_cache(paths: Sequence[Path], root: Path, sizes: dict[str, Size]) -> None:
    content = json.dumps({"root": str(root.resolve()), "sizes": sizes}).encode()
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, content)
            return
        except OSError as error:
            logger.info("cannot keep the sizes of the images in %s: %s", path, error.strerror)
