"""The results as Markdown, and Markdown tables as values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
MARKERS = ("<!-- gpu-check:begin -->", "<!-- gpu-check:end -->")


def report(
    environment: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], folder: Path
) -> str:
    """The content of ``report.md``: the machine, the parts, and the tables that they have left.

    Args:
        results: see ``runner.Check``.
        folder: with the Markdown files of the parts.
    """
    lines = [", ".join(f"{key} {value}" for key, value in environment.items()) + ".", ""]
    lines += ["| part | status | seconds | |", "|---|---|---|---|"]
    for name, result in results.items():
        reason = str(result["reason"]).replace("|", "/")
        lines.append(f"| {name} | {result['status']} | {result['seconds']} | {reason} |")
    for name, result in results.items():
        file = folder / f"{name}.md"
        if result["figures"] and file.exists():
            lines += ["", f"### On a GPU: {name}", "", file.read_text().strip()]
    return "\n".join(lines) + "\n"


def tables(text: str) -> list[list[dict[str, str | float]]]:
    """Rows of the tables of a Markdown text, by the names of their columns; numbers as such."""
    found: list[list[dict[str, str | float]]] = []
    header: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
            found.append([])
        elif not set(line) <= set("|-: "):
            found[-1].append(dict(zip(header, map(_value, cells))))
    return found


def _value(cell: str) -> str | float:
    try:
        number = float(cell)
    except ValueError:
        return cell
    return number if math.isfinite(number) else cell  # JSON has no NaN
