"""Detectors of the study before and after they are made to do without NMS, without any training.

Takes the weights that ``study.py`` has left, lets ``tools/make_nms_free.py`` make each detector's
form without NMS, evaluates it, and writes the table of docs/nms-free.md. Killed, it goes on.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from selector_variants import ROOT, run_variant
from study_report import Figures, table
from update_readme import replace_between

from defcn_d2.utils.files import write_atomically

BEGIN, END = "<!-- conversions:begin -->", "<!-- conversions:end -->"
# Detectors that are trained one-to-many with one prior a location.
DETECTORS = ("FCOS", "ATSS", "FCOS-GFL", "GFL", "TAL", "AutoAssign", "NoisyAnchors-dense")
# Column -> (figure, those of its form without NMS after "form_", digits after the point).
COLUMNS = {
    "AP with NMS": ("nms_AP", 1),
    "AP without": ("AP", 1),
    "AP of its form": ("form_AP", 1),
    "gap": ("form_gap", 1),
    "duplicates per gt": ("form_duplicates_0.3", 3),
    "recall": ("form_recall", 1),
}


def convert(run: Path, output: Path, annotations: Path) -> dict[str, float]:
    """Figures of one run and, after "form_", of its form; made where they are not yet."""
    weights = run / "model_final.pth"
    place = argparse.Namespace(
        base=run, weights=weights, output=output, annotations=annotations, iterations=0
    )
    form = run_variant("comparison", place)
    form["gap"] = form["nms_AP"] - form["AP"]
    before = json.loads((run / "figures.json").read_text())
    return {**before, **{f"form_{name}": value for name, value in form.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: converts what is there, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, metavar="DIR", help="output of study.py")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, required=True, help="of shapes_val")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "nms-free.md", metavar="FILE")
    args = parser.parse_args(arguments)
    figures: Figures = {}
    for name in DETECTORS:
        seeds = []
        for run in sorted((args.study / "shapes" / name).glob("seed*")):
            if (run / "figures.json").exists() and (run / "model_final.pth").exists():
                seeds.append(convert(run, args.output / name / run.name, args.annotations))
                print(f"{name}, {run.name}: {seeds[-1]['form_AP']:.1f} AP", flush=True)
        if seeds:
            row = f"{name} ({len(seeds)} seed{'s' * (len(seeds) > 1)})"
            figures[row] = {key: [seed[key] for seed in seeds] for key, _ in COLUMNS.values()}
    if not figures:
        raise SystemExit(f"error: {args.study} holds no finished run of {', '.join(DETECTORS)}")
    new = table(figures, COLUMNS)
    text = replace_between(args.page.read_text(), new, (BEGIN, END), args.page.name)
    write_atomically(args.page, text.encode())


if __name__ == "__main__":
    main()
