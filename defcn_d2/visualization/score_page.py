"""Precision, recall and F1 over the least score, and the confusion of classes, as a page."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..evaluation.thresholds import ScoreCurve
from ..utils.files import write_atomically
from .colors import class_color
from .page import Picture, figure_png, figure_text, page_files, pictures_page

NAME = "score_report"  # of the page and its pictures
_LINES = 12  # classes with a line of their own, those of the most objects
_NUMBERS = 25  # classes up to which the cells of the matrix hold numbers
_STYLE = "td, th { text-align: right; padding: 2px 12px } th:first-child { text-align: left }"


def score_pictures(report: dict[str, Any], curves: Sequence[ScoreCurve]) -> list[Picture]:
    """The curves and the matrix.

    Args:
        report: of ``score_report``.
        curves: of all classes together and of each, in the order of the report.
    """
    names = [one["name"] for one in (report["overall"], *report["classes"])]
    threshold = report["overall"]["threshold"]
    at = "" if threshold is None else f" at a score of {threshold:.3f} or more"
    return [
        Picture(
            "Precision, recall and F1",
            "At IoU 0.5. Dots: the least score with the best F1."
            + (f" Classes: the {_LINES} of the most objects." if len(names) > _LINES + 1 else ""),
            figure_png(draw_curves(names, curves)),
        ),
        Picture(
            f"Confusion of classes{at}",
            "Rows: objects, the colour is the share of the row. Columns: what they are detected "
            "as; missed: nothing is near. The last row: detections of nothing that is left.",
            figure_png(draw_confusion(names[1:], np.array(report["confusion"]))),
        ),
    ]


def draw_curves(names: Sequence[str], curves: Sequence[ScoreCurve]) -> Figure:
    """Precision over recall, and F1 over the least score."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    largest = sorted(range(1, len(curves)), key=lambda i: -curves[i].objects)[:_LINES]
    for i in (*sorted(largest), 0):
        curve, best = curves[i], curves[i].best()
        color, width = (class_color(i - 1), 1.2) if i else ("black", 2.4)
        label = figure_text(f"{names[i]}: {best['f1']:.2f}")
        if best["threshold"] is not None:
            label += f" at {best['threshold']:.2f}"
            left.plot(best["recall"], best["precision"], "o", color=color)
            right.plot(best["threshold"], best["f1"], "o", color=color)
        left.plot(curve.recalls, curve.precisions, color=color, linewidth=width, label=label)
        right.plot(curve.thresholds, curve.f1, color=color, linewidth=width)
    left.set(xlabel="recall", ylabel="precision")
    right.set(xlabel="least score", ylabel="F1")
    for axes in (left, right):
        axes.set(xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.25)
    figure.legend(loc="outside right center", fontsize=9, title="best F1")
    return figure


def draw_confusion(names: Sequence[str], matrix: np.ndarray) -> Figure:
    """The matrix of ``confusion_matrix``."""
    side = min(14.0, 2.5 + 0.45 * len(matrix))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes: Axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= _NUMBERS:
        for row, column in zip(*np.nonzero(matrix)):
            ink = "white" if shares[row, column] > 0.6 else "black"
            number = axes.text(column, row, str(matrix[row, column]), fontsize=8, color=ink)
            number.set(ha="center", va="center")
    texts = [figure_text(name) for name in names]
    places = range(len(matrix))
    size = 9 if len(names) <= _NUMBERS else 5
    axes.set_xticks(places, [*texts, "missed"], rotation=90, fontsize=size)
    axes.set_yticks(places, [*texts, "nothing there"], fontsize=size)
    axes.set(xlabel="detected as", ylabel="object")
    return figure


def score_table(report: dict[str, Any]) -> str:
    """The numbers of every class, as HTML."""
    keys = ("objects", "threshold", "f1", "precision", "recall")
    rows = [["", *keys]]
    for one in (report["overall"], *report["classes"]):
        cells = [f"{x:.3f}" if isinstance(x, float) else str(x) for x in (one[k] for k in keys)]
        rows.append([one["name"], *(cell.replace("None", "-") for cell in cells)])
    lines = [
        f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td>{x}</td>" for x in cells) + "</tr>"
        for name, *cells in rows
    ]
    return f"<style>{_STYLE}</style>\n<table>\n" + "\n".join(lines) + "\n</table>"


def write_score_page(
    folder: Path, dataset: str, report: dict[str, Any], curves: Sequence[ScoreCurve]
) -> None:
    """Write the page and its pictures into a folder.

    Args:
        dataset: its name.
        report, curves: as of ``score_pictures``.
    """
    pictures = score_pictures(report, curves)
    text = pictures_page(f"Scores on {dataset}", "", pictures, score_table(report))
    for name, content in page_files(NAME, text, pictures).items():
        write_atomically(folder / name, content)
