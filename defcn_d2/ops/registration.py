"""The Python part of the compiled operators: fake tensors and autograd.

===========================  ==========================================================
``max_filter_3d``            ``(Tensor[] levels, int tau, int kernel_size) -> Tensor[]``
``max_filter_3d_with_codes`` the same, and the winner of every output: ``(Tensor[], Tensor[])``
``max_filter_3d_backward``   ``(Tensor[] grads, Tensor[] codes, int tau, int kernel_size)``
``overlap_with_better``      ``(Tensor logits, Tensor boxes, SymInt[] heights, SymInt[] widths,
                             int tau) -> Tensor``
===========================  ==========================================================

``max_filter_3d`` runs the second one where a gradient will be asked for, and only there: inference
computes and keeps no codes. ``overlap_with_better`` has no gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..utils.detectron2_compat import redispatched_below_autograd
from .arguments import check_arguments, check_overlap_arguments
from .peaks import overlap_with_better_reference
from .reference import max_filter_3d_reference

NAMESPACE = "defcn_d2"


def register_composition() -> torch.library.Library:
    """Define the operators without the library, so that exported programs load everywhere."""
    library = torch.library.Library(NAMESPACE, "DEF")
    library.define("max_filter_3d(Tensor[] levels, int tau, int kernel_size) -> Tensor[]")
    library.impl("max_filter_3d", max_filter_3d_reference, "CompositeImplicitAutograd")
    library.define(
        "overlap_with_better(Tensor logits, Tensor boxes, SymInt[] heights, SymInt[] widths, "
        "int tau) -> Tensor"
    )
    library.impl("overlap_with_better", _composed_overlap, "CompositeImplicitAutograd")
    return library


def register() -> torch.library.Library:
    """Register fake and autograd implementations; the library must have been loaded.

    Returns:
        The handle that keeps the registration alive.
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name, fake in (
        ("max_filter_3d", _fake_forward),
        ("max_filter_3d_with_codes", _fake_forward_with_codes),
        ("max_filter_3d_backward", _fake_backward),
        ("overlap_with_better", _fake_overlap),
    ):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    torch.library.register_autograd(
        f"{NAMESPACE}::max_filter_3d_with_codes",
        _backward,
        setup_context=_setup_context,
        lib=library,
    )
    torch.library.register_autograd(
        f"{NAMESPACE}::max_filter_3d_backward", _double_backward, lib=library
    )
    library.impl("max_filter_3d", _autograd_forward, "Autograd", with_keyset=True)
    return library


def _composed_overlap(
    logits: Tensor,
    boxes: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    tau: int,
) -> Tensor:
    shapes = list(zip(heights, widths, strict=True))
    return overlap_with_better_reference(logits, boxes, shapes, tau)


# ---- memory formats, as csrc/pyramid.h decides them ----------------------------------------------


def _fits_channels_last(tensor: Tensor) -> bool:
    return tensor.numel() == 0 or tensor.is_contiguous(memory_format=torch.channels_last)


def _is_channels_last(tensor: Tensor) -> bool:
    return _fits_channels_last(tensor) and not tensor.is_contiguous()


def _common_format(tensors: Sequence[Tensor]) -> torch.memory_format:
    if any(map(_is_channels_last, tensors)) and all(map(_fits_channels_last, tensors)):
        return torch.channels_last
    return torch.contiguous_format


def _output_formats(levels: Sequence[Tensor]) -> list[torch.memory_format]:
    common = _common_format(levels)
    return [torch.channels_last if _is_channels_last(level) else common for level in levels]


# ---- fake tensors --------------------------------------------------------------------------------


def _fake_forward(levels: Sequence[Tensor], tau: int, kernel_size: int) -> list[Tensor]:
    check_arguments(levels, tau, kernel_size)
    return [
        torch.empty_like(level, memory_format=memory_format)
        for level, memory_format in zip(levels, _output_formats(levels), strict=True)
    ]


def _fake_forward_with_codes(
    levels: Sequence[Tensor], tau: int, kernel_size: int
) -> tuple[list[Tensor], list[Tensor]]:
    outputs = _fake_forward(levels, tau, kernel_size)
    dtype = _code_dtype(levels, tau, kernel_size)
    memory_format = _common_format(levels)
    codes = [torch.empty_like(x, dtype=dtype, memory_format=memory_format) for x in levels]
    return outputs, codes


def _code_dtype(levels: Sequence[Tensor], tau: int, kernel_size: int) -> torch.dtype:
    # With common settings a byte is enough whatever the sizes: do not look at symbolic ones then.
    slots = 2 * min(tau // 2, len(levels) - 1) + 1
    if slots * kernel_size**2 <= 256:
        return torch.uint8
    longest = max(1, *(size for level in levels for size in level.shape[2:]))
    return torch.uint8 if slots * min(kernel_size, 2 * longest - 1) ** 2 <= 256 else torch.int32


def _fake_backward(
    grads: Sequence[Tensor], codes: Sequence[Tensor], tau: int, kernel_size: int
) -> list[Tensor]:
    memory_format = _common_format(codes)
    return [torch.empty_like(grad, memory_format=memory_format) for grad in grads]


def _fake_overlap(
    logits: Tensor,
    boxes: Tensor,
    heights: Sequence[int],
    widths: Sequence[int],
    tau: int,
) -> Tensor:
    shapes = list(zip(heights, widths, strict=True))
    check_overlap_arguments(logits, boxes, shapes, tau)
    return logits.new_empty(logits.shape)


# ---- autograd ------------------------------------------------------------------------------------


def _autograd_forward(
    keyset: Any, levels: Sequence[Tensor], tau: int, kernel_size: int
) -> list[Tensor]:
    operators = torch.ops.defcn_d2
    if torch.is_grad_enabled() and any(level.requires_grad for level in levels):
        outputs, _ = operators.max_filter_3d_with_codes(levels, tau, kernel_size)
        return outputs
    operator = operators.max_filter_3d.default
    return redispatched_below_autograd(operator, keyset, levels, tau, kernel_size)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    levels, ctx.tau, ctx.kernel_size = inputs
    ctx.dtype = levels[0].dtype
    ctx.save_for_backward(*output[1])
    ctx.set_materialize_grads(False)  # it would make zeros for the codes as well


def _backward(
    ctx: Any, grads: Sequence[Tensor | None], _: Sequence[None]
) -> tuple[list[Tensor], None, None]:
    codes = ctx.saved_tensors
    given = [
        torch.zeros_like(code, dtype=ctx.dtype) if grad is None else grad
        for grad, code in zip(grads, codes, strict=True)
    ]
    grad_levels = torch.ops.defcn_d2.max_filter_3d_backward(given, codes, ctx.tau, ctx.kernel_size)
    return grad_levels, None, None


def _double_backward(ctx: Any, *grads: Any) -> None:
    raise RuntimeError(f"derivative for {NAMESPACE}::max_filter_3d_backward is not implemented")
