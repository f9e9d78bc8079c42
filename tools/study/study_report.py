"""The report of the study: tables, expectations and plots from the figures of its runs."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from study_plots import plot_crowd, plot_shapes
from study_runs import VARIANTS, Run, Settings
from update_readme import replace_between

from defcn_d2.utils.files import write_atomically

BEGIN, END = "<!-- study:begin -->", "<!-- study:end -->"
HEADING = "# The study: what each variant does"

# Figures of all seeds by variant of one data set: name -> one value a seed.
Figures = dict[str, dict[str, list[float]]]

# Column -> (figure, digits after the point).
SHAPES_COLUMNS = {
    "AP": ("AP", 1),
    "AP with NMS": ("nms_AP", 1),
    "gap": ("gap", 1),
    "duplicates per gt": ("duplicates_0.3", 3),
    "recall": ("recall", 1),
    "recall with NMS": ("nms_recall", 1),
}
CROWD_COLUMNS = {
    "AP50": ("AP50", 1),
    "AP50 with NMS": ("nms_AP50", 1),
    "mMR": ("mMR", 1),
    "mMR with NMS": ("nms_mMR", 1),
    "JI": ("JI", 1),
    "JI with NMS": ("nms_JI", 1),
    "recall": ("recall", 1),
    "recall with NMS": ("nms_recall", 1),
    "duplicates per gt": ("duplicates_0.3", 3),
}


def read_figures(runs: Sequence[Run], output: Path, data: str) -> Figures:
    """The figures of the finished runs on one data set, with ``gap`` (AP with NMS - AP) added."""
    figures: Figures = {}
    for variant in VARIANTS[data]:
        rows = [r.figures(output) for r in runs if (r.data, r.variant) == (data, variant)]
        done = [row for row in rows if row is not None]
        score = "AP50" if data == "shapes_crowd" else "AP"
        for row in done:
            row["gap"] = row["nms_" + score] - row[score]
        if done:
            figures[variant] = {name: [row[name] for row in done] for name in done[0]}
    return figures


def mean_and_spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and sample standard deviation over seeds, which one seed does not have."""
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def table(figures: Figures, columns: dict[str, tuple[str, int]]) -> str:
    """Markdown, a row a variant."""
    lines = [f"| variant | {' | '.join(columns)} |", "|---|" + ":---:|" * len(columns)]
    for variant, values in figures.items():
        cells = [mean_and_spread(values[name], digits) for name, digits in columns.values()]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def expectations(shapes: Figures, crowd: Figures) -> str:
    """Expectations from the papers beside the results, as Markdown; ``""`` without data."""
    one_to_one = ("POTO", "POTO-3DMF", "POTO-3DMF-Aux")
    gaps = {variant: row["gap"] for variant, row in shapes.items()}
    rows = [
        _row(
            f"{name} is within 0.5 AP of itself with NMS (gap)",
            gaps.get(name),
            lambda gap: abs(gap) <= 0.5,
        )
        for name in one_to_one
    ]
    text = "FCOS loses 5 AP or more without NMS (gap)"
    rows.append(_row(text, gaps.get("FCOS"), lambda gap: gap >= 5))
    for better, other in (
        *(("POTO", "Anchor"), ("POTO", "Center")),
        *(("POTO-3DMF", "POTO"), ("POTO-3DMF-Aux", "POTO-3DMF")),
    ):
        text = f"{better} is better than {other} (difference of AP)"
        rows.append(_row(text, difference(shapes, (better, "AP"), (other, "AP"))))
    for name in one_to_one:
        text = f"crowd: {name} finds more than the NMS ceiling (difference of recall)"
        rows.append(_row(text, difference(crowd, (name, "recall"), (name, "nms_ceiling"))))
        text = f"crowd: {name} finds more than FCOS with NMS (difference of recall)"
        rows.append(_row(text, difference(crowd, (name, "recall"), ("FCOS", "nms_recall"))))
    rows += _peak_expectations(shapes, crowd)
    rows = [row for row in rows if row]
    head = ["| expected | measured | holds |", "|---|:---:|:---:|"]
    return "\n".join(head + rows) if rows else ""


def _peak_expectations(shapes: Figures, crowd: Figures) -> list[str]:
    """Expectations of peak selection: without NMS as good as one-to-many detectors with it."""
    peak = shapes.get("Peak", {})
    text = "Peak without NMS is at least FCOS with NMS (difference of AP)"
    rows = [_row(text, difference(shapes, ("Peak", "AP"), ("FCOS", "nms_AP")))]
    text = "Peak is within -0.5 and 0.3 AP of itself with NMS (gap)"
    rows.append(_row(text, peak.get("gap"), lambda gap: -0.5 <= gap <= 0.3))
    text = "Peak leaves fewer than 0.05 duplicates per object"
    rows.append(_row(text, peak.get("duplicates_0.3"), lambda number: number < 0.05))
    for name, figure, other, theirs, sign in (
        ("AP50 is at least that of FCOS with NMS", "AP50", "FCOS", "nms_AP50", 1),
        ("mMR is at most that of FCOS with NMS", "mMR", "FCOS", "nms_mMR", -1),
        ("JI is at least that of FCOS with NMS", "JI", "FCOS", "nms_JI", 1),
        ("recall is above the NMS ceiling", "recall", "Peak", "nms_ceiling", 1),
        ("recall is that of POTO", "recall", "POTO", "recall", 1),
    ):
        values = difference(crowd, ("Peak", figure), (other, theirs))
        holds = partial(_at_least, sign=sign, least=-0.5 if other == "POTO" else 0.0)
        rows.append(_row(f"crowd: Peak's {name} (difference)", values, holds))
    return rows


def _at_least(mean: float, sign: int, least: float) -> bool:
    return sign * mean >= least


def difference(
    figures: Figures, better: tuple[str, str], other: tuple[str, str]
) -> list[float] | None:
    """One figure of one variant less another's, seed by seed; None if one was not trained.

    Args:
        better, other: variant and name of the figure.
    """
    if better[0] not in figures or other[0] not in figures:
        return None
    # a study under way may have one seed more of one of them
    pairs = zip(figures[better[0]][better[1]], figures[other[0]][other[1]], strict=False)
    return [a - b for a, b in pairs]


def _row(
    text: str,
    values: list[float] | None,
    holds: Callable[[float], bool] = lambda mean: mean > 0,
) -> str:
    if not values:
        return ""
    verdict = "yes" if holds(statistics.fmean(values)) else "**no**"
    return f"| {text} | {mean_and_spread(values, 2)} | {verdict} |"


def describe(settings: Settings, figures: Sequence[Figures], machine: dict[str, Any]) -> str:
    """Conditions of the figures: command, network, schedule, seeds, machine."""
    seeds = [len(row["AP50"]) for part in figures for row in part.values()]
    count = f"{min(seeds)}" if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
    spent = sum(sum(row["training_seconds"]) for part in figures for row in part.values())
    half = [x for part in figures for row in part.values() for x in row.get("bfloat16", ())]
    precision = {0: "float32", len(half): "bfloat16"}.get(
        round(sum(half)), f"{sum(half):.0f} of {len(half)} runs in bfloat16, the others in float32"
    )
    command = (
        f"python tools/study/study.py --iterations {settings.iterations} --batch {settings.batch}"
    )
    command += f" --network {settings.network} --seeds {max(seeds)}"
    if settings.opts:
        command += " " + " ".join(settings.opts)
    return (
        f"`{command}`: {settings.iterations} iterations of {settings.batch} images for every "
        f"variant, the same {settings.network} network from scratch, {count} seed"
        f"{'s' if count != '1' else ''}; mean ± standard deviation over the seeds; {precision}. "
        f"{machine['device']}, {machine['jobs']} at a time with {machine['threads']} thread"
        f"{'s' if machine['threads'] > 1 else ''} each, "
        f"{spent / 3600:.1f} hours of training in all; PyTorch {machine['torch']}, "
        f"Detectron2 {machine['detectron2']}."
    )


def body(
    settings: Settings, shapes: Figures, crowd: Figures, cells: Figures, machine: dict[str, Any]
) -> str:
    """Everything between the markers."""
    parts = [describe(settings, [shapes, crowd, cells], machine)]
    if shapes:
        parts += [
            "## Figures of seven classes (`shapes`)",
            "Columns without a remark are without NMS; with NMS means at IoU 0.6 on the same raw "
            "detections. Gap: AP with NMS less AP without. Duplicates: further detections of an "
            "object already found, IoU above 0.5, score above 0.3. Recall at IoU 0.5.",
            table(shapes, SHAPES_COLUMNS),
            "![AP of every variant with and without NMS](images/study_shapes.png)",
        ]
    if crowd:
        ceiling = statistics.fmean(next(iter(crowd.values()))["nms_ceiling"])
        parts += [
            "## The crowd (`shapes_crowd`)",
            f"NMS at IoU 0.6 applied to the ground truth itself leaves {ceiling:.1f} % of it: the "
            "ceiling of the recall of any detector that needs NMS. mMR: lower is better.",
            table(crowd, CROWD_COLUMNS),
            "![Recall and AP50 in the crowd against the NMS ceiling](images/study_crowd.png)",
        ]
    if cells:
        parts += [
            "## Photographs of blood cells (`bccd`)",
            "292 images for training, 72 for evaluation, three classes; "
            f"{settings.batch // 2} images a step, at 240 pixels; columns as above.",
            table(cells, SHAPES_COLUMNS),
        ]
    checked = expectations(shapes, crowd)
    if checked:
        parts += ["## Expected, and measured", checked]
    return "\n\n".join(parts)


def write_report(
    runs: Sequence[Run], output: Path, docs: Path, settings: Settings, machine: dict[str, Any]
) -> Path:
    """Write ``docs``/study.md and its plots; what stands outside the markers there is kept.

    Args:
        machine: the note of ``study.py`` on what trained.

    Returns:
        the file.

    Raises:
        ValueError: a study.md without the two markers.
    """
    shapes, crowd, cells = (read_figures(runs, output, data) for data in VARIANTS)
    path = docs / "study.md"
    text = path.read_text() if path.exists() else f"{HEADING}\n\n{BEGIN}\n{END}\n"
    text = replace_between(
        text, body(settings, shapes, crowd, cells, machine), (BEGIN, END), path.name
    )
    (docs / "images").mkdir(parents=True, exist_ok=True)
    if shapes:
        plot_shapes(shapes, docs / "images" / "study_shapes.png")
    if crowd:
        plot_crowd(crowd, docs / "images" / "study_crowd.png")
    write_atomically(path, text.encode())
    return path
