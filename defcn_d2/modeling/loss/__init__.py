"""Losses: functions, and the class losses that a config chooses by name."""

from ...config.components import import_modules
from .class_losses import CLASS_LOSS_REGISTRY, build_class_loss

__all__ = ["CLASS_LOSS_REGISTRY", "build_class_loss"]

import_modules(__name__, __path__)
