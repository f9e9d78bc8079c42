"""Description of an exported model: names of the classes, how to feed it, where it is from."""

import json

from detectron2.config import CfgNode

import defcn_d2

from ..data import DatasetError
from ..data.category_ids import category_ids
from ..engine.predictor import metadata_of
from ..utils.errors import as_user_error
from .detector import DeployedDetector


def describe(
    cfg: CfgNode,
    detector: DeployedDetector,
    size: tuple[int, int] | None = None,
    int8: bool = False,
) -> dict[str, str]:
    """Properties of the file; all but ``version`` and ``config`` are JSON values.

    ``class_names`` (numbers where the names are not known), ``category_ids`` (those of the data
    set, by class; numbers from 0 where the config names none), ``strides``, ``input_format``
    (order of the channels), ``pixel_mean`` (the value for padding), ``size_divisibility``,
    ``min_size`` and ``max_size`` (sides that images are resized to for tests), ``resize``
    ([height, width] inside the graph, or null), ``topk``, ``precision``, ``nms_threshold`` (IoU of
    the class-wise NMS that remains to be done, or null), ``kind`` ("detections" or "raw"), ``size``
    ([height, width] of the only input there is, or null).

    Args:
        size: of the image of a ``RawDetector``.
        int8: the file's convolutions are in INT8.

    Raises:
        UserError: the category ids stand in files that are not on this machine.
    """
    node = cfg.MODEL.DEFCN
    values = {
        "class_names": class_names(cfg),
        "category_ids": _category_ids(cfg),
        "strides": detector.strides,
        "input_format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "size_divisibility": detector.divisibility,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "resize": detector.resize,
        "topk": detector.topk,
        "precision": "int8" if int8 else str(detector.dtype).removeprefix("torch."),
        "nms_threshold": node.NMS_THRESH_TEST if node.NMS_TYPE == "class_wise" else None,
        "kind": "raw" if size else "detections",
        "size": size,
    }
    properties = {name: json.dumps(value) for name, value in values.items()}
    return {"version": defcn_d2.__version__, "config": cfg.dump(), **properties}


def class_names(cfg: CfgNode) -> list[str]:
    """One for each class: of the config's data set where that knows as many, else numbers."""
    names = metadata_of(cfg).get("thing_classes") or []
    number = cfg.MODEL.DEFCN.NUM_CLASSES
    return list(names) if len(names) == number else [str(index) for index in range(number)]


def _category_ids(cfg: CfgNode) -> list[int]:
    with as_user_error(DatasetError, "{}"):
        ids = category_ids(metadata_of(cfg))
    number = cfg.MODEL.DEFCN.NUM_CLASSES
    return [ids[index] for index in range(number)] if len(ids) == number else list(range(number))
