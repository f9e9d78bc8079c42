"""Threads and worker processes that share the cores, where there is no GPU.

OpenMP's threads wait for each other in a busy loop. With more of them than idle cores (data loader
workers, other programs) each step waits for a thread that has no core: measured on two cores with
another program on one of them, a training step took 3 to 7 s instead of 0.7 s.
``OMP_WAIT_POLICY=PASSIVE`` lets them sleep instead, but counts only if it is set before torch is
imported: ``import defcn_d2`` does so, where it comes first.
"""

import logging
import math
import os
from pathlib import Path

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm

logger = logging.getLogger(__name__)

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def available_cores(quota_file: Path = _QUOTA) -> int:
    """Cores that this process may use: its affinity, and the quota of its container."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        pass
    return max(1, cores)


def num_threads(cores: int, workers: int) -> int:
    """Threads for torch beside ``workers`` processes of the data loader.

    All cores where waiting threads sleep, as workers of a detector are mostly idle; else the
    cores that the workers leave.
    """
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE":
        return cores
    return max(1, cores - workers)


def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16, by which training is faster."""
    capabilities: dict = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def use_cpu(cfg: CfgNode) -> CfgNode:
    """The config for a run on the CPU: its device, and no more workers than cores.

    The cores are shared by the processes of this machine, of which there are several under
    torchrun.

    Sets torch's threads, too; ``OMP_NUM_THREADS`` in the environment is respected.
    """
    cores = max(1, available_cores() // comm.get_local_size())
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, cores)
    cfg.freeze()
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(num_threads(cores, cfg.DATALOADER.NUM_WORKERS))
    cv2.setNumThreads(1)  # inherited by workers: no second pool of threads
    logger.info(
        "Running on the CPU; cores: %d, threads: %d, data loader workers: %d",
        cores,
        torch.get_num_threads(),
        cfg.DATALOADER.NUM_WORKERS,
    )
    return cfg
