"""tools/slurm.sh with stand-ins for srun and scontrol: environment, statuses, preemption."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL, tiny_sets

from defcn_d2.engine.cluster.distributed import Torchrun

SCRIPT = ROOT / "tools" / "slurm.sh"
JOB = {
    "SLURM_JOB_ID": "4242",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_CPUS_PER_TASK": "3",
    "SLURM_JOB_NODELIST": "node[7-8]",
}

# Tasks of one machine; as Slurm's, it passes signals on to all processes of each, ends all when one
# fails, and has the highest status.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
assert sys.argv[1] == "--kill-on-bad-exit=1" and os.environ["SRUN_CPUS_PER_TASK"] == "3"
tasks = []

def signal_all(number, frame=None):
    for task in tasks:
        if task.poll() is None:
            os.killpg(task.pid, number)

signal.signal(signal.SIGUSR1, signal_all)
for i in range(int(os.environ["SLURM_NTASKS"])):
    environment = {{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}}
    tasks.append(subprocess.Popen(sys.argv[2:], env=environment, preexec_fn=os.setpgrp))
while any(task.poll() is None for task in tasks):
    if any(task.poll() for task in tasks):
        signal_all(signal.SIGTERM)
    time.sleep(0.05)
sys.exit(max(task.returncode % 256 for task in tasks))
"""
SCONTROL = """#!/bin/sh
case "$*" in
    "show hostnames node[7-8]") echo localhost; echo node8;;
    "requeue 4242") echo 4242 >> requeued; exit "${REQUEUE_STATUS:-0}";;
    *) exit 9;;
esac
"""
# In place of Python: writes what it is told, and ends with the status of its rank.
PROGRAM = f"""#!{sys.executable}
import json, os, sys, time
rank = os.environ["RANK"]
with open("told-" + rank, "w") as file:
    json.dump([dict(os.environ), sys.argv[1:]], file)
status = int(os.environ["STATUSES"].split()[int(rank)])
time.sleep(0 if status else 0.5)
sys.exit(status)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job; its PWD is a folder like a checkout."""
    (tmp_path / "train_net.py").symlink_to(ROOT / "train_net.py")
    (tmp_path / "bin").mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL), ("program", PROGRAM)):
        path = tmp_path / "bin" / name
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("SLURM_")},
        **JOB,
        "PWD": str(tmp_path),
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "bin" / "program"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(tmp_path),
    }


def sbatch(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments],
        cwd=environment["PWD"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def requeued(environment: dict[str, str]) -> bool:
    return (Path(environment["PWD"]) / "requeued").exists()


def test_processes_are_told_what_torchrun_tells(cluster):
    arguments = ["--config-file", "configs/with space.yaml", "OUTPUT_DIR", "$HOME"]
    done = sbatch({**cluster, "STATUSES": "0 0"}, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert not requeued(cluster)
    for rank in range(2):
        told = json.loads((Path(cluster["PWD"]) / f"told-{rank}").read_text())
        environment, command = told
        assert command == ["train_net.py", "--resume", *arguments]
        assert Torchrun.from_environment(environment) == Torchrun(rank, rank, 2, 2)
        assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("localhost", "14242")
    assert not list(Path(cluster["PWD"]).glob("tmp.*")), "its own folder is removed"


@pytest.mark.parametrize("statuses", ["75 75", "75 0"])  # of two that stop, or one was through
def test_a_job_that_was_preempted_goes_on(cluster, statuses):
    done = sbatch({**cluster, "STATUSES": statuses})
    assert (done.returncode, requeued(cluster)) == (75, True), done.stderr
    assert done.stdout == "job 4242 was stopped before its end, and goes on later\n"


@pytest.mark.parametrize("statuses", ["1 0", "1 1", "137 75", "75 1"])
def test_a_job_that_has_failed_ends(cluster, statuses):
    done = sbatch({**cluster, "STATUSES": statuses})
    assert done.returncode in (1, 137, 128 + signal.SIGTERM)  # of the failed, or of who is ended
    assert not requeued(cluster) and done.stdout == ""


def test_a_job_that_may_not_be_requeued_says_so(cluster):
    done = sbatch({**cluster, "STATUSES": "75 75", "REQUEUE_STATUS": "1"})
    assert done.returncode == 75
    assert done.stderr == "error: not requeued; start it again by sbatch\n"


@pytest.mark.parametrize("missing", ["SLURM_JOB_ID", "SLURM_NTASKS_PER_NODE"])
def test_without_slurm(cluster, missing):
    done = sbatch({name: value for name, value in cluster.items() if name != missing})
    assert done.returncode == 2
    assert done.stderr == "error: start this by sbatch, with --ntasks-per-node\n"


def test_a_training_is_stopped_by_a_signal(cluster):
    """Of two processes, by the signal of --signal; the job saves, and is queued again."""
    folder = Path(cluster["PWD"])
    environment = {**cluster, "PYTHON": sys.executable, "DETECTRON2_DATASETS": str(tiny_sets())}
    opts = ["OUTPUT_DIR", "run", "SOLVER.CHECKPOINT_PERIOD", "2", "SOLVER.MAX_ITER", "100000"]
    with open(folder / "log", "w") as log:
        job = subprocess.Popen(
            [str(SCRIPT), "--config-file", CONFIG, *TINY_MODEL, *opts],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 240
        while not (folder / "run" / "last_checkpoint").exists() and job.poll() is None:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        os.killpg(job.pid, signal.SIGUSR1)  # srun passes it on to the tasks
        assert job.wait(120) == 75, (folder / "log").read_text()
    assert requeued(cluster)
    last = torch.load(folder / "run" / (folder / "run" / "last_checkpoint").read_text())
    told = re.search(r"all is saved up to iteration (\d+)", (folder / "log").read_text())
    assert told and last["iteration"] == int(told[1])


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_script_is_clean():
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
