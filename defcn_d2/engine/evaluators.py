"""The evaluator of a data set, by the ``evaluator_type`` of its metadata."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)

from ..data.readers.own_data import own_data
from ..evaluation.coco_json import OwnDataEvaluator
from ..evaluation.coco_limit import FASTER, LimitedCOCOEvaluator
from ..evaluation.crowdhuman_metrics import DUPLICATE_SCORES
from ..evaluation.lvis import add_numpy_float
from ..evaluation.nms_gap import NMSGapEvaluator
from ..evaluation.score_report import ScoreReport
from ..evaluation.validation_loss import LossEvaluator
from ..utils.errors import UserError, as_user_error

WITHOUT_NMS, WITH_NMS = "without_nms", "with_nms"


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    own, keys = own_data(name), (cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.COCO_BACKEND)
    if own is not None:
        return OwnDataEvaluator(own, folder, *keys)
    evaluator = LimitedCOCOEvaluator(name, folder, *keys)
    evaluator.complete_annotations()
    return evaluator


def _crowdhuman(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    from ..evaluation.crowdhuman import CrowdHumanEvaluator

    return CrowdHumanEvaluator(name, output_dir=folder)


def _pascal_voc(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(name)


def _lvis(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    with as_user_error(ImportError, f"data set {name!r}: {{}}; pip install lvis"):
        add_numpy_float()
        return LVISEvaluator(name, output_dir=folder)


# Each takes the config, the name of a data set, and a folder for the predictions.
EVALUATORS: dict[str, Callable[[CfgNode, str, str], DatasetEvaluator]] = {
    "coco": _coco,
    "crowdhuman": _crowdhuman,
    "lvis": _lvis,
    "pascal_voc": _pascal_voc,
}
# Those that leave all detections in a file of COCO's results format, of data whose objects are all
# annotated.
_WITH_REPORT = ("coco", "crowdhuman")
_RESULTS = "coco_instances_results.json"


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
        if kind in _WITH_REPORT and cfg.TEST.SCORE_REPORT != "none":
            names += [f"{prefix}f1", f"{prefix}f1_threshold"]
        if cfg.TEST.LOSS:
            names += [
                f"{prefix}{name}" for name in ("val_loss", "val_loss_cls", "val_loss_box_reg")
            ]
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
    kind = evaluator_type(dataset_name)
    root = Path(cfg.OUTPUT_DIR)
    folder = root / "inference"
    if len(cfg.DATASETS.TEST) > 1:
        folder = folder / dataset_name
    if cfg.TEST.WITH_NMS:
        folders = folder / WITHOUT_NMS, folder / WITH_NMS
        results = folders[cfg.MODEL.DEFCN.NMS_TYPE == "class_wise"]  # as the model is used
        main = NMSGapEvaluator(*(EVALUATORS[kind](cfg, dataset_name, str(x)) for x in folders))
    else:
        results, main = folder, EVALUATORS[kind](cfg, dataset_name, str(folder))
    others: list[DatasetEvaluator] = [LossEvaluator()] if cfg.TEST.LOSS else []
    if kind in _WITH_REPORT and cfg.TEST.SCORE_REPORT != "none":
        run = root if dataset_name == cfg.DATASETS.TEST[0] else None
        page = cfg.TEST.SCORE_REPORT == "page"
        others.append(ScoreReport(dataset_name, results / _RESULTS, folder, run, page))
    return DatasetEvaluators([main, *others]) if others else main


def check_backend(cfg: CfgNode) -> None:
    """Raise ``UserError`` where the package of ``TEST.COCO_BACKEND`` is not installed."""
    if cfg.TEST.COCO_BACKEND == FASTER and not importlib.util.find_spec("faster_coco_eval"):
        raise UserError(
            f"TEST.COCO_BACKEND {FASTER!r} needs a package that is not installed: pip install "
            f"{FASTER}, or set it to 'pycocotools'"
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
