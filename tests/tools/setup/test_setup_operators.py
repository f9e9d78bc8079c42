"""setup.py: what is built where, and that a part that fails leaves the others standing."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
COMPILER = shutil.which("c++")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module; it changes environment variables of its own process."""
    for name in ("FORCE_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")  # so that they are restored
        monkeypatch.delenv(name)
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _toolkit(folder: Path, version: str = "13.0", header: bool = True) -> Path:
    """A CUDA toolkit whose compiler knows its version and fails at everything else."""
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    if header:
        (folder / "include" / "cuda_runtime.h").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}" '
        "&& exit 0\nexit 1\n"
    )
    nvcc.chmod(0o755)
    return folder


def test_toolkit_is_found_past_a_wrapper(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = _toolkit(tmp_path / "wrapper", header=False)
    real = _toolkit(tmp_path / "real", "12.6")
    monkeypatch.setenv("PATH", str(wrapper / "bin"), prepend=":")
    monkeypatch.setenv("CUDA_PATH", str(real))
    assert script.find_cuda_home() == str(real)
    assert script.nvcc_version(str(real)) == (12, 6)


@pytest.mark.parametrize(
    ("version", "archs"),
    [
        ((12, 6), "7.0;7.5;8.0;8.6;9.0+PTX"),
        ((12, 8), "7.0;7.5;8.0;8.6;9.0;10.0;12.0+PTX"),
        ((13, 0), "7.5;8.0;8.6;9.0;10.0;12.0+PTX"),
    ],
)
def test_default_architectures(script: ModuleType, version: tuple[int, int], archs: str) -> None:
    assert script.default_archs(version) == archs


def test_cuda_is_left_out_where_it_cannot_be_built(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "find_cuda_home", lambda: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert script.cuda_extension(torch) is None
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but there is no nvcc"):
        script.cuda_extension(torch)
    monkeypatch.setenv("FORCE_CUDA", "0")
    monkeypatch.setattr(script, "find_cuda_home", lambda: str(tmp_path))
    assert script.cuda_extension(torch) is None


def test_without_pytorch_nothing_is_built(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "import_torch", lambda: None)
    assert script.build_arguments() == {}
    assert "installing without compiled operators" in capsys.readouterr().err


def test_old_pytorch_gets_no_operators(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = ModuleType("torch")
    old.__version__ = "2.9.1+cpu"  # type: ignore[attr-defined]
    monkeypatch.setattr(script, "import_torch", lambda: old)
    assert script.build_arguments() == {}
    assert "PyTorch 2.9.1+cpu is older than 2.10" in capsys.readouterr().err


_BUILD = f"""
import importlib.util, json, sys
import setuptools, torch
from torch.utils.cpp_extension import CppExtension, CUDAExtension
spec = importlib.util.spec_from_file_location("setup_script", {str(ROOT / "setup.py")!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
setuptools.setup(
    name="defcn_d2_build_test",
    packages=[],
    ext_modules=[
        CppExtension("defcn_d2._C", ["cpu.cpp"], py_limited_api=True),
        CUDAExtension("defcn_d2._C_cuda", ["gpu.cu"], py_limited_api=True),
    ],
    cmdclass={{"build_ext": script.make_build_ext(torch)}},
    script_args=["-q", "build_ext", "--build-lib", "lib", "--build-temp", "temp"],
)
"""


def _build(folder: Path, cpu_source: str, toolkit: Path, **environment: str) -> dict[str, Any]:
    """Build an operator of the given source and a CUDA one; returns the record.

    In a process of its own, as pip builds: importing pip, which another test may do, takes
    setuptools' distutils away from the process.
    """
    (folder / "cpu.cpp").write_text(cpu_source)
    (folder / "gpu.cu").write_text("int unused;")
    kept = {key: value for key, value in os.environ.items() if key != "FORCE_CUDA"}
    kept |= {"CUDA_HOME": str(toolkit), "TORCH_CUDA_ARCH_LIST": "9.0", **environment}
    done = subprocess.run(
        [sys.executable, "-c", _BUILD], cwd=folder, env=kept, text=True, capture_output=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads((folder / "lib" / "defcn_d2" / "ops" / "_build.json").read_text())


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
@pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch is built without CUDA")
@pytest.mark.parametrize(("version", "why"), [("", "Error compiling"), ("9.0", "mismatches")])
def test_failed_cuda_build_leaves_the_cpu_part(tmp_path: Path, version: str, why: str) -> None:
    toolkit = _toolkit(tmp_path / "cuda", version or str(torch.version.cuda))
    source = "int answer() { return 42; }"
    record = _build(tmp_path, source, toolkit)
    assert list(record["errors"]) == ["cuda"] and why in record["errors"]["cuda"]
    assert "cxx" in record and "nvcc" not in record
    assert [path.name for path in (tmp_path / "lib" / "defcn_d2").glob("*.so")] == ["_C.abi3.so"]
    with pytest.raises(RuntimeError, match=why):
        _build(tmp_path, source, toolkit, FORCE_CUDA="1")


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_failed_cpu_build_is_recorded(tmp_path: Path) -> None:
    toolkit = _toolkit(tmp_path / "cuda", str(torch.version.cuda or "13.0"))
    errors = _build(tmp_path, "this is no C++", toolkit)["errors"]
    assert errors["cpu"].startswith("Error compiling objects")
    assert not list((tmp_path / "lib" / "defcn_d2").glob("*.so"))


def test_no_compiler(tmp_path: Path) -> None:
    record = _build(tmp_path, "", _toolkit(tmp_path / "cuda"), PATH=str(tmp_path))
    assert record["errors"] == dict.fromkeys(("cpu", "cuda"), "no C++ compiler was found")
