"""A heap of 1,000 boxes on 22,400 locations takes less than 1 GiB, whatever the matcher."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matching_memory
import pytest

from defcn_d2.modeling.matcher import MATCHER_REGISTRY

TESTS = Path(__file__).resolve().parents[2]
LIMITS_MIB = {"POTO": 100, "ForegroundLoss": 100}  # only the pairs that are allowed
LIMIT_MIB = 512


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_of_every_matcher() -> None:
    environment = {
        **os.environ,
        **matching_memory.MALLOC_ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(TESTS / "support"), str(TESTS.parent)]),
    }
    command = [sys.executable, "-W", "ignore", matching_memory.__file__]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    peaks = dict(line.split() for line in result.stdout.splitlines())
    assert list(peaks) == MATCHER_REGISTRY.names()
    # One (M, R) tensor of float32: what a dense matcher cannot do without.
    matrix = matching_memory.NUM_GTS * 22_400 * 4 / 2**20
    for name, peak in peaks.items():
        assert float(peak) < LIMITS_MIB.get(name, LIMIT_MIB), name
        assert name in LIMITS_MIB or float(peak) > matrix, name  # it does measure
