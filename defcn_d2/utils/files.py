"""Files that are whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from .errors import UserError


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of ``path`` when the block ends well.

    A killed process leaves ``path``.part, which the next one overwrites.
    """
    temporary = f"{path}.part"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(os.path.dirname(path))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        # torch.save hides the cause, such as a full disk, behind an error of its own
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            cause.filename = path
            raise cause from None
        raise


def _flush_folder(folder: str) -> None:
    """Make a new name in a folder outlast a power failure, where the file system can promise it."""
    try:
        descriptor = os.open(folder or ".", os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path], option: str) -> None:
    """Refuse to write onto what is read, by whatever name or link; call it before any work.

    Args:
        outputs: files to write, there or not.
        inputs: files to read; addresses and files that are not there are passed over.
        option: the one that gives the outputs, as "--output".

    Raises:
        UserError: an output is an input.
    """
    existing = {identity: path for path in outputs if (identity := _identity(path)) is not None}
    for path in inputs if existing else ():
        identity = _identity(path)
        if identity in existing:
            raise UserError(
                f"{option}: {str(existing[identity])!r} is an input itself ({str(path)!r}), which "
                "would be lost; give another place"
            )


def _identity(path: str | Path) -> tuple[int, int] | None:
    """Device and number of a file; links to it have the same. None: there is no such file."""
    try:
        state = os.stat(os.path.expanduser(path))
    except (OSError, ValueError):
        return None
    return state.st_dev, state.st_ino


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by way of one beside it, of a name that no other process takes."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
