"""Checkpoints: read without running code, checked against the model, written whole."""

from __future__ import annotations

import contextlib
import os
import re
from typing import IO, TYPE_CHECKING, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from fvcore.common import checkpoint as fvcore_checkpoint
from torch import nn

from ..utils.files import replacing
from .fit import check_fit, check_loaded, class_layers
from .reader import (
    CheckpointError,
    UnsafeCheckpointError,
    check_weights,
    read_checkpoint,
    read_pickle,
    read_pycls,
)
from .release import is_derived, is_of_detector, strip_prefix
from .timm_download import TimmPathHandler

if TYPE_CHECKING:
    from ..engine.ema import WeightsEMA

# Errors that the content of a file raises in things that it is not of.
_MISFIT = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Addresses of Detectron2's own model zoo.
_CATALOG = ("detectron2://", "catalog://")
# Beginning of the names of the backbone's parts in a detector, and of its own network.
_BACKBONE, _BOTTOM_UP = "backbone.", "backbone.bottom_up."
# The averaged weights in checkpoints, beside the live ones under "model".
_EMA_KEY = "ema"
_NUMBERED = re.compile(r"model_(\d+)\.pth")

PathManager.register_handler(TimmPathHandler())


def last_checkpoint(folder: str) -> str:
    """Path of the file that ``last_checkpoint`` of a folder names; "" where there is none."""
    try:
        with open(os.path.join(folder, "last_checkpoint"), "rb") as file:
            name = file.read(4096).decode(errors="replace").strip()
    except OSError:
        return ""
    return os.path.join(folder, os.path.basename(name))


class Unreadable(CheckpointError):
    """A damaged file."""


class _SafeReader(fvcore_checkpoint.Checkpointer):
    """Stands where ``DetectionCheckpointer`` asks its base class to read a file."""

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)


class Checkpointer(DetectionCheckpointer, _SafeReader):
    """Detectron2's checkpointer with safe reading, exact fit, atomic writing and averaged weights.

    ``load`` takes checkpoints of this project and of the original release alike. Weights of a
    whole detector must fit the model, all of them; weights of a backbone, and files with
    ``{"partial": True}``, may leave a rest to a training, which is logged.

    A checkpoint of a run with ``MODEL.EMA.ENABLED`` holds the live weights under "model" and the
    averaged ones under "ema". A run that is resumed takes both. Everything else (MODEL.WEIGHTS,
    ``--eval-only``, demos) takes the averaged ones where ``averaged`` says so, else the live ones.
    """

    _path = ""  # of the file being loaded
    _goes_on = False  # with the training of that file

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        may_run_code: bool = False,
        complete: bool = False,
        num_classes: int = 0,
        averaged: bool = False,
        ema: WeightsEMA | None = None,
        keep: int = 0,
        **checkpointables: Any,
    ):
        """
        Args:
            may_run_code: read ``.pkl`` files that hold more than arrays, tensors and plain
                containers, which may run their authors' code; ``MODEL.WEIGHTS_MAY_RUN_CODE``.
                Files of Detectron2's model zoo, by their addresses there, are always read.
            complete: every parameter must come from the file, as it must outside training.
            num_classes: of the model, for a training that starts from a detector of other classes:
                layers of classes start anew, all else comes from the file. 0: it is refused.
            averaged: use the averaged weights of files that have them; ``MODEL.EMA.ENABLED``.
            ema: the average that a training goes on with.
            keep: number of periodic checkpoints, 0: all; ``SOLVER.CHECKPOINT_KEEP``.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.may_run_code = may_run_code
        self.complete = complete
        self.num_classes = num_classes
        self.averaged = averaged
        self.ema = ema
        self.keep = keep
        #: Whether ``resume_or_load`` has found a checkpoint to go on from.
        self.resumed = False
        if ema is not None:
            self.add_checkpointable(_EMA_KEY, ema)

    # Writing

    def save(self, name: str, tag: bool = True, **kwargs: Any) -> None:
        """Write ``name``.pth, make ``last_checkpoint`` name it, and remove older ones.

        Args:
            tag: False: ``last_checkpoint`` stays as it is, and so do all files.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with self._writing(path) as file:
            torch.save({**state, **kwargs}, file)
        if tag:
            self.tag_last_checkpoint(f"{name}.pth")
            self._remove_older(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with self._writing(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def export_averaged(self) -> None:
        """Write the averaged weights alone to model_ema.pth, as "model" for any Detectron2 tool."""
        if self.ema is None or not self.save_dir or not self.save_to_disk:
            return
        path = os.path.join(self.save_dir, "model_ema.pth")
        with self._writing(path) as file:
            torch.save({"model": self.ema.model_weights()}, file)
        self.logger.info("Averaged weights (EMA) saved to %s", path)

    def _writing(self, path: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file to write; on another file system its handler knows how."""
        return self.path_manager.open(path, "wb") if "://" in path else replacing(path)

    def _remove_older(self, name: str) -> None:
        if self.keep and os.path.isdir(self.save_dir):
            # Not those of later iterations, which a run that went back to this one has left.
            older = [other for other in self._numbered() if other < name]
            for other in older[: len(older) + 1 - self.keep]:
                os.remove(os.path.join(self.save_dir, other))

    # Finding

    def _numbered(self) -> list[str]:
        """Names of the periodic checkpoints in ``save_dir``, by their iteration."""
        return sorted(filter(_NUMBERED.fullmatch, os.listdir(self.save_dir)))

    def get_checkpoint_file(self) -> str:
        """Path of the file that ``last_checkpoint`` names; always one of ``save_dir``."""
        if "://" in self.save_dir:
            return str(super().get_checkpoint_file())
        return last_checkpoint(self.save_dir)

    def last_name(self) -> str:
        """The name in ``last_checkpoint`` without its suffix; "" if there is none."""
        path = self.get_checkpoint_file() if self.has_checkpoint() else ""
        return os.path.basename(path).removesuffix(".pth")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest checkpoint that can be read or, without any, the weights ``path``.

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

    # Reading

    def load(
        self, path: str, checkpointables: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Load a file into the model and the ``checkpointables``, as Detectron2's.

        Raises:
            CheckpointError: the file is not there or cannot be fetched; see ``read_checkpoint``;
                the weights, or the state of what is trained with them, do not fit.
        """
        if self.complete and not path:
            raise CheckpointError("MODEL.WEIGHTS is empty: give the file of a trained model")
        if path and "://" not in path and not os.path.isfile(path):
            raise CheckpointError(
                f"weights {path!r} do not exist; correct MODEL.WEIGHTS, or with --resume the file "
                "last_checkpoint in OUTPUT_DIR"
            )
        self._goes_on = checkpointables is None
        resumes = self.ema is not None and self._goes_on
        self._path = path
        self._take_averaged = self.averaged and not resumes
        self._has_average = False
        try:
            rest = super().load(path, checkpointables, **kwargs)
        except OSError as error:
            raise CheckpointError(
                f"weights {path!r} cannot be read or fetched ({error.strerror or error}); set "
                "MODEL.WEIGHTS to a file on this machine, or to '' to train from scratch"
            ) from error
        except _MISFIT as error:
            if isinstance(error, (CheckpointError, torch.OutOfMemoryError)):
                raise
            raise CheckpointError(
                f"the content of {path!r} does not fit ({type(error).__name__}: {error}); choose a "
                "checkpoint of this model and config"
            ) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 forgets it after errors
        if self.ema is not None and not (resumes and self._has_average):
            if resumes:
                self.logger.warning("%s holds no averaged weights: they start from the live", path)
            self.ema.reset()
        return rest

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            if filename.endswith(".pkl"):
                content = self._read_pickle(filename)
            elif filename.endswith(".pyth"):
                content = read_pycls(filename)
            else:
                content = super()._load_file(filename)
            check_weights(content["model"], filename)
        except CheckpointError as error:
            raise Unreadable(str(error)) from error
        return content

    def _read_pickle(self, filename: str) -> dict[str, Any]:
        try:
            return read_pickle(filename)
        except UnsafeCheckpointError:
            ours = self._path.startswith(_CATALOG)
            if not (self.may_run_code or ours):
                raise
            self.logger.warning(
                "%s holds more than arrays, and reading it may run code. It is read, as %s",
                filename,
                "it is of Detectron2's model zoo" if ours else "MODEL.WEIGHTS_MAY_RUN_CODE says",
            )
        try:
            return super()._load_file(filename)
        except OSError:
            raise
        except Exception as error:
            raise CheckpointError(f"{filename!r} cannot be read: {error!r}") from error

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        self._choose_average(checkpoint)
        weights = self._own_names(strip_prefix(checkpoint["model"]))
        checkpoint["model"] = weights
        if is_of_detector(weights) and not checkpoint.get("matching_heuristics", False):
            own = self.model.state_dict()
            weights = {
                name: value
                for name, value in weights.items()
                if name in own or not is_derived(name)
            }
            anew = [] if self._goes_on else self._other_classes(weights, own)
            for name in anew:
                del weights[name], own[name]
            if not checkpoint.get("partial", False):
                check_fit(weights, own, self._path, self.save_dir)
            checkpoint["model"] = weights
        incompatible = super()._load_model(checkpoint)
        parameters = [name for name, _ in self.model.named_parameters()]
        check_loaded(incompatible.missing_keys, parameters, self._path, self.complete)
        return incompatible

    def _other_classes(self, weights: dict[str, Any], own: dict[str, Any]) -> list[str]:
        """Layers of classes that start anew, as those of the file are of other classes."""
        names = class_layers(weights, own, self.num_classes) if self.num_classes else []
        if names:
            self.logger.warning(
                "%s is of another number of classes than MODEL.DEFCN.NUM_CLASSES %d: %s start "
                "anew, all else comes from the file",
                *(self._path, self.num_classes, ", ".join(names)),
            )
        return names

    def _own_names(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Weights as they are; those of a backbone alone under the names that the model's has."""
        bottom_up = getattr(getattr(self.model, "backbone", None), "bottom_up", None)
        own_names = getattr(bottom_up, "own_names", None)
        if own_names is None or any(name.startswith(_BACKBONE) for name in weights):
            return weights
        return {f"{_BOTTOM_UP}{name}": value for name, value in own_names(weights).items()}

    def _choose_average(self, checkpoint: dict[str, Any]) -> None:
        """Put the averaged weights under "model", where this is to have them."""
        average = checkpoint.get(_EMA_KEY)
        self._has_average = average is not None
        if average is not None and self._take_averaged:
            self.logger.info("Using the averaged weights (EMA) of %d steps", average["updates"])
            checkpoint["model"] = average["weights"]
        elif average is not None and not self.averaged:
            self.logger.warning(
                "%s holds averaged weights (EMA) as well: MODEL.EMA.ENABLED True uses them",
                self._path,
            )


def load_weights(cfg: CfgNode, model: nn.Module) -> None:
    """Load ``MODEL.WEIGHTS``, averaged ones if ``MODEL.EMA`` is enabled and the file has them.

    Raises:
        CheckpointError: see ``Checkpointer.load``.
    """
    checkpointer = Checkpointer(
        model,
        complete=True,
        averaged=cfg.MODEL.EMA.ENABLED,
        may_run_code=cfg.MODEL.WEIGHTS_MAY_RUN_CODE,
    )
    checkpointer.load(cfg.MODEL.WEIGHTS)
