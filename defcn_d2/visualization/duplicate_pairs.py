"""Duplicates: where they are, and at which scores, without and with NMS."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..engine.predictor import read_rgb
from ..evaluation.judged import DUPLICATE, IGNORED, KINDS, TRUE, Judged, judge
from ..utils.printable import printable
from .boxes import Mark, grid, tile
from .page import Picture, array_png, figure_png

# Of the kinds of detections, in their order.
_KIND_COLORS = ("#2a9d3a", "#f58231", "#e6194b", "#7f7f7f")
_BINS = np.linspace(0, 1, 26)
_NOTE = (
    "Green: true positives. Orange, dashed: duplicates, with their score where they are few. "
    "Red: background. White: objects that nothing has found."
)
_MANY = 8  # duplicates, whose scores would cover the image
_STYLES = (("without NMS", "-"), ("with NMS", "--"))


def duplicate_pictures(
    judged: Sequence[Judged],
    with_nms: Sequence[Judged],
    classes: Sequence[str],
    score: float,
    iou: float,
    count: int,
) -> list[Picture]:
    """The plots over all images, and the images with the most duplicates.

    Args:
        judged, with_nms: the same images.
        classes: names.
        score: least score of the detections that are drawn on images.
        iou: of the NMS.
        count: of images to draw.
    """
    duplicates = [int(((one.kinds == DUPLICATE) & (one.scores >= score)).sum()) for one in judged]
    pictures = [
        Picture(
            f"Precision and kinds of detections over their score, {len(judged)} images",
            "A true positive is the best detection of an object (IoU above 0.5, same class); a "
            "duplicate is another one of an object that is found already; background is the rest. "
            f"Dashed: the same detections after class-wise NMS at IoU {iou:g}.",
            figure_png(draw_statistics(judged, with_nms, score)),
        )
    ]
    chosen = sorted(range(len(judged)), key=lambda i: -duplicates[i])[:count]
    for i in chosen:
        tiles = [
            _tile(one, classes, score, caption)
            for one, caption in (
                (judged[i], f"without NMS, score ≥ {score:g}"),
                (with_nms[i], f"with NMS at IoU {iou:g}"),
            )
        ]
        number = duplicates[i]
        title = (
            f"{printable(Path(judged[i].file_name).name)}: {number} duplicate{'s' * (number != 1)}"
        )
        pictures.append(Picture(title, _NOTE, array_png(grid(tiles, 2))))
    return pictures


def _tile(one: Judged, classes: Sequence[str], score: float, caption: str) -> np.ndarray:
    kept = np.flatnonzero((one.scores >= score) & (one.kinds != IGNORED))
    # best first: the objects that are found by then are those of the whole list up to the score
    part = slice(int((one.scores >= score).sum()))
    detections = one.boxes[part], one.scores[part], one.classes[part]
    found = judge(one.file_name, one.gt_boxes, one.gt_classes, one.gt_crowd, *detections).gt_found
    marks = [Mark(box, "", "#ffffff") for box in one.gt_boxes[~one.gt_crowd & ~found]]
    many = (one.kinds[kept] == DUPLICATE).sum() > _MANY
    for i in sorted(kept, key=lambda i: (one.kinds[i] != DUPLICATE, one.scores[i])):
        text, dashed = f"{one.scores[i]:.2f}", bool(one.kinds[i] == DUPLICATE)
        if not dashed:
            text = f"{classes[one.classes[i]]} {text}"
        elif many:
            text = ""
        marks.append(Mark(one.boxes[i], text, _KIND_COLORS[one.kinds[i]], dashed))
    counts = [int((one.kinds[kept] == kind).sum()) for kind in range(IGNORED)]
    numbers = ", ".join(
        f"{n} {name}" for n, name in zip(counts, ("true", "duplicates", "background"))
    )
    return tile(
        read_rgb(one.file_name), marks, f"{caption}: {numbers}", side=520, size=11, square=False
    )


def draw_statistics(judged: Sequence[Judged], with_nms: Sequence[Judged], score: float) -> Figure:
    """Histograms of scores by kind, without and with NMS, and precision over score."""
    # Histograms of scores, without and with NMS.
    figure = Figure(figsize=(13, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    pairs = [
        (name, _pool(images))
        for name, images in zip(("without NMS", "with NMS"), (judged, with_nms))
    ]
    highest = 1.0
    for axes, (name, (scores, kinds)) in zip((left, middle), pairs):
        highest = max(highest, _histogram(axes, scores, kinds))
        above = scores >= score
        counts = [int((kinds[above] == kind).sum()) for kind in range(IGNORED)]
        axes.set_title(
            f"{name}; at score ≥ {score:g}: {counts[0]} true,\n"
            f"{counts[1]} duplicates, {counts[2]} background",
            fontsize=10,
        )
    for axes in (left, middle):
        axes.set(yscale="log", ylim=(0.7, highest * 6), xlim=(0, 1))
        axes.set(xlabel="score", ylabel="detections (logarithmic)")
        axes.legend(loc="upper right", fontsize=9)

    # Precision over the least score.
    for (name, style), (_, (scores, kinds)) in zip(_STYLES, pairs):
        _precision(right, scores, kinds, name, style)
    right.set(xlabel="least score", ylabel="share", xlim=(0, 1), ylim=(0, 1.02))
    right.set_title("Detections at or above a score", fontsize=10)
    if right.lines:  # none where nothing was found
        right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=9)
    for axes in (left, middle, right):
        axes.axvline(score, color="black", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def _pool(images: Sequence[Judged]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and kinds of all detections that count."""
    scores = np.concatenate([one.scores for one in images])
    kinds = np.concatenate([one.kinds for one in images])
    return scores[kinds != IGNORED], kinds[kinds != IGNORED]


def _histogram(axes: Axes, scores: np.ndarray, kinds: np.ndarray) -> float:
    """Steps by kind; returns the highest."""
    highest = 0.0
    for kind in range(IGNORED):
        counts, _ = np.histogram(scores[kinds == kind], _BINS)
        axes.stairs(counts, _BINS, color=_KIND_COLORS[kind], fill=True, alpha=0.25, baseline=0.7)
        axes.stairs(
            counts, _BINS, color=_KIND_COLORS[kind], linewidth=1.8, label=KINDS[kind], baseline=0.7
        )
        highest = max(highest, float(counts.max()))
    return highest


def _precision(axes: Axes, scores: np.ndarray, kinds: np.ndarray, name: str, style: str) -> None:
    """Shares of true positives and of duplicates among the detections from each score on."""
    if not len(scores):
        return
    order = np.argsort(-scores, kind="stable")
    number = np.arange(1, len(order) + 1)
    for kind, label in ((TRUE, "precision"), (DUPLICATE, "duplicates")):
        share = np.cumsum(kinds[order] == kind) / number
        axes.plot(scores[order], share, style, color=_KIND_COLORS[kind], label=f"{label}, {name}")
