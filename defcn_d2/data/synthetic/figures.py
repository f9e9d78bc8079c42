"""Drawing for the built-in data sets: masks, textures, a canvas that knows who is seen where.

Everything here is a function of its arguments and of the random generator handed in. Masks come
from OpenCV's integer polygon fill on a finer grid, so that labels do not hang on rounding.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Outline = Sequence[npt.NDArray[np.float64]]
"""Closed polygons of (n, 2) xy vertices, filled by the even-odd rule: an inner one cuts a hole."""

_SUBPIXELS = 4  # coverage is counted on a grid 4 times finer: 17 levels of anti-aliasing
_COVERED = 128  # a pixel belongs to a figure that covers at least half of it


def generator(kind: str, split: str, seed: int, index: int) -> np.random.Generator:
    """The source of chance for one image, other for every combination of the arguments."""
    return np.random.default_rng([seed, zlib.crc32(f"{kind} {split}".encode()), index])


def arc(start: float, end: float, vertices: int = 48) -> npt.NDArray[np.float64]:
    """Points (vertices, 2) of the unit circle between two angles in radians, both included."""
    angles = np.linspace(start, end, vertices)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def regular(vertices: int) -> npt.NDArray[np.float64]:
    """A regular polygon (vertices, 2) in the unit circle, its first corner at (1, 0)."""
    return arc(0, 2 * np.pi, vertices + 1)[:-1]


def scaled_and_turned(
    outline: Outline, width: float, height: float, angle: float
) -> list[np.ndarray]:
    """Scale an outline of the unit circle to width x height pixels, then turn it by ``angle``."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    return [polygon * (width / 2, height / 2) @ turn for polygon in outline]


@dataclass(frozen=True)
class Stencil:
    """A figure's ``coverage`` (h, w) in 0..255 with its top left corner at pixel (x, y).

    It may reach beyond the image, also to negative x, y. ``edge`` (h, w) is the drawn contour.
    """

    coverage: Bytes
    edge: Bytes
    x: int
    y: int

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        """(h, w): the pixels that the figure covers at least by half."""
        return self.coverage >= _COVERED

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """Tight box x, y, w, h of the covered pixels, in the image's coordinates, if any."""
        found = tight_box(self.inside)
        return found and (found[0] + self.x, found[1] + self.y, *found[2:])

    def clipped(self, width: int, height: int) -> Stencil:
        """The part within a ``width`` x ``height`` image (of zero size where there is none)."""
        left, top = min(max(-self.x, 0), self.coverage.shape[1]), max(-self.y, 0)
        right, bottom = max(width - self.x, left), max(height - self.y, 0)
        part = (slice(top, max(bottom, top)), slice(left, right))
        return Stencil(self.coverage[part], self.edge[part], self.x + left, self.y + top)


def stencil(outline: Outline, center: tuple[float, float], contour: float = 1.5) -> Stencil:
    """Coverage of an outline moved to ``center`` (x, y), its contour ``contour`` pixels wide."""
    moved = [polygon + center for polygon in outline]
    points = np.concatenate(moved)
    x, y = (int(v) for v in np.floor(points.min(0)) - 1)
    width, height = (int(v) for v in np.ceil(points.max(0)) + 1 - (x, y))
    fine = [np.rint((polygon - (x, y)) * _SUBPIXELS - 0.5).astype(np.int32) for polygon in moved]
    size = (height * _SUBPIXELS, width * _SUBPIXELS)
    filled, lined = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    cv2.fillPoly(filled, fine, 255)
    cv2.polylines(lined, fine, True, 255, max(1, round(contour * _SUBPIXELS)))
    np.minimum(lined, filled, out=lined)  # the contour lies within the figure
    return Stencil(_averaged(filled, width, height), _averaged(lined, width, height), x, y)


def _averaged(fine: Bytes, width: int, height: int) -> Bytes:
    return np.asarray(cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def tight_box(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """Box x, y, w, h in pixels of the true cells of a (h, w) mask; None where there is none."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def _waves(rng: np.random.Generator, x: Array, y: Array) -> tuple[Array, Array]:
    """Two crossed waves in [-1, 1] of a random direction and period."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 18)
    u, v = np.array([np.cos(angle), np.sin(angle)], np.float32) * np.float32(2 * np.pi / period)
    return np.sin(u * x + v * y), np.sin(v * x - u * y)


def _stripes(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return _waves(rng, x, y)[0]


def _checks(rng: np.random.Generator, x: Array, y: Array) -> Array:
    first, second = _waves(rng, x, y)
    return np.where(first * second > 0, np.float32(1), np.float32(-1))


def _dots(rng: np.random.Generator, x: Array, y: Array) -> Array:
    first, second = _waves(rng, x, y)
    return np.where(first + second > 0.9, np.float32(1), np.float32(-1))


def _slope(rng: np.random.Generator, x: Array, y: Array) -> Array:
    angle = rng.uniform(0, 2 * np.pi)
    t = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    low, high = t.min(), t.max()
    return (2 * t - low - high) / max(high - low, np.float32(1))


def _cloud(rng: np.random.Generator, x: Array, y: Array) -> Array:
    return cloud(rng, x.shape[1], y.shape[0], rng.uniform(5, 25))


_TEXTURES: tuple[Callable[[np.random.Generator, Array, Array], Array], ...] = (
    _stripes,
    _checks,
    _dots,
    _slope,
    _cloud,
)


def cloud(rng: np.random.Generator, width: int, height: int, cell: float) -> Array:
    """Smooth noise (height, width), mostly within [-1, 1], of features about ``cell`` pixels."""
    rows, columns = int(height / cell) + 2, int(width / cell) + 2
    coarse = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32)


def texture(
    rng: np.random.Generator, width: int, height: int, color: npt.ArrayLike, contrast: float
) -> Array:
    """A random pattern (height, width, 3) around a BGR colour, up to ``contrast`` levels off it."""
    x = np.arange(width, dtype=np.float32)[None, :]
    y = np.arange(height, dtype=np.float32)[:, None]
    pattern = _TEXTURES[rng.integers(len(_TEXTURES))](rng, x, y)
    swing = (rng.uniform(0.4, 1, 3) * contrast).astype(np.float32)
    return np.asarray(color, np.float32) + pattern[:, :, None] * swing


def hue_colors(rng: np.random.Generator, hue: float, spread: float, count: int) -> Array:
    """Strong BGR colours (count, 3) in 0..255 of hues within ``spread`` of ``hue``, in degrees."""
    hsv = np.empty((1, count, 3), np.float32)
    hsv[0, :, 0] = rng.uniform(hue - spread, hue + spread, count) % 360
    hsv[0, :, 1] = rng.uniform(0.55, 0.95, count)
    hsv[0, :, 2] = rng.uniform(0.45, 0.95, count)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0] * 255, np.float32)


def distinct_color(
    rng: np.random.Generator,
    others: npt.ArrayLike,
    apart: float,
    hue: tuple[float, float] | None = None,
) -> Array:
    """A random BGR colour ``apart`` or more (Euclid) from ``others`` (n, 3), or the best of 20.

    ``hue``: the middle and half the width of the colour's range of hues in degrees; None: any.
    """
    if hue is None:
        trials = rng.uniform(20, 235, (20, 3)).astype(np.float32)
    else:
        trials = hue_colors(rng, *hue, 20)
    away = np.linalg.norm(trials[:, None] - np.asarray(others, np.float32)[None], axis=2).min(1)
    good = np.flatnonzero(away >= apart)
    return np.asarray(trials[good[0] if len(good) else away.argmax()])


@dataclass
class Canvas:
    """An image under work, and for each pixel which figure is seen there (-1: the ground)."""

    pixels: Bytes
    colors: list[Array]  # (3,) BGR: mean colour of the ground, then of each figure
    owner: npt.NDArray[np.int32] = field(init=False)
    full_areas: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.owner = np.full(self.pixels.shape[:2], -1, np.int32)

    @property
    def width(self) -> int:
        return self.owner.shape[1]

    @property
    def height(self) -> int:
        return self.owner.shape[0]

    @classmethod
    def with_ground(
        cls, rng: np.random.Generator, sides: tuple[int, int], saturation: float = 1.0
    ) -> Canvas:
        """A canvas of textured ground of a random colour, its sides within ``sides``.

        ``saturation``: 1 for any colour, 0 for grey.
        """
        width, height = (int(side) for side in rng.integers(*sides, 2, endpoint=True))
        color = rng.uniform(40, 215, 3).astype(np.float32)
        color = color.mean() + np.float32(saturation) * (color - color.mean())
        surface = texture(rng, width, height, color, 14)
        for cell, contrast in ((60, 30), (9, 12)):
            surface += cloud(rng, width, height, cell)[:, :, None] * np.float32(contrast)
        return cls(np.clip(np.rint(surface), 0, 255).astype(np.uint8), [color])

    def visible_areas(self, covering: Stencil | None = None) -> npt.NDArray[np.int64]:
        """Seen pixels (n,) of each figure, were ``covering`` (clipped) painted on top of them."""
        seen = np.bincount(self.owner.ravel() + 1, minlength=len(self.full_areas) + 1)
        if covering is not None:
            lost = self._window(self.owner, covering)[covering.inside]
            seen = seen - np.bincount(lost + 1, minlength=len(seen))
        return seen[1:]

    def leaves_visible(self, figure: Stencil, share: float) -> bool:
        """Checks that all figures, ``figure`` included, would show ``share`` of their areas."""
        part = figure.clipped(self.width, self.height)
        if part.inside.sum() < share * figure.inside.sum():
            return False
        return bool((self.visible_areas(part) >= share * np.array(self.full_areas)).all())

    def paint(
        self,
        rng: np.random.Generator,
        figure: Stencil,
        color: Array,
        opacity: float = 1,
        owned: bool = True,
    ) -> None:
        """Paint a textured figure with a darker contour on top of what is there.

        One that is not ``owned`` belongs to the ground: it has no pixels and hides nothing.
        """
        part = figure.clipped(self.width, self.height)
        height, width = part.coverage.shape
        surface = texture(rng, width, height, color, 32)
        surface *= 1 - part.edge[:, :, None] * np.float32(0.6 / 255)
        under = self._window(self.pixels, part)
        alpha = part.coverage[:, :, None] * np.float32(opacity / 255)
        under[...] = np.clip(np.rint(under + (surface - under) * alpha), 0, 255).astype(np.uint8)
        if owned:
            self._window(self.owner, part)[part.inside] = len(self.full_areas)
            self.full_areas.append(int(figure.inside.sum()))
            self.colors.append(color)

    @staticmethod
    def _window(plane: np.ndarray, part: Stencil) -> np.ndarray:
        height, width = part.coverage.shape
        return plane[part.y : part.y + height, part.x : part.x + width]
