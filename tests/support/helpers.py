"""Small builders that the tests share: priors, ground truth, predictions, models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import Boxes, Instances
from torch import Tensor

from defcn_d2 import add_defcn_config
from defcn_d2.structures import Predictions, Priors

ROOT = Path(__file__).resolve().parents[2]
STRIDES = (8, 16, 32, 64, 128)


def make_cfg(config_file: str, *opts: object) -> CfgNode:
    """The config of ``configs/<config_file>`` on the CPU, without weights to load."""
    cfg = get_cfg()
    add_defcn_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / config_file))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *opts])
    return cfg


def tiny_cfg(*opts: object) -> CfgNode:
    """A narrow POTO-3DMF-Aux on the CPU for images of 64x64; ``opts`` are KEY, VALUE, ..."""
    return make_cfg(
        "shapes/POTO-3DMF-Aux.yaml",
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
        # Two channels a group of GN: one alone has no variance on a level of a single cell.
        *("MODEL.FPN.OUT_CHANNELS", 64),
        *("MODEL.DEFCN.NUM_CONVS", 1),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64),
        *("INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 64),
        *opts,
    )


def make_priors(height: int, width: int, strides: Sequence[int] = STRIDES) -> Priors:
    """One point a cell for an image of this size in pixels; a level has at least one cell."""
    boxes, per_prior, shapes = [], [], []
    for stride in strides:
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        for i in range(rows):
            for j in range(columns):
                boxes.append([j * stride, i * stride, (j + 1) * stride, (i + 1) * stride])
        per_prior += [float(stride)] * (rows * columns)
        shapes.append((rows, columns))
    return Priors(
        boxes=torch.tensor(boxes, dtype=torch.float32),
        strides=torch.tensor(per_prior),
        level_sizes=[rows * columns for rows, columns in shapes],
        level_shapes=shapes,
    )


def make_instances(
    height: int, width: int, boxes: Sequence | Tensor, classes: Sequence[int] | Tensor
) -> Instances:
    """Ground truth of one image, with ``gt_boxes`` and ``gt_classes``; both may be empty."""
    return Instances(
        (height, width),
        gt_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        gt_classes=torch.as_tensor(classes, dtype=torch.int64),
    )


def random_boxes(
    height: int, width: int, count: int, generator: torch.Generator, min_size: float = 1.0
) -> Tensor:
    """(count, 4) xyxy within the image, sides of ``min_size`` pixels and more."""
    limits = torch.tensor([width, height], dtype=torch.float32)
    sizes = min_size + torch.rand(count, 2, generator=generator) * (limits - min_size).clamp(min=0)
    corners = torch.rand(count, 2, generator=generator) * (limits - sizes).clamp(min=0)
    return torch.cat([corners, corners + sizes], dim=1)


def random_instances(
    height: int, width: int, count: int, num_classes: int, seed: int = 0, min_size: float = 1.0
) -> Instances:
    """Ground truth of one image with random boxes and classes."""
    generator = torch.Generator().manual_seed(seed)
    return make_instances(
        height,
        width,
        random_boxes(height, width, count, generator, min_size),
        torch.randint(num_classes, (count,), generator=generator),
    )


def random_predictions(
    priors: Priors,
    num_classes: int,
    num_images: int | None = 1,
    seed: int = 0,
    quality: bool = True,
    scale: float = 2.0,
) -> Predictions:
    """Predictions whose boxes hold their locations; of one image where ``num_images`` is None.

    Args:
        quality: whether there is a quality branch.
        scale: standard deviation of the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1 if num_images is None else num_images, len(priors))
    ltrb = torch.rand(*shape, 4, generator=generator) * 2 * priors.strides[:, None]
    predictions = Predictions(
        cls_logits=scale * torch.randn(*shape, num_classes, generator=generator),
        boxes=torch.cat([priors.centers - ltrb[..., :2], priors.centers + ltrb[..., 2:]], dim=-1),
        quality_logits=scale * torch.randn(*shape, generator=generator) if quality else None,
    )
    return predictions[0] if num_images is None else predictions


def random_inputs(
    sizes: Sequence[tuple[int, int]],
    num_gts: Sequence[int],
    num_classes: int,
    channels: int = 3,
    seed: int = 0,
) -> list[dict]:
    """A batch in Detectron2's format: random uint8 images of these (height, width) and boxes."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.randint(
                256, (channels, height, width), generator=generator, dtype=torch.uint8
            ),
            "instances": random_instances(
                height, width, count, num_classes, seed=seed + 1 + i, min_size=8
            ),
            "height": height,
            "width": width,
        }
        for i, ((height, width), count) in enumerate(zip(sizes, num_gts, strict=True))
    ]
