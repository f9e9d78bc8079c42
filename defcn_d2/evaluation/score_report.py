"""The numbers by which one chooses a score: after every evaluation, as files of the run."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..utils.files import write_atomically
from .judged import Judged, load_judged
from .stored_thresholds import write_thresholds
from .thresholds import ScoreCurve, confusion_matrix, score_curves

logger = logging.getLogger(__name__)

FILE = "score_report.json"
RECALLS = np.linspace(0, 1, 101)


def score_report(
    judged: Sequence[Judged], classes: Sequence[str]
) -> tuple[dict[str, Any], list[ScoreCurve]]:
    """The best thresholds, curves and confusion at the best one, as JSON has them.

    Returns:
        the curves of ``score_curves``, and before them
        ``overall`` and ``classes`` (a list): see ``ScoreCurve.best``, with ``name`` and
        ``precisions`` at the recalls 0, 0.01, ... 1; ``confusion``: see ``confusion_matrix``, at
        the threshold of ``overall``.
    """
    names, curves = ["all classes", *classes], score_curves(judged, len(classes))
    overall, *each = [
        {"name": name, **curve.best(), "precisions": curve.precision_at(RECALLS).tolist()}
        for name, curve in zip(names, curves, strict=True)
    ]
    threshold = overall["threshold"]
    at = np.inf if threshold is None else threshold
    matrix = confusion_matrix(judged, at, len(classes))
    return {"overall": overall, "classes": each, "confusion": matrix.tolist()}, curves


class ScoreReport(DatasetEvaluator):
    """Reads what another evaluator has just written, and gives ``f1`` and ``f1_threshold``.

    ``f1`` is the best in percent over all classes together, at IoU 0.5, and ``f1_threshold`` the
    least score of detections that gives it. Must stand behind the other evaluator.
    """

    def __init__(
        self, dataset: str, results: Path, folder: Path, run: Path | None, page: bool = False
    ):
        """
        Args:
            dataset: its name.
            results: the file that the other evaluator writes, in COCO's results format.
            folder: for ``score_report.json`` and, with ``page``, its page and pictures.
            run: folder of the run, for ``thresholds.json``; None: none is written.
        """
        self._dataset, self._results, self._folder = dataset, results, folder
        self._run, self._page = run, page

    def reset(self) -> None:
        """There is nothing to forget."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """The other evaluator has it."""

    def evaluate(self) -> dict[str, float]:
        """The figures, on the main process; none where the data set has no objects."""
        if not comm.is_main_process() or not self._results.is_file():
            return {}
        judged, classes = load_judged(self._dataset, self._results)
        report, curves = score_report(judged, classes)
        overall = report["overall"]
        if not overall["objects"]:
            return {}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._folder / FILE, json.dumps(report).encode())
        if self._page:
            from ..visualization.score_page import write_score_page  # matplotlib takes its time

            write_score_page(
                self._folder, self._dataset, report, score_curves(judged, len(classes))
            )
        if overall["threshold"] is None:
            logger.info("F1: nothing is found yet")
            return {"f1": 0.0}
        if self._run is not None:
            scores = {one["name"]: one["threshold"] for one in report["classes"]}
            best = {key: overall[key] for key in ("threshold", "f1", "precision", "recall")}
            write_thresholds(self._run, {**best, "dataset": self._dataset, "classes": scores})
        logger.info(
            "Best F1 %.3f, of detections with a score of at least %.3f; by class: %s",
            *(overall["f1"], overall["threshold"], self._folder / FILE),
        )
        return {"f1": 100 * overall["f1"], "f1_threshold": overall["threshold"]}
