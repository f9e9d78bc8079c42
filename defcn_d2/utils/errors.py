"""What a user can put right is told in one sentence; everything else keeps its traceback."""

import contextlib
import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator

import torch
from detectron2.utils import comm

from ..config.rules import ConfigError
from ..data import DatasetError
from ..data.mapper import ImageError
from ..engine.cluster.distributed import is_first_to_fail
from ..engine.cluster.preemption import RESUMABLE, Preempted
from ..engine.data_loading import LoaderError
from ..modeling.batch_checks import BatchError
from ..weights.reader import CheckpointError
from .printable import printable_lines

# Errors that say in one sentence what is wrong, and what to do.
_SENTENCES = (BatchError, CheckpointError, ConfigError, DatasetError, LoaderError)


class UserError(Exception):
    """A mistake outside the program: the message names the thing, its value and the remedy."""


def nearest(name: str, names: Iterable[str]) -> str:
    """End of a sentence about an unknown ``name``: the most alike of ``names``, or all if few."""
    names = sorted(names)
    alike = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if not alike:  # a key that is right but for the nodes before it
        tail = name.rpartition(".")[2]
        alike = [known for known in names if known.rpartition(".")[2] == tail][:1]
    if alike:
        return f"did you mean {alike[0]!r}?"
    if 0 < len(names) <= 12:
        return f"one of: {', '.join(names)}"
    return "there is nothing like it"


@contextlib.contextmanager
def as_user_error(
    kinds: type[BaseException] | tuple[type[BaseException], ...], message: str
) -> Iterator[None]:
    """Within the block, errors of these kinds become ``UserError``.

    Args:
        kinds: error types that only the user's input can cause there.
        message: its sentence; ``{}`` stands for what the error says.
    """
    try:
        yield
    except kinds as error:
        raise UserError(message.replace("{}", first_line(error))) from error


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow its first."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def describe(error: BaseException) -> str | None:
    """The sentence for an error that the user can put right; None for any other."""
    if isinstance(error, (UserError, *_SENTENCES)):
        return str(error)
    if isinstance(error, ImageError):
        # comes from a process that loads data with its traceback, whose last line it is
        sentence = str(error).strip().splitlines()[-1].rpartition("ImageError: ")[2]
        return (
            f"{sentence.removesuffix('.')}; correct or remove it, or set DATALOADER.ON_ERROR skip"
        )
    if isinstance(error, FloatingPointError):
        return (
            f"{first_line(error)} Lower SOLVER.BASE_LR, lengthen SOLVER.WARMUP_ITERS or set "
            "SOLVER.CLIP_GRADIENTS.ENABLED True, and start again from the last good checkpoint"
        )
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return (
            f"the GPU has too little memory ({first_line(error)}): lower SOLVER.IMS_PER_BATCH "
            "or INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return (
            f"no space left for {_file_of(error, 'the output')}: free some, or set OUTPUT_DIR "
            "to a folder on another disk, and go on with --resume"
        )
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return (
            f"{_file_of(error, 'a file')} cannot be written or read ({error.strerror}): set "
            "OUTPUT_DIR to a folder of yours, or change the rights"
        )
    return None


def _file_of(error: OSError, otherwise: str) -> str:
    return os.fsdecode(error.filename) if error.filename else otherwise


def reported(function: Callable[..., int | None]) -> Callable[..., int]:
    """``function`` as the body of a command: returns the exit status, and tells errors on stderr.

    A mistake of the user gives one sentence and status 1, an interrupt 130, a cluster's signal 75
    (``RESUMABLE``); a bug its traceback.
    Of the processes that torchrun has started, the first that fails tells why.
    """

    @functools.wraps(function)
    def command(*args: object, **kwargs: object) -> int:
        try:
            return function(*args, **kwargs) or 0
        except KeyboardInterrupt:
            if is_first_to_fail():
                print("\ninterrupted", file=sys.stderr)
            return 130
        except Preempted as error:
            if is_first_to_fail():
                print(printable_lines(error), file=sys.stderr, flush=True)
            return RESUMABLE
        except Exception as error:
            if not is_first_to_fail():
                return 1
            message = describe(error)
            if message is None:
                raise
            sys.stdout.flush()
            rank = f" (rank {comm.get_rank()})" if comm.get_world_size() > 1 else ""
            print(printable_lines(f"error{rank}: {message}"), file=sys.stderr, flush=True)
            return 1

    return command
