"""Behaviour without the compiled operator and with it on other processors; what is reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from literal_max_filter import literal_max_filter, random_pyramid
from literal_overlap import random_grids

from defcn_d2 import ops
from defcn_d2.ops import library, registration

compiled_only = pytest.mark.skipif(not ops.is_compiled("cpu"), reason="needs the compiled operator")
ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, **environment: str) -> str:
    """Output of a fresh interpreter."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("DEFCN_D2")}
    variables |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-W", "always", "-c", code]
    result = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_switched_off_it_composes_without_a_warning() -> None:
    code = (
        "import torch, defcn_d2.ops as ops\n"
        "ops.max_filter_3d([torch.rand(1, 1, 4, 4)])\n"
        "print(ops.is_compiled('cpu'), ops.report())"
    )
    output = run_python(code, DEFCN_D2_OPS="off")
    assert "False operators: CPU composed (DEFCN_D2_OPS=off)" in output
    assert "composition of PyTorch operators" not in output


def test_transforms_of_torch_func_take_the_composition() -> None:
    levels = [torch.rand(3, 2, 4, 8, 6), torch.rand(3, 2, 4, 4, 3)]

    def loss(*levels: torch.Tensor) -> torch.Tensor:
        return sum(y.square().sum() for y in ops.max_filter_3d(levels))

    mapped = torch.vmap(lambda *x: tuple(ops.max_filter_3d(x)))(*levels)
    gradients = torch.vmap(torch.func.grad(loss, (0, 1)))(*levels)
    for index in range(3):
        own = [level[index].clone().requires_grad_() for level in levels]
        for ours, theirs in zip(mapped, ops.max_filter_3d(own), strict=True):
            torch.testing.assert_close(ours[index], theirs)
        wanted = torch.autograd.grad(loss(*own), own)
        for ours, theirs in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(ours[index], theirs)


def test_unknown_switch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFCN_D2_OPS", "maybe")
    with pytest.raises(ValueError, match="DEFCN_D2_OPS must be 'on' or 'off', got 'maybe'"):
        library.load()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library looks for its files in an empty folder; nothing is registered twice."""
    monkeypatch.delenv("DEFCN_D2_OPS", raising=False)
    monkeypatch.setattr(library, "PACKAGE", tmp_path)
    monkeypatch.setattr(library, "BUILD_RECORD", tmp_path / "_build.json")
    monkeypatch.setattr(registration, "register_composition", lambda: None)
    return tmp_path


def _warning_of(loaded: library.Library, monkeypatch: pytest.MonkeyPatch) -> str:
    """The text of the one warning that two calls give, after both gave the right result."""
    monkeypatch.setattr(ops, "_library", loaded)
    levels = random_pyramid()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            outputs = ops.max_filter_3d(levels)
    for pair in zip(outputs, literal_max_filter(levels), strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
    (warning,) = caught
    assert warning.filename == __file__
    return str(warning.message)


def test_never_built(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = _warning_of(library.load(), monkeypatch)
    assert "several times slower" in message and "it was not built" in message


def test_overlapping_neighbours_are_composed_with_the_same_warning(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_grids()
    expected = ops.overlap_with_better(**case)
    monkeypatch.setattr(ops, "_library", library.load())
    with pytest.warns(UserWarning, match="overlapping neighbours run as compositions"):
        assert torch.equal(ops.overlap_with_better(**case), expected)


def test_within_a_compiled_program_nothing_is_told(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """A warning would break the graph; the call that compiles it has warned."""
    monkeypatch.setattr(ops, "_library", library.load())
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    levels = random_pyramid()
    for pair in zip(ops.max_filter_3d(levels), literal_max_filter(levels), strict=True):
        torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
    assert not recwarn.list


def test_build_failed(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"torch": "2.10.0", "errors": {"cpu": "no C++ compiler was found"}}
    (elsewhere / "_build.json").write_text(json.dumps(record))
    message = _warning_of(library.load(), monkeypatch)
    assert "its build failed: no C++ compiler was found" in message


def test_does_not_load(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "_C.abi3.so").write_bytes(b"not a library")
    (elsewhere / "_build.json").write_text("{ broken")
    message = _warning_of(library.load(), monkeypatch)
    assert "_C.abi3.so does not load" in message


def test_cuda_build_failed_but_the_cpu_part_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFCN_D2_OPS", raising=False)
    loaded = library.Library({"cuda": "its build failed: nvcc is too old"}, {"torch": "2.10"})
    assert loaded.supports("cpu") and not loaded.supports("cuda")
    assert not loaded.supports("mps")
    with pytest.warns(UserWarning, match="no kernel for 'mps' devices"):
        loaded.warn_once("mps")
    with pytest.warns(UserWarning, match="nvcc is too old"):
        loaded.warn_once("cuda")


def test_built_for_another_cuda_than_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    reason = library._why_no_cuda({"nvcc": "13.0"})
    assert reason == "it was built with CUDA 13.0, this PyTorch has 12.8"
    assert library._why_no_cuda({"nvcc": "12.6"}) is None
    assert library._why_no_cuda({}) is None
    monkeypatch.setattr(torch.version, "cuda", None)
    assert library._why_no_cuda({}) == "this PyTorch is built without CUDA"


@compiled_only
def test_report_of_a_compiled_library() -> None:
    built = library.Library({}, {"torch": "2.15", "cxx": "gcc 12", "cuda_archs": "9.0"})
    assert built.report().startswith("CPU compiled (")
    assert built.report().endswith("CUDA compiled (9.0); built with torch 2.15, cxx gcc 12")


@compiled_only
def test_every_instruction_set_gives_the_same_bits() -> None:
    compiled = next(iter(library.PACKAGE.glob("_C.*")))
    code = f"""
import hashlib, torch
torch.ops.load_library({str(compiled)!r})
run, digest = torch.ops.defcn_d2, hashlib.sha256()
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        levels = [torch.randn(2, 37, s, s + 3, dtype=torch.float64) for s in (33, 16, 8, 3, 1)]
        levels = [x.to(dtype).contiguous(memory_format=memory_format) for x in levels]
        outputs, codes = run.max_filter_3d_with_codes(levels, 2, 3)
        results = [*run.max_filter_3d(levels, 2, 3), *outputs, *codes]
        results += run.max_filter_3d_backward(levels, codes, 2, 3)
        for classes in (1, 21):
            logits = torch.randn(2, 75, classes).to(dtype)
            boxes = torch.randint(0, 9, (2, 75, 4)).sort().values.to(dtype)
            results.append(run.overlap_with_better(logits, boxes, [6, 3], [10, 5], 2))
        for result in results:
            digest.update(result.contiguous().view(torch.uint8).numpy().tobytes())
print(run.cpu_capability(), digest.hexdigest())
"""
    names, digests = set(), set()
    for name in ("baseline", "avx2", "avx512"):
        name, digest = run_python(code, DEFCN_D2_OPS_SIMD=name).split()[:2]
        names.add(name)
        digests.add(digest)
    assert "baseline" in names and len(digests) == 1
