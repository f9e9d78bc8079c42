"""Images upright and with 8 bits, alike for training, evaluation, ``Predictor`` and the demo.

Detectron2's own reader cuts off what is above 255, and turns a TIFF file twice, which Pillow has
turned upright already.
"""

from __future__ import annotations

import contextlib

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image

_ORIENTATION = 0x0112  # EXIF tag
_WIDTH, _HEIGHT, _BITS = 256, 257, 258  # TIFF tags, as stored; the last for each channel
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose mode I is nothing else


def read_image(path: str, format: str | None = None) -> np.ndarray:
    """An image file as Detectron2's ``read_image`` gives it, but upright and with 8 bits.

    Args:
        path: a file, or an address that Detectron2 knows how to open.
        format: as ``INPUT.FORMAT``.

    Returns:
        (H, W, C) uint8 of 0 to 255; of "YUV-BT.601" float64.

    Raises:
        OSError: it cannot be opened or is no image.
        ValueError: its pixels have a type whose range is not known, such as float.
    """
    with PathManager.open(path, "rb") as file, Image.open(file) as image:
        return convert_PIL_to_numpy(plain_image(image), format)


def plain_image(image: Image.Image) -> Image.Image:
    """The image upright, with 8 bits a channel: of more, the upper ones, as Pillow reads colours.

    Raises:
        ValueError: it is of mode F, or of mode I and not from a format of 16 bits.
    """
    image.load()  # before its EXIF data are asked: this turns a TIFF file, and forgets the tag
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _eight_bits(image)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels of ``plain_image``, from the header of an opened file alone."""
    # of a TIFF file, Pillow's own size is upright already, in newer versions
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(_WIDTH, image.size[0]), tags.get(_HEIGHT, image.size[1])
    return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS):
        kind = "floats" if image.mode == "F" else "integers"
        raise ValueError(
            f"its pixels are of mode {image.mode!r}, {kind} of 32 bits, whose range is not known: "
            "save it with 8 or 16 bits"
        )
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))[0]  # 12 of some cameras
    pixels = np.asarray(image).astype(np.int32) >> (bits - 8)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    """From 1, which is upright; also where the data are damaged."""
    with contextlib.suppress(Exception):  # of many kinds
        return image.getexif().get(_ORIENTATION, 1)
    return 1
