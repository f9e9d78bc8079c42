"""Workers of data loaders by every start method: Python 3.14 has forkserver as its default."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS

PROGRAM = """
import multiprocessing, sys
from tiny_data import tiny_sets
from defcn_d2.engine import run

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    tiny_sets()
    sys.exit(run(sys.argv[2:]))
"""

KILLED = """
import multiprocessing, os, signal, sys
from torch.utils.data import DataLoader
from defcn_d2.engine.cluster.preemption import outlive_signals

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    batches = iter(DataLoader(range(1000), num_workers=1, worker_init_fn=outlive_signals))
    print(next(batches), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
METHODS = ["fork", "spawn", "forkserver"]


@pytest.mark.parametrize("method", METHODS)
def test_a_worker_ends_when_its_process_is_killed(method: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(KILLED)
    process = subprocess.run(  # reads to the end of the pipe, which the worker holds open, too
        [sys.executable, script, method],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert process.stdout == "tensor([0])\n"


@pytest.mark.parametrize("method", METHODS)
def test_training_with_a_worker_ends(method: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    keys = ("SOLVER.MAX_ITER", "2", "DATALOADER.NUM_WORKERS", "1", "OUTPUT_DIR", str(tmp_path))
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    process = subprocess.run(
        [sys.executable, script, method, "--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, *keys],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "model_final.pth").exists()
    assert "bbox/AP" in (tmp_path / "metrics.json").read_text().splitlines()[-1]
