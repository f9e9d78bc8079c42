"""The evaluator of a data set, by the ``evaluator_type`` of its metadata."""

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)

from ..data.readers.own_data import own_data
from ..evaluation.coco_json import OwnDataEvaluator
from ..evaluation.coco_limit import LimitedCOCOEvaluator
from ..evaluation.crowdhuman_metrics import DUPLICATE_SCORES
from ..evaluation.lvis import add_numpy_float
from ..evaluation.nms_gap import NMSGapEvaluator
from ..utils.errors import UserError, as_user_error

WITHOUT_NMS, WITH_NMS = "without_nms", "with_nms"


def _coco(name: str, folder: str, limit: int) -> DatasetEvaluator:
    own = own_data(name)
    if own is not None:
        return OwnDataEvaluator(own, folder, limit)
    evaluator = LimitedCOCOEvaluator(name, folder, limit)
    evaluator.complete_annotations()
    return evaluator


def _crowdhuman(name: str, folder: str, limit: int) -> DatasetEvaluator:
    from ..evaluation.crowdhuman import CrowdHumanEvaluator

    return CrowdHumanEvaluator(name, output_dir=folder)


def _pascal_voc(name: str, folder: str, limit: int) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(name)


def _lvis(name: str, folder: str, limit: int) -> DatasetEvaluator:
    with as_user_error(ImportError, f"data set {name!r}: {{}}; pip install lvis"):
        add_numpy_float()
        return LVISEvaluator(name, output_dir=folder)


# Each takes the name of a data set, a folder for the predictions, and the limit on their number.
EVALUATORS: dict[str, Callable[[str, str, int], DatasetEvaluator]] = {
    "coco": _coco,
    "crowdhuman": _crowdhuman,
    "lvis": _lvis,
    "pascal_voc": _pascal_voc,
}


_COCO = ("AP", "AP50", "AP75", "APs", "APm", "APl")
# The figures of boxes that each gives; COCO's has one of every class as well.
_FIGURES = {
    "coco": _COCO,
    "crowdhuman": ("AP50", "mMR", "recall", "JI", "nms_gap", "nms_ceiling")
    + tuple(f"duplicates_{score}" for score in DUPLICATE_SCORES),
    "lvis": (*_COCO, "APr", "APc", "APf"),
    "pascal_voc": ("AP", "AP50", "AP75"),
}


def metric_names(cfg: CfgNode) -> list[str] | None:
    """Names of the metrics that evaluations give, such as "bbox/AP-cat".

    None where they are not known: an evaluator of another project, or classes that are known only
    when the data set is loaded.
    """
    names = ["nms_gap"] if cfg.TEST.WITH_NMS else []
    for dataset in cfg.DATASETS.TEST:
        kind, classes = evaluator_type(dataset), MetadataCatalog.get(dataset).get("thing_classes")
        if kind not in _FIGURES or kind == "coco" and classes is None:
            return None
        own = [f"AP-{name}" for name in classes] if kind == "coco" and len(classes) > 1 else []
        prefix = f"{dataset}/" if len(cfg.DATASETS.TEST) > 1 else ""
        for task in ("bbox", "bbox_nms") if cfg.TEST.WITH_NMS else ("bbox",):
            names += [f"{prefix}{task}/{figure}" for figure in (*_FIGURES[kind], *own)]
    return names


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """The evaluator of a data set; predictions go to OUTPUT_DIR/inference.

    With several sets in ``DATASETS.TEST`` each has a folder of its name there. With
    ``TEST.WITH_NMS`` the model must be a ``WithAndWithoutNMS``, and the predictions go to the
    sub-folders ``without_nms`` and ``with_nms``.

    Raises:
        UserError: there is no evaluator of this type.
    """
    make = EVALUATORS[evaluator_type(dataset_name)]
    folder, limit = os.path.join(cfg.OUTPUT_DIR, "inference"), cfg.TEST.DETECTIONS_PER_IMAGE
    if len(cfg.DATASETS.TEST) > 1:
        folder = os.path.join(folder, dataset_name)
    if not cfg.TEST.WITH_NMS:
        return make(dataset_name, folder, limit)
    return NMSGapEvaluator(
        make(dataset_name, os.path.join(folder, WITHOUT_NMS), limit),
        make(dataset_name, os.path.join(folder, WITH_NMS), limit),
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
