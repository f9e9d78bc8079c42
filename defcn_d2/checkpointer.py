"""Files of weights: read without running code, checked against the model, written whole."""

import contextlib
import os
import pickle
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from fvcore.common.checkpoint import Checkpointer

from .checkpoint import describe_weights, fitting_configs, is_derived, strip_prefix

# What reading a file that is no checkpoint, or half of one, can raise.
_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, AssertionError)


class CheckpointError(ValueError):
    """A checkpoint that is unreadable or of another model; the message says what to do."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a file of ``torch.save``, on the CPU.

    Only tensors and plain containers are read: no code of the file's author runs.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or holds other objects.
        OSError: it cannot be opened.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        # How torch names what it will not construct.
        unsafe = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        problem = (
            f"holds an object of {unsafe[1]}, and only tensors and plain containers are read; "
            "write it again without"
            if unsafe
            else "is damaged or no checkpoint; fetch or choose another"
        )
        raise CheckpointError(f"{path!r} {problem}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path!r} holds a {type(content).__name__}, no dict of weights; choose another file"
        )
    return dict(content)


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
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
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
        """As Detectron2's.

        Raises:
            CheckpointError: there is no such file; see ``read_checkpoint``; the weights do not fit.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise CheckpointError(
                f"weights {path!r} do not exist; correct MODEL.WEIGHTS, or with --resume the file "
                "last_checkpoint in OUTPUT_DIR"
            )
        self._path = path
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            return super()._load_file(filename)
        except CheckpointError:
            raise
        except _UNREADABLE as error:  # of .pkl files
            raise CheckpointError(
                f"{filename!r} is damaged or no checkpoint; fetch or choose another"
            ) from error

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
