"""Objects that are too small, too many or odd, for the input size and limits of a config."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from .splits import Split

MANY = 0.25  # share of small objects with which little is left to learn
WANTED = 0.99  # share of objects that the recommended input size makes large enough
LONG = 10  # longer by shorter side of a box


def check_objects(cfg: CfgNode, split: Split, stride: int) -> None:
    """Note odd objects of a data set; ``stride`` is the finest of the model's maps, in pixels."""
    sides = (split.boxes[:, 2:] - split.boxes[:, :2]).clip(0)  # (N, 2)
    short, long = sides.min(axis=1), sides.max(axis=1)
    _check_small(cfg, split, short, stride)
    odd = np.flatnonzero((long > LONG * short) & (short > 0))
    split.note(f"boxes more than {LONG} times as long as wide", odd, split.object, "look at them")
    whole = sides.prod(axis=1) >= 0.99 * split.sizes[split.images].prod(axis=1)
    remedy = "box the single objects, or leave these images out"
    split.note("boxes of a whole image", np.flatnonzero(whole), split.object, remedy)
    rows = np.column_stack([split.images, split.labels, split.boxes.round()])
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.setdiff1d(np.arange(len(rows)), first)
    remedy = "remove one of each, as it would have to be detected twice"
    split.note("boxes that stand twice", repeated, split.object, remedy)
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    numbers = np.bincount(split.images, minlength=len(split.records))  # (M,)
    split.note(
        f"images with more than {limit} objects, the limit of detections",
        np.flatnonzero(numbers > limit),
        lambda image: f"{split.file(image)} ({numbers[image]})",
        f"set TEST.DETECTIONS_PER_IMAGE {math.ceil(1.5 * numbers.max(initial=0) / 50) * 50}",
    )


def _check_small(cfg: CfgNode, split: Split, sides: npt.NDArray[np.float64], stride: int) -> None:
    """Objects whose shorter side (N,), after resizing, is less than the distance of locations."""
    least, most = cfg.INPUT[f"MIN_SIZE_{split.key}"], cfg.INPUT[f"MAX_SIZE_{split.key}"]
    least = max(least) if split.key == "TRAIN" else least
    scales = np.ones(len(split.sizes))  # (M,)
    if least:
        scales = np.minimum(least / split.sizes.min(axis=1), most / split.sizes.max(axis=1))
    else:  # images are not resized
        least, most = int(split.sizes.min()), int(split.sizes.max())
    resized = sides * scales[split.images]
    small = resized < stride
    remedy = "look at them"  # where they are a few of many
    if small.any() and (factor := stride / max(np.quantile(resized, 1 - WANTED), 1.0)) > 1:
        larger = math.ceil(least * factor / 32) * 32
        value = f"({larger},)" if split.key == "TRAIN" else larger
        remedy = (
            f"INPUT.MIN_SIZE_{split.key} {value} with INPUT.MAX_SIZE_{split.key} "
            f"{math.ceil(most * larger / least)} makes {WANTED:.0%} of all wide enough; or cut "
            "the images into tiles"
        )
    what = f"objects narrower than the finest stride, {stride} pixels, after resizing"
    fatal = small.mean() > MANY if len(small) else False
    split.note(what, np.flatnonzero(small), split.object, remedy, bool(fatal))


def finest_stride(cfg: CfgNode) -> int:
    """The stride in pixels of the finest map that detections come from."""
    try:
        with torch.device("meta"):
            shapes = build_backbone(cfg).output_shape()
    except Exception:  # a network that needs memory or another package: as most have it
        return 8
    used = cfg.MODEL.DEFCN.IN_FEATURES if cfg.MODEL.META_ARCHITECTURE == "DeFCN" else shapes
    return min(shapes[name].stride for name in used)
