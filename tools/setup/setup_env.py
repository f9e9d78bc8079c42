#!/usr/bin/env python
"""Make the virtual environment in which the demo and the tests run; called by the Makefile.

    python3 tools/setup/setup_env.py [--venv .venv] [--constraints constraints.txt] [--this-python]

Five stages: the environment itself, torch, the other packages, Detectron2, this project. Each
leaves a stamp behind with a digest of what it was made from. A stage whose stamp fits is skipped,
so a second run takes no time, a changed input repeats what depends on it, and an interrupted run
goes on where it was. pip shows its own progress, and keeps a log a stage in the environment's
folder setup. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from setup_remedies import remedy_for
from setup_stages import ROOT, CommandFailed, Environment, SetupError, say


def set_up(environment: Environment) -> bool:
    """Run every stage that is not up to date; returns whether there was one.

    Raises:
        SetupError: a stage failed.
    """
    stages = environment.stages()
    any_run = False
    for number, stage in enumerate(stages, 1):
        before = environment.previous(stage)
        if before == stage.inputs():
            continue
        any_run = True
        title = f"[{number}/{len(stages)}] {stage.title}"
        say(f"{title} ...")
        began = time.monotonic()
        environment.begin_log(stage)
        try:
            environment.stamp(stage, {**before, "unfinished": "yes"})
            stage.run(before)
        except (CommandFailed, OSError) as error:
            remedy = remedy_for(str(error), environment.venv)
            raise SetupError(f"{stage.title}: {remedy} (log: {environment.log})") from error
        environment.stamp(stage, stage.inputs())
        say(f"{title}: done in {time.monotonic() - began:.0f} s")
    return any_run


def lock() -> int:
    """Wait until no other set-up, nor a command that a killed one left behind, is at work.

    Returns:
        The descriptor on which the lock lies. Commands inherit it: it lasts as long as the last of
        them.
    """
    descriptor = os.open(__file__, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another set-up is at work here; waiting for it to end")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        pass  # some network file systems have no locks
    return descriptor


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment")
    parser.add_argument(
        "--constraints", type=Path, default=ROOT / "constraints.txt", help="versions for pip"
    )
    parser.add_argument(
        "--this-python",
        action="store_true",
        help="rebuild an environment that another version of Python made",
    )
    options = parser.parse_args(arguments)
    environment = Environment(
        options.venv.absolute(), options.constraints.resolve(), options.this_python
    )
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        environment.shared = (lock(),)
        any_run = set_up(environment)
    except KeyboardInterrupt:
        say("set-up interrupted; run the same command again to go on")
        return 130
    except SetupError as error:
        say(f"set-up failed at {error}")
        return 1
    if any_run:
        say(f"set-up complete in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
