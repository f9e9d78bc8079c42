"""Runs parts one after the other, each in processes of its own, and keeps a JSON of all of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.parts import Part
from gpu.report import report, tables

ROOT = Path(__file__).resolve().parents[2]
TAIL = 4000  # characters of a part's output that the JSON has
PATIENCE = 4  # a CPU may take so many times a part's limit
GRACE = 40  # seconds to end in; torchrun kills its own after 30
LEAST = 20  # seconds that have to be left for a part to begin
FAILED = ("failed", "timed out")


class Check:
    """The state of a check, in ``results.json`` of its folder after every part.

    Attributes:
        results: name of a part to its status ("passed", "failed", "timed out" or "skipped"),
            seconds, figures, the end of its output, and the reason where it has not passed.
    """

    def __init__(self, output: Path, environment: dict[str, Any]):
        """
        Args:
            output: a folder, made where missing; what has passed there is not done again.
            environment: see ``environment.py``.

        Raises:
            SystemExit: the folder holds a check of another machine, or is none.
        """
        self.output = output
        self.environment = environment
        self.path = output / "results.json"
        self.results: dict[str, dict[str, Any]] = {}
        try:
            output.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                return
            before = json.loads(self.path.read_text())
            theirs, self.results = before["environment"], before["parts"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SystemExit(
                f"error: --output {output} holds no check ({error!r}); give another folder"
            ) from None
        for key in environment.keys() | theirs.keys():
            if environment.get(key) != theirs.get(key):
                raise SystemExit(
                    f"error: --output {output} holds a check with {key} {theirs.get(key)!r}, "
                    f"here it is {environment.get(key)!r}; give another folder"
                )

    def run(self, parts: Sequence[Part], seconds: float, again: bool) -> bool:
        """Run parts and report; returns whether none of them has failed.

        Args:
            seconds: for all of them; what does not begin within them is skipped.
            again: those that have passed before, too.
        """
        end = time.monotonic() + seconds
        for part in parts:
            if not again and self.results.get(part.name, {}).get("status") == "passed":
                print(f"{part.name}: has passed before", flush=True)
                continue
            self.results[part.name] = self._run(part, end - time.monotonic())
            self._write()
            result = self.results[part.name]
            reason = f": {result['reason']}" if result["reason"] else ""
            print(f"{part.name}: {result['status']}, {result['seconds']} s{reason}", flush=True)
        return all(self.results[part.name]["status"] not in FAILED for part in parts)

    def _run(self, part: Part, seconds_left: float) -> dict[str, Any]:
        figures, folder = (self.output / f"{part.name}{end}" for end in (".md", ""))
        command = part.command(
            self.environment["device"],
            figures=figures,
            folder=folder,
            processes=min(2, self.environment.get("cards", 1)),
        )
        if not command:
            return result("skipped", reason="needs a CUDA device")
        limit: float = part.limit * (1 if self.environment["device"] == "cuda" else PATIENCE)
        if seconds_left < min(limit, LEAST):
            return result("skipped", reason="the time of the whole check is over; start it again")
        limit = min(limit, seconds_left)
        figures.unlink(missing_ok=True)
        log = self.output / f"{part.name}.log"
        print(f"{part.name}: {part.what}; at most {limit:.0f} s, {log}", flush=True)
        start = time.monotonic()
        code = run_limited([sys.executable, *command], log, limit)
        seconds = round(time.monotonic() - start, 1)
        output = log.read_text(errors="replace")[-TAIL:]
        found = tables(figures.read_text()) if figures.exists() else []
        if code is None:
            return result("timed out", seconds, f"limit of {limit:.0f} s", found, output)
        if code:
            last = ([line for line in output.splitlines() if line.strip()] or ["no output"])[-1]
            return result("failed", seconds, f"exit status {code}: {last}", found, output)
        return result("passed", seconds, "", found, output)

    def _write(self) -> None:
        content = {"environment": self.environment, "parts": self.results}
        write(self.path, json.dumps(content, indent=1) + "\n")
        write(self.output / "report.md", report(self.environment, self.results, self.output))


def result(
    status: str, seconds: float = 0.0, reason: str = "", figures: Sequence = (), output: str = ""
) -> dict[str, Any]:
    """A part's entry in the JSON."""
    return {
        "status": status,
        "seconds": seconds,
        "reason": reason,
        "figures": list(figures),
        "output": output,
    }


def run_limited(command: list[str], log: Path, limit: float) -> int | None:
    """Exit status of a command, or None where it was ended after ``limit`` seconds.

    Whatever it has started ends with it, also where this process is interrupted.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """End a process and all of its group, politely first where it is still running.

    torchrun's workers are no part of the group: it ends them when it is told to end.
    """
    if process.poll() is None:
        until = time.monotonic() + GRACE
        number: int = signal.SIGTERM
        while _signal_group(process, number) and time.monotonic() < until:
            number = 0  # only asks if anybody is left
            process.poll()
            time.sleep(0.1)
    _signal_group(process, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
        process.wait(10)


def _signal_group(process: subprocess.Popen, number: int) -> bool:
    """Send a signal to the group of a process; returns whether there is anybody in it."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def write(path: Path, text: str) -> None:
    """Write all or nothing."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)
