"""Builds the compiled operators; everything else about the package is in pyproject.toml.

The CPU part is built wherever there are a C++ compiler and PyTorch >= 2.10, the CUDA part where
that PyTorch is a CUDA build and nvcc is found. What cannot be built is left out: the package works
without (defcn_d2/ops/library.py) and says what failed. A wheel holds configs/, too.

Environment: BUILD_OPS=0 compiles nothing, for a wheel of pure Python; FORCE_CUDA=1 makes a missing
CUDA part an error, FORCE_CUDA=0 leaves it out; TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS, CFLAGS,
LDFLAGS as in any PyTorch extension.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = Path("defcn_d2/csrc")
MIN_TORCH = (2, 10)  # first stable ABI (torch/csrc/stable) with all that the sources use
STABLE_ABI = [f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"]
# Fused multiply-adds would make results depend on the instruction set; the loops vectorise only
# where a comparison may be computed without being asked for.
CXX_FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off"]
CXX_FLAGS += ["-fno-trapping-math", "-fno-math-errno"]
NVCC_FLAGS = ["-O3", "-std=c++17", "-fmad=false", "--expt-relaxed-constexpr", "-DUSE_CUDA"]
WINDOWS_FLAGS = ["/O2", "/std:c++17", "/fp:precise"]


class BuildWithConfigs(build_py):
    """Copies configs/ into the package; an editable install uses the checkout's own."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "defcn_d2" / "configs"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        shutil.copytree(ROOT / "configs", target, ignore=_all_but_yaml)


def _all_but_yaml(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if not n.endswith(".yaml") and not (Path(folder) / n).is_dir()]


def import_torch() -> Any:
    """PyTorch, or None. pip builds in an environment of its own: borrow the one pip installs to."""
    try:
        import torch
    except ImportError:
        find = "import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        found = subprocess.run(
            [sys.executable, "-I", "-c", find], env=environment, capture_output=True, text=True
        )
        if found.returncode:
            return None
        sys.path.append(found.stdout.strip().splitlines()[-1])
        try:
            import torch
        except ImportError:
            return None
    return torch


def find_cuda_home() -> str | None:
    """The CUDA toolkit, with headers: an nvcc on the PATH may be a wrapper far from its toolkit."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates += [str(Path(nvcc).resolve().parent.parent) if nvcc else None, "/usr/local/cuda"]
    for home in filter(None, candidates):
        if shutil.which("nvcc", path=str(Path(home) / "bin")) and any(
            (Path(home) / folder / "cuda_runtime.h").exists()
            for folder in ("include", "targets/x86_64-linux/include")
        ):
            return home
    return None


def nvcc_version(cuda_home: str) -> tuple[int, int]:
    """(major, minor) of the toolkit."""
    nvcc = str(Path(cuda_home) / "bin" / "nvcc")
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    major, minor = text.split("release ")[1].split(",")[0].split(".")[:2]
    return int(major), int(minor)


def default_archs(version: tuple[int, int]) -> str:
    """Architectures that this nvcc knows and current PyTorch supports; PTX for later ones."""
    archs = ["7.5", "8.0", "8.6", "9.0"]
    if version < (13, 0):
        archs.insert(0, "7.0")
    if version >= (12, 8):
        archs += ["10.0", "12.0"]
    return ";".join(archs) + "+PTX"


def reason_of(error: BaseException) -> str:
    """The part of an error that a person needs to see."""
    text = str(error)
    if len(error.args) > 1 and isinstance(error.args[0], str):  # PyTorch forgets to format some
        text = error.args[0] % error.args[1:]
    if text.startswith("Error compiling"):
        text += " (pip install -v shows what the compiler said)"
    return first_line(text) or type(error).__name__


def first_line(text: str) -> str:
    """The first line that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def make_build_ext(torch: Any) -> type:
    """The command that builds what can be built and records how."""
    from torch.utils.cpp_extension import BuildExtension

    class BuildOperators(BuildExtension):  # type: ignore[misc]
        def finalize_options(self) -> None:
            super().finalize_options()
            if self.inplace or getattr(self, "editable_mode", False):
                # a fixed folder, so that a second build compiles only what changed
                name = f"temp.{sysconfig.get_platform()}-torch{torch.__version__}"
                self.build_temp = str(ROOT / "build" / name)

        def run(self) -> None:
            self.errors: dict[str, str] = {}
            super().run()
            self._write_record()

        def build_extensions(self) -> None:
            if shutil.which(self.compiler.compiler_so[0] if os.name != "nt" else "cl") is None:
                self.errors = dict.fromkeys(("cpu", "cuda"), "no C++ compiler was found")
                self.extensions.clear()
                return
            try:
                super().build_extensions()
            except Exception as error:  # before any compilation: nvcc does not fit this PyTorch
                if len(self.extensions) < 2:
                    raise
                self._failed(self.extensions.pop(), error)
                super().build_extensions()
            for ext in [e for e in self.extensions if key_of(e) in self.errors]:
                self.extensions.remove(ext)

        def build_extension(self, ext: Extension) -> None:
            try:
                if "cpu" in self.errors:
                    raise RuntimeError("it needs the CPU part, which was not built")
                super().build_extension(ext)
            except Exception as error:
                self._failed(ext, error)

        def _failed(self, ext: Extension, error: BaseException) -> None:
            self.errors[key_of(ext)] = reason_of(error)
            if key_of(ext) == "cuda" and os.environ.get("FORCE_CUDA") == "1":
                raise error
            notice(f"{ext.name} was not built, the package works without it: {reason_of(error)}")

        def _write_record(self) -> None:
            in_place = self.inplace or getattr(self, "editable_mode", False)
            folder = ROOT if in_place else Path(self.build_lib)
            target = folder / "defcn_d2" / "ops" / "_build.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            record = {"torch": torch.__version__, **compiler_record(self), "errors": self.errors}
            target.write_text(json.dumps(record, indent=1) + "\n")

    return BuildOperators


def key_of(ext: Extension) -> str:
    """ "cpu" or "cuda"."""
    return "cuda" if ext.name.endswith("_cuda") else "cpu"


def compiler_record(command: Any) -> dict[str, str]:
    """Names and versions of the compilers, for the environment report."""
    record = {}
    if "cpu" not in command.errors and os.name != "nt":
        cxx = command.compiler.compiler_so[0]
        text = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
        record["cxx"] = first_line(text)
    if any(key_of(ext) == "cuda" for ext in command.extensions):
        record["nvcc"] = ".".join(map(str, nvcc_version(os.environ["CUDA_HOME"])))
        record["cuda_archs"] = os.environ["TORCH_CUDA_ARCH_LIST"]
    return record


def cpu_extension() -> Extension:
    """``defcn_d2._C``: schemas and CPU kernels."""
    from torch.utils.cpp_extension import CppExtension

    return CppExtension(
        "defcn_d2._C",
        sources(".", "*.cpp") + sources("cpu", "*.cpp"),
        extra_compile_args=(WINDOWS_FLAGS if os.name == "nt" else CXX_FLAGS) + STABLE_ABI,
        py_limited_api=True,
    )


def cuda_extension(torch: Any) -> Extension | None:
    """``defcn_d2._C_cuda``: CUDA kernels, or None where they are not wanted or not possible."""
    forced = os.environ.get("FORCE_CUDA", "")
    cuda_home = find_cuda_home()
    if forced == "0" or (torch.version.cuda is None and forced != "1"):
        return None
    if cuda_home is None or torch.version.cuda is None:
        if forced == "1":
            sys.exit("FORCE_CUDA=1, but there is no nvcc or this PyTorch is built without CUDA")
        notice("no CUDA toolkit found (nvcc): building the CPU operators alone")
        return None
    os.environ["CUDA_HOME"] = cuda_home  # read when torch.utils.cpp_extension is imported
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_archs(nvcc_version(cuda_home)))
    from torch.utils.cpp_extension import CUDAExtension

    return CUDAExtension(
        "defcn_d2._C_cuda",
        sources("cuda", "*.cu"),
        extra_compile_args={"cxx": STABLE_ABI, "nvcc": NVCC_FLAGS + STABLE_ABI},
        py_limited_api=True,
    )


def sources(folder: str, pattern: str) -> list[str]:
    """Files of a folder of the sources, relative to this one."""
    found = sorted((ROOT / SOURCES / folder).glob(pattern))
    return [str(path.relative_to(ROOT)) for path in found]


def notice(message: str) -> None:
    """Print a line, seen with ``pip install -v`` and where a build fails."""
    print(f"defcn_d2: {message}", file=sys.stderr, flush=True)


def build_arguments() -> dict[str, Any]:
    """Arguments for setup() that build the operators; none without a PyTorch to build for."""
    if os.environ.get("BUILD_OPS") == "0":
        return {}
    torch = import_torch()
    if torch is None:
        notice("PyTorch is not installed here: installing without compiled operators")
        return {}
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MIN_TORCH:
        notice(f"PyTorch {torch.__version__} is older than 2.10: no compiled operators")
        return {}
    cuda = cuda_extension(torch)  # first: it settles CUDA_HOME
    return {
        "ext_modules": [cpu_extension()] + ([cuda] if cuda else []),
        "cmdclass": {"build_ext": make_build_ext(torch)},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if __name__ == "__main__":
    arguments = build_arguments()
    arguments.setdefault("cmdclass", {})["build_py"] = BuildWithConfigs
    setup(
        exclude_package_data={"": ["*.cpp", "*.h", "*.cu", "*.cuh", "*.clang-format"]}, **arguments
    )
