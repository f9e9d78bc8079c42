#!/usr/bin/env python
"""Hostile batches against every matcher and the criteria of every config.

    python tools/trust/fuzz.py --batches 10000 --seed 0  # docs/reliability.md has the figures
    python tools/trust/fuzz.py --batches 10000 --seed 0 --start 4000  # goes on where it was stopped
    python tools/trust/fuzz.py --replay output/fuzz/0-4711.json  # that failed, and its traceback

Every batch is tried on every variant: with predictions as bad as the ground truth, or, one batch in
20, on images and through the narrow network of one variant. It has to be refused by an error that
names the image, or give finite losses and gradients; predictions that are not finite have to make
all losses NaN, so that training stops. In any case the assignment has to be valid. What fails is
written to a file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not
warnings.filterwarnings("ignore", ".*torch.jit.script")  # by what Detectron2 imports
warnings.filterwarnings("ignore", ".*torch.meshgrid")  # by its anchors

import torch  # noqa: E402
from fuzzing.batches import Recipe, draw  # noqa: E402
from fuzzing.detectors import Detector, TooSlow, variant_configs  # noqa: E402
from tqdm import tqdm  # noqa: E402

Result = TypeVar("Result")
OUTCOMES = ("refused", "learnt", "reported", "detected", "failed")


@dataclass
class Row:
    """Outcomes of the batches of a kind."""

    batches: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    memory: int = 0

    def add(self, outcomes: Counter[str], seconds: float, memory: int) -> None:
        self.batches += 1
        self.outcomes += outcomes
        self.seconds += seconds
        self.slowest = max(self.slowest, seconds)
        self.memory = max(self.memory, memory)

    def cells(self) -> list[str]:
        counts = [f"{self.outcomes[name]:,}" for name in OUTCOMES]
        seconds = [f"{self.seconds:.0f}", f"{self.slowest:.1f}"]
        return [f"{self.batches:,}", *counts, *seconds, f"{self.memory / 2**20:.0f}"]


def table(rows: dict[str, Row]) -> str:
    """The rows as a table in Markdown."""
    heads = ["batches of", "number", *OUTCOMES, "seconds", "slowest", "memory, MiB"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    lines += [[name, *rows[name].cells()] for name in sorted(rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """``TooSlow`` is raised within the block after so long, where the system has such a timer."""

    def stop(*_: object) -> None:
        raise TooSlow(f"took more than {seconds:.0f} s")

    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_recipe(
    recipe: Recipe, detectors: dict[str, Detector], limit: float
) -> tuple[Counter[str], dict[str, BaseException]]:
    """A batch on all variants, or the one that it names: outcomes, and errors by variant."""
    outcomes: Counter[str] = Counter()
    errors: dict[str, BaseException] = {}
    for name in [recipe.variant] if recipe.variant else detectors:
        try:
            with time_limit(limit):
                outcomes[detectors[name].try_batch(recipe)] += 1
                if recipe.images:
                    outcomes[detectors[name].try_inference(recipe)] += 1
        except Exception as error:
            outcomes["failed"] += 1
            errors[name] = error
    return outcomes, errors


def peak_memory(call: Callable[[], Result]) -> tuple[Result, int]:
    """Result of a call, and the peak of the process' memory in it; 0 except on Linux."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    except OSError:
        return call(), 0
    result = call()
    status = Path("/proc/self/status").read_text()
    return result, int(status.partition("VmHWM:")[2].split()[0]) * 1024


def fuzz(arguments: argparse.Namespace, detectors: dict[str, Detector]) -> int:
    """Try the batches, print the table, and return how many failed."""
    # Batch by batch, until the number or the time is over.
    rows: dict[str, Row] = defaultdict(Row)
    failures, index = 0, arguments.start
    end = time.monotonic() + 60 * arguments.minutes
    bar = tqdm(total=arguments.batches, initial=arguments.start, unit="batch", mininterval=1)
    try:
        while index < arguments.batches and time.monotonic() < end:
            recipe = draw(arguments.seed, index, list(detectors))
            start = time.monotonic()
            (outcomes, errors), memory = peak_memory(
                functools.partial(try_recipe, recipe, detectors, arguments.limit)
            )
            seconds = time.monotonic() - start
            for label in ["all", *recipe.labels]:
                rows[label].add(outcomes, seconds, memory)
            if errors:
                failures += 1
                path = write_failure(arguments, index, recipe)
                for name, error in errors.items():
                    tqdm.write(f"{path}: {name}: {type(error).__name__}: {error}", file=sys.stderr)
            index += 1
            bar.update()
    except KeyboardInterrupt:
        print(f"\nstopped; go on with --seed {arguments.seed} --start {index}", file=sys.stderr)
    finally:
        bar.close()

    # Summary.
    print(table(rows))
    print(
        f"\nSeed {arguments.seed}, batches {arguments.start} to {index - 1}, "
        f"{len(detectors)} variants: {failures} batches failed."
    )
    return failures


def write_failure(arguments: argparse.Namespace, index: int, recipe: Recipe) -> Path:
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"{arguments.seed}-{index}.json"
    path.write_text(recipe.to_json() + "\n")
    return path


def replay(arguments: argparse.Namespace, detectors: dict[str, Detector]) -> int:
    """Try a batch again, with all tracebacks, and return how many variants failed."""
    try:
        recipe = Recipe.from_json(arguments.replay.read_text())
    except (OSError, ValueError, TypeError, KeyError) as error:
        sys.exit(f"error: --replay {arguments.replay} is no file of a failed batch: {error}")
    print(recipe)
    outcomes, errors = try_recipe(recipe, detectors, arguments.limit)
    for name, failure in errors.items():
        print(f"\n{name}:")
        traceback.print_exception(failure, file=sys.stdout)
    print(", ".join(f"{count} {name}" for name, count in outcomes.items()))
    return len(errors)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--batches", type=int, default=10_000, help="number of the last, plus one")
    result.add_argument("--seed", type=int, default=0, help="of the sequence of batches")
    result.add_argument("--start", type=int, default=0, help="number of the first")
    result.add_argument("--minutes", type=float, default=float("inf"), help="no longer than that")
    result.add_argument("--limit", type=float, default=60.0, help="seconds for a batch and variant")
    result.add_argument(
        "--output", type=Path, default=Path("output/fuzz"), help="of failed batches"
    )
    result.add_argument("--replay", type=Path, metavar="FILE", help="try a failed batch again")
    return result


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    torch.set_num_threads(1)
    detectors = {name: Detector(cfg) for name, cfg in variant_configs().items()}
    run = replay if arguments.replay else fuzz
    return 1 if run(arguments, detectors) else 0


if __name__ == "__main__":
    sys.exit(main())
