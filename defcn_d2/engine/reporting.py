"""The exit status of a command, and the one sentence for an error that its user can put right."""

import errno
import functools
import os
import sys
from collections.abc import Callable

import torch
from detectron2.utils import comm

from ..data.mapper import ImageError
from ..utils.errors import UserError, first_line
from ..utils.printable import printable_lines
from .cluster.distributed import is_first_to_fail
from .cluster.preemption import RESUMABLE, Preempted


def describe(error: BaseException) -> str | None:
    """The sentence for an error that the user can put right; None for any other."""
    if isinstance(error, ImageError):
        # comes from a process that loads data with its traceback, whose last line it is
        sentence = str(error).strip().splitlines()[-1].rpartition("ImageError: ")[2]
        return (
            f"{sentence.removesuffix('.')}; correct or remove it, or set DATALOADER.ON_ERROR skip"
        )
    if isinstance(error, UserError):
        return str(error)
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
    """``function`` as the body of a command: returns the exit status, reports errors on stderr.

    A mistake of the user gives one sentence and status 1, an interrupt 130, a cluster's signal 75
    (``RESUMABLE``); a bug its traceback.
    Of the processes that torchrun has started, the first that fails says why.
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
