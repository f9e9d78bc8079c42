#!/usr/bin/env python
"""Do all that this project owes to a GPU, within ten minutes, and write down what came out.

    python tools/gpu_check.py                          # on a machine with an NVIDIA GPU
    python tools/gpu_check.py --device cpu             # what can be tried without, on small sizes
    python tools/gpu_check.py --only build tests       # some parts, also those that have passed

``results.json`` and ``report.md`` are written to ``--output`` after every part. Killed, or with
parts that have failed, the same command goes on with those that have not passed. Exit status 1: a
part has failed or was timed out.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE.parent / "study")]

from gpu.parts import PARTS, Part  # noqa: E402
from gpu.report import MARKERS, PAGE  # noqa: E402
from gpu.runner import Check, write  # noqa: E402

PATIENCE = 120  # seconds for PyTorch to tell what device there is


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    arguments = parse_arguments(argv)
    if arguments.list:
        for part in PARTS:
            needs = "" if part.cpu else "; needs CUDA"
            print(f"{part.name:17} {part.limit:4} s  {part.what}{needs}")
        return 0
    parts = chosen(arguments.only)
    if arguments.update_docs and arguments.device == "cpu":
        raise SystemExit("error: --update-docs takes figures of a GPU: leave out --device cpu")
    for number in (signal.SIGTERM, signal.SIGINT):  # end the part that is running, too
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    check = Check(arguments.output.resolve(), machine(arguments.device))
    good = check.run(parts, 60 * arguments.minutes, again=bool(arguments.only))
    print(f"{check.path} and {check.output / 'report.md'}")
    if arguments.update_docs:
        from update_readme import replace_between

        text = (check.output / "report.md").read_text().strip()
        write(PAGE, replace_between(PAGE.read_text(), text, MARKERS, str(PAGE)))
    return 0 if good else 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "gpu_check")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts, passed or not")
    parser.add_argument("--minutes", type=float, default=10, help="of all parts together [10]")
    parser.add_argument("--list", action="store_true", help="name the parts and their limits")
    parser.add_argument(
        "--update-docs", action="store_true", help="put the report into docs/performance.md"
    )
    return parser.parse_args(argv)


def chosen(names: Sequence[str] | None) -> list[Part]:
    """The parts of these names, in the order of the check; all without names."""
    known = [part.name for part in PARTS]
    for name in names or ():
        if name not in known:
            raise SystemExit(f"error: --only {name!r} is no part; one of: {', '.join(known)}")
    return [part for part in PARTS if not names or part.name in names]


def machine(device: str) -> dict[str, Any]:
    """See ``environment.py``.

    Raises:
        SystemExit: there is no such device, or nothing can be known of it.
    """
    command = [sys.executable, "-W", "ignore", str(HERE.parent / "gpu" / "environment.py"), device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise SystemExit(
            f"error: --device {device}: no answer from PyTorch in {PATIENCE} s; see nvidia-smi"
        ) from None
    if done.returncode:
        raise SystemExit(f"error: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
