"""The best checkpoint of a run, by a metric of its evaluations."""

import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict

from ..evaluation.stored_thresholds import keep_thresholds
from ..utils.errors import UserError, did_you_mean
from ..utils.files import replacing
from ..weights.checkpointer import Checkpointer

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """Keeps model_best.pth, and beside it best_checkpoint, a JSON file that says why it is.

    What an earlier part of the run has found counts.
    """

    def __init__(self, checkpointer: Checkpointer, metric: str):
        """
        Args:
            metric: a key of the metrics, such as "bbox/AP"; with a minus before it the lowest is
                the best.
        """
        self.checkpointer = checkpointer
        self.metric = metric.removeprefix("-")
        self.sign = -1 if metric.startswith("-") else 1
        self.note = os.path.join(checkpointer.save_dir, "best_checkpoint")
        self.best: float | None = None
        #: Of the best evaluation; in processes other than the main one, that of an earlier part.
        self.iteration: int | None = None

    def go_on(self) -> None:
        """Take up what the earlier part of a resumed run has found."""
        if not os.path.isfile(self.note):
            return
        try:
            with open(self.note, encoding="utf-8") as file:
                content = json.load(file)
            if content["metric"] == self.metric:
                self.best, self.iteration = float(content["value"]), int(content["iteration"])
        except (ValueError, KeyError, TypeError):
            logger.warning("%s is damaged: the next evaluation is the best so far", self.note)

    def consider(self, results: Mapping[str, Any], iteration: int) -> None:
        """Save the model if no evaluation was better; an evaluation without detections is passed.

        Args:
            results: of an evaluation; empty in all processes but the main one.
            iteration: that the model has finished.

        Raises:
            UserError: the evaluation has no such metric.
        """
        metrics = flatten_results_dict(results)
        if not metrics:
            return
        if self.metric not in metrics:
            group = self.metric.rpartition("/")[0]
            values = [value for name, value in metrics.items() if name.startswith(group)]
            if values and all(map(math.isnan, values)):
                # without a detection there is no figure of a class
                logger.info("%s has no number yet: nothing is detected", self.metric)
                return
            near = did_you_mean(self.metric, metrics)
            raise UserError(f"SOLVER.CHECKPOINT_BEST: there is no metric {self.metric!r}; {near}")
        value = float(metrics[self.metric])
        if math.isnan(value) or self.best is not None and self.sign * (value - self.best) <= 0:
            return
        self.best, self.iteration = value, iteration
        self.checkpointer.save("model_best", tag=False, iteration=iteration)
        found = {"metric": self.metric, "value": value, "iteration": iteration}
        with replacing(self.note) as file:
            file.write(json.dumps(found).encode())
        keep_thresholds(self.checkpointer.save_dir, "model_best")
        logger.info("The best so far, model_best.pth: %s %.4g", self.metric, value)
