"""Images of a fuzzed batch, and what may be wrong with the batch's form, by name."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from detectron2.structures import Boxes
from torch import Generator, Tensor


def _noise(size: tuple[int, int], generator: Generator) -> Tensor:
    return torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8)


# From (height, width) and a generator.
IMAGES: dict[str, Callable[[tuple[int, int], Generator], Tensor]] = {
    "noise": _noise,
    "black": lambda size, _: torch.zeros(3, *size, dtype=torch.uint8),
    "large floats": lambda size, generator: torch.randn(3, *size, generator=generator) * 1e4,
}

# Of the ground truth, see ``spoil_ground_truth``.
FAULTS = [
    *("class K", "class -1", "class 2^40", "class missing", "boxes (M, 5)", "boxes of integers"),
    *("boxes no Boxes", "classes of floats", "no gt_boxes", "no gt_classes", "no instances"),
    *("instances a dict", "image size 0"),
]
# Of an image, see ``spoil_image``; "no image" is a batch of none.
IMAGE_FAULTS = [
    *("no image", "image missing", "image without pixels", "image of 4 channels", "image (H, W)"),
    *("image an array", "image of booleans", "pixel NaN", "pixel infinite", "output of size 0"),
]


def spoil_ground_truth(fault: str, x: dict, num_classes: int) -> None:
    """Put one of ``FAULTS`` into an input with ``instances``."""
    gt = x["instances"]
    fields, boxes, classes = gt._fields, gt.gt_boxes.tensor, gt.gt_classes
    if fault.startswith("class "):
        label = {"class K": num_classes, "class -1": -1, "class 2^40": 2**40}.get(fault)
        last = [] if label is None else [label]
        fields["gt_classes"] = torch.tensor(classes.tolist()[:-1] + last, dtype=torch.int64)
        if len(boxes) == 0:
            fields["gt_boxes"] = Boxes(torch.tensor([[0.0, 0, 1, 1]]))
    elif fault == "boxes (M, 5)":
        gt.gt_boxes.tensor = torch.cat([boxes, boxes[:, :1]], dim=1)
    elif fault == "boxes of integers":
        gt.gt_boxes.tensor = boxes.nan_to_num(0, 0, 0).long()
    elif fault == "boxes no Boxes":
        fields["gt_boxes"] = boxes
    elif fault == "classes of floats":
        fields["gt_classes"] = classes.float()
    elif fault in ("no gt_boxes", "no gt_classes"):
        del fields[fault.removeprefix("no ")]
    elif fault == "no instances":
        del x["instances"]
    elif fault == "instances a dict":
        x["instances"] = dict(fields)
    else:
        gt._image_size = (0, gt.image_size[1])


def spoil_image(fault: str, x: dict) -> None:
    """Put one of ``IMAGE_FAULTS`` into an input with ``image``."""
    image = x["image"]
    if fault == "image missing":
        del x["image"]
    elif fault == "output of size 0":
        x["height"] = 0
    elif fault.startswith("pixel"):
        x["image"] = image.float()
        x["image"].view(-1)[-1] = math.nan if fault == "pixel NaN" else -math.inf
    else:
        x["image"] = {
            "image without pixels": image[:, :0],
            "image of 4 channels": torch.cat([image, image[:1]]),
            "image (H, W)": image[0],
            "image an array": image.numpy(),
            "image of booleans": image > 0,
        }[fault]
