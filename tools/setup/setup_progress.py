"""Runs the set-up's commands and shows how far they are: one line on a terminal, a few in a log."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

QUIET_INTERVAL = 20.0
"""Seconds between two lines of progress where the output is not a terminal."""

TAIL = 15
"""Lines of a failed command's output that are shown; all of it is in the stage's log."""

NOISE = re.compile(r"detectron2: |Requirement already satisfied|WARNING: Location .* is ignored")
RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


class CommandFailed(Exception):
    """A command exited with an error; the message is what it printed."""


def describe(line: str) -> str | None:
    """What a line of pip's output says about its progress; None: nothing worth showing."""
    words = line.split()
    if len(words) > 1 and words[0] in ("Collecting", "Processing"):
        return f"looking up {shorten(words[1])}"
    if len(words) > 1 and words[0] == "Downloading":
        return "downloading " + shorten(" ".join(words[1:]))
    if line.startswith("Building "):
        return line[0].lower() + line[1:].split("(")[0].split(":")[0].strip()
    if line.startswith("Installing collected packages:"):
        count = line.count(",") + 1
        return f"unpacking {count} packages" if count > 1 else f"unpacking {words[-1]}"
    return None


def shorten(file: str) -> str:
    """A wheel's name and version, without its folder and its tags."""
    return re.sub(r"^([^-]+-[^-]+)-\S+\.whl", r"\1", file.rsplit("/", 1)[-1])


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class Reporter:
    """Shows the stage that is running, what it does and for how long.

    Attributes:
        stages_run: number of stages started.
        shared: file descriptors that the commands inherit.
    """

    def __init__(self, stream: IO[str] = sys.stdout) -> None:
        self.stream = stream
        self.shared: tuple[int, ...] = ()
        self.live = stream.isatty()
        self.stages_run = 0
        self.title, self.log = "", Path(os.devnull)
        self.began = self.shown = time.monotonic()

    def say(self, text: str) -> None:
        """A line of its own."""
        self.stream.write(f"{self._erase()}{text}\n")
        self.stream.flush()

    def _erase(self) -> str:
        return "\r\033[K" if self.live else ""

    def start(self, title: str, log: Path) -> None:
        """A stage begins; what its commands print goes to ``log``."""
        self.title, self.log = title, log
        log.unlink(missing_ok=True)
        self.stages_run += 1
        self.began = self.shown = time.monotonic()
        self.say(f"{title} ...")

    def note(self, text: str) -> None:
        self.say(f"      {text}")

    def done(self) -> None:
        self.say(f"{self.title}: done in {clock(time.monotonic() - self.began)}")

    def fail(self, text: str) -> None:
        self.say(text)

    def _show(self, status: str) -> None:
        """The status on the terminal's last line, or now and then as a line of a log."""
        now = time.monotonic()
        text = f"{self.title}: {status}, {clock(now - self.began)}"
        if self.live:
            width = os.get_terminal_size(self.stream.fileno()).columns or 80
            self.stream.write(f"\r\033[K{text[: width - 1]}")
            self.stream.flush()
        elif now - self.shown >= QUIET_INTERVAL:
            self.shown = now
            self.say(f"      {status}, {clock(now - self.began)}")

    def run(
        self,
        command: list[str],
        environment: dict[str, str] | None = None,
        status: str = "working",
    ) -> None:
        """Run a command, its output in the log, its progress on the screen.

        Args:
            command: program and arguments.
            environment: variables to set, besides those of this process.
            status: what it does, shown until its output says more.

        Raises:
            CommandFailed: it exited with an error; the end of its output has been shown.
        """
        variables = {
            **os.environ,
            "PIP_PROGRESS_BAR": "raw",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_USER": "0",
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=variables,
                pass_fds=self.shared,
            )
            try:
                output = self._follow(process, log, status)
            except BaseException:
                process.kill()
                raise
        if process.wait() != 0:
            if process.returncode < 0:
                output.append(f"ended by signal {-process.returncode}")
            telling = [line for line in output if line.strip() and not NOISE.match(line)]
            for line in telling[-TAIL:]:
                self.say(f"      | {line[:300]}")
            raise CommandFailed("\n".join(output))

    def _follow(self, process: subprocess.Popen[str], log: IO[str], status: str) -> list[str]:
        """Read a process's output to its end; its lines without pip's progress."""
        lines: queue.Queue[str | None] = queue.Queue()
        assert process.stdout is not None
        threading.Thread(target=pump, args=(process.stdout, lines), daemon=True).start()
        output: list[str] = []
        percent = ""
        while True:
            try:
                line = lines.get(timeout=0.5)
            except queue.Empty:
                self._show(status + percent)
                continue
            if line is None:
                return output
            progress = RAW_PROGRESS.fullmatch(line)
            if progress:
                size = int(progress[2])
                percent = f" {100 * int(progress[1]) // size} %" if size else ""
                self._show(status + percent)
                continue
            log.write(line + "\n")
            output.append(line)
            if line.startswith("detectron2: "):
                self.note(line)
            described = describe(line.strip())
            if described:
                status, percent = described, ""


def pump(source: IO[str], target: queue.Queue[str | None]) -> None:
    """Put the lines of a stream into a queue, None at its end."""
    for line in source:
        target.put(line.rstrip("\n"))
    target.put(None)
