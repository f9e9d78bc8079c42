"""Images in a folder, for formats whose annotations do not list them."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DatasetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def image_files(root: Path) -> list[str]:
    """Names of the images in ``root`` and in folders below, relative to it, with "/", sorted.

    Raises:
        DatasetError: the folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DatasetError(
            f"the folder of images {str(error.filename)!r} cannot be read ({error.strerror}): put "
            "it there, or correct its name"
        ) from error

    found = []
    for folder, _, names in os.walk(root, onerror=fail):
        below = Path(folder).relative_to(root)
        found += [
            (below / name).as_posix()
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)
