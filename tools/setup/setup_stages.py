"""The stages of the set-up: what each depends on, and what it does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DISK_NEEDED = 8e9
"""Bytes that the packages need with a CUDA build of torch (seen: 6.3e9), and some to spare."""

BUILD_TOOLS = ("setuptools", "wheel", "ninja")
"""Without ninja, torch compiles one file after the other."""

READ_REQUIREMENTS = """
import json, sys
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as stream:
    project = tomllib.load(stream)["project"]
extras = project["optional-dependencies"]
wanted = [extras[name] for name in ("export", "test", "dev")]
print(json.dumps(sum(wanted, project["dependencies"])))
"""


class SetupError(RuntimeError):
    """A stage failed; the message says what, and what helps."""


class CommandFailed(Exception):
    """A command exited with an error; the message is what it wrote about it."""


def say(text: str) -> None:
    print(text, flush=True)


def missing_venv() -> str | None:
    """Why this Python cannot make virtual environments, and what helps; None if it can."""
    if all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        return None
    version = "{}.{}".format(*sys.version_info)
    return (
        f"{sys.executable} lacks the venv module: install it (apt-get install "
        f"python{version}-venv) or choose another Python (PYTHON=python3.12)"
    )


@dataclass(frozen=True)
class Stage:
    """One step of the set-up.

    Attributes:
        name: file name of its stamp and its log.
        title: what it brings, for messages.
        inputs: what its result depends on; the stage is repeated when this changes.
        run: does the work; takes the inputs of the previous run, empty if there was none.
    """

    name: str
    title: str
    inputs: Callable[[], dict[str, str]]
    run: Callable[[dict[str, str]], None]


def digest(paths: Iterable[Path]) -> str:
    """Digest of the contents and names of the files, '' where there are none."""
    total = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            total.update(f"{path.name}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


class Environment:
    """The virtual environment, its stages and its stamps.

    Attributes:
        log: pip's log of the present stage.
        shared: file descriptors that the commands inherit.
    """

    def __init__(self, venv: Path, constraints: Path, this_python: bool) -> None:
        """
        Args:
            venv: folder of the environment.
            constraints: constraints file for pip.
            this_python: rebuild an environment that another version of Python made; else an
                environment that works is kept whatever made it.
        """
        self.venv = venv
        self.python = venv / "bin" / "python"
        self.state = venv / "setup"
        self.constraints = constraints
        self.this_python = this_python
        self.log = Path(os.devnull)
        self.shared: tuple[int, ...] = ()

    # ------------------------------------------------------------------ stamps

    def stages(self) -> list[Stage]:
        return [
            Stage("environment", "virtual environment", self.venv_inputs, self.make_venv),
            Stage("torch", "torch and torchvision", self.torch_inputs, self.install_torch),
            Stage("packages", "the other packages", self.package_inputs, self.install_packages),
            Stage("detectron2", "Detectron2", self.detectron2_inputs, self.install_detectron2),
            Stage("project", "this project", self.project_inputs, self.install_project),
        ]

    def stamp_path(self, stage: Stage) -> Path:
        return self.state / f"{stage.name}.json"

    def previous(self, stage: Stage) -> dict[str, str]:
        """Sources of the stage's last run; with a key 'unfinished' if that run did not end."""
        try:
            return json.loads(self.stamp_path(stage).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def stamp(self, stage: Stage, inputs: dict[str, str]) -> None:
        """Write down what the stage is made from."""
        path = self.stamp_path(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(json.dumps(inputs), encoding="utf-8")
        path.with_suffix(".tmp").replace(path)

    # ------------------------------------------------------------------ commands

    def begin_log(self, stage: Stage) -> None:
        self.log = self.state / f"{stage.name}.log"
        self.log.unlink(missing_ok=True)

    def run(self, *command: str | Path, **variables: str) -> None:
        """Run a command, which prints for itself; pip writes more into the stage's log.

        Raises:
            CommandFailed: it exited with an error.
        """
        fixed = {
            "PIP_LOG": str(self.log),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            "PIP_USER": "0",
        }
        status = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **fixed, **variables},
            pass_fds=self.shared,
        ).returncode
        if status != 0:
            written = self.log.read_text(errors="replace") if self.log.is_file() else ""
            raise CommandFailed(written + (f"ended by signal {-status}" if status < 0 else ""))

    def command(self, *arguments: str | Path, **variables: str) -> None:
        """Run this environment's Python."""
        self.run(self.python, *arguments, **variables)

    def check(self, code: str) -> None:
        """Run a line of Python that imports what was installed."""
        self.command("-c", code)

    def pip(self, *arguments: str, **variables: str) -> None:
        """``pip install``; packages that come as source are built with this environment's tools."""
        fixed = ("-m", "pip", "install", "--no-build-isolation", "--constraint", self.constraints)
        self.command(*fixed, *arguments, **variables)

    # ------------------------------------------------------------------ stages

    def venv_inputs(self) -> dict[str, str]:
        version = "{}.{}".format(*sys.version_info)
        if self.python.exists() and not self.this_python:
            version = self.previous(self.stages()[0]).get("python", version)
        return {"python": version} if self.python.exists() else {"python": version, "made": "no"}

    def make_venv(self, before: dict[str, str]) -> None:
        if missing_venv():
            raise SetupError(f"virtual environment: {missing_venv()}")
        free = shutil.disk_usage(self.venv.parent).free
        if free < DISK_NEEDED:
            say(
                f"only {free / 1e9:.1f} GB are free in {self.venv.parent}; with a CUDA build of "
                f"torch the packages need about {DISK_NEEDED / 1e9:.0f} GB"
            )
        self.remove_venv()
        self.run(sys.executable, "-m", "venv", self.venv)
        self.pip("--upgrade", "pip")

    def remove_venv(self) -> None:
        """Delete an environment that is there, and with it the stamps of the later stages.

        Raises:
            SetupError: the folder is none, so nothing in it is ours to delete.
        """
        if not self.venv.exists():
            return
        foreign = any(path != self.state for path in self.venv.iterdir())
        if foreign and not (self.venv / "pyvenv.cfg").exists():
            raise SetupError(
                f"virtual environment: {self.venv} is there and no virtual environment; "
                "name another folder (VENV=folder)"
            )
        shutil.rmtree(self.venv)

    def pins(self, *names: str) -> str:
        """The lines of the constraints file for some packages."""
        lines = self.constraints.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if line.split("==")[0].strip() in names)

    def torch_inputs(self) -> dict[str, str]:
        return {"pins": self.pins("torch", "torchvision")}

    def install_torch(self, before: dict[str, str]) -> None:
        self.install_checked(["torch", "torchvision"], "import torch, torchvision")

    def install_checked(self, requirements: list[str], check: str) -> None:
        """Install packages and try them; what an interrupted run left broken is replaced."""
        self.pip(*requirements)
        try:
            self.check(check)
        except CommandFailed:
            say("installed, but does not import: installing once more")
            self.pip("--force-reinstall", *requirements)
            self.check(check)

    def package_inputs(self) -> dict[str, str]:
        return {
            "constraints": digest([self.constraints]),
            "project": digest([ROOT / "pyproject.toml"]),
        }

    def install_packages(self, before: dict[str, str]) -> None:
        requirements = json.loads(self.ask(READ_REQUIREMENTS, ROOT / "pyproject.toml"))
        if self.version_of("opencv-python-headless"):
            requirements = [
                line.replace("opencv-python", "opencv-python-headless") for line in requirements
            ]
        self.pip(*BUILD_TOOLS)  # some packages come as source, and ask for these
        self.pip(*requirements)
        self.check_opencv()

    def ask(self, code: str, *arguments: str | Path) -> str:
        """Output of a few lines of Python.

        Raises:
            CommandFailed: they raised an exception.
        """
        result = subprocess.run(
            [self.python, "-c", code, *arguments], capture_output=True, text=True, cwd=self.venv
        )
        if result.returncode != 0:
            raise CommandFailed(result.stderr)
        return result.stdout.strip()

    def version_of(self, distribution: str) -> str | None:
        """The installed version of a distribution, None if it is not there."""
        try:
            return self.ask(
                f"from importlib.metadata import version as v; print(v('{distribution}'))"
            )
        except CommandFailed:
            return None

    def check_opencv(self) -> None:
        """Replace OpenCV by its headless wheel where a shared library (libGL) is missing."""
        try:
            self.ask("import cv2")
            return
        except CommandFailed as failure:
            error = (str(failure).strip().splitlines() or ["no message"])[-1]
        version = self.version_of("opencv-python")
        if "cannot open shared object file" not in error or version is None:
            raise SetupError(f"OpenCV does not import: {error}; delete {self.venv} and start again")
        say(
            f"OpenCV does not load ({error}): replacing opencv-python {version} by "
            "opencv-python-headless of the same version"
        )
        self.command("-m", "pip", "uninstall", "--yes", "opencv-python")
        self.pip("--no-deps", f"opencv-python-headless=={version}")
        self.check("import cv2")

    def detectron2_inputs(self) -> dict[str, str]:
        """DETECTRON2 counts where it is set: a later run without it keeps what is there."""
        kept = self.previous(self.stages()[3])
        return {
            "setting": os.environ.get("DETECTRON2") or kept.get("setting", ""),
            "installer": digest((ROOT / "tools" / "setup").glob("*detectron2*.py")),
            "torch": self.pins("torch"),
        }

    def install_detectron2(self, before: dict[str, str]) -> None:
        inputs = self.detectron2_inputs()
        if before:
            say("interrupted, or made from something else: installing it anew")
            self.command("-m", "pip", "uninstall", "--yes", "detectron2", "detectron2-cdo")
        self.command(
            ROOT / "tools" / "setup" / "install_detectron2.py",
            "--constraint",
            self.constraints,
            DETECTRON2=inputs["setting"],
        )

    def project_inputs(self) -> dict[str, str]:
        compiler = os.environ.get("CXX", "c++")
        sources = (ROOT / "defcn_d2" / "csrc").rglob("*")
        return {
            "metadata": digest([ROOT / "pyproject.toml", ROOT / "setup.py"]),
            "sources": digest(sources),
            "compiler": shutil.which(compiler.split()[0]) or "" if compiler.strip() else "",
            "torch": self.pins("torch"),
        }

    def install_project(self, before: dict[str, str]) -> None:
        if not self.project_inputs()["compiler"]:
            say(
                "no C++ compiler ($CXX or c++): the operators run as compositions of PyTorch's, "
                "which is slower; install one (apt-get install g++) and run this again"
            )
        self.pip("--no-deps", "--editable", str(ROOT))
        self.check("import defcn_d2")
