"""Runs of two processes one of which fails, as a program for test_several_processes_failures.py:

    python tests/support/failing_runs.py LAUNCHER FOLDER [--only FAILURE ...] [--patience SECONDS]

LAUNCHER is "torchrun" (its agent, with functions in place of commands) or "detectron2" (its way to
start processes, with gloo in place of NCCL). What a run prints goes to FOLDER/FAILURE/output.txt,
status and times to FOLDER/FAILURE/report.json. Processes are forked, which saves the time to import
everything again.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.engine import HookBase
from detectron2.evaluation import COCOEvaluator
from detectron2.utils import comm
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from defcn_d2.engine import Trainer
from defcn_d2.engine import train_command as command_line
from defcn_d2.engine.cluster import preemption
from defcn_d2.modeling.meta_arch import DeFCN

PROCESSES = 2
Failure = Callable[[], "list[str] | None"]


# --- failures: each changes the program, before its processes are started; some return options


def at_second_step(change: Callable[[], None]) -> None:
    """Make all processes call this before their second forward pass in training."""
    original, steps = DeFCN.forward, []

    def changed(self: DeFCN, inputs: list[dict]) -> Any:
        if self.training:
            steps.append(len(inputs))
            if len(steps) == 2:
                change()
        return original(self, inputs)

    DeFCN.forward = changed


def forward() -> None:
    """The second process raises in a forward pass."""

    def fail() -> None:
        if comm.get_rank() == 1:
            raise RuntimeError("the forward pass is broken")

    at_second_step(fail)


def loader() -> list[str]:
    """Images of the training set are cut off; a worker of either process meets one."""
    good = MetadataCatalog.get("tiny_train")
    folder = Path("images")
    folder.mkdir()
    for path in Path(good.image_root).iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[:500])
    DatasetCatalog.register("cut", lambda: load_coco_json(good.json_file, str(folder), "cut"))
    MetadataCatalog.get("cut").thing_classes = good.thing_classes
    return ["DATASETS.TRAIN", "('cut',)", "DATALOADER.NUM_WORKERS", "1"]


class _Killed(HookBase):
    def after_step(self) -> None:
        is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        if comm.get_rank() == 1 and self.trainer.iter == 4 and not is_restarted:
            note()
            os.kill(os.getpid(), signal.SIGKILL)


def killed() -> None:
    """The second process is killed after its fifth step."""
    hooks = Trainer.build_hooks
    Trainer.build_hooks = lambda self: [*hooks(self), _Killed()]


def evaluation() -> None:
    """The first process raises where it evaluates the detections of all."""

    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the evaluation is broken")

    COCOEvaluator._eval_predictions = broken


def inference() -> None:
    """The second process raises in an evaluation, before the first has its detections."""
    original = COCOEvaluator.process

    def broken(self: COCOEvaluator, inputs: list, outputs: list) -> None:
        if comm.get_rank() == 1:
            raise RuntimeError("the inference is broken")
        original(self, inputs, outputs)

    COCOEvaluator.process = broken


def checkpoint() -> None:
    """The disk is full when the first process writes a checkpoint."""

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model_0000001.pth")

    torch.save = full


def stuck() -> None:
    """The second process raises while the first waits, in C++, for what never comes."""

    def wait_or_fail() -> None:
        if comm.get_rank() == 0:
            Path("waiting").touch()
            distributed.distributed_c10d._get_default_store().get("what never comes")
        while not Path("waiting").exists():
            time.sleep(0.05)
        raise RuntimeError("the other one waits")

    at_second_step(wait_or_fail)


def restarted() -> list[str]:
    """As ``killed``, and torchrun starts all again."""
    global restarts
    restarts = 1
    killed()
    return QUIET


def nothing() -> list[str]:
    """Reference for ``restarted``."""
    return QUIET


QUIET = ["TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()", "SOLVER.DETERMINISTIC", "True"]
FAILURES: list[Failure] = [forward, loader, killed, evaluation, inference, checkpoint, stuck]
RESTARTS: list[Failure] = [nothing, restarted]
restarts = 0


# --- launchers: each runs the command line in several processes


def note() -> None:
    """Remember that this process has failed, and when."""
    Path(f"failed-{comm.get_rank()}").write_text(str(time.time()))


def noting(function: Callable[[argparse.Namespace], Any]) -> Callable[[argparse.Namespace], Any]:
    def main(args: argparse.Namespace) -> Any:
        torch.set_num_threads(1)  # a forked OpenMP has no other threads
        Path(f"process-{comm.get_rank()}").write_text(str(os.getpid()))
        try:
            return function(args)
        except BaseException:
            note()
            raise

    return main


def by_torchrun(arguments: list[str]) -> int:
    """As ``torchrun --standalone --nproc-per-node 2``; each process ends with its status."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=PROCESSES,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    try:
        elastic_launch(config, _process_of_torchrun)(arguments)
    except ChildFailedError as error:
        print(error)
        return 1
    return 0


def _process_of_torchrun(arguments: list[str]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # a process that is not forked has none of the agent
    try:
        status = command_line.run(arguments)
    except Exception:  # as Python does when a program ends, before the others can know
        traceback.print_exc()
        sys.stderr.flush()
        status = 1
    if status:
        sys.exit(status)


def by_detectron2(arguments: list[str]) -> int:
    """As ``train_net.py --num-gpus 2``; the process that starts the others believes in two GPUs."""
    real = torch.cuda.is_available, torch.cuda.device_count
    url = f"file://{os.getcwd()}/meet"

    def launch(
        function: Callable[..., None], number: int, *, args: tuple = (), **kwargs: object
    ) -> None:
        torch.multiprocessing.start_processes(
            member, (function, number, args), nprocs=number, start_method="fork"
        )

    def member(rank: int, function: Callable[..., None], number: int, args: tuple) -> None:
        torch.cuda.is_available, torch.cuda.device_count = real
        distributed.init_process_group("gloo", init_method=url, rank=rank, world_size=number)
        comm._LOCAL_PROCESS_GROUP = distributed.group.WORLD
        comm.synchronize()
        function(*args)

    command_line.launch = launch
    torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: PROCESSES
    return command_line.run(["--num-gpus", str(PROCESSES), *arguments])


LAUNCHERS = {"torchrun": by_torchrun, "detectron2": by_detectron2}


def run(launcher: str, failure: Failure, folder: Path) -> NoReturn:
    """Never returns: the process ends with the status of the run."""
    os.chdir(folder)
    output = os.open("output.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    command_line.main = noting(command_line.main)
    opts = ["SOLVER.MAX_ITER", "8", "SOLVER.CHECKPOINT_PERIOD", "2", "TEST.EVAL_PERIOD", "3"]
    opts += ["OUTPUT_DIR", "run"]
    status = 1
    try:
        opts += failure() or []
        status = LAUNCHERS[launcher](["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, *opts])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status % 256)  # and not by sys.exit, which would remove the images


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("launcher", choices=LAUNCHERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--patience", type=float, default=preemption._PATIENCE)
    args = parser.parse_args()
    preemption._PATIENCE = args.patience
    torch.set_num_threads(1)
    tiny_sets()
    failures = FAILURES + (RESTARTS if args.launcher == "torchrun" else [])
    for failure in failures:
        if args.only and failure.__name__ not in args.only:
            continue
        place = args.folder / failure.__name__
        place.mkdir(parents=True)
        child = os.fork()
        if not child:
            run(args.launcher, failure, place.absolute())
        _, status = os.waitpid(child, 0)
        ended = time.time()
        failed = {path.name: float(path.read_text()) for path in place.glob("failed-*")}
        report = {
            "status": os.waitstatus_to_exitcode(status),
            "seconds": ended - min(failed.values()) if failed else None,
            "processes": [int(path.read_text()) for path in sorted(place.glob("process-*"))],
        }
        (place / "report.json").write_text(json.dumps(report))
        print(failure.__name__, report, flush=True)


if __name__ == "__main__":
    main()
