"""Criteria: predictions and ground truth to losses."""

from .dense import DenseCriterion, build_criteria

__all__ = ["DenseCriterion", "build_criteria"]
