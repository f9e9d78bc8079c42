"""Checks of the batches that a model is given: an error names image, value and remedy.

They cost a few small operations on the host. What lies on a GPU already is waited for once.
"""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..utils.box_fields import box_fields
from ..utils.errors import UserError

# Beyond it float32 has one value for neighbouring pixels.
MAX_COORDINATE = 2.0**24


class BatchError(UserError, ValueError):
    """A batch holds something that is no image, or no ground truth."""


def check_images(batched_inputs: list[dict], channels: int) -> None:
    """Refuse what is no batch of images.

    Args:
        batched_inputs: as of ``DeFCN.forward``.
        channels: that every image has to have.

    Raises:
        BatchError: no list of dicts, or an empty one; an ``image`` that is missing, no real-valued
            tensor (C, H, W) with at least one pixel, or not finite; a ``height`` or ``width`` of
            the output below one pixel.
    """
    if not isinstance(batched_inputs, (list, tuple)):
        raise BatchError(
            f"the batch is a {type(batched_inputs).__name__}, expected a list with a dict for "
            "every image; a single one is model([x])"
        )
    if not batched_inputs:
        raise BatchError("the batch is empty; give at least one image")
    for i, x in enumerate(batched_inputs):
        _check_image(i, x, channels)
    worst = _first_not_finite([x["image"] for x in batched_inputs])
    if worst is not None:
        values = batched_inputs[worst]["image"]
        bad = values[~values.float().isfinite()][0].item()  # some of float64 are too large
        raise BatchError(
            f"{image_name(worst, batched_inputs[worst])} has the pixel value {bad}; look "
            "for what made it, such as a division in the augmentation or a damaged file"
        )


def check_ground_truths(batched_inputs: list[dict], num_classes: int) -> None:
    """Refuse ground truth that cannot be learnt.

    Boxes may have no area, as clipping leaves them, and lie outside of the image. What is said of
    ``gt_boxes`` holds for the extra boxes of ``DATASETS.EXTRA_BOXES``, too.

    Args:
        batched_inputs: as of ``DeFCN.forward``, in training.
        num_classes: K; classes are 0 ... K - 1.

    Raises:
        BatchError: ``instances`` or its fields are missing or of another type, shape or dtype; a
            coordinate is NaN, infinite or beyond ``MAX_COORDINATE``; a box ends before it begins;
            a class is out of range; some images have extra boxes, and others do not.
    """
    for i, x in enumerate(batched_inputs):
        _check_fields(i, x)
    instances = [x["instances"] for x in batched_inputs]
    _check_same_boxes(batched_inputs)
    classes = _cat([gt.gt_classes for gt in instances])
    good = (classes >= 0) & (classes < num_classes)
    for field in box_fields(instances[0]):
        boxes = _cat([gt.get(field).tensor for gt in instances])
        good &= (boxes.abs() <= MAX_COORDINATE).all(dim=1)  # NaN is not
        good &= (boxes[:, :2] <= boxes[:, 2:]).all(dim=1)
    if good.all():
        return
    index = int((~good).nonzero()[0])
    for i, gt in enumerate(instances):
        if index < len(gt):
            fault = _fault(gt, index, num_classes)
            raise BatchError(f"{image_name(i, batched_inputs[i])}: {fault}")
        index -= len(gt)


def image_name(i: int, x: object) -> str:
    """Name of image ``i`` of a batch in messages: its number, and its file where that is known."""
    file = x.get("file_name") if isinstance(x, dict) else None
    return f"image {i} of the batch" + (f" ({str(file)!r})" if file else "")


def _check_image(i: int, x: dict, channels: int) -> None:
    """All but the values of an image."""
    if not isinstance(x, dict) or "image" not in x:
        what = "lacks the key 'image'" if isinstance(x, dict) else f"is a {type(x).__name__}"
        raise BatchError(f"{image_name(i, x)} {what}; give a dict with 'image', a tensor (C, H, W)")
    image = x["image"]
    if not isinstance(image, Tensor):
        raise BatchError(
            f"{image_name(i, x)} is a {type(image).__name__}, expected a tensor; "
            "torch.as_tensor(image.transpose(2, 0, 1).copy()) makes one of an array (H, W, C)"
        )
    if image.dtype == torch.bool or image.is_complex():
        raise BatchError(f"{image_name(i, x)} has dtype {image.dtype}; give uint8 or float32")
    if image.dim() != 3 or len(image) != channels:
        raise BatchError(
            f"{image_name(i, x)} has shape {tuple(image.shape)}, expected ({channels}, H, W) "
            "as MODEL.PIXEL_MEAN says"
        )
    if image.numel() == 0:
        raise BatchError(
            f"{image_name(i, x)} has shape {tuple(image.shape)}, which holds no pixel; leave it out"
        )
    for side in ("height", "width"):
        if side in x and not _is_size(x[side]):
            raise BatchError(
                f"{image_name(i, x)}: {side!r} of the output is {x[side]!r}; give 1 pixel or more, "
                "or leave it out for that of the input"
            )


def _is_size(value: object) -> bool:
    try:
        return 1 <= float(value) < float("inf")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _first_not_finite(images: list[Tensor]) -> int | None:
    """Index of an image that holds NaN or infinity; only those of floats are looked at.

    The sum over an image shows it; where it is no finite number, it may also have overflown.
    """
    floats = [i for i, image in enumerate(images) if image.is_floating_point()]
    if not floats:
        return None
    device = images[floats[0]].device
    sums = [images[i].sum(dtype=torch.float32).to(device) for i in floats]
    suspects = (~torch.stack(sums).isfinite()).tolist()
    for i, suspect in zip(floats, suspects):
        if suspect and not images[i].float().isfinite().all():
            return i
    return None


def _check_fields(i: int, x: dict) -> None:
    """Checks type, shape and dtype of the ground truth of an image."""
    # Presence and types of the fields.
    if "instances" not in x:
        raise BatchError(
            f"{image_name(i, x)} has no ground truth: training needs the key 'instances' in "
            "every input, with gt_boxes and gt_classes; call model.eval() for inference"
        )
    gt = x["instances"]
    name = f"{image_name(i, x)}: instances"
    if not isinstance(gt, Instances):
        raise BatchError(f"{name} is a {type(gt).__name__}, expected detectron2's Instances")
    kinds = {"gt_boxes": Boxes, "gt_classes": Tensor, **dict.fromkeys(box_fields(gt), Boxes)}
    for field, kind in kinds.items():
        if not gt.has(field):
            raise BatchError(
                f"{name} has no {field}; an image without objects has 0 of them: "
                "Boxes(torch.zeros(0, 4)) and torch.zeros(0, dtype=torch.int64)"
            )
        if not isinstance(gt.get(field), kind):
            raise BatchError(
                f"{name}.{field} is a {type(gt.get(field)).__name__}, expected {kind.__name__}"
            )

    # Shapes, dtypes and numbers.
    classes = gt.gt_classes
    if classes.dim() != 1 or classes.dtype != torch.int64:
        raise BatchError(
            f"{name}.gt_classes is {tuple(classes.shape)} of {classes.dtype}, expected (M,) of "
            "torch.int64"
        )
    for field, value in box_fields(gt).items():
        boxes = value.tensor
        if boxes.dim() != 2 or boxes.shape[1] != 4 or boxes.dtype != torch.float32:
            raise BatchError(
                f"{name}.{field} is {tuple(boxes.shape)} of {boxes.dtype}, expected (M, 4) of "
                "torch.float32; make it by Boxes(...) from xyxy"
            )
        if len(boxes) != len(classes):
            raise BatchError(
                f"{name} has {len(boxes)} {field} and {len(classes)} gt_classes; give each box a "
                "class"
            )
    if min(gt.image_size) < 1:
        raise BatchError(f"{name}.image_size is {gt.image_size}; give height and width in pixels")


def _check_same_boxes(batched_inputs: list[dict]) -> None:
    """Every image has the extra boxes that the first one has, and no others."""
    first = set(box_fields(batched_inputs[0]["instances"]))
    for i, x in enumerate(batched_inputs):
        for field in sorted(first ^ set(box_fields(x["instances"]))):
            has, lacks = (0, i) if field in first else (i, 0)
            raise BatchError(
                f"{image_name(lacks, batched_inputs[lacks])}: instances has no {field}, which "
                f"image {has} has; give every image its extra boxes (DATASETS.EXTRA_BOXES), or none"
            )


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.detach().to(tensors[0].device) for x in tensors])


def _fault(gt: Instances, index: int, num_classes: int) -> str:
    """The fault of a ground truth, its value, and the remedy."""
    label = int(gt.gt_classes[index])
    if not 0 <= label < num_classes:
        return (
            f"gt_classes[{index}] is {label}, and MODEL.DEFCN.NUM_CLASSES {num_classes}; classes "
            "count from 0: set NUM_CLASSES to their number, or correct the label"
        )
    rows = {field: boxes.tensor[index].tolist() for field, boxes in box_fields(gt).items()}
    for field, box in rows.items():
        if not all(abs(value) <= MAX_COORDINATE for value in box):
            return (
                f"{field}[{index}] is {box}, no box in pixels (at most {MAX_COORDINATE:.0f} from "
                "the origin); correct or remove the annotation"
            )
    field, box = next((k, x) for k, x in rows.items() if x[0] > x[2] or x[1] > x[3])
    return (
        f"{field}[{index}] is {box}, which ends before it begins; boxes are x0, y0, x1, y1 "
        "(BoxMode.convert makes them from x, y, width, height)"
    )
