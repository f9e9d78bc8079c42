"""The 3D max filter as method.md's section 3 states it, and pyramids to try it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2.ops import is_compiled, max_filter_3d, max_filter_3d_reference

# What the model calls (compiled, unless DEFCN_D2_OPS=off or it was not built) and the composition.
IMPLEMENTATIONS = {"max_filter_3d": max_filter_3d, "reference": max_filter_3d_reference}
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() and is_compiled("cuda") else [])

PYRAMID = [(24, 20), (12, 10), (6, 5), (3, 3), (2, 2)]


def literal_max_filter(
    levels: Sequence[Tensor], tau: int = 2, kernel_size: int = 3
) -> list[Tensor]:
    """Resize, stack, MaxPool3d with the kernel (tau + 1, k, k), own slice; as slow as it reads."""
    outputs = []
    for own, level in enumerate(levels):
        if level.numel() == 0:
            outputs.append(level)
            continue
        slices: list[Tensor] = []
        own_slice = 0
        for k in range(own - tau // 2, own + tau // 2 + 1):
            if not 0 <= k < len(levels) or 0 in levels[k].shape[2:]:
                continue
            if k == own:
                own_slice = len(slices)
                slices.append(level)
            else:
                slices.append(
                    F.interpolate(levels[k], level.shape[2:], mode="bilinear", align_corners=False)
                )
        window = (tau + 1, kernel_size, kernel_size)
        padding = (tau // 2, kernel_size // 2, kernel_size // 2)
        pooled = F.max_pool3d(torch.stack(slices, dim=2), window, stride=1, padding=padding)
        outputs.append(pooled[:, :, own_slice])
    return outputs


def random_pyramid(
    shapes: Sequence[tuple[int, int]] = PYRAMID,
    batch: int = 2,
    channels: int = 3,
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    device: str = "cpu",
    seed: int = 0,
) -> list[Tensor]:
    """Normally distributed levels."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, *shape, generator=generator, dtype=torch.float64)
        .to(device=device, dtype=dtype)
        .contiguous(memory_format=memory_format)
        for shape in shapes
    ]


def _laid_out(level: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return level.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":  # strides of neither format
        return level.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "sliced":
        return F.pad(level, (1, 2, 1, 0))[:, :, 1:, 1 : level.shape[3] + 1]
    return level.contiguous()


@st.composite
def cases(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = (torch.float32,)) -> dict[str, Any]:
    """Keyword arguments ``levels``, ``tau``, ``kernel_size``: shapes, layouts and dtype vary."""
    sides = st.integers(0, 13)
    shapes = draw(st.lists(st.tuples(sides, sides), min_size=1, max_size=5))
    if draw(st.booleans()):  # halves, as a backbone gives them
        side = draw(st.integers(1, 40))
        shapes = [(max(side >> i, 1), max((side + 3) >> i, 1)) for i in range(len(shapes))]
    channels = draw(st.sampled_from([0, 1, 3, 33]))
    dtype = draw(st.sampled_from(list(dtypes)))
    seed = draw(st.integers(0, 2**16))
    levels = random_pyramid(shapes, draw(st.integers(0, 2)), channels, dtype=dtype, seed=seed)
    layouts = st.sampled_from(["contiguous", "channels_last", "transposed", "sliced"])
    one = draw(layouts)
    mixed = draw(st.booleans())
    levels = [_laid_out(level, draw(layouts) if mixed else one) for level in levels]
    return {
        "levels": levels,
        "tau": draw(st.sampled_from([0, 2, 4, 10])),
        "kernel_size": draw(st.sampled_from([1, 3, 5, 7, 15])),
    }
