"""Detections drawn on one image."""

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances

from ..visualization.boxes import Mark, draw_marks
from ..visualization.colors import class_color


def draw_detections(
    image: np.ndarray, found: Instances, names: Sequence[str], scale: float = 1.0
) -> np.ndarray:
    """Boxes with class and score, the best above the others; a class has its colour everywhere.

    Args:
        image: (H, W, 3) uint8 RGB.
        found: detections on the CPU.
        names: of the classes; where they are too few, numbers stand in.
        scale: the picture is enlarged by this factor first.

    Returns:
        (scale * H, scale * W, 3) uint8 BGR.
    """
    marks = []
    for i in reversed(range(len(found))):
        number = int(found.pred_classes[i])
        name = names[number] if number < len(names) else str(number)
        box = found.pred_boxes.tensor[i].tolist()
        marks.append(Mark(box, f"{name} {float(found.scores[i]):.2f}", class_color(number)))
    letters = max(12, round(min(image.shape[:2]) * scale / 45))
    return np.ascontiguousarray(draw_marks(image, marks, scale, letters)[:, :, ::-1])
