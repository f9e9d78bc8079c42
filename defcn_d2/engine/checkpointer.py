"""Checkpoints of a run."""

import os
from typing import Any

import torch
from torch import nn

from ..checkpointer import DeFCNCheckpointer, replacing
from .ema import EMA_KEY, WeightsEMA
from .errors import as_user_error


class Checkpointer(DeFCNCheckpointer):
    """``DeFCNCheckpointer``, which knows averaged weights and says why a file cannot be fetched.

    A checkpoint of a run with ``MODEL.EMA.ENABLED`` holds the live weights under "model" and the
    averaged ones under "ema". A run that is resumed takes both. Everything else (MODEL.WEIGHTS,
    ``--eval-only``, demos) takes the averaged ones where ``averaged`` says so, else the live ones.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        averaged: bool = False,
        ema: WeightsEMA | None = None,
        **checkpointables: Any,
    ):
        """
        Args:
            averaged: use the averaged weights of files that have them; ``MODEL.EMA.ENABLED``.
            ema: the average that a training goes on with.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.averaged = averaged
        self.ema = ema
        if ema is not None:
            self.add_checkpointable(EMA_KEY, ema)

    def load(
        self, path: str, checkpointables: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        message = (
            f"weights {path!r} cannot be read or fetched ({{}}); set MODEL.WEIGHTS to a file on "
            "this machine, or to '' to train from scratch"
        )
        resumes = self.ema is not None and checkpointables is None
        self._take_averaged = self.averaged and not resumes
        self._has_average = False
        with as_user_error(OSError, message):
            rest = super().load(path, checkpointables, **kwargs)
        if self.ema is not None and not (resumes and self._has_average):
            if resumes:
                self.logger.warning("%s holds no averaged weights: they start from the live", path)
            self.ema.reset()
        return rest

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        average = checkpoint.get(EMA_KEY)
        self._has_average = average is not None
        if average is not None and self._take_averaged:
            self.logger.info("Using the averaged weights (EMA) of %d steps", average["updates"])
            checkpoint["model"] = average["weights"]
        elif average is not None and not self.averaged:
            self.logger.warning(
                "%s holds averaged weights (EMA) as well: MODEL.EMA.ENABLED True uses them",
                self._path,
            )
        return super()._load_model(checkpoint)

    def export_averaged(self) -> None:
        """Write the averaged weights alone to model_ema.pth, as "model" for any Detectron2 tool."""
        if self.ema is None or not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, "model_ema.pth")
        remote = "://" in self.save_dir
        with self.path_manager.open(path, "wb") if remote else replacing(path) as file:
            torch.save({"model": self.ema.model_weights()}, file)
        self.logger.info("Averaged weights (EMA) saved to %s", path)
