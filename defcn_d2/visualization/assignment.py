"""Locations that each matcher makes positive, level by level."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, pairwise_iou
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from ..modeling.matcher import build_matcher
from ..structures import Priors
from ..utils.box_fields import box_fields
from ..utils.errors import UserError, as_user_error
from .colors import class_color
from .example import Example
from .page import figure_text

# Side of an anchor in strides, for matchers by anchors where the model has points: the release's.
_ANCHOR_SCALE = 4
# Weight of the IoU in the quality of a prediction, arXiv 2012.03544, eq. 3.
_ALPHA = 0.8
# Area of a dot in points^2: that of quality 0, and what quality 1 adds.
_SMALL, _MORE = 12.0, 120.0
_QUALITIES = (0.0, 0.5, 1.0)


def own_matchers(cfg: CfgNode) -> list[str]:
    """Names of those that a config trains with."""
    node = cfg.MODEL.DEFCN
    return [node.MATCHER.NAME] + ([node.AUX.MATCHER.NAME] if node.AUX.ENABLED else [])


def assignments(cfg: CfgNode, example: Example, matchers: Sequence[str]) -> list[Tensor]:
    """(R,) int64 per matcher: the object that each location learns, or less than 0.

    Args:
        cfg: whose keys of ``MODEL.DEFCN.MATCHER`` the matchers take, that of
            ``MODEL.DEFCN.AUX`` those of its own.
        matchers: names.

    Raises:
        UserError: there is no such matcher, or it does not fit the model.
    """
    if not matchers:
        raise UserError(f"--matchers is empty: name one, such as {own_matchers(cfg)[0]}")
    main, aux = cfg.MODEL.DEFCN.MATCHER, cfg.MODEL.DEFCN.AUX.MATCHER
    found = []
    for name in matchers:
        node = (aux if name == aux.NAME else main).clone()
        node.defrost()
        node.NAME = name
        with as_user_error(ValueError, f"--matchers {name}: {{}}"):
            matcher = build_matcher(node, "--matchers")
            priors = example.priors
            if getattr(matcher, "priors", "") == "anchors" and cfg.MODEL.DEFCN.PRIORS == "points":
                priors = _anchors(priors)
            found.append(matcher(priors, example.predictions, example.gt).gt_idxs)
    return found


def _anchors(priors: Priors) -> Priors:
    """The same locations with square boxes of the release's size."""
    reach = priors.strides[:, None] * _ANCHOR_SCALE / 2  # (R, 1)
    boxes = torch.cat([priors.centers - reach, priors.centers + reach], dim=1)
    return replace(priors, boxes=boxes, level_shapes=None)


def _quality(example: Example) -> Tensor:
    """(M, R) in [0, 1]: score^(1-a) IoU^a of each location's prediction for each object."""
    found, gt = example.predictions, example.gt
    overlap = pairwise_iou(gt.gt_boxes, Boxes(found.boxes)).nan_to_num().clamp(0, 1)  # (M, R)
    return found.scores().T[gt.gt_classes] ** (1 - _ALPHA) * overlap**_ALPHA


def draw_assignment(cfg: CfgNode, example: Example, matchers: Sequence[str]) -> Figure:
    """A row a level that any matcher uses, a column a matcher.

    A dot is a positive location, in the colour of its object's class; its area grows with the
    quality score^(1-a) IoU^a of the model's own prediction there, whatever the matcher went by.

    Args, raises: as ``assignments``.
    """
    # Levels that any matcher uses.
    chosen = assignments(cfg, example, matchers)  # (R,) each
    gt = example.gt
    quality = _quality(example)
    starts = np.cumsum([0, *example.priors.level_sizes])
    used = [
        level
        for level in range(len(example.strides))
        if any((gt_idxs[starts[level] : starts[level + 1]] >= 0).any() for gt_idxs in chosen)
    ]

    # Panels, as wide as the image is relative to its height.
    height, width = example.image.shape[:2]
    cell = 3.3 if len(matchers) > 1 else 5.0
    rows = max(len(used), 1)
    figure = Figure(
        figsize=(cell * len(matchers) + 0.3, cell * height / width * rows + 0.36 * rows + 1.45),
        layout="constrained",
    )
    grid = figure.subplots(rows, len(matchers), squeeze=False)

    # Dots by level, and the numbers of all levels above them.
    for column, (name, gt_idxs) in enumerate(zip(matchers, chosen)):
        for row, level in enumerate(used):
            axes = grid[row][column]
            part = slice(int(starts[level]), int(starts[level + 1]))
            _draw_level(axes, example, level, part, gt_idxs, quality)
            count = int((gt_idxs[part] >= 0).sum())
            axes.set_title(f"{example.level_names[level]}: {count} positive", fontsize=9)
        total = int((gt_idxs >= 0).sum())
        missing = len(gt) - len(gt_idxs[gt_idxs >= 0].unique())
        left = f"; {missing} of {len(gt)} objects without" if missing else ""
        head = f"{name}\n{total} positive of {len(gt_idxs)}{left}"
        axes = grid[0][column]
        axes.set_title(f"{head}\n\n{axes.get_title()}", fontsize=9.5)

    # Title and legend.
    unused = [name for i, name in enumerate(example.level_names) if i not in used]
    note = f"; no positives on {', '.join(n.partition(',')[0] for n in unused)}" if unused else ""
    objects = f"{len(gt)} object{'s' * (len(gt) > 1)}"
    where = figure_text(example.name)
    figure.suptitle(f"Positive locations in {where}, {objects}{note}", fontsize=12)
    _legend(figure, example, len(matchers))
    return figure


def _draw_level(
    axes: Axes, example: Example, level: int, part: slice, gt_idxs: Tensor, quality: Tensor
) -> None:
    height, width = example.image.shape[:2]
    axes.imshow(example.image.mean(axis=2) / 255 * 0.6 + 0.4, cmap="gray", vmin=0, vmax=1)
    stride = example.strides[level]
    if stride * 40 >= max(height, width):  # finer grids would hide the image
        for x in range(0, width, stride):
            axes.axvline(x - 0.5, color="black", alpha=0.2, linewidth=0.5)
        for y in range(0, height, stride):
            axes.axhline(y - 0.5, color="black", alpha=0.2, linewidth=0.5)
    for field, boxes in box_fields(example.gt).items():
        width_of_line = 1.4 if field == "gt_boxes" else 0.7
        for box, number in zip(boxes.tensor.tolist(), example.gt.gt_classes.tolist()):
            axes.add_patch(_outline(box, class_color(number), width_of_line))
    owners = gt_idxs[part]
    positive = torch.nonzero(owners >= 0).squeeze(1)  # (P,)
    centers = example.priors.centers[part][positive]
    sizes = [_area(float(quality[owners[i], part.start + i])) for i in positive]
    colors = [class_color(int(example.gt.gt_classes[owners[i]])) for i in positive]
    axes.scatter(
        centers[:, 0] - 0.5,
        centers[:, 1] - 0.5,
        s=sizes,
        c=colors,
        edgecolors="black",
        linewidths=0.7,
        zorder=3,
        clip_on=False,
    )
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])


def _outline(box: Sequence[float], color: str, width: float) -> Rectangle:
    x1, y1, x2, y2 = box
    return Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=width)


def _area(quality: float) -> float:
    return _SMALL + _MORE * quality


def _legend(figure: Figure, example: Example, columns: int) -> None:
    present = sorted(set(example.gt.gt_classes.tolist()))
    names = [figure_text(name) for name in example.classes]
    handles = [
        Rectangle((0, 0), 1, 1, fill=False, edgecolor=class_color(i), lw=2, label=names[i])
        for i in present
    ]
    dots = [
        Line2D(
            [],
            [],
            linestyle="",
            marker="o",
            markersize=_area(quality) ** 0.5,
            color="#bbbbbb",
            markeredgecolor="black",
            label=f"quality {quality:g}",
        )
        for quality in _QUALITIES
    ]
    figure.legend(
        handles=[*handles, *dots],
        loc="outside lower center",
        ncols=min(len(handles) + len(dots), 3 * max(2, columns)),
        frameon=False,
        fontsize=9,
        title=f"object's class; quality = score^{1 - _ALPHA:.2g} IoU^{_ALPHA:g} of the prediction",
        title_fontsize=9,
    )
