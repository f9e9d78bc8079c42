"""A loss that is not finite: its message, and the dump by which it can be looked into."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.mixing import MIXED_WITH
from ..utils.box_fields import box_fields
from ..utils.files import replacing

#: Version of the content of a dump.
FORMAT = 1
# Seconds for the process that has the cause to report it before those that only hear of it.
_HEAD_START = 2.0


class NonFiniteLoss(FloatingPointError):
    """A loss of a step is infinite or NaN.

    Attributes:
        losses: of this process, by name.
        batches: its micro batches of the step, in Detectron2's standard format.
        dump: the file that holds them, once written.
    """

    def __init__(self, losses: dict[str, float], batches: list[list[dict]]):
        super().__init__(losses)
        self.losses = losses
        self.batches = batches
        self.iteration = -1
        self.dump = ""

    def __str__(self) -> str:
        bad = ", ".join(f"{k} {x}" for k, x in self.losses.items() if not math.isfinite(x))
        if not bad:
            return (
                f"the loss of another process became infinite or NaN at iteration "
                f"{self.iteration}: see its log."
            )
        images = [x for batch in self.batches for x in batch]
        files = [f for x in images for f in (x.get("file_name", "?"), *x.get(MIXED_WITH, ()))]
        return (
            f"the loss became infinite or NaN at iteration {self.iteration} ({bad}), with the "
            f"images {', '.join(map(repr, files))}; `python -m defcn_d2.engine.replay {self.dump}` "
            "runs this step again."
        )

    @classmethod
    @contextlib.contextmanager
    def raise_unless_finite(
        cls, losses: dict[str, Tensor], batches: list[list[dict]]
    ) -> Iterator[dict[str, Tensor]]:
        """Within the block, which reads the losses from the device, they are found to be finite.

        Raises:
            NonFiniteLoss: they are not; or those of another process are not, where the block says
                so by a FloatingPointError.
        """
        problem: FloatingPointError | None = None
        try:
            yield losses
        except FloatingPointError as error:  # of the mean over processes
            problem = error
        if problem is None and _are_finite(losses):
            return
        values = {name: float(x) for name, x in losses.items()}
        if all(map(math.isfinite, values.values())) and comm.get_world_size() > 1:
            time.sleep(_HEAD_START)
        raise cls(values, batches) from problem


def write_dump(
    error: NonFiniteLoss, cfg: CfgNode, model: nn.Module, iteration: int, seed: int
) -> None:
    """Keep the step of an error in OUTPUT_DIR, for ``engine.replay``; the error will name it.

    Plain containers and tensors alone: ``torch.load`` reads it without running code.

    Args:
        model: with the weights that the step began with; BatchNorm's statistics are those after.
    """
    error.iteration = iteration
    if all(map(math.isfinite, error.losses.values())):
        return
    rank = comm.get_rank()
    error.dump = os.path.join(cfg.OUTPUT_DIR, f"nonfinite_{iteration:07d}_rank{rank}.pth")
    content = {
        "format": FORMAT,
        "iteration": iteration,
        "rank": rank,
        "seed": seed,
        "losses": error.losses,
        "config": cfg.dump(),
        "model": model.state_dict(),
        "batches": [[_plain(x) for x in batch] for batch in error.batches],
    }
    try:
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
        with replacing(error.dump) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as problem:
        error.dump = f"(no dump: {problem})"


def _are_finite(losses: dict[str, Tensor]) -> bool:
    return bool(torch.stack([loss.detach().sum() for loss in losses.values()]).isfinite().all())


def _plain(image: dict[str, Any]) -> dict[str, Any]:
    """An input of the model as tensors, numbers and strings."""
    plain = (Tensor, int, float, str)
    kept: dict[str, Any] = {key: x for key, x in image.items() if isinstance(x, plain)}
    instances = image.get("instances")
    if instances is not None:
        kept["instances"] = {
            "image_size": tuple(instances.image_size),
            "gt_classes": instances.gt_classes,
            **{name: boxes.tensor for name, boxes in box_fields(instances).items()},
        }
    return kept
