"""Break a training in many ways, let it go on with --resume, and compare its final weights.

    python tools/trust/fault_test.py  # everything, with 20 kills: about ten minutes
    python tools/trust/fault_test.py --kills 100 --only kills

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
from pathlib import Path
from typing import Any

from fault_bench import MOMENTS, Bench

from defcn_d2.engine.cluster.preemption import RESUMABLE


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
    module = [
        sys.executable,
        "-m",
        "defcn_d2.data.synthetic.shapes",
        "--train",
        "400",
        "--val",
        "50",
    ]
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
        else:
            shutil.rmtree(broken)  # drawn before it could be killed
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
    """Forbid this process, if it is root's, to write where the rights do not allow it (Linux)."""
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
        bench.prepare()
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


if __name__ == "__main__":
    sys.exit(main())
