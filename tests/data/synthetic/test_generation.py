"""Generated data sets: drawn whole or not at all, once, whoever asks for them at the same time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import portalocker
import process_groups
import pytest

import defcn_d2.data.synthetic.generation as generation
from defcn_d2.data.errors import DatasetError
from defcn_d2.data.synthetic.generation import GeneratedSet, Recipe, command_line
from defcn_d2.utils.files import write_atomically

COUNT = 20
CALLS: list[int] = []  # indices drawn in this process


def draw(split, seed, index):
    """A cheap recipe: this module stands for one that draws."""
    CALLS.append(index)
    rng = np.random.default_rng([len(split), seed, index])
    return rng.integers(0, 256, (8, 12, 3), dtype=np.uint8), {"value": int(rng.integers(1000))}


draw_at_once = draw  # tests put others in its place


def annotate(records):
    return json.dumps([[r["index"], r["file_name"], r["value"]] for r in records])


RECIPE = Recipe("cheap", 1, __name__, "labels.json", {"train": COUNT, "val": 3})


def content(made: GeneratedSet) -> dict[str, bytes]:
    """Every file of a set."""
    files = [path for path in made.folder.rglob("*") if path.is_file()]
    return {str(f.relative_to(made.folder)): f.read_bytes() for f in files}


def beside(made: GeneratedSet) -> list[str]:
    """Names beside a set, except its lock."""
    names = {path.name for path in made.folder.parent.iterdir()}
    return sorted(names - {made.split, f".{made.split}.lock"})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    made = GeneratedSet(RECIPE, tmp_path_factory.mktemp("expected"), "train")
    made.ensure()
    return content(made)


@pytest.fixture
def made(tmp_path):
    """A set that is there, its calls forgotten."""
    result = GeneratedSet(RECIPE, tmp_path, "train")
    result.ensure()
    CALLS.clear()
    return result


def test_what_is_drawn(made):
    names = [f"{index:06d}.jpg" for index in range(COUNT)]
    assert set(content(made)) == {"labels.json", "version.json", *(f"images/{x}" for x in names)}
    assert [entry[:2] for entry in json.loads(made.annotations.read_text())] == [
        [index, name] for index, name in enumerate(names)
    ]
    assert beside(made) == []


@pytest.mark.parametrize("difference", [{"seed": 1}, {"split": "val"}])
def test_content_depends_on_seed_and_split(tmp_path, expected, difference):
    other = GeneratedSet(**{"recipe": RECIPE, "root": tmp_path, "split": "train"} | difference)
    other.ensure()
    ours = content(other)
    assert all(ours[name] != expected[name] for name in ours)
    assert len(set(ours.values())) == len(ours), "two images are the same"


def test_a_set_that_is_there_is_left_alone(made):
    before = {f: f.stat().st_mtime_ns for f in made.folder.rglob("*")}
    assert made.ensure() == made.annotations
    assert not CALLS
    assert before == {f: f.stat().st_mtime_ns for f in made.folder.rglob("*")}


def test_another_version_is_drawn_anew(made):
    newer = Recipe("cheap", 2, __name__, "labels.json", RECIPE.counts)
    (made.images / "000099.jpg").write_bytes(b"of the version before")
    GeneratedSet(newer, made.root, "train").ensure()
    assert CALLS == list(range(COUNT))
    assert len(list(made.images.iterdir())) == COUNT and beside(made) == []


@pytest.mark.parametrize(
    "version", ["", "{", "[1]", '{"seed": -1}', '{"num_images": "9", "seed": true}', "[" * 10**5]
)
def test_a_damaged_version_file_means_the_defaults(made, expected, version):
    (made.folder / "version.json").write_text(version)
    made.ensure()
    assert CALLS == list(range(COUNT)) and content(made) == expected


def test_a_set_of_the_time_before_version_files_is_drawn_anew(made, expected):
    (made.folder / "version.json").rename(made.folder / "records.jsonl")
    made.ensure()
    assert content(made) == expected


def test_what_others_have_put_there_is_not_removed(tmp_path):
    made = GeneratedSet(RECIPE, tmp_path, "train")
    made.images.mkdir(parents=True)
    (made.images / "mine.jpg").write_bytes(b"mine")
    message = rf"{made.folder} holds something else .* \(it has no version.json\); move it away"
    with pytest.raises(DatasetError, match=message):
        made.ensure()
    assert content(made) == {"images/mine.jpg": b"mine"} and beside(made) == []


def test_size_and_seed_can_change_and_stay_where_none_is_given(made, expected):
    GeneratedSet(RECIPE, made.root, "train", 4, seed=9).ensure()
    assert len(json.loads(made.annotations.read_text())) == 4
    CALLS.clear()
    made.ensure()
    assert not CALLS and len(json.loads(made.annotations.read_text())) == 4
    newer = Recipe("cheap", 2, __name__, "labels.json", RECIPE.counts)
    GeneratedSet(newer, made.root, "train").ensure()
    assert json.loads((made.folder / "version.json").read_text()) == {
        "name": "cheap", "version": 2, "split": "train", "seed": 9, "num_images": 4
    }  # fmt: skip
    GeneratedSet(RECIPE, made.root, "train", COUNT, seed=0).ensure()
    assert content(made) == expected


def test_an_interrupted_drawing_leaves_nothing(tmp_path, expected, monkeypatch):
    def interrupted(split, seed, index):
        if index == 10:
            raise KeyboardInterrupt
        return draw_at_once(split, seed, index)

    made = GeneratedSet(RECIPE, tmp_path, "train")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules[__name__], "draw", interrupted)
        made.ensure()
    assert not made.folder.exists() and beside(made) == []
    made.ensure()
    assert content(made) == expected


def slow(split, seed, index):
    """As the cheap recipe, but slow enough to be killed at work."""
    time.sleep(0.05)
    return draw_at_once(split, seed, index)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def drawn_slowly(folder, log):
    """Draw the set, and write the index of every image into a file."""

    def logged(split, seed, index):
        with log.open("a") as file:
            file.write(f"{index}\n")
        return slow(split, seed, index)

    globals()["draw"] = logged
    GeneratedSet(RECIPE, folder, "train", COUNT).ensure()


def in_process(folder):
    arguments = (folder, folder / "drawn")
    process = process_groups.SERVER.Process(target=drawn_slowly, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize("count", [None, 4])
def test_killed_at_work_it_leaves_the_folder_beside_alone(tmp_path, expected, count):
    made = GeneratedSet(RECIPE, tmp_path, "train")
    if count:
        GeneratedSet(RECIPE, tmp_path, "train", count).ensure()
    before = content(made)
    process = in_process(tmp_path)
    wait_for(lambda: len(list(tmp_path.glob("cheap/.train-*/new/images/*"))) > 5)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert content(made) == before and len(beside(made)) == 1
    GeneratedSet(RECIPE, tmp_path, "train", COUNT).ensure()
    assert content(made) == expected and beside(made) == []


def test_of_several_processes_one_draws_and_the_others_wait(tmp_path, expected):
    made = GeneratedSet(RECIPE, tmp_path, "train")
    processes = [in_process(tmp_path) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert content(made) == expected and beside(made) == []
    assert [int(x) for x in (tmp_path / "drawn").read_text().split()] == list(range(COUNT))


def test_who_waits_for_another_process_says_so(made, monkeypatch, caplog):
    """And goes on without the lock at last, in a folder of its own."""
    monkeypatch.setattr(generation, "_PATIENCE", 0.1)
    with portalocker.Lock(str(made.folder.with_name(".train.lock"))), caplog.at_level("INFO"):
        GeneratedSet(RECIPE, made.root, "train", 4).ensure()
    assert f"another process is at work in {made.folder}: waiting for it" in caplog.text
    assert "cannot be locked ([Errno" in caplog.text
    assert CALLS == list(range(4)) and beside(made) == []


def test_without_locks_it_works_too(tmp_path, expected, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(portalocker.portalocker, "LOCKER", no_locks)
    made = GeneratedSet(RECIPE, tmp_path, "train")
    made.ensure()
    assert content(made) == expected
    assert "cannot be locked ([Errno 37] No locks available): going on" in caplog.text


def test_a_full_disk_is_one_clear_error_and_leaves_no_rest(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    made = GeneratedSet(RECIPE, tmp_path, "train")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(DatasetError, match=r"No space left.*\$DETECTRON2_DATASETS") as error:
            made.ensure()
    assert str(made.folder) in str(error.value)
    assert not made.folder.exists() and beside(made) == []


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "file"))):
        GeneratedSet(RECIPE, tmp_path / "file", "train").ensure()


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'cheap' is train or val, got 'test'"):
        GeneratedSet(RECIPE, tmp_path, "test")


def test_command_line(tmp_path, expected, capsys):
    assert command_line(RECIPE, ["--root", str(tmp_path), "--val", "0"]) == 0
    assert content(GeneratedSet(RECIPE, tmp_path, "train")) == expected
    assert capsys.readouterr().out == f"{COUNT} images: {tmp_path}/cheap/train/labels.json\n"
    assert not (tmp_path / "cheap" / "val").exists()


def test_command_line_errors(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command_line(RECIPE, ["--root", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot generate the data set 'cheap'")
    with pytest.raises(SystemExit) as error:
        command_line(RECIPE, ["--train", "-3"])
    assert error.value.code == 2
    assert "a whole number, 0 or more, got '-3'" in capsys.readouterr().err


def test_datasets_root(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert generation.datasets_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    assert generation.datasets_root() == Path.home() / "sets"


def test_write_atomically_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def broken(_):
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="I/O error"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_importing_registers_without_drawing(tmp_path):
    """In a fresh process, as this one has imported it all; then the command, as a user runs it."""
    code = (
        "import sys, runpy, defcn_d2.data\n"
        "from detectron2.data import DatasetCatalog\n"
        "assert {'shapes_train', 'shapes_val'} <= set(DatasetCatalog.list())\n"
        "assert 'defcn_d2.data.synthetic.figures' not in sys.modules\n"
        "sys.argv[1:] = '--train 2 --val 1'.split()\n"
        "runpy.run_module('defcn_d2.data.synthetic.shapes', run_name='__main__', alter_sys=True)\n"
    )
    env = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path / "sets")}
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], env=env, capture_output=True
    )
    assert run.returncode == 0, run.stderr.decode()
    assert len(list((tmp_path / "sets/shapes/train/images").iterdir())) == 2
    assert b"1/1" in run.stderr, "no progress bar"
