"""Boxes and their names drawn on a picture, no name over another."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

CAPTION = 30  # pixels above a tile
_MARGIN = 3  # pixels around a name


@dataclass(frozen=True)
class Mark:
    """A box on a picture.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image.
        text: beside it; "" for none.
        color: as "#rrggbb".
        dashed: drawn in dashes, which sets it apart from others.
    """

    box: Sequence[float]
    text: str
    color: str
    dashed: bool = False


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with matplotlib, which has the letters of most languages."""
    path = matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, size)


def draw_marks(
    image: np.ndarray, marks: Sequence[Mark], scale: float = 1.0, size: int = 13
) -> np.ndarray:
    """The picture with boxes, and with names above all boxes and beside each other.

    Args:
        image: (H, W, 3) uint8 RGB.
        marks: the last is drawn above the others.
        scale: the picture is enlarged by this factor first.
        size: of the letters, in pixels.

    Returns:
        (scale * H, scale * W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    target = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(image).resize(target, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for mark in marks:
        x1, y1, x2, y2 = (round(v * scale) for v in mark.box)
        _outline(draw, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), mark)
    taken: list[tuple[int, int, int, int]] = []
    for mark in sorted(marks, key=lambda mark: mark.box[1]):
        if mark.text:
            corner = round(mark.box[0] * scale), round(mark.box[1] * scale)
            _name(draw, mark, corner, size, picture.size, taken)
    return np.asarray(picture)


def _outline(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], mark: Mark) -> None:
    """Two pixels in the mark's colour within a dark rim, to be seen on any ground."""
    x1, y1, x2, y2 = box
    if not mark.dashed:
        draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline="black", width=4)
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=mark.color, width=2)
        return
    for start, end in (
        *(((x1, y1), (x2, y1)), ((x2, y1), (x2, y2))),
        *(((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))),
    ):
        length = abs(end[0] - start[0]) + abs(end[1] - start[1])
        for at in range(0, max(length, 1), 10):
            until = min(at + 6, length)
            dash = [
                tuple(a + (b - a) * t / max(length, 1) for a, b in zip(start, end))
                for t in (at, until)
            ]
            draw.line(dash, fill="black", width=4)
            draw.line(dash, fill=mark.color, width=2)


def _name(
    draw: ImageDraw.ImageDraw,
    mark: Mark,
    corner: tuple[int, int],
    size: int,
    limits: tuple[int, int],
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Write a box's name above its corner, lower where another name stands already."""
    left, top, right, bottom = draw.textbbox((0, 0), mark.text, font=font(size))
    width, height = round(right - left) + 2 * _MARGIN, size + 2 * _MARGIN
    x = max(0, min(corner[0], limits[0] - width))
    y = max(0, corner[1] - height)
    while y + height < limits[1] and any(
        x < r and left_ < x + width and y < b and t < y + height for left_, t, r, b in taken
    ):
        y += height // 2
    y = max(0, min(y, limits[1] - height))
    taken.append((x, y, x + width, y + height))
    draw.rectangle((x, y, x + width, y + height), fill=mark.color)
    ink = "white" if _luminance(mark.color) < 140 else "black"
    draw.text((x + _MARGIN - left, y + _MARGIN - size // 8), mark.text, fill=ink, font=font(size))


def _luminance(color: str) -> float:
    red, green, blue = ImageColor.getrgb(color)[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def tile(
    image: np.ndarray,
    marks: Sequence[Mark],
    caption: str,
    side: int = 440,
    size: int = 13,
    square: bool = True,
) -> np.ndarray:
    """``draw_marks`` on the image at a longest side of ``side`` pixels, under a caption.

    Returns:
        (side + CAPTION, side, 3) uint8 RGB, white where there is no image; not ``square``: as
        high as the image and its caption.
    """
    picture = draw_marks(image, marks, (side - 6) / max(image.shape[:2]), size)
    height = side if square else picture.shape[0]
    canvas = np.full((height + CAPTION, side, 3), 255, np.uint8)
    canvas[CAPTION : CAPTION + picture.shape[0], : picture.shape[1]] = picture
    page = Image.fromarray(canvas)
    letters = font(15)
    while caption and letters.getlength(caption) > side - 4:
        caption = caption[:-2].rstrip("…") + "…"
    ImageDraw.Draw(page).text((2, 6), caption, fill="#202020", font=letters)
    return np.asarray(page)


def grid(tiles: Sequence[np.ndarray], columns: int, gap: int = 16) -> np.ndarray:
    """Tiles of one size in rows, on white; at least one."""
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    canvas = np.full(shape, 255, np.uint8)
    for number, one in enumerate(tiles):
        y, x = number // columns * (height + gap), number % columns * (width + gap)
        canvas[y : y + height, x : x + width] = one
    return canvas
