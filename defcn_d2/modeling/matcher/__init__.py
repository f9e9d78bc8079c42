"""Matchers: which ground truth each prior learns.

Every module of this folder is imported, so that a new matcher is one file here (or anywhere that
is imported before the config is made) and its name in ``MODEL.DEFCN.MATCHER.NAME``.
"""

from ...config.components import import_modules
from .registry import MATCHER_REGISTRY, BatchMatcher, Matcher, build_matcher

__all__ = ["MATCHER_REGISTRY", "BatchMatcher", "Matcher", "build_matcher"]

import_modules(__name__, __path__)
