"""Settings that all tests share."""

import logging
import os

import pytest
import setuptools  # noqa: F401  before torch, whose import of distutils must find its own
import torch
from hypothesis import HealthCheck, settings

# Examples differ in time on a loaded machine, which is no failure.
settings.register_profile(
    "default",
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),  # a change fails there by its own doing alone
)
settings.load_profile("default")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    """Every test draws the same random numbers and logs alike, alone or among others."""
    torch.manual_seed(0)
    # a training in this process has cut the log off from pytest's
    logging.getLogger("defcn_d2").propagate = True
