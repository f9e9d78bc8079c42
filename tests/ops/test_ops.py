"""Values, layouts and errors of the 3D max filter, compiled and composed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from literal_max_filter import (
    DEVICES,
    IMPLEMENTATIONS,
    PYRAMID,
    cases,
    literal_max_filter,
    random_pyramid,
)
from torch import Tensor

from defcn_d2 import ops

Filter = Callable[..., list[Tensor]]
FORMATS = [torch.contiguous_format, torch.channels_last]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}

both = pytest.mark.parametrize("max_filter", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")


@both
@settings(max_examples=200)
@given(case=cases(dtypes=[torch.float64, torch.float32]))
def test_equals_the_literal_reference(max_filter: Filter, case: dict[str, Any]) -> None:
    dtype = case["levels"][0].dtype
    outputs = max_filter(**case)
    exact = literal_max_filter([level.double() for level in case["levels"]], *_rest(case))
    for level, output, expected in zip(case["levels"], outputs, exact, strict=True):
        assert output.shape == level.shape and output.dtype == dtype
        size = max(1.0, _largest(case))  # positions are rounded: an error in proportion to values
        torch.testing.assert_close(output.double(), expected, rtol=0, atol=TOLERANCE[dtype] * size)


def _largest(case: dict[str, Any]) -> float:
    return max((float(x.abs().max()) for x in case["levels"] if x.numel()), default=0.0)


@both
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes_and_memory_formats(
    max_filter: Filter, dtype: torch.dtype, memory_format: torch.memory_format, device: str
) -> None:
    levels = random_pyramid(dtype=dtype, memory_format=memory_format, device=device)
    expected = literal_max_filter([level.double() for level in levels], 2, 3)
    for level, output, target in zip(levels, max_filter(levels), expected, strict=True):
        assert output.dtype == dtype and output.device == level.device
        assert output.is_contiguous(memory_format=memory_format)
        torch.testing.assert_close(output.double(), target, rtol=0, atol=2 * TOLERANCE[dtype])


@compiled_only
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(
    dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    levels = random_pyramid(dtype=dtype, memory_format=memory_format, channels=35)
    in_float32 = ops.max_filter_3d([level.float() for level in levels])
    for output, expected in zip(ops.max_filter_3d(levels), in_float32, strict=True):
        assert torch.equal(output, expected.to(dtype))


@compiled_only
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_result_depends_on_neither_format_nor_training(dtype: torch.dtype) -> None:
    levels = random_pyramid(dtype=dtype, channels=37)
    expected = ops.max_filter_3d(levels, 4, 5)
    last = [level.contiguous(memory_format=torch.channels_last) for level in levels]
    training = [level.clone().requires_grad_() for level in levels]
    for other in (ops.max_filter_3d(last, 4, 5), ops.max_filter_3d(training, 4, 5)):
        assert all(map(torch.equal, other, expected))


@both
def test_each_output_has_the_format_of_its_own_input(max_filter: Filter) -> None:
    levels = random_pyramid()
    levels[1] = levels[1].contiguous(memory_format=torch.channels_last)
    outputs = max_filter(levels)
    assert outputs[0].is_contiguous() and not outputs[1].is_contiguous()
    assert outputs[1].is_contiguous(memory_format=torch.channels_last)
    expected = literal_max_filter(levels, 2, 3)
    assert all(torch.allclose(*pair, atol=1e-5) for pair in zip(outputs, expected, strict=True))


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_nan_and_infinity_spread_as_in_the_literal_reference(
    max_filter: Filter, dtype: torch.dtype
) -> None:
    levels = random_pyramid([(16, 16), (8, 8), (4, 4)], channels=8, dtype=dtype)
    for seed, value in enumerate([float("nan"), float("inf"), -float("inf")]):
        generator = torch.Generator().manual_seed(seed)
        for level in levels:
            level[torch.rand(level.shape, generator=generator) < 0.03] = value
    levels[2][:, 0] = -float("inf")
    levels[1][:, 0] = -float("inf")
    levels[0][:, 0] = -float("inf")
    expected = literal_max_filter([level.double() for level in levels], 2, 3)
    for output, target in zip(max_filter(levels), expected, strict=True):
        assert torch.equal(output.isnan(), target.isnan()) and target.isnan().any()
        assert torch.equal(output.isinf(), target.isinf()) and target.isinf().any()
        torch.testing.assert_close(
            output.double(), target, rtol=0, atol=2 * TOLERANCE[dtype], equal_nan=True
        )


@both
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 1)],
        [(1, 1)] * 3,
        [(1, 9), (9, 1), (1, 1)],
        [(0, 0), (4, 4), (0, 3)],
        [(5, 5), (3, 0), (2, 2)],
        [(40, 3), (1, 2), (33, 50)],
    ],
)
@pytest.mark.parametrize("channels", [0, 1, 5])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_small_empty_and_unusual_maps(
    max_filter: Filter, shapes: list[tuple[int, int]], channels: int, batch: int
) -> None:
    levels = random_pyramid(shapes, batch, channels, dtype=torch.float64)
    training = [level.clone().requires_grad_() for level in levels]
    for given_levels in (levels, training):
        outputs = max_filter(given_levels, 2, 3)
        expected = literal_max_filter(levels, 2, 3)
        for output, target in zip(outputs, expected, strict=True):
            torch.testing.assert_close(output.detach(), target, rtol=0, atol=1e-12)
    torch.stack([output.sum() for output in outputs]).sum().backward()
    for level in training:
        assert level.grad is not None and level.grad.shape == level.shape
    total = sum(float(level.grad.sum()) for level in training if level.grad is not None)
    assert total == pytest.approx(sum(level.numel() for level in levels))  # weights sum to one


@both
def test_no_levels(max_filter: Filter) -> None:
    assert max_filter([]) == []


@both
def test_takes_a_tuple_and_keyword_arguments(max_filter: Filter) -> None:
    levels = random_pyramid()
    outputs = max_filter(tuple(levels), kernel_size=3, tau=2)
    assert isinstance(outputs, list) and all(map(torch.equal, outputs, max_filter(levels)))


@both
def test_huge_tau_and_kernel_reach_everything(max_filter: Filter) -> None:
    levels = random_pyramid([(9, 7), (4, 3), (2, 2)], dtype=torch.float64)
    for output, expected in zip(
        max_filter(levels, 100, 31), literal_max_filter(levels, 4, 17), strict=True
    ):
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
        assert torch.equal(output, output.amax((2, 3), keepdim=True).expand_as(output))


@both
@pytest.mark.parametrize(
    ("change", "tau", "kernel_size", "error", "message"),
    [
        (lambda x: x, 1, 3, ValueError, "tau must be even and >= 0.* got 1"),
        (lambda x: x, -2, 3, ValueError, "tau must be even and >= 0.* got -2"),
        (lambda x: x, 2, 4, ValueError, "kernel_size must be odd and >= 1, got 4"),
        (lambda x: x, 2, -1, ValueError, "kernel_size must be odd and >= 1, got -1"),
        (lambda x: x[0], 2, 3, TypeError, "levels must be a list of tensors.* single tensor"),
        (lambda x: [x[0], 7], 2, 3, TypeError, r"levels\[1\] must be a tensor, got int"),
        (lambda x: [x[0], x[1][0]], 2, 3, ValueError, r"levels\[1\] must be \(N, C, H, W\)"),
        (lambda x: [x[0], x[1].double()], 2, 3, TypeError, "one dtype.*float32.*float64"),
        (lambda x: [v.long() for v in x], 2, 3, TypeError, r"levels\[0\] is torch.int64"),
        (lambda x: [x[0], x[1].to("meta")], 2, 3, ValueError, "one device.*cpu.*meta"),
        (lambda x: [x[0], x[1][:1]], 2, 3, ValueError, r"share N and C.*\(2, 3\).*\(1, 3\)"),
        (lambda x: [x[0], x[1][:, :2]], 2, 3, ValueError, r"share N and C.*\(2, 3\).*\(2, 2\)"),
    ],
)
def test_wrong_arguments_are_named(
    max_filter: Filter,
    change: Callable[[list[Tensor]], Any],
    tau: int,
    kernel_size: int,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        max_filter(change(random_pyramid(PYRAMID[:2])), tau, kernel_size)


@compiled_only
@pytest.mark.parametrize(
    ("change", "tau", "kernel_size", "message"),
    [
        (lambda x: x, 3, 3, "tau must be even"),
        (lambda x: x, 2, 2, "kernel_size must be odd"),
        (lambda x: [x[0], x[1][0]], 2, 3, r"levels\[1\] must be \(N, C, H, W\)"),
        (lambda x: [x[0], x[1].double()], 2, 3, "one dtype"),
        (lambda x: [v.long() for v in x], 2, 3, "float32, float64, float16 or bfloat16"),
        (lambda x: [x[0], x[1].to("meta")], 2, 3, "one device"),
        (lambda x: [x[0], x[1][:1]], 2, 3, "share N and C"),
    ],
)
def test_wrong_arguments_of_the_operator_itself(
    change: Callable[[list[Tensor]], list[Tensor]], tau: int, kernel_size: int, message: str
) -> None:
    levels = change(random_pyramid(PYRAMID[:2]))
    with pytest.raises((RuntimeError, ValueError), match=message):
        torch.ops.defcn_d2.max_filter_3d(levels, tau, kernel_size)


@compiled_only
@pytest.mark.parametrize("memory_format", FORMATS)
def test_same_result_with_any_number_of_threads(memory_format: torch.memory_format) -> None:
    levels = random_pyramid(batch=3, channels=40, memory_format=memory_format)
    expected = ops.max_filter_3d(levels)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for _ in range(20):
                assert all(map(torch.equal, ops.max_filter_3d(levels), expected))
    finally:
        torch.set_num_threads(before)


def _rest(case: dict[str, Any]) -> tuple[int, int]:
    return case["tau"], case["kernel_size"]
