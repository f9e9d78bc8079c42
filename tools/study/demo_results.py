"""The figures of ``make demo``: read from what a run has left, as text and as Markdown."""

import json
import os
from pathlib import Path
from typing import Any

FILES = {
    "model_final.pth": "the weights",
    "metrics.json": "losses and scores over the iterations",
    "curves.png": "the same as curves",
    "detections.jpg": "detections beside the ground truth",
    "inference/": "the detections on the validation images, in COCO's format",
    "summary.json": "these figures",
}
# Sub-folders of inference/ by what was evaluated.
EVALUATIONS = {"without NMS": "without_nms", "with NMS": "with_nms"}


def write_json(path: Path, value: object) -> None:
    """Write all or nothing."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.json`` by iteration, see ``defcn_d2.visualization.curves``."""
    from defcn_d2.visualization.curves import read_metrics

    return read_metrics(path)


def last_evaluation(rows: list[dict[str, float]], iterations: int) -> dict[str, float] | None:
    """The scores with and without NMS of the finished model; None if there are none."""
    found = [row for row in rows if "nms_gap" in row and row["iteration"] >= iterations]
    return found[-1] if found else None


def training_seconds(rows: list[dict[str, float]]) -> float:
    """Time that training took, evaluations left out."""
    return max((row["train_seconds"] for row in rows if "train_seconds" in row), default=0.0)


def print_coco_summary(annotations: str, folder: Path) -> None:
    """Evaluate the detections that a run has left again, and print pycocotools' summary."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detections = json.loads((folder / "coco_instances_results.json").read_text())
    if not detections:
        print("the model has found nothing")
        return
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    evaluation.summarize()


def table(summary: dict[str, Any]) -> str:
    """Results of one run, as Markdown."""
    scores = summary["scores"]
    rows = [f"| on `{summary['data']}` | AP | AP50 | AP75 |", "|---|:---:|:---:|:---:|"]
    for name, task in (("without NMS", "bbox"), ("with NMS at IoU 0.6", "bbox_nms")):
        cells = [f"{scores[f'{task}/{metric}']:.1f}" for metric in ("AP", "AP50", "AP75")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows.append(f"| gap (AP with NMS - without) | {scores['nms_gap']:.1f} | | |")
    return "\n".join(rows)


def print_results(summary: dict[str, Any], output: Path) -> None:
    """Print the results: scores, time, files."""
    print(f"\n{table(summary)}\n\ntime, restarts included:")
    for name, seconds in summary["seconds"].items():
        print(f"{seconds:7.0f} s  {name}")
    print(f"{summary['training_seconds']:7.0f} s  of these on training steps")
    print(f"\nin {output}:")
    for name, what in FILES.items():
        print(f"  {name:16} {what}")
