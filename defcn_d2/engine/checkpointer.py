"""Checkpoints that are whole or absent, however the process ends."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer

from .errors import UserError, as_user_error

# What reading a file that is no checkpoint, or half of one, can raise.
_UNREADABLE = (RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, AssertionError)


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with atomic writes, and with errors that name the file."""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth to ``save_dir``, then let ``last_checkpoint`` name it."""
        if not self.save_dir or not self.save_to_disk:
            return
        if "://" in self.save_dir:  # another file system: its handler knows how to write
            super().save(name, **kwargs)
            return
        state = {"model": self.model.state_dict()}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with replacing(path) as file:
            torch.save({**state, **kwargs}, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if "://" in self.save_dir:
            super().tag_last_checkpoint(last_filename_basename)
            return
        with replacing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if path and "://" not in path and not os.path.isfile(path):
            raise UserError(
                f"weights {path!r} do not exist; correct MODEL.WEIGHTS, or with --resume the file "
                "last_checkpoint in OUTPUT_DIR"
            )
        message = (
            f"weights {path!r} cannot be read or fetched ({{}}); set MODEL.WEIGHTS to a file on "
            "this machine, or to '' to train from scratch"
        )
        with as_user_error(OSError, message):
            return super().load(path, *args, **kwargs)

    def _load_file(self, f: str) -> dict[str, Any]:
        try:
            return super()._load_file(f)
        except _UNREADABLE as error:
            unsafe = "Unsupported global" in str(error)  # what torch's safe unpickler says
            problem = "holds objects besides tensors" if unsafe else "is damaged or no checkpoint"
            raise UserError(
                f"{f!r} {problem}; give another to MODEL.WEIGHTS, or with --resume name an "
                "earlier one in OUTPUT_DIR's file last_checkpoint"
            ) from error


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of ``path`` at the end of the block.

    What a killed process leaves, ``path``.part, the next one overwrites.
    """
    temporary = f"{path}.part"
    with open(temporary, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
