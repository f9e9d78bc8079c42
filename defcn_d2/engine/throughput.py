"""Speed of a training, and the share of time that it waits for its data."""

import logging
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils.events import CommonMetricPrinter, get_event_storage

from .cpu import available_cores

logger = logging.getLogger(__name__)

# Steps that a judgement on the data loader is made of; the first ones of a run, in which the
# workers start, are left out.
_WINDOW = 50
_SKIPPED = 20
# Share of their time above which the loader is the bottleneck, and steps between two warnings.
_LIMIT = 0.3
_PAUSE = 2000


class Throughput(HookBase):
    """Puts ``images_per_second`` and ``data_share`` into the metrics, and warns of a slow loader.

    The share is that of a step's time in which a process waits for its images; the slowest
    process counts. Evaluations are left out. For the main process, and before the hooks that
    evaluate or write, whose time would count as a step's otherwise.
    """

    def __init__(self, images: int, num_workers: int):
        """
        Args:
            images: of a step, of all processes.
            num_workers: ``DATALOADER.NUM_WORKERS``, for the warning.
        """
        self.images = images
        self.num_workers = num_workers
        self._steps: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._start = 0.0
        self._warned: int | None = None

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        seconds = time.perf_counter() - self._start
        storage = self.trainer.storage
        waited = storage.latest().get("data_time", (0.0, 0))[0]
        storage.put_scalar("images_per_second", self.images / seconds)
        storage.put_scalar("data_share", waited / seconds)
        if self.trainer.iter - self.trainer.start_iter >= _SKIPPED:
            self._steps.append((seconds, waited))
            self._warn_of_slow_loader()

    def _warn_of_slow_loader(self) -> None:
        steps, waits = map(sum, zip(*self._steps))
        if len(self._steps) < _WINDOW or waits <= _LIMIT * steps:
            return
        if self._warned is not None and self.trainer.iter - self._warned < _PAUSE:
            return
        self._warned = self.trainer.iter
        cores = available_cores()
        if self.num_workers < cores:
            remedy = f"raise DATALOADER.NUM_WORKERS, now {self.num_workers} a process"
        else:
            remedy = (
                f"DATALOADER.NUM_WORKERS is {self.num_workers} a process on {cores} cores "
                "already: make the images smaller, or read them from a faster disk"
            )
        logger.warning(
            "Training waits for its data in %.0f %% of the time of the last %d steps: %s",
            100 * waits / steps,
            _WINDOW,
            remedy,
        )


class MetricPrinter(CommonMetricPrinter):
    """Detectron2's line in the log, with the throughput at its end."""

    def __init__(self, max_iter: int | None = None):
        super().__init__(max_iter)
        line: logging.Logger = self.logger
        self.logger: Any = _WithThroughput(line, {})


class _WithThroughput(logging.LoggerAdapter):
    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        histories = get_event_storage().histories()
        if "images_per_second" in histories:
            speed = histories["images_per_second"].median(20)
            share = histories["data_share"].median(20)
            msg = f"{msg}  images/s: {speed:.4g}  data: {share:.0%}"
        return msg, kwargs
