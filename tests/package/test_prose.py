"""Docstrings and messages are plain English: a docstring begins with a verb or a noun."""

from __future__ import annotations

import re

from helpers import ROOT

OPENINGS = re.compile(r'"""(What|Let)\b')
PHRASES = re.compile(r"\b(but for|in place of)\b")


def test_plain_english():
    files = [path for name in ("defcn_d2", "tools", "demo") for path in (ROOT / name).rglob("*.py")]
    assert len(files) > 100
    faults = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if OPENINGS.search(line) or PHRASES.search(line)
    ]
    assert not faults, "\n".join(faults)
