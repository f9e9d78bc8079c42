"""The evaluator of a data set, by the ``evaluator_type`` of its metadata."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)

from ..data.readers.own_data import own_data
from ..evaluation.coco_json import OwnDataEvaluator, complete_annotations
from ..evaluation.lvis import let_lvis_run
from ..evaluation.nms_gap import NMSGapEvaluator
from ..utils.errors import UserError, as_user_error

WITHOUT_NMS, WITH_NMS = "without_nms", "with_nms"


def _coco(name: str, folder: str) -> DatasetEvaluator:
    own = own_data(name)
    if own is not None:
        return OwnDataEvaluator(own, folder)
    # The fast implementation needs Detectron2's compiled code; pycocotools is the reference.
    evaluator = COCOEvaluator(name, ("bbox",), output_dir=folder, use_fast_impl=False)
    complete_annotations(evaluator._coco_api)
    return evaluator


def _crowdhuman(name: str, folder: str) -> DatasetEvaluator:
    from ..evaluation.crowdhuman import CrowdHumanEvaluator

    return CrowdHumanEvaluator(name, output_dir=folder)


def _pascal_voc(name: str, folder: str) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(name)


def _lvis(name: str, folder: str) -> DatasetEvaluator:
    with as_user_error(ImportError, f"data set {name!r}: {{}}; pip install lvis"):
        let_lvis_run()
        return LVISEvaluator(name, output_dir=folder)


EVALUATORS: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "coco": _coco,
    "crowdhuman": _crowdhuman,
    "lvis": _lvis,
    "pascal_voc": _pascal_voc,
}


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator of a data set; predictions go to OUTPUT_DIR/inference.

    With several sets in ``DATASETS.TEST`` each has a folder of its name there. With
    ``TEST.WITH_NMS`` the model must be a ``WithAndWithoutNMS``, and the predictions go to the
    sub-folders ``without_nms`` and ``with_nms``.

    Raises:
        UserError: there is no evaluator of this type.
    """
    make = EVALUATORS[evaluator_type(dataset_name)]
    folder = os.path.join(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name)
    if not cfg.TEST.WITH_NMS:
        return make(dataset_name, folder)
    return NMSGapEvaluator(
        make(dataset_name, os.path.join(folder, WITHOUT_NMS)),
        make(dataset_name, os.path.join(folder, WITH_NMS)),
    )


def evaluator_type(dataset_name: str) -> str:
    """The key in ``EVALUATORS`` for a data set; ``UserError`` if it has none."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"data set {dataset_name!r} in DATASETS.TEST has evaluator_type {kind!r}, for which "
            f"there is no evaluator; set one of {', '.join(EVALUATORS)} in its metadata"
        )
    return kind
