"""Backbones in Detectron2's registry."""

from .narrow import build_defcn_narrow_fpn_backbone
from .resnet import build_defcn_resnet_fpn_backbone
from .timm_models import build_timm_fpn_backbone

__all__ = [
    "build_defcn_narrow_fpn_backbone",
    "build_defcn_resnet_fpn_backbone",
    "build_timm_fpn_backbone",
]
