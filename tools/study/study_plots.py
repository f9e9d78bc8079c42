"""The plots of the study: bars with their spread and one dot a seed."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

WITHOUT, WITH = "tab:blue", "tab:orange"
WIDTH = 0.4


def plot_shapes(figures: dict[str, dict[str, list[float]]], output: Path) -> None:
    """AP of every variant, without and with NMS."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _pairs(axes, figures, "AP")
    axes.set(title="shapes_val: AP", ylabel=f"AP, {axes.get_ylabel()}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(output, dpi=100)


def plot_crowd(figures: dict[str, dict[str, list[float]]], output: Path) -> None:
    """Recall and AP50 of every variant, without and with NMS, and the NMS ceiling."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _pairs(left, figures, "recall")
    ceiling = next(iter(figures.values()))["nms_ceiling"][0]
    left.axhline(ceiling, color="black", linestyle="--", label="NMS ceiling")
    left.set(title="shapes_crowd_val: recall at IoU 0.5", ylabel=f"recall, {left.get_ylabel()}")
    _pairs(right, figures, "AP50")
    right.set(title="shapes_crowd_val: AP50", ylabel=f"AP50, {right.get_ylabel()}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(output, dpi=100)


def _pairs(axes: Axes, figures: dict[str, dict[str, list[float]]], name: str) -> None:
    """Two bars a variant: the figure ``name`` without NMS, and with it."""
    for offset, prefix, color, label in (
        (-WIDTH / 2, "", WITHOUT, "without NMS"),
        (WIDTH / 2, "nms_", WITH, "with NMS"),
    ):
        values = [row[prefix + name] for row in figures.values()]
        places = [i + offset for i in range(len(values))]
        means = [statistics.fmean(seeds) for seeds in values]
        axes.bar(places, means, WIDTH * 0.94, color=color, alpha=0.75, label=label)
        for place, seeds in zip(places, values, strict=True):
            axes.plot(_beside(place, seeds), seeds, "o", color="black", markersize=3, zorder=3)
    lowest = min(min(row[p + name]) for row in figures.values() for p in ("", "nms_"))
    highest = max(max(row[p + name]) for row in figures.values() for p in ("", "nms_"))
    # from zero, unless all are high: differences must be seen
    cut = lowest > 80
    axes.set_ylim(lowest - 5 if cut else 0, min(100, highest * 1.1))
    axes.set_ylabel(f"percent{' (axis cut)' if cut else ''}")
    axes.set_xticks(range(len(figures)), list(figures), rotation=25, ha="right")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _beside(place: float, seeds: Sequence[float]) -> list[float]:
    """Places for dots so that seeds with equal values stay distinct."""
    step = WIDTH / 4
    return [place + step * (i - (len(seeds) - 1) / 2) for i in range(len(seeds))]
