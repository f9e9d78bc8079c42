"""What helps when a step of the set-up fails: one sentence, found from what the step printed."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

# The first that matches is taken, so causes stand before what follows from them.
REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]",
        "the disk is full ({free:.1f} GB free in {venv}; the environment takes up to 8 GB): free "
        "some space (`pip cache purge`, or TMPDIR on another disk), then run this again",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
        "the package index's certificate is not trusted: set PIP_CERT to the file with the "
        "certificates of your network, then run this again",
    ),
    (
        r"ProxyError|Tunnel connection failed",
        "the proxy refused the connection: check HTTPS_PROXY and PIP_PROXY, then run this again",
    ),
    (
        r"401 Client Error|403 Client Error|401 Error|403 Error",
        "the package index refused access: check the credentials in `pip config list`, then run "
        "this again",
    ),
    (
        r"NewConnectionError|Failed to establish a new connection|Connection refused"
        r"|Name or service not known|Temporary failure in name resolution|Network is unreachable"
        r"|ConnectTimeout|Read timed out|ReadTimeoutError|Max retries exceeded"
        r"|Connection reset by peer|connection broken|IncompleteRead|HTTP error 5\d\d",
        "the package index cannot be reached: check the network, the proxy and `pip config list` "
        "(PIP_INDEX_URL), then run this again",
    ),
    (
        r"from versions: none\)",
        "the package index has no such package, or cannot be reached: check the network and "
        "`pip config list` (PIP_INDEX_URL), then run this again",
    ),
    (
        r"No matching distribution found for (?P<what>\S+)",
        "the package index has no {what} for this Python and machine: choose another Python "
        "(PYTHON=python3.12) or other versions (CONSTRAINTS=my-constraints.txt)",
    ),
    (
        r"ResolutionImpossible",
        "the versions in the constraints file do not fit together here: choose others with "
        "CONSTRAINTS=my-constraints.txt",
    ),
    (
        r"Python\.h: No such file",
        "Python's headers are missing: install them (apt-get install python3-dev), then run this "
        "again",
    ),
    (
        r"unable to execute '?(?P<what>[\w+.-]+)'?: No such file"
        r"|command '?(?P<what2>[\w+.-]*(?:g\+\+|gcc|c\+\+|cc|clang))'? failed: No such file"
        r"|needs a C\+\+ compiler",
        "no C++ compiler: install one (apt-get install g++) or name it by CXX, then run this again",
    ),
    (
        r"command '\S*(?:g\+\+|gcc|c\+\+|nvcc|ninja)' failed|error: command .* failed with exit",
        "the compiler failed; the reason stands above",
    ),
    (
        r"Permission denied|\[Errno 13\]|Read-only file system",
        "a file could not be written: check the owner and the rights of {venv}",
    ),
    (
        r"ended by signal|MemoryError|Cannot allocate memory",
        "a command was killed, for want of memory perhaps: close other programs, then run this "
        "again",
    ),
)


def remedy_for(output: str, venv: Path) -> str:
    """What failed and what helps, as far as a step's output tells.

    Args:
        output: what the failed command printed.
        venv: the environment's folder.
    """
    stated = re.findall(r"^detectron2: failed: (.+)$", output, re.MULTILINE)
    if stated and "stands above" not in stated[-1]:
        return stated[-1]
    for pattern, text in REMEDIES:
        match = re.search(pattern, output)
        if match:
            found = {name: value or "" for name, value in match.groupdict().items()}
            folder = venv if venv.exists() else venv.parent
            return text.format(
                venv=venv, free=shutil.disk_usage(folder).free / 1e9, **{"what": "", **found}
            )
    return "a command failed; the end of its output stands above"


def missing_venv() -> str | None:
    """Why this Python cannot make virtual environments, and what helps; None if it can."""
    if all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        return None
    version = "{}.{}".format(*sys.version_info)
    return (
        f"{sys.executable} lacks the venv module: install it (apt-get install "
        f"python{version}-venv) or choose another Python (PYTHON=python3.12)"
    )
