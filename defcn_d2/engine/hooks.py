"""What a run keeps account of, beside Detectron2's own hooks."""

import time
from typing import Any

from detectron2.engine import HookBase


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
