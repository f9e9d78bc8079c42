"""One image of a data set with its ground truth, and what a model says of all locations in it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances

from ..data.extra_boxes import extra_box_names
from ..engine.datasets import check_names, load_records
from ..engine.predictor import Predictor, read_rgb, require_defcn
from ..structures import Predictions, Priors
from ..utils.box_fields import annotation_key, field_name
from ..utils.errors import UserError
from ..utils.printable import printable

Record = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """An image as the model sees it, at its size for tests; boxes are in pixels of that size.

    Attributes:
        name: of the file.
        image: (H, W, 3) uint8 RGB.
        gt: ``gt_boxes``, ``gt_classes`` and the extra boxes of the config, where the data have
            them, of M >= 1 objects, crowd regions left out.
        classes: names by number.
        strides: of the levels in pixels, finest first.
        priors, predictions: of this image alone.
    """

    name: str
    image: np.ndarray
    gt: Instances
    classes: list[str]
    strides: list[int]
    priors: Priors
    predictions: Predictions

    @property
    def level_names(self) -> list[str]:
        """Such as "P3, stride 8 px"."""
        exponents = [stride.bit_length() - 1 for stride in self.strides]
        return [f"P{e}, stride {s} px" for e, s in zip(exponents, self.strides)]

    def level_shape(self, level: int) -> tuple[int, int]:
        """Rows and columns of a level's grid, padding of the input included."""
        centers = self.priors.centers.split(self.priors.level_sizes)[level]
        columns, rows = ((centers / self.strides[level]).long().amax(dim=0) + 1).tolist()
        return rows, columns


def load_example(cfg: CfgNode, dataset: str, image: str) -> Example:
    """Load the model of a config, and run it on an image.

    Args:
        cfg: with MODEL.WEIGHTS.
        dataset: its name; "" for the config's first of DATASETS.TEST.
        image: its place in the data set, from 0, or (an end of) its file name.

    Raises:
        UserError: there is no such data set or image, or it has no objects; or no DeFCN.
    """
    if not dataset and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: give --dataset NAME")
    dataset = dataset or cfg.DATASETS.TEST[0]
    check_names([dataset], "--dataset")
    record = find_record(load_records(cfg, [dataset], filter_empty=False), image)
    predictor = Predictor(cfg, confidence=None)
    model = require_defcn(predictor.model, "has locations to draw")
    pixels = read_rgb(record["file_name"], cfg.INPUT.MAX_PIXELS)
    with torch.no_grad():
        images = model.preprocess_image([predictor.inputs(pixels)])
        priors, predictions = model.predict(images.tensor)
    transform = predictor.resize.get_transform(pixels)
    pixels = transform.apply_image(pixels)
    return Example(
        name=printable(os.path.basename(record["file_name"])),
        image=pixels,
        gt=_ground_truth(record, transform, pixels.shape[:2], extra_box_names(cfg)),
        classes=class_names(dataset, cfg.MODEL.DEFCN.NUM_CLASSES),
        strides=[int(stride) for stride in priors.level_strides],
        priors=replace(priors, boxes=priors.boxes.cpu(), strides=priors.strides.cpu()),
        predictions=_on_cpu(predictions[0]),
    )


def class_names(dataset: str, number: int) -> list[str]:
    """Names of a data set's classes, or numbers where they have none."""
    names = MetadataCatalog.get(dataset).get("thing_classes") or range(number)
    return [printable(name) for name in names]


def find_record(records: Sequence[Record], image: str) -> Record:
    """The record of an image by its place or by (an end of) its file name; see ``load_example``."""
    names = [record["file_name"] for record in records]
    for record, name in zip(records, names):
        if name == image or name.endswith(f"/{image}"):
            return record
    if image.isascii() and image.isdigit():
        if int(image) >= len(records):
            raise UserError(f"--image {image}: the data set has {len(records)} images, from 0")
        return records[int(image)]
    example = os.path.basename(names[0])
    raise UserError(
        f"--image {image!r} is not in the data set; give a number below {len(records)}, or a file "
        f"name such as {example!r}"
    )


def _ground_truth(
    record: Record, transform: Any, size: tuple[int, int], extra_boxes: Sequence[str]
) -> Instances:
    annotations = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    if not annotations:
        raise UserError(
            f"{record['file_name']!r} has no objects, so there is nothing to assign: "
            "give another --image"
        )
    gt = Instances(size, gt_classes=torch.tensor([a["category_id"] for a in annotations]))
    keys = {"gt_boxes": "bbox", **{field_name(x): annotation_key(x) for x in extra_boxes}}
    for field, key in keys.items():
        if all(key in a for a in annotations):
            boxes = [BoxMode.convert(a[key], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
            boxes = transform.apply_box(np.array(boxes, np.float64))
            gt.set(field, Boxes(torch.from_numpy(boxes).float()))
    return gt


def _on_cpu(predictions: Predictions) -> Predictions:
    quality = predictions.quality_logits
    return replace(
        predictions,
        cls_logits=predictions.cls_logits.float().cpu(),
        boxes=predictions.boxes.float().cpu(),
        quality_logits=None if quality is None else quality.float().cpu(),
        extra={name: values.cpu() for name, values in predictions.extra.items()},
    )
