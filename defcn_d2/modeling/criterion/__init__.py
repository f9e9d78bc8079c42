"""Criteria: predictions and ground truth to losses."""

from .dense import DenseCriterion, build_criteria
from .normalization import LossSum, SummedCriterion, evaluate_criteria, mean_over_workers

__all__ = [
    "DenseCriterion",
    "LossSum",
    "SummedCriterion",
    "build_criteria",
    "evaluate_criteria",
    "mean_over_workers",
]
