"""Peak memory of one call on the CPU, in a process of its own.

glibc is told to hand every larger block straight back to the system, so that the figure is what is
alive, not what was ever freed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]


def run_alone(module: str, arguments: Sequence[str]) -> int:
    """The last line of ``python -m MODULE ARGUMENTS``, in a fresh interpreter: bytes.

    Raises:
        RuntimeError: the process fails.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TOOLS), str(TOOLS.parent)]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"measuring memory failed: {result.stderr.strip()}")
    return int(result.stdout.split()[-1])


def growth(call: Callable[[], object]) -> int:
    """Bytes by which this process grows at its largest during ``call`` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _status("VmRSS")
    results = call()
    peak = _status("VmHWM") - before
    del results
    return peak


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; memory is measured on Linux only")
