"""The study of ``make study``: what each variant does, on data that everyone can draw.

Trains every variant with the same network, batch and number of iterations from several seeds, and
writes docs/study.md, and docs/study.json with the figures of each run. Killed at any point and
started again it goes on, run by run, on another machine too: by study.json.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
sys.path.insert(1, str(ROOT / "tools"))  # for the benchmarks' name of the processor

from benchmarks.timing import cpu_name  # noqa: E402
from demo_results import write_json  # noqa: E402
from study_runs import NETWORKS, Run, Settings, Training, claim, collect, plan, start  # noqa: E402

# Iterations and seeds of the two forms.
FULL, QUICK = (500, 3), (150, 1)
BATCH = 16


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train all variants on the built-in data and compare them. Run again after a "
        "kill, it goes on."
    )

    # Extent of the study.
    parser.add_argument(
        "--quick", action="store_true", help="one seed and few iterations: minutes, not hours"
    )
    parser.add_argument("--seeds", type=int, metavar="N", help=f"[{FULL[1]}; quick: {QUICK[1]}]")
    parser.add_argument(
        "--iterations", type=int, metavar="N", help=f"of each run [{FULL[0]}; quick: {QUICK[0]}]"
    )
    parser.add_argument("--batch", type=int, default=BATCH, metavar="N", help="[%(default)s]")
    parser.add_argument(
        "--network", choices=list(NETWORKS), help="[resnet50 with a GPU, else narrow]"
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time [one a core; with a GPU: 1]"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help='such as "shapes" or "shapes/FCOS"'
    )

    parser.add_argument(
        "--bccd", type=Path, metavar="DIR", help="photographs of blood cells, in COCO's format"
    )

    # Output.
    parser.add_argument("--output", type=Path, metavar="DIR", help="[output/study, study-quick]")
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="folder of study.md [docs; quick: the output]"
    )
    parser.add_argument(
        "--report", action="store_true", help="train nothing: write study.md from what is there"
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="-- KEY VALUE", help="override the configs"
    )
    args = parser.parse_args(arguments)
    return _with_defaults(parser, args)


def _with_defaults(parser: argparse.ArgumentParser, args: argparse.Namespace) -> argparse.Namespace:
    import torch

    from defcn_d2.engine.cpu import available_cores

    iterations, seeds = QUICK if args.quick else FULL
    gpu = torch.cuda.is_available()
    args.iterations = iterations if args.iterations is None else args.iterations
    args.seeds = seeds if args.seeds is None else args.seeds
    args.network = args.network or ("resnet50" if gpu else "narrow")
    args.jobs = args.jobs if args.jobs is not None else 1 if gpu else available_cores()
    args.threads = max(1, available_cores() // max(1, args.jobs))
    args.output = (
        args.output or ROOT / "output" / ("study-quick" if args.quick else "study")
    ).resolve()
    args.docs = (args.docs or (args.output if args.quick else ROOT / "docs")).resolve()
    args.opts = [opt for opt in args.opts if opt != "--"]
    for name in ("iterations", "seeds", "batch", "jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)} is too small; take 1 or more")
    try:
        args.runs = plan(args.seeds, args.only, str(args.bccd.resolve()) if args.bccd else "")
        # what is known of the blood cells is part of the report where their images are not at hand
        args.reported = plan(args.seeds, args.only, str(args.bccd or "elsewhere"))
    except ValueError as error:
        parser.error(str(error))
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))  # read at the next import
    args = parse_arguments(arguments)
    settings = Settings(args.iterations, args.batch, args.network, tuple(args.opts))
    take_up_figures(args, settings)
    failed = [] if args.report else train(args, settings)
    for run, reason in failed:
        print(f"error: {run.name} has failed: {reason}", file=sys.stderr)
    return report(args, settings) or bool(failed)


def report(args: argparse.Namespace, settings: Settings) -> int:
    """Write study.md from the runs that are done; returns the exit status."""
    from study_report import write_report

    machine = args.output / "machine.json"
    if not machine.exists() or not any(run.figures(args.output) for run in args.reported):
        print(f"error: {args.output} holds no finished run", file=sys.stderr)
        return 1
    noted = json.loads(machine.read_text())
    try:
        print(f"written: {write_report(args.reported, args.output, args.docs, settings, noted)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    keep_figures(args, settings)
    return 0


def keep_figures(args: argparse.Namespace, settings: Settings) -> None:
    """Write study.json: the figures of all finished runs, with which a study goes on elsewhere.

    Those of runs that are no part of this command stay.
    """
    figures = {run.name: run.figures(args.output) for run in args.reported}
    done = {name: values for name, values in figures.items() if values is not None}
    kept = {
        "settings": asdict(settings),
        "machine": json.loads((args.output / "machine.json").read_text()),
        "figures": {**kept_before(args, settings).get("figures", {}), **done},
    }
    write_json(args.docs / "study.json", kept)


def kept_before(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """The content of study.json, empty where there is none or it is of other settings."""
    path = args.docs / "study.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return kept if kept.get("settings") == json.loads(json.dumps(asdict(settings))) else {}


def take_up_figures(args: argparse.Namespace, settings: Settings) -> None:
    """Put the figures of study.json into the output, if they are of the same settings."""
    kept = kept_before(args, settings)
    if not kept:
        return
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "machine.json").exists():
        write_json(args.output / "machine.json", kept["machine"])
    for run in args.reported:
        if run.name in kept["figures"] and run.figures(args.output) is None:
            claim(run, args.output, settings)
            write_json(run.folder(args.output) / "figures.json", kept["figures"][run.name])


def note_machine(args: argparse.Namespace) -> None:
    """Keep what the report says of the machine that trains."""
    import detectron2
    import torch

    from defcn_d2.engine.cpu import available_cores

    gpu = torch.cuda.is_available()
    note = {
        "device": torch.cuda.get_device_name()
        if gpu
        else f"{cpu_name()} ({available_cores()} cores)",
        "jobs": args.jobs,
        "threads": args.threads,
        "torch": torch.__version__.partition("+")[0],
        "detectron2": detectron2.__version__,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    write_json(args.output / "machine.json", note)


def annotations_of(data: str, images: str) -> Path:
    """The annotation file of the validation images; draws both sets where they are missing."""
    if images:
        return Path(images, "val.json")
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import defcn_d2  # noqa: F401  registers the sets

    for split in ("train", "val"):
        print(f"{data}_{split}: {len(DatasetCatalog.get(f'{data}_{split}'))} images", flush=True)
    metadata = MetadataCatalog.get(f"{data}_val")
    return Path(metadata.odgt_file if data == "shapes_crowd" else metadata.json_file)


def train(args: argparse.Namespace, settings: Settings) -> list[tuple[Run, str]]:
    """Do the runs that are left, ``args.jobs`` at a time; returns those that failed, and why."""
    waiting = [run for run in args.runs if run.figures(args.output) is None]
    if waiting:
        note_machine(args)
    # drawn before the runs, which would draw them side by side
    data = dict.fromkeys((run.data, run.images) for run in waiting)
    truth = {name: annotations_of(name, images) for name, images in data}
    print(f"{len(args.runs)} runs, {len(args.runs) - len(waiting)} of them done", flush=True)
    busy: list[Training] = []
    failed: list[tuple[Run, str]] = []
    try:
        while waiting or busy:
            while waiting and len(busy) < args.jobs:
                run = waiting.pop(0)
                try:
                    busy.append(start(run, args.output, settings, args.threads))
                except ValueError as error:
                    failed.append((run, str(error)))
            time.sleep(0.2)
            for training in [t for t in busy if t.process.poll() is not None]:
                busy.remove(training)
                training.console.close()
                reason = finish(training, args, truth)
                if reason:
                    failed.append((training.run, reason))
                print(f"  {len(waiting) + len(busy)} runs left", flush=True)
    finally:
        for training in busy:
            training.stop()
    return failed


def finish(training: Training, args: argparse.Namespace, truth: dict[str, Any]) -> str | None:
    """Collect what a run that has ended gave; returns why it failed, if it did."""
    run = training.run
    console = run.folder(args.output) / "console.txt"
    if training.process.returncode:
        last = (console.read_text().strip().splitlines() or ["no output"])[-1]
        return f"{last} (status {training.process.returncode}, {console})"
    try:
        figures = collect(run, args.output, truth[run.data], args.iterations)
    except (OSError, ValueError) as error:
        return str(error)
    minutes = (time.monotonic() - training.begun) / 60
    score = "AP50" if run.data == "shapes_crowd" else "AP"
    print(
        f"{run.name}: {score} {figures[score]:.1f} without NMS, {figures['nms_' + score]:.1f} with "
        f"it ({minutes:.1f} min)",
        flush=True,
    )
    return None


if __name__ == "__main__":
    sys.exit(main())
