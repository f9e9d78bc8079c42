"""Necks: between the backbone's feature maps and the head."""

from ...config.components import import_modules
from .build import NECK_REGISTRY, build_neck

__all__ = ["NECK_REGISTRY", "build_neck"]

import_modules(__name__, __path__)
