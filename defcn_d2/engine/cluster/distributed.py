"""Processes that ``torchrun`` has started: they join one group, and one of them reports what fails.

Detectron2's own launcher starts its processes itself and needs nothing of this.
"""

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import distributed

from ...utils.detectron2_compat import create_local_groups

_PAUSE = 0.02  # seconds between two looks at the store
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")

# Shared by the processes of a group, from before it is joined until the end.
_store: "distributed.Store | None" = None


@dataclass(frozen=True)
class Torchrun:
    """The variables that ``torchrun`` sets in a process's environment.

    Attributes:
        rank: of all ``world_size`` processes.
        local_rank: of the ``local_world_size`` ones on this machine.
        restarts: how often the processes have been started again after a failure.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    restarts: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Torchrun | None":
        """None where another program than torchrun has started this process.

        Raises:
            ValueError: a variable holds no number that it can hold.
        """
        if not {*_VARIABLES, "MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
            return None
        restarts = "TORCHELASTIC_RESTART_COUNT"
        names = [*_VARIABLES, *([restarts] if restarts in environment else [])]
        for name in names:
            if not environment[name].isdecimal():
                raise ValueError(
                    f"{name} is {environment[name]!r} in the environment, but must be a number, "
                    "as torchrun sets it; unset it to start without torchrun"
                )
        found = cls(*(int(environment[name]) for name in names))
        if not (found.rank < found.world_size and found.local_rank < found.local_world_size):
            raise ValueError(
                f"RANK {found.rank} of WORLD_SIZE {found.world_size} and LOCAL_RANK "
                f"{found.local_rank} of LOCAL_WORLD_SIZE {found.local_world_size} in the "
                "environment do not fit; start the processes by torchrun, or unset them"
            )
        return found

    def connect(self) -> bool:
        """Reach the other processes, for errors that any of them meets from now on.

        Returns:
            whether these processes have taken the place of others, which failed or became more
            or fewer: a training is to go on from its last checkpoint.
        """
        global _store
        store, _, _ = next(iter(distributed.rendezvous("env://")))
        start = agree_on_start(store, self.rank, self.world_size)
        _store = distributed.PrefixStore(f"defcn_d2/{start}", store)
        _store.add("restarts", self.restarts)
        _store.add("connected", 1)
        while _store.add("connected", 0) < self.world_size:
            time.sleep(_PAUSE)
        return start > 1 or _store.add("restarts", 0) > 0

    def join(self, on_gpu: bool) -> None:
        """Make one group of all processes, and Detectron2's of those on this machine.

        Args:
            on_gpu: each process uses the GPU of its local rank, and NCCL; else gloo.
        """
        assert _store is not None, "connect first"
        if on_gpu:
            torch.cuda.set_device(self.local_rank)
        distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=_store,
            rank=self.rank,
            world_size=self.world_size,
            timeout=DEFAULT_TIMEOUT,
        )
        create_local_groups(self.local_world_size)
        comm.synchronize()


def agree_on_start(store: "distributed.Store", rank: int, world_size: int) -> int:
    """The number of this start of the processes, from 1, the same in all of them.

    torchrun keeps its store when it starts the processes again, with all that those before them
    have left there, and does not say which start it is: its count of restarts is that of one
    machine. So each process asks under a name of its own, which the first one answers.
    """
    name = uuid.uuid4().hex
    if rank:
        store.set(f"defcn_d2/name/{rank}", name)
        start = int(store.get(f"defcn_d2/start/{name}"))  # waits for it
        store.set(f"defcn_d2/{start}/here/{rank}", "")
        return start
    start = store.add("defcn_d2/starts", 1)
    waiting = set(range(1, world_size))
    while waiting:
        for other in sorted(waiting):
            if store.check([f"defcn_d2/{start}/here/{other}"]):
                waiting.discard(other)
            elif store.check([f"defcn_d2/name/{other}"]):  # or that of one before it
                asked = store.get(f"defcn_d2/name/{other}").decode()
                if not store.check([f"defcn_d2/start/{asked}"]):
                    store.set(f"defcn_d2/start/{asked}", str(start))
        time.sleep(_PAUSE)
    return start


def is_first_to_fail() -> bool:
    """Reports if no other process has failed before; asked once, by one that fails.

    What fails in one process makes others fail, with errors that say nothing of the cause; and
    what is wrong for all fails in all of them.
    """
    if _store is None:
        return True
    try:
        return _store.add("failed", 1) == 1
    except RuntimeError:  # nobody is there any more
        return True
