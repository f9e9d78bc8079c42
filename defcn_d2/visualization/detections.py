"""A grid of images: the ground truth on the left, the detections on the right of each."""

from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..engine.predictor import Predictor, read_rgb
from .boxes import Mark, grid, tile
from .colors import class_color

_FEW = 3  # objects


def draw_beside_truth(predictor: Predictor, dataset: str, count: int = 8) -> np.ndarray:
    """The first images of a data set that have some objects, drawn twice.

    Args:
        predictor: its ``confidence`` is the least score drawn.
        dataset: name of a registered set, with ground truth.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    # images with something to see; the rest only where those are few
    records = sorted(
        DatasetCatalog.get(dataset), key=lambda record: len(record["annotations"]) < _FEW
    )
    classes = MetadataCatalog.get(dataset).thing_classes
    images = [read_rgb(record["file_name"]) for record in records[:count]]
    square = len({image.shape for image in images}) > 1  # of one size no space is left around
    pairs = []
    for record, image in zip(records, images):
        truth = [
            _mark(
                BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS),
                a["category_id"],
                classes[a["category_id"]],
            )
            for a in record["annotations"]
        ]
        found = predictor.detections(image)
        boxes, numbers = found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()
        detections = [
            _mark(box, number, f"{classes[number]} {score:.2f}")
            for box, number, score in zip(boxes, numbers, found.scores.tolist())
        ]
        left = tile(image, truth, "ground truth", square=square)
        caption = f"detections, score ≥ {predictor.confidence:.2f}"
        right = tile(image, detections, caption, square=square)
        pairs.append(np.hstack([left, right]))
    return grid(pairs, 2, gap=24)


def _mark(box: Sequence[float], number: int, text: str) -> Mark:
    return Mark(box, text, class_color(number))
