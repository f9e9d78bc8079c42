"""Matchers: which ground truth each prior learns.

Every module of this package is imported, so that a new matcher is one file here (or anywhere that
is imported before the model is built) and its name in ``MODEL.DEFCN.MATCHER.NAME``.
"""

import importlib
import pkgutil

from .registry import MATCHER_REGISTRY, BatchMatcher, Matcher, build_matcher

__all__ = ["MATCHER_REGISTRY", "BatchMatcher", "Matcher", "build_matcher"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
