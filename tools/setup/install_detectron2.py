#!/usr/bin/env python
"""Find Detectron2, or install it into the environment that runs this script.

    python tools/setup/install_detectron2.py [--constraint FILE]

The first of these that is there is taken, and named:

1. the Detectron2 that this Python imports already;
2. what the variable DETECTRON2 says: a source folder, a local or remote archive, a git URL
   (``git+https://...``) or a requirement (``detectron2-cdo==0.5``);
3. upstream at a pinned commit, where GitHub answers within 15 seconds and there is a C++ compiler;
4. the release 0.5 as the package index has it (``detectron2-cdo``), its checksum verified and its
   source repaired by the rules of ``detectron2_patches.py``; needs no compiler.

torch must be there already: Detectron2's ``setup.py`` imports it. Nothing outside a temporary
folder and the environment's ``site-packages`` is written.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import detectron2_patches as patches
from detectron2_download import InstallError, Unavailable, download_sdist, download_within, unpack

UPSTREAM_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
UPSTREAM_URL = f"https://github.com/facebookresearch/detectron2/archive/{UPSTREAM_COMMIT}.tar.gz"
UPSTREAM_PATIENCE = 15.0
"""Seconds within which GitHub has to begin to answer."""

RELEASE_NAME, RELEASE_VERSION = "detectron2-cdo", "0.5"
RELEASE_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"

UPSTREAM_TOOLS = ("setuptools<82", "wheel", "ninja")
"""Its model zoo imports pkg_resources, which setuptools 82 dropped; ninja compiles in parallel."""

# Runs in a process of its own: a failed import must not leave half of torch behind, and the
# working directory, where a folder named detectron2 may lie, must not be searched.
PROBE = """
import detectron2, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
import detectron2.modeling, os
print("found", detectron2.__version__, os.path.dirname(detectron2.__file__))
"""


def say(text: str) -> None:
    print(f"detectron2: {text}", flush=True)


# ---------------------------------------------------------------------------- what is there


@dataclass(frozen=True)
class Found:
    """The Detectron2 of this Python: what it is, or why it does not import (None: not there)."""

    description: str | None
    error: str | None = None


def importable() -> Found:
    """Try to import Detectron2, as in '0.5 (/path/of/the/package)'."""
    with tempfile.TemporaryDirectory() as elsewhere:
        result = subprocess.run(
            [sys.executable, "-c", PROBE], cwd=elsewhere, capture_output=True, text=True
        )
    found = re.search(r"^found (\S+) (.+)$", result.stdout, re.MULTILINE)
    if result.returncode == 0 and found:
        return Found(f"{found[1]} ({found[2]})")
    error = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return Found(None, None if "No module named 'detectron2'" in error else error)


def has_compiler() -> bool:
    """Whether the C++ compiler that torch's build helper would call exists."""
    command = os.environ.get("CXX", "c++").split()
    return bool(command) and shutil.which(command[0]) is not None


def check_prerequisites() -> None:
    """Raise InstallError without torch (for the build) or pip (for the installation)."""
    python = sys.executable
    if importlib.util.find_spec("pip") is None:
        raise InstallError(f"{python} has no pip: run `{python} -m ensurepip`, then this again")
    if importlib.util.find_spec("torch") is None:
        raise InstallError(
            f"{python} has no torch, which Detectron2's setup.py imports: "
            f"run `{python} -m pip install torch torchvision`, then this again"
        )


# ------------------------------------------------------------------------------ installation


def pip_install(
    target: str, constraint: Path | None, tools: tuple[str, ...] = UPSTREAM_TOOLS
) -> None:
    """``pip install`` of a folder, archive, URL or requirement, built against this torch.

    Args:
        target: what to install.
        constraint: constraints file for pip.
        tools: requirements that the build needs.

    Raises:
        InstallError: pip failed; its own output has said why.
    """
    # Detectron2 declares no build requirements: what its setup.py and those of its dependencies
    # import (torch, setuptools, wheel) has to be in this environment.
    run_pip([*tools], constraint)
    run_pip(["--no-build-isolation", target], constraint)


def run_pip(arguments: list[str], constraint: Path | None) -> None:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    if constraint is not None:
        command += ["--constraint", str(constraint)]
    if subprocess.run([*command, *arguments]).returncode != 0:
        raise InstallError(f"pip could not install {arguments[-1]}; the reason stands above")


def install_release(archive: bytes, constraint: Path | None) -> str:
    """Verify, unpack, repair and install the 0.5 release.

    Args:
        archive: contents of the source distribution.
        constraint: constraints file for pip.

    Returns:
        What was installed, for the message.

    Raises:
        InstallError: another checksum, a rule that does not fit, or pip failed.
    """
    digest = hashlib.sha256(archive).hexdigest()
    if digest != RELEASE_SHA256:
        raise InstallError(
            f"{RELEASE_NAME}=={RELEASE_VERSION} has the sha256 {digest}, expected "
            f"{RELEASE_SHA256}: the file is damaged or another one; check the package index, or "
            "set DETECTRON2 to a source you trust"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = unpack(archive, Path(folder))
        try:
            applied = patches.apply_rules(source)
        except patches.PatchError as error:
            raise InstallError(f"{error}; see tools/setup/detectron2_patches.py") from error
        say(f"repaired the source by the {len(applied)} rules of tools/setup/detectron2_patches.py")
        pip_install(str(source), constraint, tools=("setuptools", "wheel"))
    return f"{RELEASE_NAME}=={RELEASE_VERSION}, repaired for this torch, numpy and Pillow"


# ------------------------------------------------------------------------------- the sources


def from_setting(setting: str, constraint: Path | None) -> str:
    """Install what the variable DETECTRON2 says.

    Raises:
        InstallError: it names nothing that exists, or pip failed.
    """
    if setting.replace(" ", "").replace("_", "-").lower() == f"{RELEASE_NAME}=={RELEASE_VERSION}":
        return install_release(download_sdist(RELEASE_NAME, RELEASE_VERSION), constraint)
    path = Path(setting).expanduser()
    if path.is_file():
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() == RELEASE_SHA256:
            return install_release(content, constraint)
        pip_install(str(path.resolve()), constraint)
    elif path.is_dir():
        install_folder(path, constraint)
    elif os.sep in setting and "://" not in setting and "@" not in setting:
        raise InstallError(f"DETECTRON2={setting}: there is no such file or folder")
    else:
        pip_install(setting, constraint)
    return f"{setting} (from the variable DETECTRON2)"


def install_folder(path: Path, constraint: Path | None) -> None:
    """Install a copy of a source folder: Detectron2's setup.py writes into the one it builds.

    Raises:
        InstallError: no setup.py there, or pip failed.
    """
    if not any((path / name).is_file() for name in ("setup.py", "pyproject.toml")):
        raise InstallError(f"DETECTRON2={path}: that folder holds no setup.py")
    if not has_compiler() and any(path.glob("detectron2/layers/csrc/*.cpp")):
        raise InstallError(
            f"DETECTRON2={path}: building it needs a C++ compiler, and $CXX or c++ is not there; "
            "install one (apt-get install g++), then run this again"
        )
    left_out = (".git", ".venv", "build", "output", "datasets")

    def ignore(folder: str, names: list[str]) -> set[str]:
        return set(left_out).intersection(names) if Path(folder) == path else set()

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "detectron2"
        shutil.copytree(path, copy, symlinks=True, ignore=ignore)
        pip_install(str(copy), constraint)


def from_upstream(constraint: Path | None) -> str:
    """Install upstream at the pinned commit.

    Raises:
        Unavailable: no compiler, GitHub out of reach, or the build failed.
    """
    if not has_compiler():
        raise Unavailable("building upstream needs a C++ compiler, and $CXX or c++ is not there")
    archive = download_within(UPSTREAM_URL, UPSTREAM_PATIENCE)
    with tempfile.TemporaryDirectory() as folder:
        source = unpack(archive, Path(folder))
        if source.name != f"detectron2-{UPSTREAM_COMMIT}":
            raise InstallError(f"GitHub sent {source.name}, not the commit {UPSTREAM_COMMIT}")
        say("upstream is being compiled, which takes some minutes")
        try:
            pip_install(str(source), constraint)
        except InstallError as error:
            raise Unavailable(f"upstream could not be built: {error}") from error
    return f"upstream commit {UPSTREAM_COMMIT[:8]}"


def from_index(constraint: Path | None) -> str:
    """Install the 0.5 release from the package index."""
    return install_release(download_sdist(RELEASE_NAME, RELEASE_VERSION), constraint)


# -------------------------------------------------------------------------------- the choice


def choose(setting: str | None, constraint: Path | None) -> str:
    """Find or install Detectron2.

    Args:
        setting: the variable DETECTRON2, None or empty where it is not set.
        constraint: constraints file for pip.

    Returns:
        Which one was taken.

    Raises:
        InstallError: none could be.
    """
    found = importable()
    if found.description:
        if setting:
            say(f"DETECTRON2={setting} is not used: uninstall the one that is there to change it")
        return f"{found.description}, already there"
    if found.error:
        say(f"one is there but does not import ({found.error}); installing another over it")
    check_prerequisites()
    taken = None
    if setting:
        say(f"installing {setting}, as the variable DETECTRON2 says")
        taken = from_setting(setting, constraint)
    else:
        sources: list[tuple[str, Callable[[Path | None], str]]] = [
            ("upstream from GitHub", from_upstream),
            (f"{RELEASE_NAME}=={RELEASE_VERSION} from the package index", from_index),
        ]
        for name, source in sources:
            say(f"trying {name}")
            try:
                taken = source(constraint)
                break
            except Unavailable as reason:
                say(f"{reason}; going on to the next source")
    if taken is None:
        raise InstallError("no source of Detectron2 could be reached; set DETECTRON2 to one")
    found = importable()
    if not found.description:
        raise InstallError(f"{taken} was installed but does not import: {found.error}")
    return f"{found.description}, from {taken}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--constraint", type=Path, help="constraints file for pip")
    options = parser.parse_args(arguments)
    try:
        taken = choose(os.environ.get("DETECTRON2"), options.constraint)
    except InstallError as error:
        say(f"failed: {error}")
        return 1
    say(f"using {taken}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
