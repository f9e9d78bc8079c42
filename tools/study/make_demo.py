"""The main job of ``make demo``: draw the data, train, evaluate with and without NMS, show results.

Everything lies in one folder, ``output/demo/``. Killed at any point and started again it goes on;
where all is there already, it prints the results and ends.
"""

import argparse
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports
# Read when torch is imported: threads that wait for work sleep, see defcn_d2/engine/cpu.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from demo_results import (  # noqa: E402
    EVALUATIONS,
    FILES,
    last_evaluation,
    print_coco_summary,
    print_results,
    read_metrics,
    training_seconds,
    write_json,
)

CONFIG = ROOT / "configs" / "shapes" / "Peak-GFL.yaml"
# Evaluations on the way, for the curve, and checkpoints, for a killed run: every so many steps.
EVAL_PERIOD = 300
CHECKPOINT_PERIOD = 50


class Clock:
    """Seconds spent on each step, kept in a file so that restarts add to them."""

    def __init__(self, path: Path, period: float = 5.0):
        """
        Args:
            period: seconds after which the file is brought up to date: a kill loses no more.
        """
        self.path = path
        self.period = period
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        print(f"\n== {name}", flush=True)
        start, before = time.monotonic(), self.seconds.get(name, 0.0)
        done = threading.Event()

        def keep() -> None:
            self.seconds[name] = before + time.monotonic() - start
            write_json(self.path, self.seconds)

        def keep_until_done() -> None:
            while not done.wait(self.period):
                keep()

        thread = threading.Thread(target=keep_until_done, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            keep()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw the built-in data, train on it, evaluate with and without NMS, and draw "
        "detections. Run again after a kill, it goes on."
    )
    parser.add_argument("--config-file", default=str(CONFIG), metavar="FILE")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "demo", help="folder [%(default)s]"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="override the config"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    args = parse_arguments(arguments)
    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))  # read at the next import
    from defcn_d2.engine.cpu import has_bfloat16
    from defcn_d2.engine.reporting import reported

    fast = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"]
    opts = [*(fast if has_bfloat16() else []), *args.opts]
    return reported(make_demo)(args.config_file, args.output.resolve(), opts)


def make_demo(config_file: str, output: Path, opts: list[str]) -> int:
    """Do what is not yet done, and show the results."""
    from demo_pictures import draw_curves, load_cfg, load_data

    from defcn_d2.engine import Predictor
    from defcn_d2.visualization.detections import draw_beside_truth
    from defcn_d2.visualization.page import array_jpeg

    cfg = load_cfg(config_file, opts)
    is_the_same_run(output, cfg.dump())
    summary_file = output / "summary.json"
    if all((output / name).exists() for name in FILES):
        print_results(json.loads(summary_file.read_text()), output)
        print(f"\nall was there already; to start afresh: rm -r {output}")
        return 0
    clock = Clock(output / "times.json")
    with clock.step("data"):
        load_data(cfg)
    with clock.step("training and evaluation"):
        status = train(config_file, output, opts, cfg.SOLVER.MAX_ITER)
    if status:
        print(f"training has failed with status {status}; run this again to go on", file=sys.stderr)
        return status
    with clock.step("pictures"):
        draw_curves(output / "metrics.json", output / "curves.png", cfg.SOLVER.MAX_ITER)
        predictor = Predictor(cfg, output / "model_final.pth", confidence=0.3)
        picture = draw_beside_truth(predictor, cfg.DATASETS.TEST[0])
        (output / "detections.jpg").write_bytes(array_jpeg(picture, quality=88))
    print_summaries(cfg.DATASETS.TEST[0], output)
    summary = summarize(cfg, output, clock.seconds)
    write_json(summary_file, summary)
    print_results(summary, output)
    return 0


def is_the_same_run(output: Path, config: str) -> None:
    """Claim a folder for one run: ``UserError`` where it was begun with another config."""
    from defcn_d2.utils.errors import UserError

    output.mkdir(parents=True, exist_ok=True)
    path = output / "requested.yaml"
    if path.exists() and path.read_text() != config:
        raise UserError(
            f"{output} holds a run of another configuration ({path.name}): remove the folder with "
            f"rm -r {output}, or give another --output"
        )
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(config)
    os.replace(temporary, path)


def train(config_file: str, output: Path, opts: list[str], iterations: int) -> int:
    """Train and evaluate, or go on with it, as ``train_net.py`` does; returns its exit status."""
    done = last_evaluation(read_metrics(output / "metrics.json"), iterations)
    if done and (output / "model_final.pth").exists() and all_detections(output):
        print("is there already")
        return 0
    from defcn_d2.engine import run

    command = ["--config-file", config_file, "--resume"]
    command += ["TEST.WITH_NMS", "True", "TEST.EVAL_PERIOD", str(EVAL_PERIOD)]
    command += ["SOLVER.CHECKPOINT_PERIOD", str(CHECKPOINT_PERIOD)]
    command += [*opts, "OUTPUT_DIR", str(output)]
    print("$ python train_net.py", *command, flush=True)
    status = run(command)
    if not status:  # only the last checkpoint is of use from here on
        for file in output.glob("model_[0-9]*.pth"):
            file.unlink()
    return status


def all_detections(output: Path) -> bool:
    """Reports if the detections of the last evaluation are there."""
    folders = [output / "inference" / name for name in EVALUATIONS.values()]
    return all((folder / "coco_instances_results.json").exists() for folder in folders)


def print_summaries(data: str, output: Path) -> None:
    """pycocotools' summaries of the detections without and with NMS."""
    from detectron2.data import MetadataCatalog

    for name, folder in EVALUATIONS.items():
        print(f"\n{data}, {name}:")
        print_coco_summary(MetadataCatalog.get(data).json_file, output / "inference" / folder)


def summarize(cfg: Any, output: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """The content of ``summary.json``."""
    import detectron2
    import torch

    from defcn_d2.engine.cpu import available_cores

    rows = read_metrics(output / "metrics.json")
    return {
        "data": cfg.DATASETS.TEST[0],
        "scores": last_evaluation(rows, cfg.SOLVER.MAX_ITER),
        "seconds": seconds,
        "training_seconds": training_seconds(rows),
        "iterations": cfg.SOLVER.MAX_ITER,
        "batch": cfg.SOLVER.IMS_PER_BATCH,
        "device": cfg.MODEL.DEVICE,
        "cores": available_cores(),
        "versions": {"torch": torch.__version__, "detectron2": detectron2.__version__},
    }


if __name__ == "__main__":
    sys.exit(main())
