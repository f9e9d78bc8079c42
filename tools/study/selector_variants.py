"""The parts of peak selection: selectors of many kinds on one trained, frozen detector.

Each variant is the config of ``tools/make_nms_free.py`` with a few keys changed, trained for a few
hundred iterations. They share the detector, so that they compare much more finely than trainings.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
sys.path.insert(1, str(ROOT / "tools"))

import torch  # noqa: E402
from demo_results import EVALUATIONS, write_json  # noqa: E402
from study_runs import BFLOAT16, DETECTIONS, in_bfloat16  # noqa: E402

from defcn_d2.weights.reader import read_checkpoint  # noqa: E402

HEAD = "MODEL.DEFCN.HEAD.PeakHead."
MATCHER = "MODEL.DEFCN.MATCHER.POTO."

#: Keys by name of the variant; those that begin with "comparison" train nothing.
VARIANTS: dict[str, list] = {
    "comparison": [],
    "comparison, IoU 0.5": [HEAD + "IOU_THRESH", 0.5],
    "comparison, IoU 0.7": [HEAD + "IOU_THRESH", 0.7],
    "comparison, IoU 0.8": [HEAD + "IOU_THRESH", 0.8],
    "comparison, own level": [HEAD + "TAU", 0],
    "comparison, window": [HEAD + "COMPARE", "window"],
    "selector": [],
    "selector, own level": [HEAD + "TAU", 0],
    "selector, window": [HEAD + "COMPARE", "window"],
    "selector, no comparison": [HEAD + "COMPARE", "none"],
    "selector without convs": [HEAD + "SELECT_CONVS", 0],
    "selector, w 1.5": [HEAD + "PEAK_WEIGHT", 1.5],
    "selector, alpha 0.2": [MATCHER + "ALPHA", 0.2],
    "selector, alpha 0.8": [MATCHER + "ALPHA", 0.8],
    "selector, whole box": [MATCHER + "RADIUS", 0.0],
}
FIGURES = ("AP", "AP50", "mMR", "JI", "recall", "duplicates_0.3")


def run_variant(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Figures of a variant without NMS and, after "nms_", with it; made where they are not yet."""
    folder = args.output / name.replace(",", "").replace(" ", "-")
    path = folder / "figures.json"
    if path.exists():
        return json.loads(path.read_text())
    trains = not name.startswith("comparison")
    python, config = [sys.executable], str(args.base / "config.yaml")
    iterations = str(args.iterations if trains else 0)
    start = [*("--config-file", config, "--weights", str(args.weights))]
    start += ["--output", str(folder), "--iterations", iterations]
    _call([*python, "tools/make_nms_free.py", *start], folder, "make.txt")
    keys = [*map(str, VARIANTS[name]), "TEST.WITH_NMS", "True"]
    keys += BFLOAT16 if in_bfloat16("narrow") else []
    command = ["train_net.py", "--config-file", str(folder / "config.yaml")]
    command += ["--resume"] if trains else ["--eval-only"]
    console = _call([*python, *command, *keys], folder, "console.txt")
    figures = _figures(folder, args, console)
    write_json(path, figures)
    return figures


def _call(command: Sequence[str], folder: Path, log: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    (folder / log).write_text(result.stdout)
    if result.returncode:
        raise SystemExit(f"error: {folder / log}: {result.stdout.strip().splitlines()[-1]}")
    return result.stdout


def _figures(folder: Path, args: argparse.Namespace, console: str) -> dict[str, float]:
    from defcn_d2.evaluation.duplicates import coco_figures

    figures = {}
    for prefix, evaluation in (("", "without NMS"), ("nms_", "with NMS")):
        found = folder / "inference" / EVALUATIONS[evaluation]
        crowd = found / "crowdhuman_figures.json"
        if crowd.exists():
            figures.update({prefix + k: v for k, v in json.loads(crowd.read_text()).items()})
        else:
            values = coco_figures(args.annotations, found / DETECTIONS)
            figures.update({prefix + key: value for key, value in values.items()})
    figures.update(_scores(folder, console))
    return figures


def _scores(folder: Path, console: str) -> dict[str, float]:
    """AP and AP50 of both evaluations, from what the command has printed."""
    scores: dict[str, float] = {}
    task, names = "", [""]
    for line in console.splitlines():
        _, found, text = line.partition("copypaste: ")
        if text.startswith("Task: "):
            task = "nms_" if text.endswith("_nms") else ""
        elif found and text.startswith("AP,"):
            names = text.split(",")
        elif found and text[:1].isdigit() and text.count(",") == len(names) - 1:
            values = dict(zip(names, map(float, text.split(","))))
            scores.update({task + name: values[name] for name in ("AP", "AP50")})
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: prints one row of a table for each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, metavar="RUN", help="folder of a finished training")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, help="of the validation images, COCO's format")
    parser.add_argument("--iterations", type=int, default=200, metavar="N", help="[%(default)s]")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    weights = read_checkpoint(str(args.base / "model_final.pth"))["model"]
    base = {name: value for name, value in weights.items() if not name.startswith("head.select")}
    args.weights = args.output / "base.pth"
    torch.save({"model": base}, args.weights)
    print("| variant | " + " | ".join([*FIGURES, "AP with NMS", "AP50 with NMS"]) + " |")
    for name in args.only:
        figures = run_variant(name, args)
        cells = [figures.get(key) for key in (*FIGURES, "nms_AP", "nms_AP50")]
        values = " | ".join("" if x is None else f"{x:.3g}" for x in cells)
        print(f"| {name} | {values} |", flush=True)


if __name__ == "__main__":
    main()
