"""Files of weights: read without running code, checked against the model, written whole."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from .reader import (
    CheckpointError,
    UnsafeCheckpointError,
    check_weights,
    read_checkpoint,
    read_pickle,
    read_pycls,
)
from .release import describe_weights, fitting_configs, is_derived, strip_prefix

__all__ = ["CheckpointError", "DeFCNCheckpointer", "check_fit", "read_checkpoint", "replacing"]

# What loading the content of a file into other things than it is of can raise.
_MISFIT = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Addresses of Detectron2's own model zoo.
_CATALOG = ("detectron2://", "catalog://")


@contextlib.contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """A binary file to write, which takes the place of ``path`` when the block ends well.

    What a killed process leaves, ``path``.part, the next one overwrites.
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
        # torch.save hides what went wrong, such as a full disk, behind an error of its own
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, OSError):
            cause.filename = path
            raise cause from None
        raise


def _flush_folder(folder: str) -> None:
    """Let a new name in a folder outlast a power failure, where the file system can promise it."""
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


class _SafeReader(Checkpointer):
    """Stands where ``DetectionCheckpointer`` asks its base class to read a file."""

    def _load_file(self, f: str) -> dict[str, Any]:
        return read_checkpoint(f)


class DeFCNCheckpointer(DetectionCheckpointer, _SafeReader):
    """Detectron2's checkpointer with safe reading, exact fit and atomic writing.

    ``load`` takes checkpoints of this project and of the original release alike. Weights of a
    whole detector must fit the model, all of them; weights of a backbone, and files with
    ``{"partial": True}``, may leave a rest, which is logged.
    """

    _path = ""  # of the file being loaded

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        may_run_code: bool = False,
        **checkpointables: Any,
    ):
        """
        Args:
            may_run_code: read ``.pkl`` files that hold more than arrays, tensors and plain
                containers, which may run their authors' code; ``MODEL.WEIGHTS_MAY_RUN_CODE``.
                Files of Detectron2's model zoo, by their addresses there, are always read.
        """
        super().__init__(model, save_dir, **checkpointables)
        self.may_run_code = may_run_code

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

    def get_checkpoint_file(self) -> str:
        """As Detectron2's; whatever ``last_checkpoint`` holds, the path is of ``save_dir``."""
        if "://" in self.save_dir:
            return str(super().get_checkpoint_file())
        try:
            with open(os.path.join(self.save_dir, "last_checkpoint"), "rb") as file:
                name = file.read(4096).decode(errors="replace").strip()
        except OSError:
            return ""
        return os.path.join(self.save_dir, os.path.basename(name))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's.

        Raises:
            CheckpointError: there is no such file; see ``read_checkpoint``; the weights, or the
                state of what is trained with them, do not fit.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise CheckpointError(
                f"weights {path!r} do not exist; correct MODEL.WEIGHTS, or with --resume the file "
                "last_checkpoint in OUTPUT_DIR"
            )
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except _MISFIT as error:
            if isinstance(error, (CheckpointError, torch.OutOfMemoryError)):
                raise
            raise CheckpointError(
                f"the content of {path!r} does not fit ({type(error).__name__}: {error}); choose a "
                "checkpoint of this model and config"
            ) from error
        finally:
            self._parsed_url_during_load = None  # Detectron2 forgets it after errors

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            content = self._read_pickle(filename)
        elif filename.endswith(".pyth"):
            content = read_pycls(filename)
        else:
            content = super()._load_file(filename)
        check_weights(content["model"], filename)
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
        weights = strip_prefix(checkpoint["model"])
        if "head.cls_score.weight" in weights:
            own = self.model.state_dict()
            weights = {
                name: value
                for name, value in weights.items()
                if name in own or not is_derived(name)
            }
            if not checkpoint.get("partial", False):
                check_fit(weights, own, self._path)
            checkpoint["model"] = weights
        return super()._load_model(checkpoint)


def check_fit(weights: Mapping[str, Any], own: Mapping[str, Any], path: str) -> None:
    """Refuse weights of a detector that are not those of the model.

    Args:
        weights: name to tensor, from the file.
        own: the state dict of the model.
        path: of the file, for the message.

    Raises:
        CheckpointError: with every name that does not fit, and the configs that would.
    """
    misfits = [
        f"  {name}: {_shape(weights.get(name))} in the file, {_shape(own.get(name))} in the model"
        for name in sorted({*weights, *own})
        if _shape(weights.get(name)) != _shape(own.get(name))
        and not (name not in weights and is_derived(name))
    ]
    if misfits:
        raise CheckpointError("\n".join([_refusal(weights, own, path), *misfits]))


def _shape(value: Any) -> str:
    if value is None:
        return "none"
    return str(tuple(value.shape)) if hasattr(value, "shape") else type(value).__name__


def _refusal(weights: Mapping[str, Any], own: Mapping[str, Any], path: str) -> str:
    """What the file holds, against what the config asks for, and the remedy."""
    theirs = describe_weights(weights)
    ours = describe_weights(own) if "head.cls_score.weight" in own else {}
    differences = [
        f"{key} {theirs.get(key)!r} (the config: {ours.get(key)!r})"
        for key in {**theirs, **ours}
        if theirs.get(key) != ours.get(key)
    ]
    holds = f"it holds {', '.join(differences)}; " if differences else ""
    configs = " or ".join(fitting_configs(weights))
    choose = f"take {configs}, " if configs else "take the config it was trained with, "
    return (
        f"weights {path!r} are of another model: {holds}{choose}or, to start training from what "
        "does fit, convert the file with tools/convert_checkpoint.py --partial. Not fitting:"
    )
