"""Files that survive: atomic writes, a folder's lock, a journal that skips damaged lines."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)

_UNFINISHED = ".part"


def write_atomically(path: Path, content: bytes, sync: bool = True) -> None:
    """Let ``path`` appear whole or not at all; with ``sync`` a power cut changes nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, waiting for it; it goes with the process, however that ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is at work in %s: waiting for it", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): going on without", folder, error.strerror)
            yield
            return
        for leftover in folder.rglob(f".*{_UNFINISHED}"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        yield


def digest(path: Path) -> str | None:
    """The sha256 of a file; None where it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


class Journal:
    """A text file of JSON entries, each of a kind and with a checksum, written one by one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def read(self) -> dict[str, list[Any]]:
        """The entries by kind, in order; damaged or unfinished lines are left out."""
        entries: dict[str, list[Any]] = {}
        try:
            text = self.path.read_text(errors="replace")
        except OSError:
            return entries
        for line in text.split("\n"):
            checksum, _, content = line.partition(" ")
            if checksum == _checksum(content):
                try:
                    kind, value = json.loads(content)
                    entries.setdefault(kind, []).append(value)
                except (ValueError, TypeError, RecursionError):
                    pass  # not written by this class, whatever its checksum says
        return entries

    @contextlib.contextmanager
    def rewriting(self, **entries: list[Any]) -> Iterator[None]:
        """Begin the file anew with ``entries`` by kind; within the block ``append`` adds to it."""
        lines = [_line(kind, value) for kind, values in entries.items() for value in values]
        write_atomically(self.path, "".join(lines).encode())
        with self.path.open("a") as self._file:
            yield
            os.fsync(self._file.fileno())

    def append(self, kind: str, value: Any) -> None:
        """Add an entry; a kill of the process does not lose it."""
        assert self._file is not None, "append is for the block of rewriting()"
        self._file.write(_line(kind, value))
        self._file.flush()


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _line(kind: str, value: Any) -> str:
    text = json.dumps([kind, value])
    return f"{_checksum(text)} {text}\n"
