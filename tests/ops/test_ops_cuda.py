"""The compiled operators on a GPU against those of the CPU: the same bits, codes and all.

Without a GPU the CPU takes its place, so that this file is tried everywhere.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from literal_max_filter import DEVICES, cases
from literal_overlap import grid_cases
from torch import Tensor

from defcn_d2 import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
OPERATORS = torch.ops.defcn_d2

pytestmark = [
    pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator"),
    pytest.mark.parametrize("device", DEVICES),
]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.cpu(), theirs)


@given(case=cases(dtypes=DTYPES))
def test_max_filter_equals_the_cpu(device: str, case: dict[str, Any]) -> None:
    arguments = (case["tau"], case["kernel_size"])
    levels = [(2 * level).round() for level in case["levels"]]  # ties fall the same way
    there = [level.to(device) for level in levels]
    outputs, codes = OPERATORS.max_filter_3d_with_codes(levels, *arguments)
    their_outputs, their_codes = OPERATORS.max_filter_3d_with_codes(there, *arguments)
    assert_same(their_outputs, outputs)
    assert_same(their_codes, codes)
    assert_same(OPERATORS.max_filter_3d(there, *arguments), outputs)

    grads = [torch.randint_like(level, -8, 8) for level in levels]
    expected = OPERATORS.max_filter_3d_backward(grads, codes, *arguments)
    found = OPERATORS.max_filter_3d_backward(
        [grad.to(device) for grad in grads], their_codes, *arguments
    )
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-4}.get(levels[0].dtype, 0.05)
    for ours, theirs in zip(found, expected, strict=True):  # summed in another order
        torch.testing.assert_close(ours.cpu(), theirs, rtol=tolerance, atol=tolerance)


@given(case=grid_cases())
def test_overlaps_equal_the_cpu(device: str, case: dict[str, Any]) -> None:
    there = {name: case[name].to(device) for name in ("logits", "boxes")}
    found = ops.overlap_with_better(**{**case, **there})
    assert_same([found], [ops.overlap_with_better(**case)])
