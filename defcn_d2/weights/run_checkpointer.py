"""Checkpoints of a run."""

import os
import re
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from ..engine.ema import EMA_KEY, WeightsEMA
from ..utils.errors import as_user_error
from .checkpointer import CheckpointError, DeFCNCheckpointer, replacing

_NUMBERED = re.compile(r"model_(\d+)\.pth")


class Unreadable(CheckpointError):
    """A damaged file."""


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
        keep: int = 0,
        **checkpointables: Any,
    ):
        """
        Args:
            averaged: use the averaged weights of files that have them; ``MODEL.EMA.ENABLED``.
            ema: the average that a training goes on with.
            keep: ``SOLVER.CHECKPOINT_KEEP``.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.averaged = averaged
        self.ema = ema
        self.keep = keep
        self._tags = True
        #: Whether ``resume_or_load`` has found a checkpoint to go on from.
        self.resumed = False
        if ema is not None:
            self.add_checkpointable(EMA_KEY, ema)

    def save(self, name: str, tag: bool = True, **kwargs: Any) -> None:
        """Write ``name``.pth, let ``last_checkpoint`` name it, and remove what is not kept.

        Args:
            tag: False: ``last_checkpoint`` stays as it is, and so do all files.
        """
        self._tags = tag
        super().save(name, **kwargs)
        if tag and self.keep and self.save_to_disk and os.path.isdir(self.save_dir):
            # Not those of later iterations, which a run that went back to this one has left.
            older = [x for x in self._numbered() if x < f"{name}.pth"]
            for file in older[: len(older) + 1 - self.keep]:
                os.remove(os.path.join(self.save_dir, file))

    def _numbered(self) -> list[str]:
        """Names of the periodic checkpoints in ``save_dir``, by their iteration."""
        return sorted(filter(_NUMBERED.fullmatch, os.listdir(self.save_dir)))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if self._tags:
            super().tag_last_checkpoint(last_filename_basename)

    def last_name(self) -> str:
        """What ``last_checkpoint`` names, without its suffix; "" if there is none."""
        path = self.get_checkpoint_file() if self.has_checkpoint() else ""
        return os.path.basename(path).removesuffix(".pth")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's, from the newest checkpoint that can be read.

        Args:
            path: ``MODEL.WEIGHTS``, for a run that has no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, and none can be read; or see ``load``.
        """
        candidates = self._candidates() if resume else []
        for number, candidate in enumerate(candidates):
            try:
                content = self.load(candidate)
            except Unreadable as error:
                if number == len(candidates) - 1:
                    raise
                self.logger.warning("%s; going on from the one before it", error)
            else:
                self.resumed = True
                return content
        return self.load(path, checkpointables=[])

    def _candidates(self) -> list[str]:
        """The checkpoints of ``save_dir``: that of ``last_checkpoint`` first, then by their age."""
        tagged = [self.get_checkpoint_file()] if self.has_checkpoint() else []
        if "://" in self.save_dir or not os.path.isdir(self.save_dir):
            return tagged
        names = ["model_final.pth", *reversed(self._numbered())]
        files = [os.path.join(self.save_dir, name) for name in names]
        found = [path for path in files if path not in tagged and os.path.isfile(path)]
        if found and not (tagged and os.path.isfile(tagged[0])):
            self.logger.warning(
                "%s names no checkpoint; going on from %s",
                os.path.join(self.save_dir, "last_checkpoint"),
                found[0],
            )
            return found
        return tagged + found

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            return super()._load_file(filename)
        except CheckpointError as error:
            raise Unreadable(str(error)) from error

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


def load_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Let a model have ``MODEL.WEIGHTS``, averaged ones if ``MODEL.EMA`` is enabled and it can.

    Raises:
        CheckpointError: see ``DeFCNCheckpointer.load``.
        UserError: the file cannot be fetched.
    """
    checkpointer = Checkpointer(
        model,
        averaged=cfg.MODEL.EMA.ENABLED,
        may_run_code=cfg.MODEL.WEIGHTS_MAY_RUN_CODE,
    )
    checkpointer.load(cfg.MODEL.WEIGHTS)
