"""The CUDA kernels' arithmetic, run on the CPU by ``cuda_emulation.cpp`` against the CPU operator.

The kernels need a GPU; what they compute does not. The same sources are compiled by the host's
compiler and run one thread after the other, forwards and backwards.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from literal_overlap import LAYOUTS, laid_out, random_grids
from torch import Tensor

from defcn_d2 import ops

SOURCE = Path(__file__).parents[1] / "support" / "cuda_emulation.cpp"
COMPILER = shutil.which("c++") or shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler"),
    pytest.mark.skipif(
        not ops.is_compiled("cpu"), reason="compared with the compiled CPU operator"
    ),
]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("emulation") / "emulation.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-Wno-unknown-pragmas"]
    assert COMPILER is not None
    subprocess.run([COMPILER, *flags, str(SOURCE), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def _pointers(tensors: list[Tensor] | None) -> ctypes.Array | None:
    if tensors is None:
        return None
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _emulate(
    library: ctypes.CDLL,
    sources: list[Tensor],
    codes: list[Tensor] | None,
    tau: int,
    kernel_size: int,
    *,
    backward: bool = False,
    reverse: bool = False,
) -> tuple[list[Tensor], int]:
    batch, channels = sources[0].shape[:2]
    sizes = list(itertools.chain.from_iterable(source.shape[2:] for source in sources))
    lanes = 1 if all(source.is_contiguous() for source in sources) else 32
    targets = [torch.full_like(source, float("nan")) for source in sources]
    wide = codes is not None and codes[0].dtype == torch.int32
    launches = library.defcn_d2_emulate(
        len(sources),
        _pointers(sources),
        _pointers(targets),
        _pointers(codes),
        (ctypes.c_int64 * len(sizes))(*sizes),
        ctypes.c_int64(batch),
        ctypes.c_int64(channels),
        min(tau // 2, len(sources) - 1),
        min(kernel_size, 2 * max(sizes) - 1),
        int(wide),
        lanes,
        int(sources[0].dtype == torch.float64),
        int(backward),
        int(reverse),
    )
    return targets, launches


CASES = {
    "pyramid": ([(37, 45), (19, 23), (10, 12), (5, 6)], 2, 3),
    "odd sizes, far levels": ([(35, 66), (9, 40), (21, 7)], 4, 5),
    "steep": ([(70, 3), (2, 90), (1, 1)], 4, 3),
    "own level alone": ([(18, 33), (9, 16)], 0, 3),
    "no window": ([(18, 33), (9, 16)], 2, 1),
    "wide codes": ([(20, 20), (10, 10)], 2, 11),
    "empty level": ([(17, 20), (0, 5), (4, 5)], 2, 3),
    "many levels": ([(1 + i % 5, 1 + i % 3) for i in range(70)], 6, 3),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_emulated_kernels_equal_the_cpu_operator(
    emulator: ctypes.CDLL, name: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    shapes, tau, kernel_size = CASES[name]
    channels = 35 if name == "steep" else 3  # more than a channels_last tile holds
    generator = torch.Generator().manual_seed(0)
    levels = [
        # few values: ties must fall the same way
        torch.randint(-6, 6, (2, channels, *shape), generator=generator)
        .to(dtype)
        .contiguous(memory_format=memory_format)
        for shape in shapes
    ]
    levels[0][0, 0, 0, 0] = float("nan")
    grads = [torch.randn_like(level) for level in levels]
    operators = torch.ops.defcn_d2
    outputs, codes = operators.max_filter_3d_with_codes(levels, tau, kernel_size)
    grad_levels = operators.max_filter_3d_backward(grads, codes, tau, kernel_size)
    for reverse in (False, True):
        inferred, launches = _emulate(emulator, levels, None, tau, kernel_size, reverse=reverse)
        assert (launches > 1) == (name == "many levels")
        emulated_codes = [torch.full_like(code, -1) for code in codes]
        trained, _ = _emulate(emulator, levels, emulated_codes, tau, kernel_size, reverse=reverse)
        backward, _ = _emulate(
            emulator, grads, codes, tau, kernel_size, backward=True, reverse=reverse
        )
        for index in range(len(levels)):
            for emulated in (inferred[index], trained[index]):
                torch.testing.assert_close(emulated, outputs[index], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(emulated_codes[index], codes[index])
            tolerance = 1e-5 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(
                backward[index], grad_levels[index], rtol=tolerance, atol=tolerance
            )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0, 2])
def test_emulated_overlaps_equal_the_cpu_operator(
    emulator: ctypes.CDLL, tau: int, dtype: torch.dtype, layout: str
) -> None:
    for box_dtype in (torch.float32, torch.float64):
        case = random_grids((11, 18), 4, classes=5, dtype=dtype, box_dtype=box_dtype) | {"tau": tau}
        case["logits"][0, 3], case["boxes"][0, 5, 2] = float("nan"), float("nan")
        logits, boxes = (laid_out(case[name], layout) for name in ("logits", "boxes"))
        sizes = list(itertools.chain.from_iterable(case["level_shapes"]))
        strides = [*logits.stride(), *boxes.stride()]
        for reverse in (False, True):
            overlap = torch.full(logits.shape, float("nan"), dtype=dtype)
            emulator.defcn_d2_emulate_overlap(
                len(case["level_shapes"]),
                (ctypes.c_int64 * len(sizes))(*sizes),
                *(ctypes.c_void_p(x.data_ptr()) for x in (logits, boxes, overlap)),
                (ctypes.c_int64 * len(strides))(*strides),
                ctypes.c_int64(len(logits)),
                ctypes.c_int64(logits.shape[2]),
                tau // 2,
                *(int(x == torch.float64) for x in (dtype, box_dtype)),
                int(reverse),
            )
            assert torch.equal(overlap, ops.overlap_with_better(**case))
