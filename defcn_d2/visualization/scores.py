"""Score maps by level before and after the quality branch, as in the paper's figure."""

import math

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from ..structures import Predictions
from ..utils.errors import UserError
from .colors import class_color
from .example import Example
from .page import figure_text

_COLORMAP = "magma"
_QUALITY = "quality"


def draw_scores(example: Example) -> Figure:
    """A row a level: the best class score of each location, the quality, and the score of both.

    Without a quality branch there is the class score alone.
    """
    # Maps (R,) by name, and their colour scales.
    predictions = example.predictions
    maps = {"class score, best class": predictions.cls_logits.sigmoid().amax(dim=1).numpy()}
    if predictions.quality_logits is not None:
        maps[_QUALITY] = predictions.quality_logits.sigmoid().numpy()
        maps[f"score after: {_rule(predictions)}"] = predictions.scores().amax(dim=1).numpy()
    scores = [values for name, values in maps.items() if name != _QUALITY]
    scale = Normalize(0, _round_up(max(float(values.max()) for values in scores)))
    norms = [Normalize(0, 1) if name == _QUALITY else scale for name in maps]

    # Panels: the image on the left, then a column a map.
    height, width = example.image.shape[:2]
    levels = len(example.strides)
    cell, columns = 2.5, len(maps) + 1
    figure = Figure(
        figsize=(cell * columns + 0.2, cell * height / width * levels + 0.25 * levels + 1.4),
        layout="constrained",
    )
    grid = figure.subplots(levels, columns, squeeze=False)
    _draw_image(grid[0][0], example)
    for row in range(1, levels):
        grid[row][0].axis("off")
    _legend(grid[1][0] if levels > 1 else grid[0][0], example)

    # Each map by level, and its colour bar.
    starts = np.cumsum([0, *example.priors.level_sizes])
    for column, (name, values) in enumerate(maps.items(), start=1):
        for level in range(levels):
            axes = grid[level][column]
            part = values[starts[level] : starts[level + 1]]
            _draw_map(axes, example, level, part, norms[column - 1])
            title = f"{example.level_names[level]}: highest {part.max():.2f}"
            axes.set_title(f"{name}\n{title}" if level == 0 else title, fontsize=9)
        figure.colorbar(
            ScalarMappable(norms[column - 1], _COLORMAP),
            ax=list(grid[:, column]),
            location="bottom",
            label="probability",
            shrink=0.85,
            aspect=25,
            pad=0.01,
        )
    figure.suptitle(f"Scores of all locations in {figure_text(example.name)}", fontsize=12)
    return figure


def _round_up(score: float) -> float:
    """The end of a scale for scores: the next tenth, 1 at the most."""
    return min(1.0, math.ceil(score * 10 + 1e-6) / 10)


def _rule(predictions: Predictions) -> str:
    """The formula of ``Predictions.scores``."""
    return "√(class × quality)" if predictions.centerness else "class × quality"


def _draw_image(axes: Axes, example: Example) -> None:
    axes.imshow(example.image)
    gt = example.gt
    for number, (box, kind) in enumerate(
        zip(gt.gt_boxes.tensor.tolist(), gt.gt_classes.tolist(), strict=True)
    ):
        x1, y1, x2, y2 = box
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=class_color(kind), lw=1.6)
        )
        axes.text(
            (x1 + x2) / 2,
            (y1 + y2) / 2,
            str(number),
            ha="center",
            va="center",
            fontsize=8,
            color="white",
            bbox={"facecolor": class_color(kind), "pad": 1.2, "linewidth": 0},
        )
    axes.set(xticks=[], yticks=[])
    axes.set_title("image and ground truth\nobjects by number", fontsize=9)


def _legend(axes: Axes, example: Example) -> None:
    present = sorted(set(example.gt.gt_classes.tolist()))
    handles = [Patch(color=class_color(i), label=figure_text(example.classes[i])) for i in present]
    axes.legend(handles=handles, loc="upper center", frameon=False, fontsize=9)


def _draw_map(
    axes: Axes, example: Example, level: int, values: np.ndarray, norm: Normalize
) -> None:
    """The map over the image without the padding of the model's input."""
    rows, columns = example.level_shape(level)
    stride = example.strides[level]
    axes.imshow(
        values.reshape(rows, columns, -1).max(axis=2),
        cmap=_COLORMAP,
        norm=norm,
        extent=(0, columns * stride, rows * stride, 0),
        interpolation="nearest",
    )
    for box in example.gt.gt_boxes.tensor.tolist():
        x1, y1, x2, y2 = box
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="#9fe8ff", lw=0.7)
        )
    height, width = example.image.shape[:2]
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])


def draw_object_scores(example: Example, number: int | None = None, count: int = 12) -> Figure:
    """The highest scores for the class of one object among the locations inside its box.

    Args:
        number: of the object; None: the largest.
        count: of locations.

    Raises:
        UserError: there is no such object, or no location in its box.
    """
    boxes = example.gt.gt_boxes.tensor
    if number is None:
        number = int((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).argmax())
    if not 0 <= number < len(boxes):
        raise UserError(f"--object {number}: the image has {len(boxes)} objects, from 0")
    kind = int(example.gt.gt_classes[number])

    # The best locations in the box, by class score.
    centers = example.priors.centers  # (R, 2)
    inside = ((centers > boxes[number, :2]) & (centers < boxes[number, 2:])).all(dim=1)
    before = example.predictions.cls_logits[:, kind].sigmoid()  # (R,)
    after = example.predictions.scores()[:, kind]
    best = before.masked_fill(~inside, -1).argsort(descending=True, stable=True)
    best = best[: min(count, int(inside.sum()))]  # (B,)
    if not len(best):
        raise UserError(f"--object {number} is so small that no location lies in it: give another")

    # A panel a level that has any of them, then the bars of all.
    ends = np.cumsum(example.priors.level_sizes)
    levels = np.searchsorted(ends, best.numpy(), side="right")
    used = sorted(set(levels.tolist()))
    figure = Figure(figsize=(3.1 * len(used) + 5.6, 4.4), layout="constrained")
    ratios = [3.1] * len(used) + [5.6]
    *panels, right = figure.subplots(1, len(used) + 1, width_ratios=ratios, squeeze=False)[0]
    for axes, level in zip(panels, used):
        ranks = np.flatnonzero(levels == level)
        _draw_places(axes, example, number, level, ranks, best[torch.from_numpy(ranks)])
    _draw_bars(right, example.predictions, before[best], after[best])
    right.set_ylabel(f"score for {figure_text(example.classes[kind])}")
    figure.suptitle(
        f"Object {number} ({figure_text(example.classes[kind])}) of {figure_text(example.name)}",
        fontsize=12,
    )
    return figure


def _draw_bars(axes: Axes, predictions: Predictions, before: Tensor, after: Tensor) -> None:
    """The scores of the numbered locations, by descending class score."""
    places = np.arange(len(before))
    alone = predictions.quality_logits is None
    if alone:
        axes.bar(places, before.numpy(), 0.6, color="tab:gray", label="class score")
    else:
        name = _rule(predictions)
        axes.bar(places - 0.2, before.numpy(), 0.38, color="tab:gray", label="before: class score")
        axes.bar(places + 0.2, after.numpy(), 0.38, color="tab:blue", label=f"after: {name}")
    title = "Highest scores in the box"
    if len(before) > 1:
        first, second = after.topk(2).values.tolist()
        when = "" if alone else "after, "
        title += f"; {when}the second is {second / max(first, 1e-9):.0%} of the first"
    axes.set_title(title, fontsize=10)
    axes.set_xticks(places, [str(i + 1) for i in places])
    axes.set(xlabel="location, as numbered on the left", ylim=(0, 1))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="upper right")


def _draw_places(
    axes: Axes, example: Example, number: int, level: int, ranks: np.ndarray, locations: Tensor
) -> None:
    """The object's surroundings with the locations of one level, by their rank from 0."""
    height, width = example.image.shape[:2]
    x1, y1, x2, y2 = example.gt.gt_boxes.tensor[number].tolist()
    margin = 0.12 * max(x2 - x1, y2 - y1)
    left, right = max(0.0, x1 - margin), min(float(width), x2 + margin)
    top, bottom = max(0.0, y1 - margin), min(float(height), y2 + margin)
    gray = example.image.mean(axis=2) / 255 * 0.6 + 0.4
    axes.imshow(gray, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    kind = int(example.gt.gt_classes[number])
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=class_color(kind), lw=2)
    )
    # a number has the room of its cell, in points of a panel of about three inches
    room = 205 / max(right - left, bottom - top) * example.strides[level]
    for rank, (x, y) in zip(ranks, example.priors.centers[locations].tolist(), strict=True):
        axes.text(
            x,
            y,
            str(rank + 1),
            ha="center",
            va="center",
            fontsize=min(10.0, max(4.0, room * 0.5)),
            bbox={"boxstyle": "circle,pad=0.12", "facecolor": "white", "alpha": 0.85, "lw": 0.5},
        )
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    axes.set_title(f"{example.level_names[level]}", fontsize=10)
