"""One of two processes fails, in many ways: all end, soon, with a status, and the cause is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from failing_runs import FAILURES, LAUNCHERS
from helpers import ROOT

# Failure to what must be told.
CAUSES = {
    "forward": "RuntimeError: the forward pass is broken",
    "loader": "cannot be loaded",
    "killed": "SIGKILL",
    "evaluation": "RuntimeError: the evaluation is broken",
    "inference": "RuntimeError: the inference is broken",
    "checkpoint": "error (rank 0): no space left for run/model_0000001.pth",
    "stuck": "RuntimeError: the other one waits",
}
# What the other process meets when the first is gone.
CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the runs by both launchers, which are made at the same time."""
    folder = tmp_path_factory.mktemp("failing")
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RANK"},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "support" / "failing_runs.py")]
    runs = {
        launcher: subprocess.Popen(
            [*command, launcher, str(folder / launcher), "--patience", "2"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for launcher in LAUNCHERS
    }
    for run in runs.values():
        output, _ = run.communicate(timeout=600)
        assert run.returncode == 0, output
    return folder


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("failure", [failure.__name__ for failure in FAILURES])
def test_all_processes_end(folder: Path, launcher: str, failure: str) -> None:
    report = json.loads((folder / launcher / failure / "report.json").read_text())
    output = (folder / launcher / failure / "output.txt").read_text()
    print(f"{failure}, {launcher}: all ended {report['seconds']:.1f} s after it")
    assert report["status"] != 0, output
    assert report["seconds"] < 60
    assert len(report["processes"]) == 2
    assert not any(is_alive(process) for process in report["processes"])
    consequence = any(text in output for text in CONSEQUENCES)
    if failure == "killed":  # which tells nothing: what its launcher sees first is told
        assert CAUSES[failure] in output or consequence
    else:
        assert CAUSES[failure] in output and not consequence, output
    assert not list((folder / launcher / failure / "run").glob("*.tmp*")), "a half-written file"


def test_a_killed_process_is_started_again_and_the_weights_are_those_of_no_failure(folder) -> None:
    torchrun = folder / "torchrun"
    states = []
    for name in ("nothing", "restarted"):
        report = json.loads((torchrun / name / "report.json").read_text())
        output = (torchrun / name / "output.txt").read_text()
        assert report["status"] == 0, output
        states.append(torch.load(torchrun / name / "run" / "model_final.pth")["model"])
    assert (torchrun / "restarted" / "failed-1").exists()
    log = (torchrun / "restarted" / "run" / "log.txt").read_text()
    starts = [line.split()[-1] for line in log.splitlines() if "Starting training from" in line]
    assert starts == ["0", "4"], "the checkpoint of the fourth step"
    expected, found = states
    worst = max((found[name] - value).abs().max().item() for name, value in expected.items())
    print(f"started again, torchrun: weights differ by {worst:.1e} at most")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7, msg=name)
