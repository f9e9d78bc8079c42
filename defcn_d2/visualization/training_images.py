"""Images as a training takes them: augmented, mixed, with their objects."""

from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb

from ..config.training_rules import check_training_config
from ..data.mixing import MIXED_WITH
from ..engine.trainer import Trainer
from ..utils.box_fields import box_fields
from ..utils.errors import UserError
from ..utils.printable import printable
from .boxes import Mark, grid, tile
from .colors import class_color
from .example import class_names

_COLUMNS = 4


def draw_training_images(cfg: CfgNode, iteration: int, count: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the images of a training of one process, from an iteration on.

    Args:
        cfg: a negative ``SEED`` counts as 0.
        count: of images, at least 1.

    Raises:
        UserError: the training has no such iteration.
    """
    check_training_config(cfg)
    if not 0 <= iteration < cfg.SOLVER.MAX_ITER:
        raise UserError(
            f"--iteration is {iteration}: give 0 to {cfg.SOLVER.MAX_ITER - 1}, as the training "
            f"ends after SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # to begin with, any number of workers has a batch in advance
    loader = Trainer.build_train_loader(cfg)
    loader.start = iteration * cfg.SOLVER.ACCUMULATE
    names = class_names(cfg.DATASETS.TRAIN[0], cfg.MODEL.DEFCN.NUM_CLASSES)
    images = islice(chain.from_iterable(loader), count)
    return grid([_tile(image, cfg.INPUT.FORMAT, names) for image in images], _COLUMNS)


def _tile(image: dict[str, Any], form: str, names: list[str]) -> np.ndarray:
    pixels = convert_image_to_rgb(image["image"].permute(1, 2, 0), form).astype(np.uint8)
    objects = image["instances"]
    marks = [
        Mark(box, names[label] if main else "", class_color(label), dashed=not main)
        for field, boxes in reversed(box_fields(objects).items())
        for main in [field == "gt_boxes"]
        for box, label in zip(boxes.tensor.tolist(), objects.gt_classes.tolist())
    ]
    others = len(image.get(MIXED_WITH, ()))
    name = printable(Path(image["file_name"]).name) + (f" and {others} more" if others else "")
    return tile(pixels, marks, f"{name}, {len(objects)} objects")
