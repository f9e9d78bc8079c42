"""Hooks beside Detectron2's own: training time, and the progress that criteria depend on."""

import logging
import time
from typing import Any

from detectron2.engine import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)


class TrainingTime(HookBase):
    """Puts ``train_seconds`` into the metrics: time spent on steps, evaluations left out.

    It is part of the checkpoints: a resumed run goes on counting from its checkpoint. Must stand
    before the hooks that evaluate or write, whose time would count as the next step's otherwise.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self.seconds += time.perf_counter() - self._start
        self.trainer.storage.put_scalar("train_seconds", self.seconds, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]


class Progress(HookBase):
    """Sets the progress of the criteria before each step, from the iteration.

    It is no state of theirs, so that checkpoints keep their shape and a resumed run has it right.
    For trainers of other projects as well: ``trainer.register_hooks([Progress()])``.
    """

    def before_step(self) -> None:
        set_progress(self.trainer.model, self.trainer.iter / self.trainer.max_iter)


class EmptyBoxes(HookBase):
    """Says once that no box of the foreground has had a size for so many steps.

    Distances at which ReLU is 0 have no gradient: such boxes never grow.
    """

    def __init__(self, steps: int = 50):
        self.steps = steps
        self._seen = 0

    def after_step(self) -> None:
        latest = self.trainer.storage.latest()
        foreground, empty = (
            latest.get(name, (0.0, 0))[0] for name in ("num_foreground", "num_empty_boxes")
        )
        self._seen = self._seen + 1 if foreground > 0 and empty == foreground else 0
        if self._seen == self.steps:
            logger.warning(
                "no box of the foreground has had a size for %d steps, so boxes do not learn; set "
                "MODEL.DEFCN.BOX_BIAS 4.0 (it counts at the start of a training), or lower "
                "SOLVER.BASE_LR",
                self.steps,
            )


def set_progress(model: nn.Module, progress: float) -> None:
    """Give the criteria of a model, if it has any, the share of the training done, in [0, 1]."""
    detector = model.module if isinstance(model, DistributedDataParallel) else model
    for criterion in getattr(detector, "criteria", ()):
        criterion.set_progress(progress)
