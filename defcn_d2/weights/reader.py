"""Reading files of weights: no code of theirs runs, and damage does not go unnoticed."""

import errno
import os
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..utils.errors import UserError
from .pickles import PickleError, UnsafePickleError, loads
from .safe_tensors import SUFFIX, read_safetensors

_TOO_LARGE = "needs more memory than there is, or is damaged"
_DAMAGED = "is damaged or no checkpoint{}; fetch or choose another"


class CheckpointError(UserError, ValueError):
    """A checkpoint that is unreadable or of another model; the message says what to do."""


class UnsafeCheckpointError(CheckpointError):
    """A file of weights holds objects whose reading could run code."""


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a file of ``torch.save`` or, by its suffix, of safetensors, on the CPU.

    Only tensors and plain containers are read: no code of the file's author runs. The checksums of
    its records are compared, which torch does not; files from before torch 1.6 have none.

    Raises:
        CheckpointError: the file is damaged, no checkpoint, or holds other objects.
        OSError: it cannot be opened.
    """
    if path.endswith(SUFFIX):
        try:
            return read_safetensors(path)
        except ValueError as error:
            raise CheckpointError(f"{path!r} {_DAMAGED.format(f' ({error})')}") from error
    try:
        with open(path, "rb") as file:
            if file.read(4) == b"PK\x03\x04":
                _check_records(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(f"{path!r} {_TOO_LARGE}") from error
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # the system's; of the two others, a damaged archive is the cause
        # How torch names what it will not construct.
        unsafe = re.search(r"(?:GLOBAL|Unsupported class) (\S+)", str(error))
        if unsafe:
            raise UnsafeCheckpointError(
                f"{path!r} holds an object of {unsafe[1]}, and only tensors and plain containers "
                "are read; write it again without"
            ) from error
        raise CheckpointError(f"{path!r} {_DAMAGED.format('')}") from error
    return _as_dict(content, path)


def _check_records(path: str) -> None:
    """Compare the checksum of every record of a zip archive of ``torch.save``.

    Raises:
        CheckpointError: one differs, or the archive is none that torch writes.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise CheckpointError(
                f"{path!r} is a compressed archive, and torch.save writes none; unpack it, or "
                "choose another file"
            )
        # Records that overlap would unfold to more than the file has.
        bad = archive.testzip()
        if bad is not None or sum(x.file_size for x in records) > os.path.getsize(path):
            raise CheckpointError(f"{path!r} {_DAMAGED.format(f' (its record {bad!r})')}")


def read_pickle(path: str) -> dict[str, Any]:
    """The content of a ``.pkl`` file in the format of Detectron2's model zoo or of Detectron's.

    Only arrays, tensors and plain containers are read: no code of the file's author runs. Such
    files have no checksums.

    Returns:
        "model" (name to array or tensor), "__author__", and "matching_heuristics" where the names
        are to be matched by them, as Detectron2's own reader gives.

    Raises:
        UnsafeCheckpointError: the file holds other objects.
        CheckpointError: it is damaged or no such file.
        OSError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            content = _as_dict(loads(file.read()), path)
    except UnsafePickleError as error:
        raise UnsafeCheckpointError(
            f"{path!r} holds {error}, and only arrays, tensors and plain containers are read; "
            "write it again without, or, if you trust its author with this machine, set "
            "MODEL.WEIGHTS_MAY_RUN_CODE True"
        ) from error
    except MemoryError as error:
        raise CheckpointError(f"{path!r} {_TOO_LARGE}") from error
    except PickleError as error:
        raise CheckpointError(f"{path!r} {_DAMAGED.format(f' ({error})')}") from error
    if "model" in content and "__author__" in content:
        return content
    # Detectron's files of detectors have their weights under "blobs", those of backbones have
    # nothing else; the momentum of a training may stand beside them.
    weights = _as_dict(content.get("blobs", content), path)
    return {
        "model": {key: x for key, x in weights.items() if not str(key).endswith("_momentum")},
        "__author__": "Caffe2",
        "matching_heuristics": True,
    }


def read_pycls(path: str) -> dict[str, Any]:
    """The content of a ``.pyth`` file of pycls, as Detectron2's own reader gives it.

    Raises:
        CheckpointError: see ``read_checkpoint``; or it has no "model_state".
        OSError: it cannot be opened.
    """
    content = read_checkpoint(path)
    if "model_state" not in content:
        raise CheckpointError(
            f"{path!r} has no 'model_state', as the .pyth files of pycls have; give the file the "
            "name that its kind has (.pth: written by torch.save)"
        )
    weights = _as_dict(content["model_state"], path)
    return {
        "model": {k: x for k, x in weights.items() if not str(k).endswith("num_batches_tracked")},
        "__author__": "pycls",
        "matching_heuristics": True,
    }


def check_weights(weights: Any, path: str) -> None:
    """Refuse what is no dict of names to tensors or arrays.

    Raises:
        CheckpointError: with the first entry that is none.
    """
    for name, value in _as_dict(weights, path).items():
        if not (isinstance(name, str) and isinstance(value, (torch.Tensor, np.ndarray))):
            raise CheckpointError(
                f"{path!r} holds a {type(value).__name__} under {name!r}, where the name of a "
                "weight and a tensor should be; choose another file"
            )


def _as_dict(content: Any, path: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path!r} holds a {type(content).__name__}, no dict of weights; choose another file"
        )
    return dict(content)
