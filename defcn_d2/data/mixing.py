"""Images of a training mixed with others of its data: mosaic, mixup and copy-paste.

They take what the mapper gives: the others are read, checked, resized and flipped as every image,
and crowd regions are left out already. The size of an image stays, and so do batches by
orientation. What is drawn comes from Python's generator, after the draws of the mapper.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from ..utils.box_fields import is_box_field

Record = dict[str, Any]

#: Key of a mixed image: the names of the other files in it.
MIXED_WITH = "mixed_with"


class Mixing:
    """Applies what ``INPUT.MOSAIC``, ``INPUT.MIXUP`` and ``INPUT.COPY_PASTE`` ask for.

    As in DEIM (arXiv 2412.04234) and DEIMv2 (arXiv 2509.20787), whose numbers are the defaults:
    an image may become part of a mosaic; then it is mixed with another one, or else gets objects
    of another one. These others may be mosaics as well.
    """

    def __init__(self, cfg: CfgNode):
        self.mosaic, self.mixup = cfg.INPUT.MOSAIC, cfg.INPUT.MIXUP
        self.copy_paste = cfg.INPUT.COPY_PASTE
        self.fill = [float(round(x)) for x in cfg.MODEL.PIXEL_MEAN]  # 0 to the model, as padding

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Mixing | None:
        """None where all probabilities are 0: then nothing is drawn."""
        nodes = (cfg.INPUT.MOSAIC, cfg.INPUT.MIXUP, cfg.INPUT.COPY_PASTE)
        return cls(cfg) if any(node.PROB > 0 for node in nodes) else None

    def __call__(self, image: Record, another: Callable[[], Record], progress: float) -> Record:
        """The image, mixed or as it is.

        Args:
            image: an input of a model for training: ``image`` (C, H, W), ``instances``.
            another: loads one more at random.
            progress: share of the training done, in [0, 1).
        """

        def perhaps_mosaic(first: Record) -> Record:
            if not _is_drawn(self.mosaic, progress):
                return first
            return mosaic([first, *(another() for _ in range(3))], self.mosaic, self.fill)

        image = perhaps_mosaic(image)
        if _is_drawn(self.mixup, progress):
            share = random.uniform(*self.mixup.SHARE)
            return mixup(image, perhaps_mosaic(another()), share, self.fill)
        if _is_drawn(self.copy_paste, progress):
            return copy_paste(image, perhaps_mosaic(another()), self.copy_paste)
        return image


def mosaic(images: list[Record], node: CfgNode, fill: list[float]) -> Record:
    """Four images at half their size, two by two, turned, shifted and scaled as a whole.

    Args:
        images: the first gives the size (H, W) of the result; each lies at the upper left of its
            quarter, at the size that fits there.
        node: ``INPUT.MOSAIC``.
        fill: pixel where there is no image, C values.

    Returns:
        the first with other pixels and objects. Boxes are those around the turned ones, clipped.
        Left out are objects whose box has a side below a pixel, or less than ``MIN_VISIBLE`` of
        its area within the result.
    """
    # Four quarters, the first of each row and column the larger by a pixel where a side is odd.
    canvas = _blank(images[0], fill)
    height, width = size = _size(canvas)
    half = (height + 1) // 2, (width + 1) // 2
    parts = []
    for number, image in enumerate(images):
        y, x = number // 2 * half[0], number % 2 * half[1]
        pixels, objects = _fitted(image, *half)
        quarter = canvas[:, y : y + pixels.shape[1], x : x + pixels.shape[2]]
        quarter.copy_(pixels[:, : quarter.shape[1], : quarter.shape[2]])
        parts.append(_shifted(objects, size, x, y))

    # As a whole, about the centre.
    angle = random.uniform(-node.ROTATION, node.ROTATION)  # degrees, clockwise
    scale = random.uniform(*node.SCALE)
    shift = [random.uniform(-node.TRANSLATION, node.TRANSLATION) * side for side in (width, height)]
    ground = _blank(images[0], fill).float()  # less which the outside is 0, without a dark rim
    pixels = ground + F.affine(
        canvas - ground, angle, shift, scale, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR
    )
    turn = math.radians(angle)
    matrix = scale * torch.tensor(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    center = torch.tensor([width / 2, height / 2])

    def turned(boxes: Tensor) -> Tensor:
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)
        corners = (corners - center) @ matrix.T + center + torch.tensor(shift)
        return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)

    objects = _moved(Instances.cat(parts), size, turned)
    return _mixed(images, _as(pixels, canvas), _clipped(objects, node.MIN_VISIBLE))


def mixup(image: Record, other: Record, share: float, fill: list[float]) -> Record:
    """``share`` of an image over the rest of another, with the objects of both, which count alike.

    Args:
        other: is brought to the size that fits into the image, at its upper left; objects that
            then have a side below a pixel are left out.
        fill: pixel beside the other, C values.
    """
    canvas = _blank(image, fill)
    pixels, objects = _fitted(other, *_size(canvas))
    canvas[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    objects = _clipped(_shifted(objects, _size(canvas), 0, 0), 0.0)
    objects = Instances.cat([image["instances"], objects])
    return _mixed([image, other], _blended(image["image"], canvas, share), objects)


def copy_paste(image: Record, other: Record, node: CfgNode) -> Record:
    """Some objects of another image, blended into this one at random places.

    What is pasted is the rectangle of an object's box, grown on each side by a share of its
    width and height, as far as both images reach. The box itself stays as large as it was. Objects
    below what is pasted stay, as they shine through.

    Args:
        other: of which objects are taken that fit into the image and have at least ``MIN_AREA``
            square pixels.
        node: ``INPUT.COPY_PASTE``.
    """
    pixels, source, objects = image["image"].clone(), other["image"], other["instances"]
    height, width = size = _size(pixels)
    boxes = objects.gt_boxes.tensor
    fits = (boxes[:, 2] - boxes[:, 0] <= width - 1) & (boxes[:, 3] - boxes[:, 1] <= height - 1)
    able = (fits & (objects.gt_boxes.area() >= node.MIN_AREA)).nonzero()[:, 0].tolist()
    parts = [image["instances"]]
    for number in random.sample(able, min(node.OBJECTS, len(able))):
        x1, y1, x2, y2 = boxes[number].tolist()
        dx = random.randint(math.ceil(-x1), math.floor(width - x2))  # whole pixels
        dy = random.randint(math.ceil(-y1), math.floor(height - y2))
        grown = random.uniform(*node.EXPAND)
        gx, gy = grown * (x2 - x1), grown * (y2 - y1)
        left, top = max(math.floor(x1 - gx), 0, -dx), max(math.floor(y1 - gy), 0, -dy)
        right = min(math.ceil(x2 + gx), source.shape[2], width - dx)
        bottom = min(math.ceil(y2 + gy), source.shape[1], height - dy)
        place = pixels[:, top + dy : bottom + dy, left + dx : right + dx]
        patch = source[:, top:bottom, left:right]
        place.copy_(_blended(patch, place, random.uniform(*node.SHARE)))
        parts.append(_shifted(objects[number], size, dx, dy))
    for part in parts[1:]:
        for field in filter(is_box_field, part.get_fields()):
            part.get(field).clip(size)
    return _mixed([image, other], pixels, Instances.cat(parts))


def _is_drawn(node: CfgNode, progress: float) -> bool:
    return node.START <= progress < node.STOP and random.random() < node.PROB


def _size(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]


def _blank(image: Record, fill: list[float]) -> Tensor:
    """(C, H, W) of the image's size and dtype."""
    pixels = image["image"]
    return pixels.new_tensor(fill)[:, None, None].expand(pixels.shape).clone()


def _fitted(image: Record, height: int, width: int) -> tuple[Tensor, Instances]:
    """Pixels and objects at the largest size within so many pixels; the aspect ratio stays."""
    old_height, old_width = image["image"].shape[-2:]
    scale = min(height / old_height, width / old_width)
    size = [max(1, round(old_height * scale)), max(1, round(old_width * scale))]
    pixels = F.resize(image["image"], size, antialias=True)
    factors = torch.tensor([size[1] / old_width, size[0] / old_height]).repeat(2)
    return pixels, _moved(image["instances"], (size[0], size[1]), lambda boxes: boxes * factors)


def _moved(
    objects: Instances, size: tuple[int, int], move: Callable[[Tensor], Tensor]
) -> Instances:
    """Objects of an image of another size, all their boxes (M, 4) moved; the rest as it is."""
    fields = {
        name: Boxes(move(x.tensor)) if is_box_field(name) else x
        for name, x in objects.get_fields().items()
    }
    return Instances(size, **fields)


def _shifted(objects: Instances, size: tuple[int, int], x: int, y: int) -> Instances:
    shift = torch.tensor([x, y, x, y])
    return _moved(objects, size, lambda boxes: boxes + shift)


def _clipped(objects: Instances, least: float) -> Instances:
    """Objects clipped to the image, those left whose box has at least this share of its area."""
    areas = objects.gt_boxes.area()
    for field in filter(is_box_field, objects.get_fields()):
        objects.get(field).clip(objects.image_size)
    boxes = objects.gt_boxes
    sides = boxes.tensor[:, 2:] - boxes.tensor[:, :2]  # (M, 2)
    return objects[(sides >= 1).all(dim=1) & (boxes.area() >= least * areas)]


def _blended(one: Tensor, other: Tensor, share: float) -> Tensor:
    """``share`` of one and the rest of the other, in their dtype."""
    return _as(share * one + (1 - share) * other, one)


def _as(pixels: Tensor, like: Tensor) -> Tensor:
    """Floating-point pixels in the dtype of others."""
    return (pixels if like.is_floating_point() else pixels.round()).to(like.dtype)


def _mixed(images: list[Record], pixels: Tensor, objects: Instances) -> Record:
    """The first image with other pixels and objects, and the names of the others."""
    names = [name for x in images for name in (x["file_name"], *x.get(MIXED_WITH, ()))][1:]
    return {**images[0], "image": pixels, "instances": objects, MIXED_WITH: names}
