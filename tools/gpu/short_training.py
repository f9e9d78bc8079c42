"""Train shortly on the built-in data by ``train_net.py``, and demand an AP of it."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
CONFIG = "configs/shapes/Peak.yaml"
WORKERS = 6  # that load data: a GPU takes more than the one of the config gives
TINY = (
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16", "MODEL.DEFCN.NUM_CONVS", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64"),
    *("SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "1", "DATALOADER.NUM_WORKERS", "0"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """The command.

    Raises:
        SystemExit: the training failed, or its AP is below the target.
    """
    arguments = parse_arguments(argv)
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)  # of a check that was killed
    folder.mkdir(parents=True)
    environment = {**os.environ}
    if arguments.images:
        environment["DETECTRON2_DATASETS"] = str(draw(folder / "data", arguments.images))
    words = command(arguments, folder / "run")
    print("$", *words, flush=True)
    if subprocess.run(words, cwd=ROOT, env=environment).returncode:
        raise SystemExit("the training failed, see above")
    table, ap = results(folder / "run")
    print(table)
    arguments.output.write_text(table + "\n")
    if arguments.target is not None and not ap >= arguments.target:  # NaN is below, too
        raise SystemExit(f"{ap:.1f} AP after the training, and the target is {arguments.target}")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--precision", choices=("float16", "bfloat16"), help="of AMP")
    parser.add_argument("--iterations", type=int, required=True)
    parser.add_argument("--target", type=float, help="AP without NMS that is demanded")
    parser.add_argument("--torchrun", type=int, metavar="N", help="start N processes by torchrun")
    parser.add_argument("--images", type=int, help="a data set of so many, and a tiny model")
    parser.add_argument("--folder", type=Path, required=True, help="emptied, then the run's")
    parser.add_argument("--output", type=Path, required=True, help="Markdown file")
    return parser.parse_args(argv)


def command(arguments: argparse.Namespace, run: Path) -> list[str]:
    """The training's command line."""
    launcher = []
    if arguments.torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(arguments.torchrun)]
    opts = ["SOLVER.MAX_ITER", arguments.iterations, "SEED", 0, "TEST.EVAL_PERIOD", 0]
    opts += ["DATALOADER.NUM_WORKERS", WORKERS, "MODEL.DEVICE", arguments.device]
    if arguments.precision:
        opts += ["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", arguments.precision]
    opts += [*(TINY if arguments.images else ()), "OUTPUT_DIR", run]
    gpus = 1 if arguments.device == "cuda" else 0
    start = [sys.executable, *launcher, str(ROOT / "train_net.py")]
    return [*start, "--config-file", CONFIG, "--num-gpus", str(gpus), *map(str, opts)]


def draw(root: Path, images: int) -> Path:
    """The built-in data with so few images; returns ``root``."""
    from defcn_d2.data.builtin import SHAPES
    from defcn_d2.data.synthetic.generation import GeneratedSet

    for split in ("train", "val"):
        GeneratedSet(SHAPES, root, split, images, 0).ensure()
    return root


def results(run: Path) -> tuple[str, float]:
    """A table of the figures that a run has left, and its AP."""
    rows = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    ap = [row["bbox/AP"] for row in rows if "bbox/AP" in row][-1]
    speed = statistics.median(r["images_per_second"] for r in rows if "images_per_second" in r)
    share = statistics.median(r["data_share"] for r in rows if "data_share" in r)
    seconds = max(row["train_seconds"] for row in rows if "train_seconds" in row)
    memory = re.findall(r"max_mem: (\d+)M", (run / "log.txt").read_text())
    cells = [f"{ap:.1f}", f"{seconds:.0f}", f"{speed:.0f}", f"{100 * share:.0f} %"]
    cells.append(memory[-1] if memory else "-")
    header = ["AP without NMS", "training, s", "images/s", "waits for data", "peak memory, MiB"]
    lines = [header, ["---"] * len(header), cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines), ap


if __name__ == "__main__":
    main()
