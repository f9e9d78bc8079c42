"""Generated data sets: same content however made, damage repaired, kills and rivals survived."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

import defcn_d2.data.synthetic.generation as generation
from defcn_d2.data.synthetic.generation import DatasetError, GeneratedSet, Recipe, command_line
from defcn_d2.data.synthetic.storage import Journal, write_atomically

COUNT = 50  # more than a worker takes at a time, so that several have something to do
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
    """Every file of a set but the journal, whose lines may come in any order, and the lock."""
    files = [made.annotations, *made.images.iterdir()]
    return {str(f.relative_to(made.folder)): f.read_bytes() for f in files}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    made = GeneratedSet(RECIPE, tmp_path_factory.mktemp("expected"), "train")
    made.ensure(workers=1)
    return content(made)


@pytest.fixture
def made(tmp_path):
    """A set that is there, its calls forgotten."""
    result = GeneratedSet(RECIPE, tmp_path, "train")
    result.ensure(workers=1)
    CALLS.clear()
    return result


@pytest.mark.parametrize("workers", [2, 3])
def test_content_does_not_depend_on_the_number_of_workers(tmp_path, expected, workers):
    other = GeneratedSet(RECIPE, tmp_path, "train")
    other.ensure(workers)
    assert content(other) == expected
    assert len(expected) == COUNT + 1


@pytest.mark.parametrize("difference", [{"seed": 1}, {"split": "val"}])
def test_content_depends_on_seed_and_split(tmp_path, expected, difference):
    other = GeneratedSet(**{"recipe": RECIPE, "root": tmp_path, "split": "train"} | difference)
    other.ensure(1)
    ours = content(other)
    assert all(ours[name] != expected[name] for name in ours)
    assert len(set(ours.values())) == len(ours), "two images are the same"


def test_a_whole_set_is_left_alone(made):
    before = {f: f.stat().st_mtime_ns for f in made.folder.rglob("*")}
    assert made.ensure() == made.annotations
    assert not CALLS
    assert before == {f: f.stat().st_mtime_ns for f in made.folder.rglob("*")}


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, cut, flip, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", ["images/000007.jpg", "labels.json", "records.jsonl"])
def test_damage_is_noticed_and_repaired(made, expected, name, damage):
    damage(made.folder / name)
    made.ensure(workers=1)
    assert content(made) == expected
    if name.startswith("images"):
        assert CALLS == [7], "only the damaged image should be drawn again"
    elif name == "labels.json":
        assert not CALLS, "the journal has all labels"
    CALLS.clear()
    made.ensure(workers=1)
    assert not CALLS, "the repaired set should be whole"


@pytest.mark.parametrize(
    "entry",
    [
        ["record", {"index": 1, "file_name": "../../secret.jpg", "sha256": None}],
        ["record", {"index": 1, "sha256": None}],
        ["record", {"index": "1", "file_name": "000001.jpg", "sha256": None}],
        ["record", 3],
        ["header", 3],
        [["record"], {}],
        {"record": 1},
        3,
    ],
)
def test_a_journal_of_a_stranger_is_no_harm(tmp_path, entry):
    """Checksums are no signature: what nobody here has written is left out."""
    made = GeneratedSet(RECIPE, tmp_path, "val")
    made.ensure(1)
    journal, want = made.folder / "records.jsonl", content(made)
    text = json.dumps(entry)
    line = f"{zlib.crc32(text.encode()):08x} {text}\n"
    journal.write_text(line + journal.read_text())
    made.ensure(1)
    assert content(made) == want


def test_every_single_damaged_byte_of_the_journal_is_survived(tmp_path):
    made = GeneratedSet(RECIPE, tmp_path, "val")
    made.ensure(1)
    journal, want = made.folder / "records.jsonl", content(made)
    text = journal.read_bytes()
    for place in range(0, len(text), 11):
        journal.write_bytes(text[:place] + bytes([text[place] ^ 0x11]) + text[place + 1 :])
        made.ensure(1)
        assert content(made) == want


def test_another_version_is_drawn_anew(made):
    newer = Recipe("cheap", 2, __name__, "labels.json", RECIPE.counts)
    GeneratedSet(newer, made.root, "train").ensure(1)
    assert CALLS == list(range(COUNT))


def test_a_set_can_grow_and_shrink(made, expected):
    GeneratedSet(RECIPE, made.root, "train", COUNT + 2).ensure(1)
    assert CALLS == [COUNT, COUNT + 1]
    GeneratedSet(RECIPE, made.root, "train", 4).ensure(1)
    assert len(json.loads(made.annotations.read_text())) == 4
    CALLS.clear()
    made.ensure(1)  # no number given: what is there stays
    assert not CALLS and len(json.loads(made.annotations.read_text())) == 4
    GeneratedSet(RECIPE, made.root, "train", COUNT).ensure(1)
    assert made.annotations.read_bytes() == expected["labels.json"]


def test_size_and_seed_of_what_is_there_are_kept_when_it_is_repaired(tmp_path):
    GeneratedSet(RECIPE, tmp_path, "val", 5, seed=9).ensure(1)
    default = GeneratedSet(RECIPE, tmp_path, "val")
    want = content(default)
    (default.images / "000001.jpg").unlink()
    default.ensure(1)
    assert content(default) == want and len(want) == 6


def test_an_interrupted_generation_goes_on(tmp_path, expected, monkeypatch):
    def interrupted(split, seed, index):
        if index == 20:
            raise KeyboardInterrupt
        return draw_at_once(split, seed, index)

    made = GeneratedSet(RECIPE, tmp_path, "train")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules[__name__], "draw", interrupted)
        made.ensure(workers=1)
    assert not made.annotations.exists(), "the annotation file comes last"
    CALLS.clear()
    made.ensure(workers=1)
    assert CALLS == list(range(20, COUNT))
    assert content(made) == expected


class Slow:
    """As the cheap recipe, but slow enough to be killed at work."""

    def __call__(self, split, seed, index):
        time.sleep(0.01)
        return draw_at_once(split, seed, index)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def in_process(made, workers):
    process = multiprocessing.get_context("fork").Process(target=made.ensure, args=(workers,))
    process.start()
    return process


def test_killed_at_work_it_frees_the_lock_and_goes_on(tmp_path, expected, monkeypatch):
    made = GeneratedSet(RECIPE, tmp_path, "train")
    journal = made.folder / "records.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "draw", Slow())
        process = in_process(made, workers=2)
    wait_for(lambda: journal.exists() and journal.read_text().count("\n") > 10)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (made.images / ".000049.jpg.0123.part").write_bytes(b"half")  # as a kill in a write leaves it
    CALLS.clear()
    made.ensure(workers=1)  # would wait for ever if a worker outlived its parent with the lock
    assert 0 < len(CALLS) < COUNT
    assert content(made) == expected


class Deadly:
    """As the cheap recipe, but its process is killed at an image, as for want of memory."""

    def __call__(self, split, seed, index):
        if index == 40:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw_at_once(split, seed, index)


def test_a_killed_worker_is_told_and_the_next_run_goes_on(tmp_path, expected, monkeypatch):
    made = GeneratedSet(RECIPE, tmp_path, "train")
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "draw", Deadly())
        with pytest.raises(DatasetError, match="was killed, perhaps for want of memory.*run it ag"):
            made.ensure(workers=2)
    made.ensure(workers=1)
    assert content(made) == expected


def test_several_processes_at_once_agree(tmp_path, expected):
    made = GeneratedSet(RECIPE, tmp_path, "train")
    processes = [in_process(made, workers) for workers in (1, 2, 1)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert content(made) == expected


def test_without_locks_it_works_too(tmp_path, expected, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    made = GeneratedSet(RECIPE, tmp_path, "train")
    made.ensure(workers=1)
    assert content(made) == expected
    assert "No locks available" in caplog.text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_clear_error_and_leaves_no_rest(tmp_path, monkeypatch, workers):
    def full(*_):
        raise OSError(28, "No space left on device")

    made = GeneratedSet(RECIPE, tmp_path, "train")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(DatasetError, match=r"No space left.*\$DETECTRON2_DATASETS") as error:
            made.ensure(workers)
    assert str(made.folder) in str(error.value)
    assert not [f for f in made.folder.rglob("*") if f.is_file() and f.name != ".lock"]


def test_a_root_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=re.escape(str(tmp_path / "file"))):
        GeneratedSet(RECIPE, tmp_path / "file", "train").ensure()


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'cheap' is train or val, got 'test'"):
        GeneratedSet(RECIPE, tmp_path, "test")


def test_command_line(tmp_path, expected, capsys):
    assert command_line(RECIPE, ["--root", str(tmp_path), "--val", "0", "--workers", "2"]) == 0
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


def test_journal_leaves_out_what_is_unfinished(tmp_path):
    journal = Journal(tmp_path / "journal")
    assert journal.read() == {}
    with journal.rewriting(a=[1, {"b": "\u00e9\n"}]):
        journal.append("c", [2])
    assert journal.read() == {"a": [1, {"b": "\u00e9\n"}], "c": [[2]]}
    text = journal.path.read_text()
    journal.path.write_text(text[:-2])
    assert journal.read() == {"a": [1, {"b": "\u00e9\n"}]}


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
