"""Signals of a cluster: in this process, in a program, in its workers, in processes it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from test_engine_distributed import torchrun
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import multiprocessing
from torch.utils.data import DataLoader

from defcn_d2.engine import Trainer, run
from defcn_d2.engine.cluster import preemption
from defcn_d2.engine.cluster.preemption import (
    RESUMABLE,
    SIGNALS,
    Preempted,
    Preemption,
    forwarding,
    outlive_signals,
)
from defcn_d2.engine.reporting import reported


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_steps_it_ends_at_once(number):
    before = [signal.getsignal(x) for x in SIGNALS]
    with pytest.raises(Preempted, match=f"stopped by {number.name}: nothing was trained"):
        with Preemption().listening():
            os.kill(os.getpid(), number)
            time.sleep(5)
    assert [signal.getsignal(x) for x in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_step_ends_first():
    process = Preemption()
    with process.listening():
        with process.step():
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGTERM)  # a launcher forwards what a cluster sent to all
            done = True
        assert done and process.requested
        with pytest.raises(Preempted), process.at_once():  # an evaluation does not begin
            raise AssertionError
    with pytest.raises(Preempted, match="stopped by SIGUSR1: x; go on with --resume") as info:
        process.stop("x")
    assert info.value.code == RESUMABLE == 75


def test_evaluations_end_at_once():
    process = Preemption()
    with process.listening(), process.step():
        with pytest.raises(Preempted), process.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        assert process._waits


def test_in_other_threads_nothing_is_handled():
    seen = []

    def work():
        with Preemption().listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_exit_status_and_sentence(capsys):
    def stopped():
        Preemption().stop("all is saved")

    assert reported(stopped)() == RESUMABLE
    assert capsys.readouterr().err == (
        "stopped by a signal to another process: all is saved; go on with --resume\n"
    )


def program(text: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HANGS = """
import threading, time
from defcn_d2.engine.cluster import preemption
preemption._PATIENCE = {patience}
process = preemption.Preemption()
with process.listening(), process.step():
    print("ready", flush=True)
    {wait}
"""


def test_a_second_signal_ends_at_once():
    process = program(HANGS.format(patience=60, wait="for _ in range(600): time.sleep(0.1)"))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(preemption._SAME_SIGNAL + 0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM


def test_a_step_that_never_ends_is_ended():
    """As one that waits, outside of Python, for a process that is gone."""
    wait = "import ctypes; ctypes.CDLL(None).sigwait and ctypes.CDLL(None).poll(None, 0, 60000);"
    forever = f"{wait}\n    while True: ctypes.CDLL(None).poll(None, 0, 60000)"
    process = program(HANGS.format(patience=0.5, wait=forever))
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == RESUMABLE
    assert error.splitlines()[-1].startswith("error: a step did not end within")


class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return os.getpid()


def test_workers_outlive_signals_but_not_their_process():
    loader = DataLoader(Numbers(), num_workers=1, worker_init_fn=outlive_signals)
    iterator = iter(loader)
    worker = int(next(iterator))
    process = program(f"import os; [os.kill({worker}, x) for x in (10, 15)]")
    assert process.wait() == 0
    time.sleep(0.3)
    assert [int(next(iterator)) for _ in range(3)] == [worker] * 3
    [child] = [x for x in multiprocessing.active_children() if x.pid == worker]
    child.terminate()  # as PyTorch ends one that does not end by itself
    child.join(timeout=10)
    assert not child.is_alive()


def wait_for_signal(folder):
    def note(number, frame):
        Path(folder, str(number)).touch()
        os._exit(RESUMABLE)

    for number in SIGNALS:
        signal.signal(number, note)
    Path(folder, "ready").touch()
    time.sleep(60)


def test_signals_are_forwarded_to_spawned_processes(tmp_path):
    child = multiprocessing.get_context("spawn").Process(
        target=wait_for_signal, args=(str(tmp_path),)
    )
    with forwarding():
        child.start()
        while not (tmp_path / "ready").exists():
            assert child.is_alive()
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)
        child.join(timeout=30)
    assert child.exitcode == RESUMABLE
    assert (tmp_path / str(int(signal.SIGUSR1))).exists()


def train(folder, *opts):
    tiny_sets()
    arguments = ["--config-file", CONFIG, "--resume", *TINY_MODEL, *TINY_SETS]
    return run([*arguments, "OUTPUT_DIR", str(folder), *opts])


@pytest.fixture
def signal_at(monkeypatch):
    """Send SIGTERM to this process when ``Trainer.name`` is called for the n-th time."""

    def set_up(name, number):
        original, calls = getattr(Trainer, name), []

        def wrapped(*args, **kwargs):
            calls.append(None)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        monkeypatch.setattr(
            Trainer, name, staticmethod(wrapped) if name == "test" else wrapped, raising=True
        )

    return set_up


ASKED = """
import os, signal, sys
from detectron2.engine import HookBase
from defcn_d2.engine import Trainer, run

class Asked(HookBase):
    def before_step(self):
        if os.environ["RANK"] == "1" and self.trainer.iter == 1:
            os.kill(os.getpid(), signal.SIGUSR1)

hooks = Trainer.build_hooks
Trainer.build_hooks = lambda self: [*hooks(self), Asked()]
status = run()
print(f"process {os.environ['RANK']} ends with {status}", flush=True)
sys.exit(status)
"""


def test_processes_stop_after_the_same_step(tmp_path):
    """Though one of them alone was asked to."""
    script = tmp_path / "asked.py"
    script.write_text(ASKED)
    status, output = torchrun(tmp_path, script, "SOLVER.MAX_ITER", "50", "DATASETS.TEST", "()")
    assert status != 0
    for rank in range(2):
        assert f"process {rank} ends with {RESUMABLE}" in output, output
    [name] = names(tmp_path)
    iteration = int(name.removeprefix("model_").removesuffix(".pth"))
    assert iteration in (1, 2)
    assert output.count(f"all is saved up to iteration {iteration}; go on with --resume") == 1


def names(folder):
    return sorted(x.name for x in folder.glob("model_*.pth"))


def test_training_saves_and_goes_on(tmp_path, signal_at, capsys, monkeypatch):
    keys = ("SOLVER.MAX_ITER", "4", "SOLVER.DETERMINISTIC", "True", "DATASETS.TEST", "()")
    try:
        assert train(tmp_path / "whole", *keys) == 0
        signal_at("run_step", 2)
        assert train(tmp_path / "parts", *keys) == RESUMABLE
        assert names(tmp_path / "parts") == ["model_0000001.pth"]
        last = capsys.readouterr().err.splitlines()[-1]
        expected = "stopped by SIGTERM: all is saved up to iteration 1; go on with --resume"
        assert last == expected
        monkeypatch.undo()
        assert train(tmp_path / "parts", *keys) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    one, other = (torch.load(tmp_path / x / "model_final.pth") for x in ("whole", "parts"))
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert "Starting training from iteration 2" in (tmp_path / "parts" / "log.txt").read_text()


def test_an_evaluation_is_given_up(tmp_path, monkeypatch, capsys):
    original = Trainer.test.__func__
    calls = []

    def test(cls, *args, **kwargs):
        calls.append(None)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    keys = ("SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "2")
    assert train(tmp_path, *keys) == RESUMABLE
    assert names(tmp_path) == ["model_0000001.pth"] and len(calls) == 1
    assert "saved up to iteration 1" in capsys.readouterr().err
    # the last evaluation: all is trained, the metrics are written, and it is said
    assert train(tmp_path, *keys) == RESUMABLE
    assert names(tmp_path) == ["model_0000001.pth", "model_final.pth"] and len(calls) == 2
    assert "all is trained and saved, but not evaluated" in capsys.readouterr().err
    assert '"iteration": 2' in (tmp_path / "metrics.json").read_text()
    monkeypatch.undo()
    assert train(tmp_path, *keys) == 0
    assert "bbox/AP" in (tmp_path / "metrics.json").read_text().splitlines()[-1]
