"""Detections drawn during a training, beside the ground truth, for TensorBoard and its kin."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.engine import HookBase
from detectron2.evaluation import inference_context
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from torch import nn

from .datasets import load_records

_IMAGES = 4
_SIDE = 480  # pixels that a picture's longer side has at least


class DetectionPictures(HookBase):
    """Puts pictures of a few validation images, always the same, into the storage of events.

    They come every so many steps and at the end, from the weights that are evaluated. Dashed is
    the ground truth. Of the detections the best are drawn: as many as there are objects, and at
    least one; so one that is not where an object is takes the place of an object that is not found.
    """

    def __init__(self, cfg: CfgNode, mapper: Any):
        """
        Args:
            cfg: whose ``VIS_PERIOD`` and first of ``DATASETS.TEST`` count.
            mapper: from a record to an input of the model, as for evaluations.
        """
        self.cfg = cfg
        self.mapper = mapper

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.cfg.VIS_PERIOD and done != self.trainer.max_iter:
            return
        with self.trainer.evaluated_weights():  # of all processes
            if comm.is_main_process():
                self._put_pictures(getattr(self.trainer.model, "module", self.trainer.model))

    @functools.cached_property
    def records(self) -> list[dict[str, Any]]:
        """Spread over the whole set."""
        found = load_records(self.cfg, self.cfg.DATASETS.TEST[:1], filter_empty=False)
        return found[:: max(1, len(found) // _IMAGES)][:_IMAGES]

    def _put_pictures(self, model: nn.Module) -> None:
        from ..visualization.example import class_names  # with matplotlib

        names = class_names(self.cfg.DATASETS.TEST[0], self.cfg.MODEL.DEFCN.NUM_CLASSES)
        for record in self.records:
            image = self.mapper(record)
            height, width = image["image"].shape[-2:]
            with inference_context(model), torch.no_grad():
                (output,) = model([{**image, "height": height, "width": width}])
            pixels = convert_image_to_rgb(image["image"].permute(1, 2, 0), self.cfg.INPUT.FORMAT)
            picture = draw(pixels.astype(np.uint8), output["instances"].to("cpu"), record, names)
            name = f"detections/{Path(record['file_name']).name}"
            self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))


def draw(
    pixels: np.ndarray, found: Instances, record: dict[str, Any], names: Sequence[str]
) -> np.ndarray:
    """The best detections, and dashed the objects that are no crowds.

    Args:
        pixels: (H, W, 3) uint8 RGB, at any size.
        found: ``pred_boxes`` at that size, ``scores``, ``pred_classes``.
        record: in Detectron2's standard format.
        names: of the classes.

    Returns:
        (scale * H, scale * W, 3) uint8 RGB; small images are enlarged, so that names have room.
    """
    from ..visualization.boxes import Mark, draw_marks
    from ..visualization.colors import class_color

    objects = [x for x in record.get("annotations", ()) if not x.get("iscrowd", 0)]
    height, width = pixels.shape[:2]
    factors = np.array([width / record["width"], height / record["height"]] * 2)
    marks = []
    for x in objects:
        box = BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYXY_ABS) * factors
        marks.append(Mark(box.tolist(), "", class_color(x["category_id"]), dashed=True))
    best = found.scores.argsort(descending=True)[: max(1, len(objects))]
    for box, score, label in zip(
        found.pred_boxes.tensor[best].tolist(),
        found.scores[best].tolist(),
        found.pred_classes[best].tolist(),
    ):
        marks.append(Mark(box, f"{names[label]} {score:.2f}", class_color(label)))
    return draw_marks(pixels, marks, scale=max(1.0, _SIDE / max(height, width)))
