"""Peak memory of one call of the 3D max filter on the CPU, in a process of its own.

    python -m benchmarks.op_memory COMPETITOR {inference,training} HEIGHT WIDTH BATCH

prints the bytes by which the process grew at its largest. glibc is told to hand every larger block
straight back to the system, so that the figure is what is alive, not what was ever freed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]


def peak_bytes(competitor: str, mode: str, image: tuple[int, int], batch: int) -> int:
    """Measure in a fresh interpreter; see the module's docstring."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TOOLS), str(TOOLS.parent)]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    arguments = [competitor, mode, *map(str, image), str(batch)]
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.op_memory", *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"measuring memory failed: {result.stderr.strip()}")
    return int(result.stdout.split()[-1])


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """The measuring process."""
    import torch

    from benchmarks.op_competitors import COMPETITORS, forward_and_backward, make_levels

    competitor, mode = sys.argv[1:3]
    height, width, batch = map(int, sys.argv[3:6])
    max_filter = COMPETITORS[competitor]

    def measure(image: tuple[int, int]) -> int:
        levels = make_levels(batch, image, torch.float32, torch.contiguous_format, "cpu")
        grads = [torch.randn_like(level) for level in levels]
        leaves = [level.requires_grad_(mode == "training") for level in levels]
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
        before = _status("VmRSS")
        if mode == "inference":
            results = max_filter(leaves)
        else:
            results = forward_and_backward(max_filter, leaves, grads)
        peak = _status("VmHWM") - before
        del results
        return peak

    measure((64, 64))  # thread pools and code are loaded
    print(measure((height, width)))


if __name__ == "__main__":
    main()
