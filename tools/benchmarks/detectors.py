"""Our detectors and Detectron2's, on equal backbones with equal weights and for equal inputs."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from defcn_d2 import add_defcn_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
#: Configs of this package in the tables; ``build`` takes the others, too.
OURS = ("POTO", "POTO-3DMF", "POTO-3DMF-Aux", "FCOS")
RETINANET = "Detectron2 RetinaNet"
DETECTRON2_FCOS = "Detectron2 FCOS"
NUM_CLASSES = 80
#: KEY, VALUE, ... of the backbone, for all detectors (the tests take a small one).
BACKBONE_OPTIONS: list[object] = []


def names() -> list[str]:
    """The detectors that can be built here; Detectron2 v0.5 has no FCOS."""
    theirs = [RETINANET]
    if importlib.util.find_spec("detectron2.modeling.meta_arch.fcos"):
        theirs.append(DETECTRON2_FCOS)
    return [*OURS, *theirs]


def is_ours(name: str) -> bool:
    """Whether this is a config of ``configs/`` for COCO."""
    return (CONFIGS / f"{name}.yaml").is_file()


def build(
    name: str, device: str = "cpu", channels_last: bool = False, opts: Sequence[object] = ()
) -> Any:
    """A detector with random weights, those of the backbone the same for all names.

    ``opts`` are KEY, VALUE, ... that change the config of one of ours.

    The statistics of the frozen normalisation are those of random images, so that activations
    have the scale that they have in a trained network.
    """
    cfg = _config(f"{name}.yaml" if is_ours(name) else "POTO.yaml", opts)
    torch.manual_seed(0)  # every detector draws the weights of its backbone first
    model: Any = build_model(cfg) if is_ours(name) else _detectron2_model(name, cfg)
    torch.manual_seed(1)
    _set_statistics(model.backbone)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    return model.to(device)


def make_inputs(
    batch: int, image: tuple[int, int], objects: int, device: str = "cpu", seed: int = 0
) -> list[dict]:
    """Random images in Detectron2's format; sides of the boxes from 16 pixels to the image's."""
    generator = torch.Generator().manual_seed(seed)
    height, width = image
    inputs = []
    for _ in range(batch):
        longest = torch.tensor([width, height], dtype=torch.float32)
        exponents = torch.rand(objects, 2, generator=generator)
        sizes = 16 * (longest / 16) ** exponents
        corners = torch.rand(objects, 2, generator=generator) * (longest - sizes)
        gt = Instances(image)
        gt.gt_boxes = Boxes(torch.cat([corners, corners + sizes], dim=1))
        gt.gt_classes = torch.randint(NUM_CLASSES, (objects,), generator=generator)
        pixels = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": pixels.to(device), "instances": gt.to(device)})
    return inputs


def _config(file: str, opts: Sequence[object]) -> CfgNode:
    cfg = get_cfg()
    add_defcn_config(cfg)
    cfg.merge_from_file(str(CONFIGS / file), allow_unsafe=False)
    cfg.MODEL.DEFCN.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *BACKBONE_OPTIONS, *opts])
    return cfg


def _detectron2_model(name: str, cfg: CfgNode) -> nn.Module:
    if name == DETECTRON2_FCOS:
        return _fcos(cfg)
    if name != RETINANET:
        raise ValueError(f"{name!r} is no detector; one of: {', '.join(names())}")
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.DEFCN.IN_FEATURES
    octaves = [2 ** (i / 3) for i in range(3)]  # the three sizes a level of Detectron2's configs
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [
        [size * octave for octave in octaves] for size in (32, 64, 128, 256, 512)
    ]
    return build_model(cfg)


def _fcos(cfg: CfgNode) -> nn.Module:
    """As Detectron2's ``configs/common/models/fcos.py``, with the threshold for FCOS's score."""
    from detectron2.modeling import build_backbone
    from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

    backbone = build_backbone(cfg)
    features = cfg.MODEL.DEFCN.IN_FEATURES
    shapes = [backbone.output_shape()[name] for name in features]
    channels = shapes[0].channels
    return FCOS(
        backbone=backbone,
        head=FCOSHead(
            input_shape=shapes, num_classes=NUM_CLASSES, conv_dims=[channels] * 4, norm="GN"
        ),
        head_in_features=features,
        num_classes=NUM_CLASSES,
        test_score_thresh=math.sqrt(0.05),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


@torch.no_grad()
def _set_statistics(backbone: nn.Module) -> None:
    """Mean and variance of every frozen normalisation from one batch of noise."""

    def measure(module: FrozenBatchNorm2d, inputs: tuple[Tensor]) -> None:
        (x,) = inputs
        module.running_mean.copy_(x.mean(dim=(0, 2, 3)))
        module.running_var.copy_(x.var(dim=(0, 2, 3)))

    hooks = [
        module.register_forward_pre_hook(measure)
        for module in backbone.modules()
        if isinstance(module, FrozenBatchNorm2d)
    ]
    backbone(64 * torch.randn(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()
