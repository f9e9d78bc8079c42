"""Detectron2's ResNet with the FPN of this project."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, build_resnet_backbone

from ...config.rules import ConfigError
from .build import fpn_over

_DEPTHS = (18, 34, 50, 101, 152)


@BACKBONE_REGISTRY.register()
def build_defcn_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet with an FPN of the levels P3 to P7."""
    if cfg.MODEL.RESNETS.DEPTH not in _DEPTHS:
        raise ConfigError(
            f"MODEL.RESNETS.DEPTH is {cfg.MODEL.RESNETS.DEPTH}, but must be one of {_DEPTHS}"
        )
    return fpn_over(build_resnet_backbone(cfg, input_shape), cfg)
