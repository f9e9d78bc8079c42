"""The remedy for a command of the set-up that failed: one sentence, found from pip's log."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

AGAIN = "then run this again"

# The first that matches is taken, so causes stand before what follows from them.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full ({free:.1f} GB free in {venv}; the environment takes up to 8 GB): free "
        "some space (`pip cache purge`, or TMPDIR on another disk), {again}",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED|ProxyError|40[13] (Client )?Error|HTTP error 5\d\d"
        r"|Failed to establish a new connection|Connection refused|Connection reset by peer"
        r"|name resolution|Name or service not known|Network is unreachable|[Tt]imed out"
        r"|Max retries exceeded|IncompleteRead|from versions: none\)",
        "the package index cannot be reached, or refuses: check the network, the proxy, PIP_CERT, "
        "and index and credentials in `pip config list`, {again}",
    ),
    (
        r"No matching distribution found|ResolutionImpossible",
        "the package index has no versions that fit this Python and machine together: choose "
        "another Python (PYTHON=python3.12) or other versions (CONSTRAINTS=my-constraints.txt)",
    ),
    (
        r"Python\.h: No such file",
        "Python's headers are missing: install them (apt-get install python3-dev), {again}",
    ),
    (
        r"unable to execute '?[\w+.-]+'?: No such file"
        r"|command '?[\w+.-]*(g\+\+|gcc|c\+\+|cc|clang)'? failed: No such file",
        "no C++ compiler: install one (apt-get install g++) or name it by CXX, {again}",
    ),
    (
        r"Permission denied|Read-only file system",
        "a file could not be written: check the owner and the rights of {venv}",
    ),
    (
        r"ended by signal|MemoryError|Cannot allocate memory",
        "a command was killed, for want of memory perhaps: close other programs, {again}",
    ),
)


def remedy_for(output: str, venv: Path) -> str:
    """A sentence that says what failed and what helps.

    Args:
        output: of the command that failed.
        venv: the environment's folder.
    """
    for pattern, text in REMEDIES:
        if re.search(pattern, output):
            free = shutil.disk_usage(venv if venv.exists() else venv.parent).free / 1e9
            return text.format(venv=venv, free=free, again=AGAIN)
    return "a command failed; what it printed stands above"
