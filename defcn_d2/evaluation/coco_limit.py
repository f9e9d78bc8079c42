"""COCO's evaluation of more than 100 detections an image."""

import contextlib
import functools
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.cocoeval import COCOeval

_USUAL_LIMIT = 100  # of pycocotools and of Detectron2 v0.5, which take no other

# Areas and IoU thresholds of COCO's six precisions.
_PRECISIONS: list[tuple[str, float | None]] = [("all", None), ("all", 0.5), ("all", 0.75)]
_PRECISIONS += [(area, None) for area in ("small", "medium", "large")]


class _LimitedEval(COCOeval):
    """``COCOeval`` of boxes, whose figures are of the ``limit`` best detections an image."""

    def __init__(self, *args: Any, limit: int):
        super().__init__(*args)
        self._limit = limit

    def evaluate(self) -> None:
        self.params.maxDets = [1, 10, self._limit]  # here, as Detectron2 sets them before
        super().evaluate()

    def summarize(self) -> None:
        """COCO's twelve figures, with their lines; its own looks for the limit 100 by its value."""
        figures = [
            *(self._figure("precision", area, 2, iou) for area, iou in _PRECISIONS),
            *(self._figure("recall", "all", place) for place in range(3)),
            *(self._figure("recall", area, 2) for area, _ in _PRECISIONS[3:]),
        ]
        self.stats = np.array(figures)

    def _figure(self, kind: str, area: str, place: int, iou: float | None = None) -> float:
        """One figure: (T, R, K, A, M) precisions or (T, K, A, M) recalls; -1 where there is none.

        Args:
            place: of the limit in ``maxDets``.
            iou: the threshold; None: the mean over all.
        """
        params = self.params
        values = self.eval[kind][..., params.areaRngLbl.index(area), place]
        ious = f"{params.iouThrs[0]:.2f}:{params.iouThrs[-1]:.2f}"
        if iou is not None:
            values, ious = values[np.isclose(params.iouThrs, iou)], f"{iou:.2f}"
        values = values[values > -1]
        mean = float(values.mean()) if values.size else -1.0
        title = {"precision": "Average Precision  (AP)", "recall": "Average Recall     (AR)"}[kind]
        limit = params.maxDets[place]
        print(f" {title} @[ IoU={ious:<9} | area={area:>6} | maxDets={limit:>3} ] = {mean:.3f}")
        return mean


class LimitedCOCOEvaluator(COCOEvaluator):
    """``COCOEvaluator`` of boxes, with the limit on detections an image that the model has."""

    def __init__(self, name: str, output_dir: str, limit: int = _USUAL_LIMIT):
        """
        Args:
            name: a registered data set.
            output_dir: folder for the predictions.
            limit: ``TEST.DETECTIONS_PER_IMAGE``; up to 100 the figures are COCO's own.
        """
        # Detectron2's fast implementation needs its compiled code; pycocotools is the reference.
        super().__init__(name, ("bbox",), output_dir=output_dir, use_fast_impl=False)
        self._limit = limit

    def complete_annotations(self) -> None:
        """Add what pycocotools asks for only after a training: ``iscrowd`` and ``area``.

        An object with the id 0, which it takes for no match, gets another one, as all do.
        """
        api = self._coco_api
        for annotation in api.anns.values():
            annotation.setdefault("iscrowd", 0)
            if "bbox" in annotation:
                annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        if 0 in api.anns:
            for number, annotation in enumerate(api.dataset["annotations"], start=1):
                annotation["id"] = number
            with contextlib.redirect_stdout(io.StringIO()):
                api.createIndex()

    def _eval_predictions(self, *args: Any, **kwargs: Any) -> None:
        with self._limited() if self._limit > _USUAL_LIMIT else contextlib.nullcontext():
            super()._eval_predictions(*args, **kwargs)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        # of both versions of Detectron2 only the newer takes a limit
        limited = functools.partial(_LimitedEval, limit=self._limit)
        with mock.patch.object(coco_evaluation, "COCOeval", limited):
            yield
