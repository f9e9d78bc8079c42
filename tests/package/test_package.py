"""Contents of a wheel and an sdist; the configs are found in both and in a checkout."""

from __future__ import annotations

import configparser
import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from detectron2.engine import default_argument_parser
from helpers import ROOT

import defcn_d2
from defcn_d2.config import files as config_files
from defcn_d2.config.load import load_config
from defcn_d2.engine import train_command as command_line
from defcn_d2.utils.errors import UserError

BUILD = """
import os, sys, tarfile
from setuptools import build_meta
target = sys.argv[1]
wheel, sdist = build_meta.build_wheel(target), build_meta.build_sdist(target)
build_meta.build_editable(os.path.join(target, "editable"))
assert not os.path.exists("defcn_d2/configs"), "an editable install has the checkout's configs"
with tarfile.open(os.path.join(target, sdist)) as file:
    file.extractall(os.path.join(target, "unpacked"))
os.chdir(os.path.join(target, "unpacked", sdist.removesuffix(".tar.gz")))
build_meta.build_wheel(os.path.join(target, "of_sdist"))
print(wheel, sdist)
"""


# What may lie about in a checkout and is no part of a release.
LITTER = [
    *(".env", ".venv/bin/python", "datasets/coco/a.jpg", "output/model_final.pth", "notes.txt"),
    *("configs/notes.txt", "configs/shapes/weights.pth", "tests/output/log.txt", "dist/old.whl"),
    *("defcn_d2/.env", "defcn_d2/weights.pth", "defcn_d2/notes.md", "defcn_d2/data/cache.pkl"),
    *("defcn_d2/csrc/object.o", "defcn_d2/csrc/cpu/forward.h.orig", "defcn_d2/csrc/.plan.h.swp"),
    *("defcn_d2/__pycache__/config.cpython-311.pyc", "defcn_d2/_old.so"),
    "build/lib/defcn_d2/configs/old.yaml",  # of a config that was renamed since
]


class Built(NamedTuple):
    """Files that were built, and what they were built from, by name in the checkout."""

    wheel: Path
    sdist: Path
    modules: list[str]
    configs: list[str]
    operators: list[str]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel and the sdist of a copy of the checkout, without compiled operators."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    unwanted = shutil.ignore_patterns(
        *(
            ".git",
            ".venv",
            ".*_cache",
            ".hypothesis",
            "build",
            "dist",
            "*.egg-info",
            "__pycache__",
            "datasets",
            "output",
            "*.so",
        )
    )
    shutil.copytree(ROOT, source, ignore=unwanted)

    def files(folder: str, pattern: str) -> list[str]:
        paths = (path for path in (source / folder).rglob(pattern) if path.is_file())
        return [path.relative_to(source).as_posix() for path in paths]

    modules, configs = (
        files("defcn_d2", "*.py") + files("defcn_d2", "py.typed"),
        files("configs", "*"),
    )
    operators = files("defcn_d2/csrc", "*")
    for name in LITTER:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("no part of a release")
    target = tmp_path_factory.mktemp("dist")
    result = subprocess.run(
        [sys.executable, "-c", BUILD, str(target)],
        cwd=source,
        env={**os.environ, "BUILD_OPS": "0", "FORCE_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    wheel, sdist = result.stdout.split()[-2:]
    return Built(target / wheel, target / sdist, modules, configs, operators)


def test_wheel_holds_modules_and_configs_and_no_more(built: Built) -> None:
    assert built.wheel.name.endswith("-py3-none-any.whl")
    names = _names(built.wheel)
    expected = [*built.modules, *(f"defcn_d2/{name}" for name in built.configs)]
    assert names == sorted(expected)
    assert _names(built.wheel.parent / "of_sdist" / built.wheel.name) == names


def _names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as file:
        return sorted(name for name in file.namelist() if ".dist-info/" not in name)


def test_sdist_holds_what_a_build_needs_and_no_more(built: Built) -> None:
    with tarfile.open(built.sdist) as file:
        names = [member.name.partition("/")[2] for member in file.getmembers() if member.isfile()]
    generated = ("PKG-INFO", "setup.cfg")
    names = [n for n in names if ".egg-info/" not in n and n not in generated]
    expected = {*built.modules, *built.configs, *built.operators, "README.md", "LICENSE"}
    expected |= {"setup.py", "pyproject.toml", "MANIFEST.in"}
    assert sorted(names) == sorted(expected)


def test_archives_hold_plain_files_inside_their_folder_alone(built: Built) -> None:
    """And no path of the machine that they were made on."""
    with tarfile.open(built.sdist) as file:
        for member in file.getmembers():
            parts = Path(member.name).parts
            assert parts[0] == built.sdist.name.removesuffix(".tar.gz") and ".." not in parts
            assert member.isfile() or member.isdir()
            assert member.mode & 0o6002 == 0, "set-uid, or writable by everyone"
    with zipfile.ZipFile(built.wheel) as wheel:
        for name in wheel.namelist():
            assert not name.startswith("/") and ".." not in Path(name).parts
            for path in (ROOT, Path.home(), built.wheel.parent):
                assert f"{path}/".encode() not in wheel.read(name)


def test_metadata_is_that_of_the_project(built: Built) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 or newer")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(built.wheel) as file:
        (folder,) = {n.partition("/")[0] for n in file.namelist() if ".dist-info/" in n}
        metadata = email.message_from_bytes(file.read(f"{folder}/METADATA"))
        points = configparser.ConfigParser()
        points.read_string(file.read(f"{folder}/entry_points.txt").decode())
        (licence,) = [n for n in file.namelist() if n.endswith("/LICENSE")]  # setuptools differ
        assert licence.startswith(folder)
        assert file.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert metadata["Name"] == project["name"] and metadata["Version"] == defcn_d2.__version__
    assert metadata["Requires-Python"] == project["requires-python"]
    description = metadata.get_payload(decode=True)
    assert description.strip() == (ROOT / project["readme"]).read_bytes().strip()
    assert dict(points["console_scripts"]) == project["scripts"]
    extras = {
        f'{name}; extra == "{extra}"'
        for extra, names in project["optional-dependencies"].items()
        for name in names
    }
    assert set(metadata.get_all("Requires-Dist")) == {*project["dependencies"], *extras}


def test_configs_and_commands_of_an_unpacked_wheel(built: Built, tmp_path: Path) -> None:
    """Without the checkout: by name, with the bases that they are built upon."""
    with zipfile.ZipFile(built.wheel) as file:
        file.extractall(tmp_path)
        (entry_points,) = [n for n in file.namelist() if n.endswith("entry_points.txt")]
        assert b"defcn-train = defcn_d2.engine:run" in file.read(entry_points)
    script = (
        "import defcn_d2; from defcn_d2.engine import main, run; from defcn_d2.demo import run;"
        "print(defcn_d2.__file__, len(defcn_d2.config_names()));"
        "print(defcn_d2.get_config('shapes/POTO-3DMF').MODEL.DEFCN.QUALITY_BRANCH)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    path, number, branch = result.stdout.split()
    assert Path(path).is_relative_to(tmp_path)
    assert int(number) == sum(not Path(name).name.startswith("Base-") for name in built.configs)
    assert branch == "filter"


def test_every_name_gives_its_config() -> None:
    names = defcn_d2.config_names()
    assert {"POTO-3DMF", "shapes/POTO-3DMF", "crowdhuman/ATSS"} <= set(names)
    for name in names:
        file = config_files.config_file(name)
        assert file == ROOT / "configs" / f"{name}.yaml" and file.is_file()
    cfg = defcn_d2.get_config("POTO-3DMF", ["SOLVER.MAX_ITER", 5])
    assert not cfg.is_frozen() and cfg.SOLVER.MAX_ITER == 5
    cfg.SOLVER.MAX_ITER = 270000
    assert cfg == load_config(str(ROOT / "configs" / "POTO-3DMF.yaml"))
    assert defcn_d2.get_config("POTO-3DMF.yaml").MODEL.DEFCN.QUALITY_BRANCH == "filter"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("POTO-3DFM", "there is no config 'POTO-3DFM'; did you mean 'POTO-3DMF'"),
        ("../configs/POTO", "there is no config '../configs/POTO'; did you mean 'POTO"),
        ("Base-DeFCN", "there is no config 'Base-DeFCN'"),
        ("xyz", "there is no config 'xyz'; one of: ATSS"),
        ("", "there is no config ''; one of:"),
    ],
)
def test_unknown_names(name: str, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        defcn_d2.get_config(name)
    assert sentence.replace("ATSS", defcn_d2.config_names()[0]) in str(caught.value)


def test_short_names_where_a_file_is_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config("shapes/POTO") == load_config(str(ROOT / "configs/shapes/POTO.yaml"))
    with pytest.raises(UserError, match="'POTO-3DFM' does not exist.*'POTO-3DMF'"):
        load_config("POTO-3DFM")
    # a file that is there comes first
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "POTO").write_text("no yaml")
    with pytest.raises(UserError, match="is not a .yaml file"):
        load_config("shapes/POTO")


def test_short_name_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2's own setup reads the file again, for the log."""
    taken = []
    monkeypatch.setattr(command_line, "default_setup", lambda cfg, args: taken.append(args))
    monkeypatch.setattr(command_line, "setup_logging", lambda *args: None)
    args = ["--config-file", "shapes/POTO", "OUTPUT_DIR", str(tmp_path)]
    cfg = command_line.setup(default_argument_parser().parse_args(args))
    assert cfg.MODEL.DEFCN.NUM_CLASSES == 7
    assert taken[0].config_file == str(ROOT / "configs" / "shapes" / "POTO.yaml")


def test_a_package_without_its_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config_files, "_PACKAGE", tmp_path / "defcn_d2")
    with pytest.raises(FileNotFoundError, match="configs of defcn_d2 are missing"):
        defcn_d2.get_config("POTO")
