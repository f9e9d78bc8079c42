"""The logs of runs: each its own, and what is set without an effect is in them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from tiny_data import CONFIG, TINY_MODEL

from defcn_d2.engine.train_command import setup


def begin(folder: Path, *opts: str) -> None:
    keys = [*TINY_MODEL, "OUTPUT_DIR", str(folder), *opts]
    setup(default_argument_parser().parse_args(["--config-file", CONFIG, *keys]))


@pytest.mark.parametrize("name", ["defcn_d2.engine", "detectron2.engine", "fvcore.common"])
def test_runs_of_one_process_have_each_their_own_log(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "first"]
    for i, folder in enumerate(folders):
        begin(folder)
        capsys.readouterr()
        logging.getLogger(name).info("this is run %d", i)
        assert capsys.readouterr().out.count(f"this is run {i}") == 1
    for folder, runs in (("first", (0, 2)), ("second", (1,))):
        log = (tmp_path / folder / "log.txt").read_text()
        assert [log.count(f"this is run {i}") for i in range(3)] == [
            int(i in runs) for i in range(3)
        ]


def test_keys_that_do_nothing_are_named(tmp_path: Path) -> None:
    begin(tmp_path / "set", "TEST.AUG.ENABLED", "True")
    log = (tmp_path / "set" / "log.txt").read_text()
    assert "TEST.AUG.ENABLED True does nothing" in log
    begin(tmp_path / "unset")
    assert "does nothing" not in (tmp_path / "unset" / "log.txt").read_text()
