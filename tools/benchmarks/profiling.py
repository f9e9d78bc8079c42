"""Where the time of a call goes, by torch.profiler."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import markdown


def profile_call(name: str, call: Callable[[], object], directory: Path, cuda: bool) -> str:
    """Profile one call after a first one that counts for nothing.

    Args:
        name: of what is profiled, in the table and in the names of the files.
        directory: made where missing; gets ``NAME.json`` (for chrome://tracing or Perfetto) and
            ``NAME.md``, the table.

    Returns:
        the ten operators that take most time of their own, as Markdown.
    """
    call()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        call()
    directory.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"\W+", "-", name)
    profiler.export_chrome_trace(str(directory / f"{stem}.json"))
    field = "self_device_time_total" if cuda else "self_cpu_time_total"
    entries = sorted(profiler.key_averages(), key=lambda entry: -getattr(entry, field))
    total = sum(getattr(entry, field) for entry in entries)
    rows = [
        [
            f"`{entry.key}`",
            f"{getattr(entry, field) / 1e3:.1f}",
            f"{100 * getattr(entry, field) / total:.1f} %",
            str(entry.count),
        ]
        for entry in entries[:10]
    ]
    table = markdown([f"{name}: operator", "own time, ms", "share", "calls"], rows)
    (directory / f"{stem}.md").write_text(table + "\n")
    return table
