"""A limit for the size of images, checked before they are decoded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from detectron2.utils.file_io import PathManager
from PIL import Image

_pillow_limit = threading.Lock()


class ImageTooLarge(ValueError):
    """An image has more pixels than the limit; the message names both and the remedy."""


@contextlib.contextmanager
def no_pillow_limit() -> Iterator[None]:
    """Lift Pillow's own limit, for the whole process, while headers alone are read."""
    with _pillow_limit:
        own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = own


def check_pixels(path: str, limit: int) -> None:
    """Refuse an image that would take too much memory; only its header is read.

    A few kilobytes can hold an image of many gigabytes. Pillow has a limit of its own, for the
    whole process: it is raised to this one where it is lower, so that what passes can be read.

    Args:
        path: the file, or an address that Detectron2 knows how to open.
        limit: pixels, width times height, that an image may have; 0: any number.

    Raises:
        ImageTooLarge: it has more.
        OSError: it cannot be opened, or is no image.
    """
    with _pillow_limit:
        own, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            if limit <= 0:
                own = None
                return
            width, height = _header_size(path)
        finally:
            Image.MAX_IMAGE_PIXELS = own if own is None else max(own, limit)
    if width * height > limit:
        raise ImageTooLarge(
            f"{path!r} has {width} x {height} = {width * height:,} pixels, and the limit is "
            f"{limit:,}: raise INPUT.MAX_PIXELS, or shrink the image"
        )


def _header_size(path: str) -> tuple[int, int]:
    """Width and height in pixels, as they stand in the file."""
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            return image.size
    except Image.UnidentifiedImageError as error:  # which names the stream, not the file
        raise OSError(f"{path!r} is no image, or of a format that Pillow does not know") from error
    except Exception as error:  # Pillow raises many kinds for damaged and for hostile files
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, which names the file
        reason = str(error) or type(error).__name__
        raise OSError(f"{path!r} cannot be read as an image: {reason}") from error
