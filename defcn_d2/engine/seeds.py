"""Random numbers that depend on the seed of a run and on what they are for, and on nothing before.

A run that goes on from a checkpoint thus draws what it would have drawn without a break, whatever
the number of its workers, and no state of a generator need be saved.
"""

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm


def seed_of_run(cfg: CfgNode) -> int:
    """``SEED``, or a random number, the same in all processes, where that is negative."""
    return cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()


def use_deterministic_operators() -> None:
    """Give the same bits in every run on the same kind of machine, with as many threads.

    An operator that cannot ends the run with PyTorch's error, which names it.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.backends.cudnn.benchmark = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)


def seed_generators(*numbers: int, devices: bool = True) -> None:
    """Seed Python's, NumPy's and PyTorch's generators by ``numbers``, all at least 0.

    Args:
        devices: those of GPUs, too.
    """
    words = np.random.SeedSequence(numbers).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = torch.manual_seed if devices else torch.default_generator.manual_seed
    seed(int(words[2]) << 32 | int(words[3]))


@contextlib.contextmanager
def seeded_generators(*numbers: int) -> Iterator[None]:
    """Within the block the generators of the CPU are seeded by ``numbers``; then as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(*numbers, devices=False)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class StepSeeds(HookBase):
    """Seeds the generators before each step by the run, the process and the iteration."""

    def before_step(self) -> None:
        seed_generators(self.trainer.seed, comm.get_rank(), self.trainer.iter)
