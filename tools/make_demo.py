"""The main job of ``make demo``: draw the data, train, evaluate with and without NMS, show results.

Everything lies in one folder, ``output/demo/``. Killed at any point and started again it goes on;
where all is there already, it prints the results and ends.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports
CONFIG = ROOT / "configs" / "shapes" / "POTO-3DMF-Aux.yaml"
# Evaluations on the way, for the curve, and checkpoints, for a killed run: every so many steps.
EVAL_PERIOD = 300
CHECKPOINT_PERIOD = 100


class Clock:
    """Seconds spent on each step, kept in a file so that restarts add to them."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        start = time.monotonic()
        try:
            yield
        finally:
            spent = self.seconds.get(name, 0.0) + time.monotonic() - start
            self.seconds[name] = spent
            write_json(self.path, self.seconds)


def write_json(path: Path, value: object) -> None:
    """Write all or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def train(config_file: Path, output: Path, opts: list[str]) -> None:
    """Train, or go on, through ``train_net.py``; ends the program where that fails."""
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config_file)]
    command += ["--resume", "TEST.WITH_NMS", "True", "TEST.EVAL_PERIOD", str(EVAL_PERIOD)]
    command += ["SOLVER.CHECKPOINT_PERIOD", str(CHECKPOINT_PERIOD)]
    status = subprocess.call([*command, *opts, "OUTPUT_DIR", str(output)])
    if status:
        print(f"training failed (exit status {status}), see above; `make demo` goes on from there")
        raise SystemExit(status)


def last_evaluation(metrics: Path) -> dict[str, float]:
    """The scores of the last evaluation in a ``metrics.json``."""
    for line in reversed(metrics.read_text().splitlines()):
        try:
            scores = json.loads(line)
        except json.JSONDecodeError:  # the line at which an earlier run was killed
            continue
        if "nms_gap" in scores:
            return scores
    raise SystemExit(f"{metrics} has no evaluation with NMS; delete its folder and start again")


def table(summary: dict) -> str:
    """Results of one run, as Markdown."""
    rows = [
        "| on `shapes_val` | AP | AP50 | AP75 |",
        "|---|:---:|:---:|:---:|",
    ]
    for name, task in (("without NMS", "bbox"), ("with NMS at IoU 0.6", "bbox_nms")):
        scores = [f"{summary['scores'][f'{task}/{m}']:.1f}" for m in ("AP", "AP50", "AP75")]
        rows.append(f"| {name} | {' | '.join(scores)} |")
    rows.append(f"| gap (AP with NMS - without) | {summary['scores']['nms_gap']:.1f} | | |")
    return "\n".join(rows)


def versions() -> dict[str, str]:
    import detectron2
    import torch

    return {"torch": torch.__version__, "detectron2": detectron2.__version__}


def show(summary: dict, output: Path) -> None:
    print("\n" + table(summary) + "\n")
    for name, seconds in summary["seconds"].items():
        print(f"{seconds:7.0f} s  {name}")
    print(f"\nin {output}:")
    for name, what in (
        ("model_final.pth", "the weights"),
        ("metrics.json", "losses and scores over the iterations"),
        ("curves.png", "the same as curves"),
        ("detections.jpg", "detections beside the ground truth"),
        ("summary.json", "these figures"),
    ):
        print(f"  {name:16} {what}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", type=Path, default=CONFIG)
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "demo")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="override the config")
    args = parser.parse_args(arguments)
    output: Path = args.output.resolve()
    summary_file = output / "summary.json"
    if summary_file.exists():
        show(json.loads(summary_file.read_text()), output)
        print(f"\nall was there already; delete {output} to start afresh")
        return 0

    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    output.mkdir(parents=True, exist_ok=True)
    clock = Clock(output / "times.json")
    with clock.step("data"):
        import demo_pictures

        cfg = demo_pictures.load_cfg(args.config_file, args.opts)
        demo_pictures.load_data(cfg)
    with clock.step("training and evaluation"):
        train(args.config_file, output, args.opts)
    with clock.step("pictures"):
        demo_pictures.draw_curves(output / "metrics.json", output / "curves.png")
        demo_pictures.draw_detections(cfg, output / "model_final.pth", output / "detections.jpg")
    summary = {
        "scores": last_evaluation(output / "metrics.json"),
        "seconds": clock.seconds,
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
    }
    write_json(summary_file, summary)
    show(summary, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
