"""COCO's evaluation of files that pycocotools does not take, or takes wrongly, as they stand."""

import contextlib
import io
from unittest import mock

from detectron2.evaluation import coco_evaluation
from pycocotools.coco import COCO

from ..data.readers.own_data import OwnData
from .coco_limit import PYCOCOTOOLS, LimitedCOCOEvaluator


class OwnDataEvaluator(LimitedCOCOEvaluator):
    """``COCOEvaluator`` whose ground truth is what the check of the file has left.

    pycocotools reads every annotation as it stands, which fails without ``area`` or ``iscrowd``,
    counts boxes without area as never found, and takes what matches number 0 for a mistake.
    """

    def __init__(
        self, data: OwnData, output_dir: str, limit: int = 100, backend: str = PYCOCOTOOLS
    ):
        """
        Args:
            data: registered with Detectron2.
            output_dir: folder for the predictions.
            limit: ``TEST.DETECTIONS_PER_IMAGE``.
            backend: ``TEST.COCO_BACKEND``.

        Raises:
            DatasetError: the file is of no use.
            ImportError: the package of the back end is not installed.
        """
        checked = data.read()
        api = COCO()
        api.dataset = checked.ground_truth()
        with contextlib.redirect_stdout(io.StringIO()):
            api.createIndex()
        with mock.patch.object(coco_evaluation, "COCO", lambda file: api):  # of any format
            super().__init__(data.name, output_dir, limit, backend)
