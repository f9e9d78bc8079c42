"""Checkpoints of a run."""

from typing import Any

from ..checkpointer import DeFCNCheckpointer
from .errors import as_user_error


class Checkpointer(DeFCNCheckpointer):
    """``DeFCNCheckpointer``, which also says what to do about weights that cannot be fetched."""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        message = (
            f"weights {path!r} cannot be read or fetched ({{}}); set MODEL.WEIGHTS to a file on "
            "this machine, or to '' to train from scratch"
        )
        with as_user_error(OSError, message):
            return super().load(path, *args, **kwargs)
