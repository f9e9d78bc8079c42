"""Gradients of the 3D max filter, compiled and composed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from literal_max_filter import (
    DEVICES,
    IMPLEMENTATIONS,
    cases,
    literal_max_filter,
    random_pyramid,
)
from torch import Tensor

from defcn_d2 import ops

Filter = Callable[..., list[Tensor]]
FORMATS = [torch.contiguous_format, torch.channels_last]

both = pytest.mark.parametrize("max_filter", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS)
compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")


def gradients(
    max_filter: Filter, levels: list[Tensor], grads: list[Tensor], *arguments: int
) -> list[Tensor]:
    """Gradient of each level for the given gradients of the outputs."""
    leaves = [level.detach().requires_grad_() for level in levels]
    outputs = max_filter(leaves, *arguments)
    return list(torch.autograd.grad(outputs, leaves, grads))


@both
@settings(max_examples=150)
@given(case=cases(dtypes=[torch.float64]))
def test_equals_autograd_of_the_literal_reference(max_filter: Filter, case: dict[str, Any]) -> None:
    levels, arguments = case["levels"], (case["tau"], case["kernel_size"])
    grads = [torch.randn(level.shape, dtype=level.dtype) for level in levels]
    expected = gradients(literal_max_filter, levels, grads, *arguments)
    for computed, target in zip(
        gradients(max_filter, levels, grads, *arguments), expected, strict=True
    ):
        torch.testing.assert_close(computed, target, rtol=0, atol=1e-12)


@both
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_memory_formats(
    max_filter: Filter, dtype: torch.dtype, memory_format: torch.memory_format, device: str
) -> None:
    # few small integers: exact in every dtype, also where they are interpolated
    shapes = [(4, 4), (2, 2)]
    order = (torch.randperm(20) - 10).split([16, 4])
    levels = [
        part.reshape(1, 1, *shape).expand(2, 35, *shape)
        for part, shape in zip(order, shapes, strict=True)
    ]
    grads = [torch.randint(-8, 8, level.shape).double() for level in levels]
    expected = gradients(literal_max_filter, [level.double() for level in levels], grads)
    inputs, outer = (
        [
            tensor.to(device=device, dtype=dtype).contiguous(memory_format=memory_format)
            for tensor in tensors
        ]
        for tensors in (levels, grads)
    )
    for computed, target in zip(gradients(max_filter, inputs, outer), expected, strict=True):
        assert computed.dtype == dtype
        torch.testing.assert_close(computed.double().cpu(), target, rtol=8e-3, atol=8e-3)


@compiled_only
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    levels = random_pyramid(dtype=dtype)
    grads = [torch.randn_like(level) for level in levels]
    exact = gradients(ops.max_filter_3d, [x.float() for x in levels], [x.float() for x in grads])
    for computed, expected in zip(gradients(ops.max_filter_3d, levels, grads), exact, strict=True):
        assert torch.equal(computed, expected.to(dtype))


@both
@pytest.mark.parametrize(("tau", "kernel_size"), [(0, 3), (2, 1), (2, 3), (4, 5)])
def test_gradcheck(max_filter: Filter, tau: int, kernel_size: int) -> None:
    levels = random_pyramid([(5, 6), (3, 3), (2, 1)], 1, 2, dtype=torch.float64)
    levels = [level.requires_grad_() for level in levels]
    assert torch.autograd.gradcheck(lambda *x: tuple(max_filter(x, tau, kernel_size)), levels)


@both
@settings(max_examples=60)
@given(case=cases(dtypes=[torch.float32, torch.float64]))
def test_ties_go_where_the_literal_reference_sends_them(
    max_filter: Filter, case: dict[str, Any]
) -> None:
    # Small integers on maps that are halves of each other: interpolation is exact, ties abound.
    side = 16
    levels = []
    for index, level in enumerate(case["levels"]):
        values = torch.randint(-2, 2, (2, 3, side >> index, side >> index))
        levels.append(values.to(level.dtype))
    arguments = case["tau"], case["kernel_size"]
    grads = [torch.randint(-8, 8, level.shape).to(level.dtype) for level in levels]
    expected = gradients(literal_max_filter, levels, grads, *arguments)
    for computed, target in zip(
        gradients(max_filter, levels, grads, *arguments), expected, strict=True
    ):
        torch.testing.assert_close(computed, target, rtol=0, atol=1e-6)


@both
def test_among_equal_values_the_first_level_row_column_wins(max_filter: Filter) -> None:
    fine = torch.zeros(1, 1, 4, 4)
    coarse = torch.zeros(1, 1, 2, 2)
    grads = [torch.zeros_like(fine), torch.zeros_like(coarse)]
    grads[0][0, 0, 2, 2] = 1.0
    grads[1][0, 0, 1, 1] = 1.0
    for_fine, for_coarse = gradients(max_filter, [fine, coarse], grads)
    expected = torch.zeros(4, 4)
    expected[1, 1] = 1.0  # the window of (2, 2) begins there, at the finer level
    expected[:2, :2] += 0.25  # cell (0, 0) of the coarse map, seen from the finer level
    assert torch.equal(for_fine[0, 0], expected)
    assert not for_coarse.any()
    coarse[0, 0, 1, 1] = 1.0  # larger: the level wins although it comes second
    _, for_coarse = gradients(max_filter, [fine, coarse], grads)
    assert for_coarse[0, 0, 1, 1] > 1.0


@both
def test_window_of_minus_infinity_sends_the_gradient_to_an_existing_cell(
    max_filter: Filter,
) -> None:
    level = torch.full((1, 1, 3, 3), -float("inf"))
    (gradient,) = gradients(max_filter, [level], [torch.ones_like(level)])
    assert gradient[0, 0, :2, :2].sum() == 9 and gradient.sum() == 9


@both
def test_gradient_of_some_levels_and_outputs_alone(max_filter: Filter) -> None:
    levels = random_pyramid(dtype=torch.float64)
    full = [torch.zeros_like(level) for level in levels]
    full[1] = torch.randn_like(levels[1])
    expected = gradients(literal_max_filter, levels, full)
    levels[2].requires_grad_()
    outputs = max_filter(levels)
    (gradient,) = torch.autograd.grad(outputs[1], [levels[2]], full[1])
    torch.testing.assert_close(gradient, expected[2], rtol=0, atol=1e-12)


@compiled_only
@pytest.mark.parametrize("memory_format", FORMATS)
def test_bitwise_the_same_in_every_run_with_any_number_of_threads(
    memory_format: torch.memory_format,
) -> None:
    levels = random_pyramid(batch=3, channels=40, memory_format=memory_format)
    grads = [torch.randn_like(level) for level in levels]
    expected = gradients(ops.max_filter_3d, levels, grads)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            for _ in range(20):
                computed = gradients(ops.max_filter_3d, levels, grads)
                assert all(map(torch.equal, computed, expected))
    finally:
        torch.set_num_threads(before)


@compiled_only
def test_saves_one_byte_an_element_and_nothing_in_inference() -> None:
    levels = random_pyramid()
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        ops.max_filter_3d(levels)
        with torch.no_grad():
            ops.max_filter_3d([level.requires_grad_() for level in levels])
        assert not saved
        ops.max_filter_3d(levels)
    assert sum(tensor.nbytes for tensor in saved) == sum(level.numel() for level in levels)


@compiled_only
@pytest.mark.parametrize(
    ("tau", "kernel_size", "dtype"),
    [(2, 9, torch.uint8), (2, 11, torch.int32), (8, 5, torch.uint8), (8, 7, torch.int32)],
)
def test_codes_are_as_wide_as_the_candidates_need(
    tau: int, kernel_size: int, dtype: torch.dtype
) -> None:
    levels = random_pyramid(dtype=torch.float64)
    outputs, codes = torch.ops.defcn_d2.max_filter_3d_with_codes(levels, tau, kernel_size)
    assert {code.dtype for code in codes} == {dtype}
    grads = [torch.randn_like(level) for level in levels]
    expected = gradients(literal_max_filter, levels, grads, tau, kernel_size)
    computed = torch.ops.defcn_d2.max_filter_3d_backward(grads, codes, tau, kernel_size)
    for pair in zip(computed, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=1e-12)


@compiled_only
def test_gradients_in_other_layouts_and_channels_last_codes() -> None:
    levels = random_pyramid(memory_format=torch.channels_last, dtype=torch.float64)
    grads = [torch.randn(level.shape, dtype=level.dtype).mT.contiguous().mT for level in levels]
    expected = gradients(literal_max_filter, levels, grads)
    for pair in zip(gradients(ops.max_filter_3d, levels, grads), expected, strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=1e-12)


@compiled_only
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_codes_that_nobody_wrote_do_no_harm(dtype: torch.dtype) -> None:
    kernel_size = 3 if dtype == torch.uint8 else 11
    levels = random_pyramid()
    codes = [torch.randint(0, 256, level.shape).to(dtype) for level in levels]
    if dtype == torch.int32:
        codes[0] -= 100
        codes[1] += 2**30
    computed = torch.ops.defcn_d2.max_filter_3d_backward(levels, codes, 2, kernel_size)
    assert all(gradient.isfinite().all() for gradient in computed)


@compiled_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, c: (g[:-1], c), "got 4 gradients for 5 levels of codes"),
        (lambda g, c: (g, [c[1], *c[1:]]), r"grads\[0\] and codes\[0\] must have one shape"),
        (lambda g, c: (g, [x.int() for x in c]), r"codes\[0\] does not come from this tau"),
    ],
)
def test_codes_that_do_not_fit_are_refused(change: Callable[..., Any], message: str) -> None:
    levels = random_pyramid()
    _, codes = torch.ops.defcn_d2.max_filter_3d_with_codes(levels, 2, 3)
    grads, codes = change(levels, codes)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.defcn_d2.max_filter_3d_backward(grads, codes, 2, 3)


@compiled_only
def test_second_derivative_is_refused() -> None:
    levels = [level.requires_grad_() for level in random_pyramid(dtype=torch.float64)]
    total = torch.stack([output.square().sum() for output in ops.max_filter_3d(levels)]).sum()
    first = torch.autograd.grad(total, levels, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative for .*max_filter_3d_backward is not impl"):
        torch.autograd.grad(first[0].sum(), levels)
