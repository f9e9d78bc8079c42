"""Private parts of Detectron2 and PyTorch that this package touches, and nothing else does.

Overriding a method, or calling one of a base class, is none of this. Both versions of Detectron2
have all of these, or the function says how it does without.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = [
    "BatchNorm",
    "averaged_in_place",
    "create_local_groups",
    "data_loader_of",
    "gloo_group",
    "images_of_storage",
    "is_operator",
    "keep_graph_buffers",
    "redispatched_below_autograd",
    "training_sampler",
    "write_every",
]


def create_local_groups(local_world_size: int) -> None:
    """Make the groups of the processes of each machine, of which ``comm.get_local_rank`` knows."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(local_world_size)
        return
    for first in range(0, comm.get_world_size(), local_world_size):  # v0.5: only its launcher does
        ranks = list(range(first, first + local_world_size))
        group = distributed.new_group(ranks)
        if comm.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


def gloo_group() -> "distributed.ProcessGroup":
    """The group of all processes that communicates on the CPU."""
    return comm._get_global_gloo_group()


def training_sampler(cfg: CfgNode, records: Any, mapper: Callable, seed: int) -> Iterable[int]:
    """The sampler ``DATALOADER.SAMPLER_TRAIN``, with a seed, which v0.5 does not let one choose."""
    sampler = build._train_loader_from_config(cfg, mapper, dataset=records)["sampler"]
    sampler._seed = seed
    return sampler


def data_loader_of(trainer: Any) -> Iterable:
    """The data loader of a ``DefaultTrainer``."""
    return trainer._trainer.data_loader


def write_every(hook: PeriodicWriter, period: int) -> None:
    """Have metrics written every ``period`` steps, where that is more often than by default."""
    hook._period = min(hook._period, period)


def images_of_storage(storage: EventStorage) -> list[tuple[str, Any, int]]:
    """Name, pixels (3, H, W) and iteration of the images that no writer has cleared yet."""
    return storage._vis_data


def averaged_in_place(targets: list[Tensor], others: list[Tensor], weight: float) -> None:
    """Move each target to its other by a share ``weight`` of the way, in one kernel on a GPU."""
    torch._foreach_lerp_(targets, others, weight)


def keep_graph_buffers() -> None:
    """Allow the graphs of torch.compile to be walked through more than once."""
    torch._functorch.config.donated_buffer = False


def is_operator(target: object) -> bool:
    """Reports if the target of a graph's node is an operator of ``torch.ops``."""
    return isinstance(target, torch._ops.OpOverload)


def is_transformed() -> bool:
    """Reports if a transform of ``torch.func``, such as vmap or grad, is running."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def redispatched_below_autograd(operator: Any, keyset: Any, *arguments: Any) -> Any:
    """``operator(*arguments)`` by the kernel that comes after autograd's.

    Args:
        operator: an overload of ``torch.ops``.
        keyset: of the call, from a kernel that was registered ``with_keyset``.
    """
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
