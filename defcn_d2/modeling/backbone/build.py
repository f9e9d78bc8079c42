"""Backbones: ResNet-FPN whose coarsest levels P6 and P7 come from P5."""

import math

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import (
    BACKBONE_REGISTRY,
    FPN,
    Backbone,
    BasicStem,
    ResNet,
    build_resnet_backbone,
)
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import Tensor


class _CoarseLevels(LastLevelP6P7):
    """Detectron2's P6 and P7; on a CPU in float32, also in mixed precision.

    With PyTorch 2.10 to 2.15 parts of the bfloat16 gradient of a convolution's weight were left
    unwritten there where the stride is 2 and the map one cell wide: P6 of an image of 64 pixels.
    """

    def forward(self, c5: Tensor) -> list[Tensor]:
        if c5.device.type != "cpu":
            return super().forward(c5)
        with torch.autocast("cpu", enabled=False):
            return super().forward(c5.to(self.p6.weight.dtype))


def _with_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """FPN over ``MODEL.FPN.IN_FEATURES``, with two levels more from its coarsest output.

    That is P6 and P7 from P5 (not from C5, as Detectron2's RetinaNet has them).
    """
    out_channels = cfg.MODEL.FPN.OUT_CHANNELS
    last_stride = bottom_up.output_shape()[cfg.MODEL.FPN.IN_FEATURES[-1]].stride
    last_level = f"p{int(math.log2(last_stride))}"
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=out_channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=_CoarseLevels(out_channels, out_channels, in_feature=last_level),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_defcn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet with an FPN of the levels P3 to P7."""
    return _with_fpn(cfg, build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_defcn_narrow_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A narrow ResNet with one basic block a stage, and an FPN of the levels P3 to P7.

    For small images on a CPU: ``MODEL.RESNETS.STEM_OUT_CHANNELS`` channels after the stem and in
    res2, twice as many with every stage, ``MODEL.RESNETS.NORM`` everywhere. Trains from scratch,
    nothing is frozen.
    """
    norm = cfg.MODEL.RESNETS.NORM
    width = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS
    stem = BasicStem(input_shape.channels, width, norm=norm)
    stages = []
    in_channels = width
    for index in range(4):
        out_channels = width * 2**index
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks=1,
                in_channels=in_channels,
                out_channels=out_channels,
                stride_per_block=[1 if index == 0 else 2],
                norm=norm,
            )
        )
        in_channels = out_channels
    return _with_fpn(cfg, ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES))
