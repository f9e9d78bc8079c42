"""Break a training in many ways, let it go on with --resume, and compare its final weights.

    python tools/fault_test.py                    # everything, with 20 kills: about ten minutes
    python tools/fault_test.py --kills 100 --only kills

Each run is ``train_net.py`` in a process of its own on a small model and a few generated images,
with SOLVER.DETERMINISTIC. However it was broken, it has to end with exactly the weights, optimizer
and averaged weights of a run that was not. Prints a table; the exit status is 1 if any case failed.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from defcn_d2.engine.preemption import RESUMABLE

ROOT = Path(__file__).resolve().parent.parent
_CONFIG = ROOT / "configs" / "shapes" / "POTO-3DMF-Aux.yaml"
_IMAGES = {"--train": 48, "--val": 16}
# seconds that a run may take, on a busy machine
_LIMIT = 600


#: When a run is ended: at any time of it, after its first checkpoint, while it writes one.
MOMENTS = ("any time", "training", "writing")


@dataclass
class Bench:
    """The folder of all runs, and how one is started."""

    folder: Path
    steps: int
    random: random.Random
    reference: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # that a whole run takes

    def environment(self) -> dict[str, str]:
        paths = {"PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(self.folder / "data")}
        return {**os.environ, **paths, "OMP_NUM_THREADS": "1"}

    def command(self, output: Path) -> list[str]:
        keys = {
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.DEFCN.NUM_CONVS": 1,
            "MODEL.EMA.ENABLED": True,
            "MODEL.DEVICE": "cpu",
            "INPUT.MIN_SIZE_TRAIN": "(48,64)",
            "INPUT.MAX_SIZE_TRAIN": 96,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 96,
            "DATALOADER.NUM_WORKERS": 2,
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": self.steps,
            "SOLVER.WARMUP_ITERS": 3,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SOLVER.CHECKPOINT_KEEP": 3,
            "SOLVER.DETERMINISTIC": True,
            "SEED": 1,
            "DATASETS.TEST": "()",
            "OUTPUT_DIR": output,
        }
        pairs = [str(x) for pair in keys.items() for x in pair]
        script = str(ROOT / "train_net.py")
        return [sys.executable, script, "--config-file", str(_CONFIG), "--resume", *pairs]

    def start(self, output: Path, **options: Any) -> subprocess.Popen:
        """A run in a session of its own, so that all its processes can be killed."""
        return subprocess.Popen(
            self.command(output),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def finish(self, output: Path, **options: Any) -> tuple[int, str]:
        """Exit status and output of a run that is left alone."""
        process = self.start(output, **options)
        text, _ = process.communicate(timeout=_LIMIT)
        return process.returncode, text

    def interrupt(self, output: Path, number: int, moment: str) -> tuple[int, str]:
        """Send a signal at a random time; exit status and output.

        Args:
            moment: one of ``MOMENTS``.
        """
        before = set(output.glob("model_0*.pth"))
        process = self.start(output)
        begun = {
            "any time": lambda: True,
            "training": lambda: set(output.glob("model_0*.pth")) - before,
            "writing": lambda: list(output.glob("*.part")),
        }[moment]
        latest = {"any time": self.seconds, "training": 1.0, "writing": 0.002}[moment]
        while process.poll() is None and not begun():
            time.sleep(0.0005)
        try:
            text, _ = process.communicate(timeout=self.random.uniform(0, latest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            text, _ = process.communicate(timeout=_LIMIT)
        return process.returncode, text

    def must_end_alike(self, output: Path) -> None:
        """Let a run finish, and compare what it ends with."""
        status, text = self.finish(output)
        assert status == 0, text
        different = differences(final_state(output), self.reference)
        assert not different, f"not the same: {', '.join(different[:5])}"

    def copy_of_broken(self, name: str) -> Path:
        """The output of a run that was killed some checkpoints on its way."""
        stopped, output = self.folder / "stopped", self.folder / name
        if not stopped.exists():
            process = self.start(stopped)
            while len(list(stopped.glob("model_0*.pth"))) < 2 and process.poll() is None:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        shutil.copytree(stopped, output)
        return output


def final_state(output: Path) -> dict[str, Any]:
    """What a run ends with, the time that it took left out."""
    state = torch.load(output / "model_final.pth", weights_only=True)
    del state["trainer"]["hooks"]["TrainingTime"]
    return state


def differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """Names of what is not the same, bit for bit."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return [name]
        return [x for k in expected for x in differences(found[k], expected[k], f"{name}/{k}")]
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [name]
    return [] if found == expected else [name]


def kills(bench: Bench, number: int) -> str:
    """kill -9 at random times, again and again, until so many runs were killed."""
    killed = finished = writing = 0
    output = bench.folder / "kills"
    while killed < number:
        moment = MOMENTS[killed % len(MOMENTS)]
        status, text = bench.interrupt(output, signal.SIGKILL, moment)
        if status == -signal.SIGKILL:
            killed += 1
            writing += bool(list(output.glob("*.part")))
        assert status in (0, -signal.SIGKILL), text
        if status == 0 or killed == number:
            bench.must_end_alike(output)
            finished += 1
            shutil.rmtree(output)
    return f"{killed} kills in {finished} trainings, {writing} of them while a file was written"


def kills_while_data_are_made(bench: Bench, number: int) -> str:
    """kill -9 while the data set is drawn."""
    whole, broken = bench.folder / "whole", bench.folder / "broken"
    module = [sys.executable, "-m", "defcn_d2.data.shapes", "--train", "400", "--val", "50"]
    start = time.monotonic()
    options: dict[str, Any] = {"env": bench.environment(), "stdout": subprocess.DEVNULL}
    options["stderr"] = subprocess.DEVNULL
    subprocess.run([*module, "--root", str(whole)], check=True, **options)
    seconds, killed = time.monotonic() - start, 0
    for _ in range(number):
        process = subprocess.Popen(
            [*module, "--root", str(broken)], start_new_session=True, **options
        )
        try:
            process.wait(bench.random.uniform(0.3, 1) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    subprocess.run([*module, "--root", str(broken)], check=True, **options)
    assert fingerprint(whole) == fingerprint(broken), "the data differ"
    return f"{killed} kills, and the same files"


def fingerprint(folder: Path) -> dict[str, str]:
    """Hashes of all files of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(x.relative_to(folder)): hashlib.sha256(x.read_bytes()).hexdigest() for x in files}


def signals(bench: Bench, number: int) -> str:
    """SIGTERM and SIGUSR1 in turn at random times: all is saved, and the status says so."""
    output, counts = bench.folder / "signals", [0, 0]
    while sum(counts) < number:
        which = sum(counts) % 2
        kind = (signal.SIGTERM, signal.SIGUSR1)[which]
        status, text = bench.interrupt(output, kind, ("any time", "training")[sum(counts) // 2 % 2])
        if status == 0:
            bench.must_end_alike(output)
            shutil.rmtree(output)
        elif status == RESUMABLE:
            assert "--resume" in text.splitlines()[-1], text
            counts[which] += 1
        else:  # it had not come to listen yet
            assert status == -kind, text
    bench.must_end_alike(output)
    return f"{counts[0]} SIGTERM and {counts[1]} SIGUSR1, status {RESUMABLE}"


def full_disk(bench: Bench, number: int) -> str:
    """No file may grow beyond half a checkpoint, once some are there; then there is room again."""
    output = bench.copy_of_broken("full")
    size = max(path.stat().st_size for path in output.glob("model_*.pth"))
    before = {path.name for path in output.glob("model_0*.pth")}

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    status, text = bench.finish(output, preexec_fn=limit)
    last = text.splitlines()[-1]
    assert status == 1 and "no space left for" in last and "Traceback" not in text, text
    assert before == {path.name for path in output.glob("model_0*.pth")}, "checkpoints are gone"
    bench.must_end_alike(output)
    return "one sentence, status 1; the checkpoints stay"


def damaged_checkpoint(bench: Bench, number: int) -> str:
    """The last checkpoint is cut, emptied, or has one bit flipped."""
    for name in ("cut", "empty", "flipped"):
        output = bench.copy_of_broken(name)
        path = output / (output / "last_checkpoint").read_text()
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        kept = {"cut": len(content) // 3, "empty": 0, "flipped": len(content)}[name]
        path.write_bytes(content[:kept])
        bench.must_end_alike(output)
    return "cut, empty, one bit flipped: the one before it is taken"


def lost_pointer(bench: Bench, number: int) -> str:
    """last_checkpoint is missing, empty, or names a file that is gone."""
    for name, content in (("missing", None), ("blank", ""), ("gone", "model_9999999.pth")):
        output = bench.copy_of_broken(name)
        (output / "last_checkpoint").unlink()
        if content is not None:
            (output / "last_checkpoint").write_text(content)
        bench.must_end_alike(output)
    return "missing, empty, naming what is gone: the newest checkpoint is taken"


def read_only_folder(bench: Bench, number: int) -> str:
    """OUTPUT_DIR may not be written to."""
    output = bench.copy_of_broken("read_only")
    output.chmod(0o555)
    try:
        status, text = bench.finish(output, preexec_fn=respect_rights)
    finally:
        output.chmod(0o755)
    last = text.splitlines()[-1]
    assert status == 1 and str(output) in last and "Traceback" not in text, text
    bench.must_end_alike(output)
    return "one sentence, status 1"


def respect_rights() -> None:
    """Let this process, if it is root's, not write where the rights forbid it (Linux)."""
    drop_from_bounding_set, override_rights = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, override_rights, 0, 0, 0)


CASES: dict[str, Callable[[Bench, int], str]] = {
    "kills": kills,
    "data": kills_while_data_are_made,
    "signals": signals,
    "full-disk": full_disk,
    "damaged": damaged_checkpoint,
    "pointer": lost_pointer,
    "read-only": read_only_folder,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="and half as many signals [20]")
    parser.add_argument("--steps", type=int, default=60, help="of a training [60]")
    parser.add_argument("--seed", type=int, default=0, help="of the times [0]")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    args = parser.parse_args(arguments)
    numbers = {"kills": args.kills, "data": max(1, args.kills // 4), "signals": args.kills // 2}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="faults") as folder:
        bench = Bench(Path(folder), args.steps, random.Random(args.seed))
        prepare(bench)
        print("| case | | seconds |\n|---|---|---|", flush=True)
        for name in args.only:
            start = time.monotonic()
            try:
                result = CASES[name](bench, numbers.get(name, 1))
            except AssertionError as error:
                failed += 1
                result = f"FAILED: {error}"
            print(f"| {name} | {result} | {time.monotonic() - start:.0f} |", flush=True)
    return int(failed > 0)


def prepare(bench: Bench) -> None:
    """Draw the data, and train once without a fault."""
    module = [sys.executable, "-m", "defcn_d2.data.shapes", "--root", str(bench.folder / "data")]
    images = [str(x) for pair in _IMAGES.items() for x in pair]
    command = [*module, *images]
    subprocess.run(command, env=bench.environment(), check=True, capture_output=True)
    start = time.monotonic()
    status, text = bench.finish(bench.folder / "reference")
    if status:
        raise SystemExit(f"the run without a fault failed:\n{text}")
    bench.seconds = time.monotonic() - start
    bench.reference = final_state(bench.folder / "reference")


if __name__ == "__main__":
    sys.exit(main())
