#!/usr/bin/env python
"""Make the virtual environment in which the demo and the tests run; called by the Makefile.

    python3 tools/setup_env.py [--venv .venv] [--constraints constraints.txt] [--this-python]

Five stages: the environment itself, torch, the other packages, Detectron2, this project. Each
leaves a stamp behind with a digest of what it was made from. A stage whose stamp fits is skipped,
so a second run takes no time, a changed input repeats what depends on it, and an interrupted run
goes on where it was. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from setup_progress import CommandFailed, Reporter
from setup_remedies import missing_venv, remedy_for

ROOT = Path(__file__).resolve().parent.parent
DISK_NEEDED = 8e9
"""Bytes that the packages need with a CUDA build of torch (seen: 6.3e9), and some to spare."""

IMPORTS_TORCH = "import torch, torchvision; print(torch.__version__, torchvision.__version__)"

READ_REQUIREMENTS = """
import json, sys
try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as stream:
    project = tomllib.load(stream)["project"]
extras = project["optional-dependencies"]
print(json.dumps(project["dependencies"] + extras["test"] + extras["dev"]))
"""


class SetupError(RuntimeError):
    """A stage failed; the message says what, and what helps."""


@dataclass(frozen=True)
class Stage:
    """One step of the set-up.

    Attributes:
        name: file name of its stamp and its log.
        title: what it brings, for messages.
        inputs: what its result depends on; the stage is repeated when this changes.
        run: does the work; takes the stage's previous inputs, None where it never succeeded.
    """

    name: str
    title: str
    inputs: Callable[[], dict[str, str]]
    run: Callable[[dict[str, str] | None], None]


def digest(paths: Iterable[Path]) -> str:
    """Digest of the contents and names of the files, '' where there are none."""
    total = hashlib.sha256()
    for path in sorted(paths):
        if path.is_file():
            total.update(f"{path.name}\0".encode() + path.read_bytes())
    return total.hexdigest()[:16]


class Environment:
    """The virtual environment, its stages and its stamps."""

    def __init__(self, venv: Path, constraints: Path, this_python: bool, report: Reporter) -> None:
        """
        Args:
            venv: folder of the environment.
            constraints: constraints file for pip.
            this_python: rebuild an environment that another version of Python made; else an
                environment that works is kept whatever made it.
            report: shows the progress.
        """
        self.venv = venv
        self.python = venv / "bin" / "python"
        self.state = venv / "setup"
        self.constraints = constraints
        self.this_python = this_python
        self.report = report

    # ------------------------------------------------------------------ stamps

    def stages(self) -> list[Stage]:
        return [
            Stage("environment", "virtual environment", self.venv_inputs, self.make_venv),
            Stage("torch", "torch and torchvision", self.torch_inputs, self.install_torch),
            Stage("packages", "the other packages", self.package_inputs, self.install_packages),
            Stage("detectron2", "Detectron2", self.detectron2_inputs, self.install_detectron2),
            Stage("project", "this project", self.project_inputs, self.install_project),
        ]

    def previous(self, stage: Stage) -> dict[str, str] | None:
        try:
            return json.loads((self.state / f"{stage.name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def set_up(self) -> None:
        """Run every stage that is not up to date.

        Raises:
            SetupError: a stage failed.
        """
        stages = self.stages()
        for number, stage in enumerate(stages, 1):
            before = self.previous(stage)
            if before == stage.inputs():
                continue
            log = self.state / f"{stage.name}.log"
            self.report.start(f"[{number}/{len(stages)}] {stage.title}", log)
            try:
                stage.run(before)
            except CommandFailed as error:
                raise SetupError(
                    f"{stage.title}: {remedy_for(error.output, self.venv)} (log: {log})"
                ) from error
            except OSError as error:
                raise SetupError(f"{stage.title}: {remedy_for(str(error), self.venv)}") from error
            stamp = self.state / f"{stage.name}.json"
            stamp.with_suffix(".tmp").write_text(json.dumps(stage.inputs()), encoding="utf-8")
            stamp.with_suffix(".tmp").replace(stamp)
            self.report.done()

    def command(self, *arguments: str | Path, **variables: str) -> None:
        """Run this environment's Python; what it prints goes to the stage's log."""
        self.report.run([str(self.python), *map(str, arguments)], variables)

    def pip(self, *arguments: str, **variables: str) -> None:
        """``pip install``; packages that come as source are built with this environment's tools."""
        fixed = ("-m", "pip", "install", "--no-build-isolation", "--constraint", self.constraints)
        self.command(*fixed, *arguments, **variables)

    # ------------------------------------------------------------------ stages

    def venv_inputs(self) -> dict[str, str]:
        version = "{}.{}".format(*sys.version_info)
        if self.python.exists() and not self.this_python:
            kept = self.previous(self.stages()[0])
            version = (kept or {}).get("python", version)
        return {"python": version}

    def make_venv(self, before: dict[str, str] | None) -> None:
        if missing_venv():
            raise SetupError(f"virtual environment: {missing_venv()}")
        free = shutil.disk_usage(self.venv.parent).free
        if free < DISK_NEEDED:
            self.report.note(
                f"only {free / 1e9:.1f} GB are free in {self.venv.parent}; with a CUDA build of "
                f"torch the packages need about {DISK_NEEDED / 1e9:.0f} GB"
            )
        if self.venv.exists():
            shutil.rmtree(self.venv)  # the stamps of the later stages go with it
        self.report.run([sys.executable, "-m", "venv", str(self.venv)])
        # The pip that came with Python may be too old for the progress form that is asked later.
        self.pip("--upgrade", "pip", "setuptools", "wheel", PIP_PROGRESS_BAR="off")

    def pins(self, *names: str) -> str:
        """The lines of the constraints file for some packages."""
        lines = self.constraints.read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if line.split("==")[0].strip() in names)

    def torch_inputs(self) -> dict[str, str]:
        return {"pins": self.pins("torch", "torchvision")}

    def install_torch(self, before: dict[str, str] | None) -> None:
        self.install_checked(["torch", "torchvision"], IMPORTS_TORCH)

    def install_checked(self, requirements: list[str], check: str) -> None:
        """Install packages and try them; what an interrupted run left broken is replaced."""
        self.pip(*requirements)
        try:
            self.command("-c", check)
        except CommandFailed:
            self.report.note("installed, but does not import: installing once more")
            self.pip("--force-reinstall", *requirements)
            self.command("-c", check)

    def package_inputs(self) -> dict[str, str]:
        return {
            "constraints": digest([self.constraints]),
            "project": digest([ROOT / "pyproject.toml"]),
        }

    def install_packages(self, before: dict[str, str] | None) -> None:
        output = subprocess.run(
            [self.python, "-c", READ_REQUIREMENTS, ROOT / "pyproject.toml"],
            capture_output=True,
            text=True,
            check=True,
        )
        requirements = json.loads(output.stdout)
        if self.has_distribution("opencv-python-headless"):
            requirements = [
                line.replace("opencv-python", "opencv-python-headless") for line in requirements
            ]
        self.pip(*requirements)
        self.check_opencv()

    def has_distribution(self, name: str) -> bool:
        return self.version_of(name) is not None

    def version_of(self, name: str) -> str | None:
        code = f"from importlib.metadata import version; print(version({name!r}))"
        result = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        return result.stdout.strip() if result.returncode == 0 else None

    def check_opencv(self) -> None:
        """Replace OpenCV by its headless wheel where a shared library (libGL) is missing."""
        result = subprocess.run(
            [self.python, "-c", "import cv2"], capture_output=True, text=True, cwd=self.venv
        )
        if result.returncode == 0:
            return
        error = (result.stderr.strip().splitlines() or ["no message"])[-1]
        version = self.version_of("opencv-python")
        if "cannot open shared object file" not in error or version is None:
            raise SetupError(f"OpenCV does not import: {error}; delete {self.venv} and start again")
        self.report.note(
            f"OpenCV does not load ({error}): replacing opencv-python {version} by "
            "opencv-python-headless of the same version"
        )
        self.command("-m", "pip", "uninstall", "--yes", "opencv-python")
        self.pip("--no-deps", f"opencv-python-headless=={version}")
        self.command("-c", "import cv2")

    def detectron2_inputs(self) -> dict[str, str]:
        """DETECTRON2 counts where it is set: a later run without it keeps what is there."""
        kept = self.previous(self.stages()[3]) or {}
        return {
            "setting": os.environ.get("DETECTRON2") or kept.get("setting", ""),
            "installer": digest((ROOT / "tools").glob("*detectron2*.py")),
            "torch": self.pins("torch"),
        }

    def install_detectron2(self, before: dict[str, str] | None) -> None:
        inputs = self.detectron2_inputs()
        if before is not None and before != inputs:
            self.report.note("what it is made from has changed: installing it anew")
            self.command("-m", "pip", "uninstall", "--yes", "detectron2", "detectron2-cdo")
        self.command(
            ROOT / "tools" / "install_detectron2.py",
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

    def install_project(self, before: dict[str, str] | None) -> None:
        if not self.project_inputs()["compiler"]:
            self.report.note(
                "no C++ compiler ($CXX or c++): the operators run as compositions of PyTorch's, "
                "which is slower; install one (apt-get install g++) and run this again"
            )
        self.pip("--no-deps", "--editable", str(ROOT))
        self.command("-c", "import defcn_d2; print(defcn_d2.__file__)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the environment")
    parser.add_argument(
        "--constraints", type=Path, default=ROOT / "constraints.txt", help="versions for pip"
    )
    parser.add_argument(
        "--this-python",
        action="store_true",
        help="rebuild an environment that another version of Python made",
    )
    options = parser.parse_args(arguments)
    report = Reporter()
    environment = Environment(
        options.venv.absolute(), options.constraints.resolve(), options.this_python, report
    )
    began = time.monotonic()
    try:
        environment.set_up()
    except KeyboardInterrupt:
        report.fail("set-up interrupted; run the same command again to go on")
        return 130
    except SetupError as error:
        report.fail(f"set-up failed at {error}")
        return 1
    if report.stages_run:
        report.say(f"set-up complete in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
