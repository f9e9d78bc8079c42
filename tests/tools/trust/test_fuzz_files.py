"""tools/trust/fuzz_files.py: a small form of it, and that it would see what it looks for."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "tools" / "trust"))
import fuzz_files
from fuzz_files import FAILED, KINDS, WELL, Limits, run_case, run_cases
from fuzzing import file_damage
from fuzzing.file_readers import Kind, Wrong

LIMITS = Limits(20.0, 2**31)
CASES = {"COCO JSON": 60, "CrowdHuman odgt": 60}


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_named_or_harmless(name: str, tmp_path: Path) -> None:
    kind = KINDS[name](tmp_path / "files")
    results = list(run_cases(kind, range(CASES.get(name, 40)), 0, LIMITS))
    assert [result.number for result in results] == list(range(CASES.get(name, 40)))
    failed = [result for result in results if result.outcome in FAILED]
    assert not failed, (
        f"python tools/trust/fuzz_files.py --kinds {name!r} --only {failed[0].number}"
    )
    assert {result.outcome for result in results} <= set(WELL)
    assert len({result.damage for result in results}) == len(
        {way for file in kind.damaged for way in kind.ways(file)}
    )
    for file, content in kind.whole.items():
        assert (kind.folder / file).read_bytes() == content  # mended


@pytest.mark.parametrize("way", file_damage.DAMAGE)
def test_damage_is_damage_and_can_be_repeated(way: str) -> None:
    content = bytes(range(256)) * 8
    found = [file_damage.DAMAGE[way](content, random.Random(seed)) for seed in range(20)]
    again = [file_damage.DAMAGE[way](content, random.Random(seed)) for seed in range(20)]
    assert found == again
    assert sum(damaged != content for damaged in found) >= 15


def test_changes_of_json_change_all_there_is() -> None:
    """Every place of a file is removed, replaced, copied, turned, nudged and renamed at times."""
    content = b'{"a": [1, {"b": 2.5}], "c": "x"}'
    found = {file_damage.change_json(content, random.Random(seed)) for seed in range(5000)}
    for text in (
        b'{"a": [1, {"b": 2.5}]}',
        b'{"a": [1, {"B": 2.5}], "c": "x"}',
        b'{"a": {"0": 1, "1": {"b": 2.5}}, "c": "x"}',
        b'{"a": [1, {"b": NaN}], "c": "x"}',
        b'{"a": [1, {"b": 2.5}, 1], "c": "x"}',
        b'{"a": [2, {"b": 2.5}], "c": "x"}',
        b'{"a": [1, {"b": "2.5"}], "c": "x"}',
        b'{"a": [1, [2.5]], "c": "x"}',
    ):
        assert text in found


class Hostile(Kind):
    """A reader that does, by the content of its file, what readers must not do."""

    name = "hostile"
    damaged = ("file",)
    errors = (ValueError,)
    deed = "none"

    def write(self) -> None:
        (self.folder / "file").write_bytes(b"whole")

    def read(self) -> Any:
        if (self.folder / "file").read_bytes() == b"whole" or self.deed == "none":
            return "whole"
        if self.deed == "hang":
            time.sleep(60)
        if self.deed == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.deed == "memory":
            bytearray(2**40)
        if self.deed == "unnamed":
            raise ValueError("something is wrong")
        if self.deed == "traceback":
            raise KeyError("something")
        raise ValueError(f"{self.folder / 'file'} is damaged")

    def judge(self, found: Any) -> str:
        raise Wrong("not noticed")


@pytest.mark.parametrize(
    ("deed", "outcome", "message"),
    [
        ("none", "unnoticed", "not noticed"),
        ("hang", "hang", "more than 0.3 s"),
        ("crash", "crash", "exit status -11"),
        ("memory", "unnamed", "MemoryError"),
        ("unnamed", "unnamed", "something is wrong"),
        ("traceback", "unnamed", "KeyError: 'something'"),
        ("error", "named", "is damaged"),
    ],
)
def test_what_readers_must_not_do_is_seen(
    deed: str, outcome: str, message: str, tmp_path: Path
) -> None:
    kind = Hostile(tmp_path / "files")
    kind.deed = deed
    results = list(run_cases(kind, range(3), 0, Limits(0.3 if deed == "hang" else 20.0, 2**30)))
    assert [result.number for result in results] == [0, 1, 2]
    assert {result.outcome for result in results} == {outcome}
    assert all(message in result.message for result in results)


def test_flipped_weights_are_seen_where_nobody_compares_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defcn_d2.weights.reader._check_records", lambda path: None)
    kind = KINDS["checkpoint (.pth)"](tmp_path / "files")
    results = list(run_cases(kind, range(40), 0, LIMITS))
    assert "unnoticed" in {result.outcome for result in results}


def test_a_case_is_the_same_alone(tmp_path: Path) -> None:
    kind = KINDS["results JSON"](tmp_path / "files")
    *_, last = run_cases(kind, range(8), 5, LIMITS)
    assert run_case(kind, 7, 5) == last


def test_the_report(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fuzz_files.main(["--kinds", "results JSON", "--cases", "5"]) == 0
    printed = capsys.readouterr().out
    assert "| results JSON | 5 |" in printed and "5 cases, 0 failed" in printed

    monkeypatch.setitem(KINDS, "results JSON", Hostile)
    assert fuzz_files.main(["--kinds", "results JSON", "--cases", "2"]) == 1
    printed = capsys.readouterr().out
    assert "results JSON, case 1, " in printed and "2 cases, 2 failed" in printed
    assert fuzz_files.main(["--kinds", "results JSON", "--only", "1"]) == 0
    assert "outcome='unnoticed'" in capsys.readouterr().out
