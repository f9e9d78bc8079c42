"""Names of images in annotation files, which must lie in the folder of images."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|\\\\)|file:", re.IGNORECASE)


def check_name(name: str) -> None:
    """Refuse the name of an image that is no relative path below its folder, on any system.

    A name says what the author of a file likes: with "/" or ".." an image could be any file of the
    machine, with an address a request to another one. Links within the folder are followed: they
    are the work of whoever set it up.

    Raises:
        ValueError: it is empty, absolute, an address, or has a part "..", a drive or a NUL.
    """
    windows = PureWindowsPath(name)
    if (
        not name
        or "\0" in name
        or _ADDRESS.match(name)
        or PurePosixPath(name).is_absolute()
        or windows.drive
        or windows.root
        or ".." in windows.parts  # parted at "/" as well
    ):
        raise ValueError(f"{name!r} is no path below the folder of images")
