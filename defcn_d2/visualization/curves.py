"""Losses, scores and learning rate of one or several runs, from their ``metrics.json``."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..utils.errors import UserError
from .page import figure_text

Rows = list[dict[str, float]]

_COLORS = (
    *("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple"),
    *("tab:brown", "tab:pink", "tab:olive", "tab:cyan", "black"),
)
# Key of metrics.json -> title and unit of its panel, where the key says too little.
_PANELS = {
    "total_loss": ("Total training loss", "loss"),
    "lr": ("Learning rate", "learning rate"),
    "train_seconds": ("Time spent on training", "minutes"),
    "bbox/AP": ("AP without NMS", "percent"),
    "bbox/AP50": ("AP50 without NMS", "percent"),
    "bbox_nms/AP": ("AP with NMS", "percent"),
    "nms_gap": ("NMS gap: AP with NMS - AP without", "points of AP"),
}


def read_metrics(path: Path) -> Rows:
    """The rows of a ``metrics.json`` by iteration; of what was done twice after a kill, the last.

    A row holds the scalars of its iteration. A line cut off by a kill is left out. No rows where
    there is no file.
    """
    rows: dict[int, dict[str, float]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rows.setdefault(row["iteration"], {}).update(row)
        except (ValueError, TypeError, KeyError):
            continue
    return [rows[iteration] for iteration in sorted(rows)]


def load_runs(paths: Sequence[Path]) -> dict[str, Rows]:
    """Rows by name of the run, which is as much of its path as distinguishes the runs.

    Args:
        paths: of runs' folders or of their metrics.json.

    Raises:
        UserError: there is no such file, or nothing in it.
    """
    files = [path / "metrics.json" if path.is_dir() else path for path in map(Path, paths)]
    runs = {}
    for file, name in zip(files, _names(files), strict=True):
        if not file.is_file():
            raise UserError(f"{str(file)!r} does not exist: give folders of runs")
        try:
            runs[name] = read_metrics(file)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{str(file)!r} cannot be read: {error}") from error
        if not runs[name]:
            raise UserError(f"{str(file)!r} holds no metrics: give the metrics.json of a run")
    return runs


def _names(files: Sequence[Path]) -> list[str]:
    """Folders' names, with as many of their parents as distinguish them."""
    parts = [file.absolute().parent.parts for file in files]
    if len(set(files)) < len(files):
        raise UserError("a run is given twice: give each once")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]


def draw_curves(runs: dict[str, Rows]) -> Figure:
    """A panel a quantity that any run has, a colour a run; bars where there is one value a run."""
    keys = _keys(runs)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    lines = -(-len(runs) // 3)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.3 * lines + 0.3), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    colors = {name: _COLORS[i % len(_COLORS)] for i, name in enumerate(runs)}
    for axes, key in zip(panels, keys):
        curves = {
            name: [(row["iteration"] + 1, row[key]) for row in metrics if key in row]
            for name, metrics in runs.items()
        }
        title, unit = _PANELS.get(key) or _title(figure_text(key))
        if all(len(points) <= 1 for points in curves.values()):
            _draw_bars(axes, curves, colors, title)
        else:
            _draw_lines(axes, key, curves, colors)
            axes.set_title(title, fontsize=10)
            if unit == "loss":
                axes.set_ylim(0, None)
        axes.set_ylabel(unit)
        axes.set_axisbelow(True)
    for axes in panels[len(keys) :]:
        axes.axis("off")
    what = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    figure.suptitle(f"Training and evaluation of {figure_text(what)}", fontsize=12)
    handles = [Patch(color=color, label=figure_text(name)) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_lines(
    axes: Axes, key: str, curves: dict[str, list[tuple[float, float]]], colors: dict[str, str]
) -> None:
    for name, points in curves.items():
        if not points:
            continue
        x, y = zip(*points)
        if key == "train_seconds":
            y = tuple(value / 60 for value in y)
        marker = "o" if len(x) < 15 else ""
        axes.plot(x, y, color=colors[name], marker=marker, markersize=4, linewidth=1.5)
    axes.set(xlabel="iteration", xlim=(0, None))
    axes.grid(alpha=0.3)


def _draw_bars(
    axes: Axes,
    curves: dict[str, list[tuple[float, float]]],
    colors: dict[str, str],
    title: str,
) -> None:
    """The one value of each run, written above its bar."""
    there = {name: points[0] for name, points in curves.items() if points}
    for place, (name, (_, value)) in enumerate(there.items()):
        bars = axes.bar(place, value, 0.7, color=colors[name])
        axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)
    steps = sorted({round(step) for step, _ in there.values()})
    when = f"at iteration {steps[0] - 1}" if len(steps) == 1 else "at the end of each run"
    axes.set_title(f"{title}, {when}", fontsize=10)
    axes.set_xticks([])
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)


def _keys(runs: dict[str, Rows]) -> list[str]:
    there = {key for rows in runs.values() for row in rows for key in row}
    losses = sorted(key for key in there if key.startswith("loss_"))
    wanted = ["total_loss", *losses, *_PANELS]
    wanted += sorted(key for key in there if key.startswith(("crowd", "bbox/MR", "bbox/JI")))
    keys = [key for key in dict.fromkeys(wanted) if key in there]
    if not keys:
        raise UserError("the runs' metrics hold no loss and no score")
    return keys


def _title(key: str) -> tuple[str, str]:
    if key.startswith("loss_"):
        return f"Training loss {key.removeprefix('loss_')}", "loss"
    return key, ""
