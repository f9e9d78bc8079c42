"""torchrun: its environment, two processes on the CPU, one that is killed, one that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL, tiny_sets

from defcn_d2.engine.cluster import distributed
from defcn_d2.engine.cluster.distributed import Torchrun
from defcn_d2.engine.preflight import _check_torchrun
from defcn_d2.engine.reporting import reported
from defcn_d2.utils.errors import UserError

ENVIRONMENT = {
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


def test_environment_of_torchrun():
    assert Torchrun.from_environment(ENVIRONMENT) == Torchrun(3, 1, 4, 2)
    again = {**ENVIRONMENT, "TORCHELASTIC_RESTART_COUNT": "2"}
    assert Torchrun.from_environment(again) == Torchrun(3, 1, 4, 2, restarts=2)


@pytest.mark.parametrize("missing", [*ENVIRONMENT])
def test_other_launchers_are_not_torchrun(missing):
    some = {name: value for name, value in ENVIRONMENT.items() if name != missing}
    assert Torchrun.from_environment(some) is None


@pytest.mark.parametrize(
    "changed, sentence",
    [
        ({"RANK": "first"}, "RANK is 'first' in the environment, but must be a number"),
        ({"RANK": "4"}, "RANK 4 of WORLD_SIZE 4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK 2 of LOCAL_WORLD_SIZE 2"),
    ],
)
def test_wrong_environment(changed, sentence):
    with pytest.raises(ValueError, match=sentence):
        Torchrun.from_environment({**ENVIRONMENT, **changed})


def test_processes_that_do_not_fit_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="started 2 processes .* has 1 GPUs; .*-node 1"):
        _check_torchrun(Torchrun(0, 0, 4, 2), on_gpu=True)
    with pytest.raises(UserError, match="5 processes, which is no multiple of the 2"):
        _check_torchrun(Torchrun(0, 0, 5, 2), on_gpu=False)
    _check_torchrun(Torchrun(0, 0, 4, 2), on_gpu=False)


def in_threads(*functions):
    with ThreadPoolExecutor(len(functions)) as pool:
        return [task.result(timeout=30) for task in [pool.submit(f) for f in functions]]


def test_each_start_has_its_number():
    """In one store, as torchrun keeps it, whatever the number of processes and their order."""
    store = torch.distributed.HashStore()
    for start, ranks in ((1, (0, 1, 2)), (2, (1, 0)), (3, (3, 2, 1, 0)), (4, (0,))):
        tasks = [partial(distributed.agree_on_start, store, rank, len(ranks)) for rank in ranks]
        assert in_threads(*tasks) == [start] * len(ranks)


def test_only_the_first_that_fails_tells(monkeypatch, capsys):
    monkeypatch.setattr(distributed, "_store", torch.distributed.HashStore())

    def fail(error):
        raise error

    assert reported(fail)(UserError("the cause")) == 1
    assert capsys.readouterr().err == "error: the cause\n"
    assert reported(fail)(RuntimeError("connection closed by peer")) == 1
    assert reported(fail)(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""


def torchrun(folder: Path, script: Path, *arguments: str, restarts: int = 0) -> tuple[int, str]:
    """Exit status and output of two processes on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", f"--max-restarts={restarts}", "--monitor-interval=0.2"]
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ENVIRONMENT},
        "DETECTRON2_DATASETS": str(tiny_sets()),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [*command, str(script), "--config-file", CONFIG, *TINY_MODEL, *arguments]
        + ["OUTPUT_DIR", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout


KEYS = ["MODEL.EMA.ENABLED", "True", "MODEL.EMA.DECAY", "0.5", "SOLVER.ACCUMULATE", "2"]


def test_two_processes_train_and_evaluate(tmp_path):
    status, output = torchrun(tmp_path, ROOT / "train_net.py", *KEYS, "SOLVER.MAX_ITER", "2")
    assert status == 0, output
    assert "Rank of current process: 0. World size: 2" in (tmp_path / "log.txt").read_text()
    assert "World size: 2" in (tmp_path / "log.txt.rank1").read_text()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert lines[-1]["iteration"] == 2 and "bbox/AP" in lines[-1]
    results = json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())
    assert len({x["image_id"] for x in results}) == 16  # those of both processes
    state = torch.load(tmp_path / "model_final.pth")
    assert state["iteration"] == 1 and state["ema"]["updates"] == 2


KILLED = """
import os, signal, sys
from detectron2.engine import HookBase
from defcn_d2.engine import Trainer, run

class Killed(HookBase):
    def after_step(self):
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.environ["RANK"] == "1" and self.trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGKILL)

hooks = Trainer.build_hooks
Trainer.build_hooks = lambda self: [*hooks(self), Killed()]
sys.exit(run())
"""


def test_a_killed_process_is_started_again_and_goes_on(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    opts = ["SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "1", "DATASETS.TEST", "()"]
    status, output = torchrun(tmp_path, script, *opts, restarts=1)
    assert status == 0, output
    log = (tmp_path / "log.txt").read_text()
    starts = [line.split()[-1] for line in log.splitlines() if "Starting training from" in line]
    # the main process has saved the second step, or the third, when the other dies after its third
    assert starts in (["0", "2"], ["0", "3"])
    state = torch.load(tmp_path / "model_final.pth")
    steps = state["trainer"]["_trainer"]["optimizer"]["state"].values()
    assert state["iteration"] == 3 and {int(x["step"]) for x in steps} == {4}


def test_a_mistake_is_told_once(tmp_path):
    status, output = torchrun(tmp_path, ROOT / "train_net.py", "SOLVER.IMS_PER_BATCH", "3")
    assert status == 1
    errors = [line for line in output.splitlines() if line.startswith("error")]
    assert errors == [
        "error: SOLVER.IMS_PER_BATCH is 3, but must be a multiple of the number of processes (2)"
    ]
    assert not (tmp_path / "log.txt").exists()


def test_where_nobody_is_left_to_ask_every_failure_is_told(monkeypatch):
    class Gone:
        def add(self, name: str, number: int) -> int:
            raise RuntimeError("Broken pipe")

    for store in (None, Gone()):
        monkeypatch.setattr(distributed, "_store", store)
        assert distributed.is_first_to_fail()
