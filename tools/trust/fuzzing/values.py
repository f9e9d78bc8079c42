"""Contents of a fuzzed batch, by name: boxes of ground truth, and outputs of a head."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

# Boxes (count, 4) xyxy from their number, the image's (width, height, width, height) and a
# generator.
MakeBoxes = Callable[[int, Tensor, Generator], Tensor]
# Logits (N, R, K or K + 1) and distances ltrb (N, R, 4), from usual ones and a generator.
MakeOutputs = Callable[[Tensor, Tensor, Generator], tuple[Tensor, Tensor]]


def _ordinary(count: int, limits: Tensor, generator: Generator) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
    return corners.flatten(1) * limits


def _sized(low: float, high: float) -> MakeBoxes:
    """Boxes around points of the image with sides of 10^low ... 10^high pixels."""

    def make(count: int, limits: Tensor, generator: Generator) -> Tensor:
        centers = torch.rand(count, 2, generator=generator) * limits[:2]
        reach = 10 ** (low + (high - low) * torch.rand(count, 2, generator=generator)) / 2
        return torch.cat([centers - reach, centers + reach], dim=1)

    return make


def _duplicated(count: int, limits: Tensor, generator: Generator) -> Tensor:
    few = _ordinary(3, limits, generator)
    return few[torch.randint(3, (count,), generator=generator)]


def _outside(count: int, limits: Tensor, generator: Generator) -> Tensor:
    shift = torch.randint(-1, 2, (count, 2), generator=generator) * 3
    return _ordinary(count, limits, generator) + shift.repeat(1, 2) * limits


def _whole_image(count: int, limits: Tensor, generator: Generator) -> Tensor:
    return torch.cat([torch.zeros(2), limits[:2]]).repeat(count, 1)


def _on_the_grid(count: int, limits: Tensor, generator: Generator) -> Tensor:
    """Sides on the borders and the centres of cells."""
    return (_ordinary(count, limits, generator) / 4).round() * 4


def _concentric(count: int, limits: Tensor, generator: Generator) -> Tensor:
    reach = torch.rand(count, 1, generator=generator) * limits[:2]
    return torch.cat([limits[:2] / 2 - reach, limits[:2] / 2 + reach], dim=1)


def _without_area(count: int, limits: Tensor, generator: Generator) -> Tensor:
    boxes = _ordinary(count, limits, generator)
    flat = torch.rand(count, 2, generator=generator) < 0.7
    boxes[:, 2:] = torch.where(flat, boxes[:, :2], boxes[:, 2:])
    return boxes


def _turned(count: int, limits: Tensor, generator: Generator) -> Tensor:
    """Some with their corners exchanged."""
    boxes = _ordinary(count, limits, generator)
    return torch.where(torch.rand(count, 1, generator=generator) < 0.3, boxes.roll(2, 1), boxes)


def _with(value: float) -> MakeBoxes:
    """Some coordinates replaced by a value."""

    def make(count: int, limits: Tensor, generator: Generator) -> Tensor:
        chosen = torch.rand(count, 4, generator=generator) < 0.1
        return _ordinary(count, limits, generator).masked_fill(chosen, value)

    return make


def _of_every_kind(count: int, limits: Tensor, generator: Generator) -> Tensor:
    kinds = torch.stack([BOXES[name](count, limits, generator) for name in LEARNABLE])
    return kinds[torch.randint(len(kinds), (count,), generator=generator), torch.arange(count)]


BOXES: dict[str, MakeBoxes] = {
    "ordinary": _ordinary,
    "duplicated": _duplicated,
    "outside of the image": _outside,
    "whole image": _whole_image,
    "on the grid": _on_the_grid,
    "concentric": _concentric,
    "tiny": _sized(-6, 0),
    "huge": _sized(2, 7),
    "without area": _without_area,
    "of every kind": _of_every_kind,
    "corners exchanged": _turned,
    "NaN": _with(math.nan),
    "infinite": _with(math.inf),
    "beyond float32's pixels": _with(-1e9),
}
LEARNABLE = [
    name
    for name in BOXES
    if name
    not in ("of every kind", "corners exchanged", "NaN", "infinite", "beyond float32's pixels")
]


def _random(logits: Tensor, ltrb: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    return logits, ltrb


def _constant(logit: float, distance: float) -> MakeOutputs:
    return lambda logits, ltrb, _: (
        torch.full_like(logits, logit),
        torch.full_like(ltrb, distance),
    )


def _extreme(logits: Tensor, ltrb: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    chosen = torch.rand(logits.shape, generator=generator) < 0.5
    return torch.where(chosen, logits.sign() * 1e4, logits), ltrb


def _scaled(low: float, high: float) -> MakeOutputs:
    """Distances times 10^low ... 10^high."""

    def make(logits: Tensor, ltrb: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        return logits, ltrb * 10 ** (
            low + (high - low) * torch.rand(ltrb.shape, generator=generator)
        )

    return make


def _inverted(logits: Tensor, ltrb: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    return logits, torch.where(torch.rand(ltrb.shape, generator=generator) < 0.5, ltrb, -ltrb)


def _spoilt(value: float, share: float) -> MakeOutputs:
    """This share of the values, and one at least."""

    def make(logits: Tensor, ltrb: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        spoilt = []
        for x in (logits, ltrb):
            x = x.masked_fill(torch.rand(x.shape, generator=generator) < share, value)
            x.view(-1)[int(torch.randint(x.numel(), (), generator=generator))] = value
            spoilt.append(x)
        return spoilt[0], spoilt[1]

    return make


PREDICTIONS: dict[str, MakeOutputs] = {
    "random": _random,
    "perfect": _random,  # see ``make_predictions``
    "constant": _constant(0.0, 8.0),
    "empty boxes": _constant(-4.6, 0.0),
    "logits 1e4": _constant(1e4, 8.0),
    "logits -1e4": _constant(-1e4, 8.0),
    "logits 1e4 and -1e4": _extreme,
    "far boxes": _scaled(2, 8),
    "tiny boxes": _scaled(-12, -2),
    "inverted boxes": _inverted,
    "some NaN": _spoilt(math.nan, 0.1),
    "some infinite": _spoilt(math.inf, 0.1),
    "some -infinite": _spoilt(-math.inf, 0.1),
    "one NaN": _spoilt(math.nan, 0.0),
    "all NaN": _spoilt(math.nan, 1.1),
    "all infinite": _spoilt(math.inf, 1.1),
}
NOT_FINITE = [name for name in PREDICTIONS if "NaN" in name or "infinite" in name]
