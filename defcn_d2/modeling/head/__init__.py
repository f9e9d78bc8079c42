"""Heads: feature maps to sets of predictions."""

from ...config.components import import_modules
from .build import HEAD_REGISTRY, build_heads

__all__ = ["HEAD_REGISTRY", "build_heads"]

import_modules(__name__, __path__)
