"""Detectors of the study before and after they are made to do without NMS, without any training.

Takes the weights that ``study.py`` has left, lets ``tools/make_nms_free.py`` make each detector's
form without NMS, evaluates it, and writes the table of docs/nms-free.md. Killed, it goes on.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from selector_variants import ROOT, run_variant
from study_report import mean_and_spread
from update_readme import replace_between

from defcn_d2.utils.files import write_atomically

BEGIN, END = "<!-- conversions:begin -->", "<!-- conversions:end -->"
# Detectors that are trained one-to-many with one prior a location.
DETECTORS = ("FCOS", "ATSS", "FCOS-GFL", "GFL", "TAL", "AutoAssign", "NoisyAnchors-dense")
# Column -> (before or after, figure, digits after the point).
COLUMNS = {
    "AP with NMS": ("before", "nms_AP", 1),
    "AP without": ("before", "AP", 1),
    "AP of its form": ("after", "AP", 1),
    "gap": ("after", "gap", 1),
    "duplicates per gt": ("after", "duplicates_0.3", 3),
    "recall": ("after", "recall", 1),
}
Figures = dict[str, float]


def convert(run: Path, output: Path, annotations: Path) -> Figures:
    """Figures of the form without NMS of one run, which are made where they are not yet."""
    output.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "model_final.pth", output / "base.pth")
    place = argparse.Namespace(base=run, output=output, annotations=annotations, iterations=0)
    figures = run_variant("comparison", place)
    return {**figures, "gap": figures["nms_AP"] - figures["AP"]}


def table(rows: dict[str, list[tuple[Figures, Figures]]]) -> str:
    """Markdown, a row a detector; its seeds are pairs of figures before and after."""
    lines = [f"| detector | seeds | {' | '.join(COLUMNS)} |"]
    lines.append("|---|:---:|" + ":---:|" * len(COLUMNS))
    for name, seeds in rows.items():
        cells = [
            mean_and_spread([pair[when == "after"][key] for pair in seeds], digits)
            for when, key, digits in COLUMNS.values()
        ]
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: converts what is there, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, metavar="DIR", help="output of study.py")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, required=True, help="of shapes_val")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "nms-free.md", metavar="FILE")
    args = parser.parse_args(arguments)
    rows: dict[str, list[tuple[Figures, Figures]]] = {}
    for name in DETECTORS:
        for run in sorted((args.study / "shapes" / name).glob("seed*")):
            if (run / "figures.json").exists() and (run / "model_final.pth").exists():
                before = json.loads((run / "figures.json").read_text())
                after = convert(run, args.output / name / run.name, args.annotations)
                rows.setdefault(name, []).append((before, after))
                print(f"{name}, {run.name}: {before['nms_AP']:.1f}, {after['AP']:.1f}", flush=True)
    if not rows:
        raise SystemExit(f"error: {args.study} holds no finished run of {', '.join(DETECTORS)}")
    text = replace_between(args.page.read_text(), table(rows), (BEGIN, END), args.page.name)
    write_atomically(args.page, text.encode())


if __name__ == "__main__":
    main()
