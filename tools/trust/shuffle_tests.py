"""Check that the tests pass in any order of their files: whole runs of pytest in random orders.

    python tools/trust/shuffle_tests.py --runs 20
    python tools/trust/shuffle_tests.py tests/engine --first-seed 7   # the order of seed 7 again
    python tools/trust/shuffle_tests.py --options "-n 2 --dist loadfile"

Prints of every run its seed, pytest's last line and the files that failed; pytest's output is kept
in output/shuffled. The status is 1 where a run failed.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = ROOT / "output" / "shuffled"


def shuffled(paths: list[Path], seed: int) -> list[str]:
    """The test files of files and folders in the order of a seed, relative to the project."""
    found = {
        file for path in paths for file in (path.rglob("test_*.py") if path.is_dir() else [path])
    }
    files = sorted(os.path.relpath(file, ROOT) for file in found)
    random.Random(seed).shuffle(files)
    return files


def run(files: list[str], options: list[str], log: Path) -> tuple[int, str, list[str]]:
    """Status of pytest, the last line that it printed and the files with failures."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", *options, *files]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        status = subprocess.run(command, cwd=ROOT, env=variables, stdout=stream, stderr=stream)
    text = log.read_text(errors="replace")
    failed = set(re.findall(r"^(?:FAILED|ERROR) ([^\s:]+\.py)", text, re.MULTILINE))
    return status.returncode, (text.strip().splitlines() or [""])[-1], sorted(failed)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, default=[ROOT / "tests"])
    parser.add_argument("--runs", type=int, default=1, help="with as many seeds [%(default)s]")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--options", default="", help="for pytest")
    args = parser.parse_args(argv)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    broken = 0
    for seed in range(args.first_seed, args.first_seed + args.runs):
        log = OUTPUT / f"seed-{seed}.txt"
        files = shuffled([path.resolve() for path in args.paths], seed)
        status, last, failed = run(files, shlex.split(args.options), log)
        print(f"seed {seed}: {last}", *failed, sep="\n  ", flush=True)
        broken += status != 0
    print(f"{args.runs} runs, {broken} failed; {OUTPUT.relative_to(ROOT)} has what pytest printed")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
