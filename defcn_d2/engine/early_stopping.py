"""The end of a training that gets no better."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from .best_checkpoint import BestCheckpoint

logger = logging.getLogger(__name__)


class StoppedEarly(BaseException):
    """Leaves Detectron2's loop of steps, which reports an ``Exception`` as a failure."""


class EarlyStopping(HookBase):
    """Ends a training when the last ``patience`` evaluations gave no better metric.

    All it goes by is the iteration of the best evaluation, which the note of ``BestCheckpoint``
    keeps: a resumed run goes on counting. Nothing counts before an evaluation has given a number.
    Must stand behind the hook that evaluates.
    """

    def __init__(self, best: BestCheckpoint, patience: int, period: int):
        """
        Args:
            best: keeps the best checkpoint; the main process alone considers evaluations.
            patience: evaluations, ``TEST.EARLY_STOPPING.PATIENCE``, at least 1.
            period: iterations from one to the next, ``TEST.EVAL_PERIOD``, at least 1.
        """
        self.best = best
        self.patience = patience
        self.period = period
        #: Whether the training has ended by this.
        self.stopped = False

    def is_due(self, iteration: int) -> bool:
        """Reports if the patience is at its end after an iteration; the same in all processes."""
        last = self.best.iteration
        due = last is not None and iteration - last >= self.patience * self.period
        return comm.all_gather(due)[0]  # the main process alone knows the best

    def end(self, iteration: int) -> None:
        """Write the final checkpoint, and say why the training ends."""
        self.stopped = True
        self.best.checkpointer.save("model_final", iteration=iteration)
        logger.info(
            "Stopped early: %s was best at iteration %s, and not better in %d evaluations since; "
            "to go on, raise TEST.EARLY_STOPPING.PATIENCE and --resume",
            *(self.best.metric, self.best.iteration, self.patience),
        )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done < self.trainer.max_iter and self.is_due(done - 1):
            self.end(done - 1)
            raise StoppedEarly
