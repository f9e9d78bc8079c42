"""Groups of processes that talk by gloo on the CPU, for tests of what several do together.

They are forked by multiprocessing's fork server, a fresh interpreter that has imported what takes
long and run nothing, and never by the process of the tests. Autograd refuses to run in a fork of a
process in which its threads are running, and there they run at times even without a GPU: the first
``FakeTensorMode`` (torch.compile, torch.export, opcheck) lets a PyTorch with CUDA pretend to have
eight devices, and the first backward pass of a process starts one thread for each device. A test
process whose first backward pass was earlier has none, so that it depended on the order of tests.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

# Not defcn_d2: Python 3.11's server searches the installed packages alone. A member has sys.path,
# and the working directory, of the process of the tests.
multiprocessing.set_forkserver_preload(["torch.distributed", "detectron2.engine"])
SERVER = multiprocessing.get_context("forkserver")


def in_group(number: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Results of ``function(*arguments)`` in each of ``number`` processes of one group.

    Args:
        function: of a module, as it is pickled, and its module imported anew; returns what
            ``torch.save`` takes. It knows its rank from ``comm.get_rank()``. What tests have
            registered or replaced in their own process it does not know.
        folder: an existing folder for what passes between the processes and this one.
    """
    torch.multiprocessing.start_processes(
        _member, (number, folder, function, arguments), nprocs=number, start_method="forkserver"
    )
    return [
        torch.load(folder / f"{number}-{rank}.pth", weights_only=False) for rank in range(number)
    ]


def _member(
    rank: int, number: int, folder: Path, function: Callable[..., Any], arguments: tuple
) -> None:
    torch.set_num_threads(1)  # the members share the cores
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
