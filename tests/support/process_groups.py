"""Groups of processes that talk by gloo on the CPU, for tests of what several do together."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

# Forked, they need not import everything again; a process that has met CUDA cannot be forked.
START_METHOD = "spawn" if torch.cuda.is_available() else "fork"


def in_group(number: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Results of ``function(*arguments)`` in each of ``number`` processes of one group.

    Args:
        function: of a module, as it may be pickled; returns what ``torch.save`` takes. It knows
            its rank from ``comm.get_rank()``.
        folder: an existing folder for what passes between the processes and this one.
    """
    torch.multiprocessing.start_processes(
        _member, (number, folder, function, arguments), nprocs=number, start_method=START_METHOD
    )
    return [
        torch.load(folder / f"{number}-{rank}.pth", weights_only=False) for rank in range(number)
    ]


def _member(
    rank: int, number: int, folder: Path, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)  # a forked OpenMP has no other threads
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet-{number}",
        rank=rank,
        world_size=number,
        timeout=timedelta(minutes=2),
    )
    comm._LOCAL_PROCESS_GROUP = torch.distributed.group.WORLD
    torch.save(function(*arguments), folder / f"{number}-{rank}.pth")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
