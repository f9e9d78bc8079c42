"""Criteria: predictions and ground truth to losses."""

from ...config.components import import_modules
from ...structures import LossSum
from .build import CRITERION_REGISTRY, build_criteria
from .normalization import SummedCriterion, evaluate_criteria, mean_over_workers

__all__ = [
    "CRITERION_REGISTRY",
    "LossSum",
    "SummedCriterion",
    "build_criteria",
    "evaluate_criteria",
    "mean_over_workers",
]

import_modules(__name__, __path__)
