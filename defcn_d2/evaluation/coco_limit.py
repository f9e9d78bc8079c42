"""COCO's evaluation of more than 100 detections an image, and by a faster package."""

import contextlib
import importlib
import io
import logging
from typing import Any
from unittest import mock

import numpy as np
from detectron2.evaluation import COCOEvaluator, coco_evaluation
from pycocotools.cocoeval import COCOeval

_USUAL_LIMIT = 100  # of pycocotools and of Detectron2 v0.5, which take no other

# Areas and IoU thresholds of COCO's six precisions.
_PRECISIONS: list[tuple[str, float | None]] = [("all", None), ("all", 0.5), ("all", 0.75)]
_PRECISIONS += [(area, None) for area in ("small", "medium", "large")]


logger = logging.getLogger(__name__)

PYCOCOTOOLS, FASTER = "pycocotools", "faster-coco-eval"  # values of TEST.COCO_BACKEND


def eval_class(backend: str, limit: int) -> type:
    """``COCOeval`` of boxes, or its like, whose figures are of the ``limit`` best an image.

    Args:
        backend: ``TEST.COCO_BACKEND``.
        limit: up to 100, COCO's own, it is 100.

    Raises:
        ImportError: the package is not installed.
    """
    base = COCOeval
    if backend == FASTER:
        base = importlib.import_module("faster_coco_eval").COCOeval_faster
    elif limit <= _USUAL_LIMIT:
        return base
    return type("LimitedEval", (_Limited, base), {"limit": max(limit, _USUAL_LIMIT)})


class _Limited:
    """The limit and the figures that ``eval_class`` adds to a class of such an interface."""

    limit: int
    params: Any
    eval: dict[str, np.ndarray]

    def evaluate(self) -> None:
        self.params.maxDets = [1, 10, self.limit]  # here, as Detectron2 sets them before
        super().evaluate()  # type: ignore[misc]

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

    def __init__(
        self, name: str, output_dir: str, limit: int = _USUAL_LIMIT, backend: str = PYCOCOTOOLS
    ):
        """
        Args:
            name: a registered data set.
            output_dir: folder for the predictions.
            limit: ``TEST.DETECTIONS_PER_IMAGE``; up to 100 the figures are COCO's own.
            backend: ``TEST.COCO_BACKEND``.

        Raises:
            ImportError: the package of the back end is not installed.
        """
        # Detectron2's fast implementation needs its compiled code; pycocotools is the reference.
        super().__init__(name, ("bbox",), output_dir=output_dir, use_fast_impl=False)
        self._eval_class = eval_class(backend, limit)
        self._pycocotools = eval_class(PYCOCOTOOLS, limit)

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
        kind, ids = self._eval_class, [*self._coco_api.imgs, *self._coco_api.cats]
        if kind is not self._pycocotools and not all(type(number) is int for number in ids):
            logger.warning("evaluating by pycocotools: faster-coco-eval takes whole numbers as ids")
            kind = self._pycocotools
        # of both versions of Detectron2 only the newer takes a limit, and none a class
        with mock.patch.object(coco_evaluation, "COCOeval", kind):
            super()._eval_predictions(*args, **kwargs)
