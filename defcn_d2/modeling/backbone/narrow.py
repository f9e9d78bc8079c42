"""A narrow ResNet with the FPN of this project, for small images on a CPU."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock

from ...config.rules import ConfigError
from .build import fpn_over


@BACKBONE_REGISTRY.register()
def build_defcn_narrow_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A narrow ResNet with one basic block a stage, and an FPN of the levels P3 to P7.

    For small images on a CPU: ``MODEL.RESNETS.STEM_OUT_CHANNELS`` channels after the stem and in
    res2, twice as many with every stage, ``MODEL.RESNETS.NORM`` everywhere. Trains from scratch,
    nothing is frozen.
    """
    norm = cfg.MODEL.RESNETS.NORM
    width = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS
    if norm == "GN" and width % 32:
        raise ConfigError(
            f"MODEL.RESNETS.NORM 'GN' needs a multiple of 32 channels, not {width}; set "
            "MODEL.RESNETS.STEM_OUT_CHANNELS to one"
        )
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
    return fpn_over(ResNet(stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES), cfg)
