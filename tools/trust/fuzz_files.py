"""Damaged files: each reader of the project must name them, and nothing may go unnoticed.

    python tools/trust/fuzz_files.py  # docs/reliability.md has the figures
    python tools/trust/fuzz_files.py --kinds "COCO JSON" --cases 500 --seed 3
    python tools/trust/fuzz_files.py --kinds "COCO JSON" --only 417  # one case, with its traceback

Whole files of every kind are damaged in many ways (fuzzing/file_damage.py) and read by the real
readers, in child processes with limits of time and memory. A case is well when an error names the
file, or when what was read makes sense (fuzzing/file_readers.py); anything else is a failure, and
the exit status 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports

import torch  # noqa: E402
from fuzzing.file_readers import DATA, Kind, Wrong  # noqa: E402
from fuzzing.label_readers import LABELS  # noqa: E402
from fuzzing.weight_readers import WEIGHTS  # noqa: E402

KINDS = {kind.name: kind for kind in (*DATA, *LABELS, *WEIGHTS)}
WELL = ("named", "told", "other", "the same")
FAILED = ("unnoticed", "unnamed", "hang", "crash")


class Result(NamedTuple):
    """Outcome of a case."""

    number: int
    damage: str
    outcome: str
    message: str


class Limits(NamedTuple):
    """Limits of a case: seconds, and bytes beyond those of the process at its beginning."""

    seconds: float
    memory: int


def run_case(kind: Kind, number: int, seed: int) -> Result:
    """Damage a file, read it, mend it; ``number`` and ``seed`` decide how."""
    rng = random.Random(f"{kind.name} {seed} {number}")
    name = rng.choice(kind.damaged)
    ways = kind.ways(name)
    way = rng.choice(list(ways))
    (kind.folder / name).write_bytes(ways[way](kind.whole[name], rng))
    outcome, message = "named", ""
    try:
        outcome = kind.judge(kind.read())
    except Wrong as error:
        outcome, message = "unnoticed", str(error)
    except kind.errors as error:
        message = str(error)
        if not kind.names(message, name):
            outcome = "unnamed"
    except Exception:
        outcome, message = "unnamed", traceback.format_exc()
    for other, content in kind.whole.items():
        (kind.folder / other).write_bytes(content)
    return Result(number, way, outcome, message)


def run_cases(kind: Kind, numbers: Sequence[int], seed: int, limits: Limits) -> Iterator[Result]:
    """The cases one after the other, in a process that is begun anew after one that it fails."""
    numbers = list(numbers)
    while numbers:
        done = 0
        for result in _run_in_child(kind, numbers, seed, limits):
            done += 1
            yield result
        numbers = numbers[done:]


def _run_in_child(
    kind: Kind, numbers: Sequence[int], seed: int, limits: Limits
) -> Iterator[Result]:
    """Results until the end, or up to a case that the process does not survive."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        _be_child(kind, numbers, seed, limits, writing)
    os.close(writing)
    buffer, done = b"", 0
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while done < len(numbers):
            if not select.select([pipe], [], [], limits.seconds)[0]:
                os.kill(process, signal.SIGKILL)
                yield Result(numbers[done], "", "hang", f"more than {limits.seconds:g} s")
                break
            content = pipe.read(65536)
            if not content:
                break
            *lines, buffer = (buffer + content).split(b"\n")
            for line in lines:
                yield Result(*json.loads(line))
                done += 1
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if done < len(numbers) and status != -signal.SIGKILL:
        yield Result(numbers[done], "", "crash", f"exit status {status}")


def _be_child(kind: Kind, numbers: Sequence[int], seed: int, limits: Limits, writing: int) -> None:
    """Run cases in the child process; never returns."""
    status = 1
    try:
        logging.disable()
        faulthandler.disable()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + limits.memory
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in numbers:
            line = json.dumps(run_case(kind, number, seed)).encode() + b"\n"
            os.write(writing, line)
        status = 0
    finally:
        os._exit(status)


def table(results: dict[str, list[Result]]) -> str:
    """Numbers of outcomes by kind, in Markdown."""
    heads = ["file", "cases", *WELL, *FAILED]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name, found in results.items():
        counts = Counter(result.outcome for result in found)
        lines.append([name, f"{len(found):,}"] + [f"{counts[x]:,}" for x in (*WELL, *FAILED)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--cases", type=int, default=2000, help="of each kind [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="CASE", help="this case, in this process")
    parser.add_argument("--seconds", type=float, default=20, help="limit of a case [%(default)s]")
    parser.add_argument("--memory", type=float, default=2, help="limit in GiB [%(default)s]")
    args = parser.parse_args(argv)

    # Cases of each kind.
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"
    limits = Limits(args.seconds, int(args.memory * 2**30))
    results: dict[str, list[Result]] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz_files") as folder:
        for place, name in enumerate(args.kinds):
            kind = KINDS[name](Path(folder) / str(place))
            if args.only is not None:
                print(run_case(kind, args.only, args.seed))
                continue
            results[name] = []
            for result in run_cases(kind, range(args.cases), args.seed, limits):
                results[name].append(result)
                if result.outcome in FAILED:
                    what = f"{result.damage}: {result.outcome}, {result.message}"
                    print(f"{name}, case {result.number}, {what}", flush=True)
    if args.only is not None:
        return 0

    # Summary.
    print(table(results))
    failed = sum(x.outcome in FAILED for found in results.values() for x in found)
    total = sum(map(len, results.values()))
    print(f"\n{total:,} cases, {failed:,} failed, {time.monotonic() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
