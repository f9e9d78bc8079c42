"""tools/gpu_check.py: its runner on parts of a line of Python, and every part's command line."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from gpu import build, environment, report, runner, short_training
from gpu.parts import PARTS, Part
from helpers import ROOT

from defcn_d2.engine import load_config

TABLE = "| a, ms | b |\\n|---|---|\\n| 1.5 | x |\\n"


def part(name: str, code: str, limit: int = 60, on_cpu: bool = True) -> Part:
    """A part that runs code; {figures} and {folder} stand for paths in it."""
    command = f'-c "{code}"'
    return Part(name, f"part {name}", limit, command, command if on_cpu else "")


WRITES = part(
    "writes",
    f"open('{{figures}}', 'w').write('{TABLE}'); print('done')".replace("\\n", "\\\\n")
    + "; import time; time.sleep(0.1)",  # seconds are rounded to tenths
)
FAILS = part("fails", "raise SystemExit('it is broken')")
GPU_ONLY = part("gpu_only", "pass", on_cpu=False)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the command with some parts; gives the exit status and the entries of the JSON."""
    monkeypatch.setattr(gpu_check, "machine", lambda device: {"device": device, "torch": "2.15"})
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)  # pytest has its own

    def run(*parts: Part, options: tuple[str, ...] = ()) -> tuple[int, dict[str, dict]]:
        monkeypatch.setattr(gpu_check, "PARTS", parts)
        status = gpu_check.main(["--device", "cpu", "--output", str(tmp_path), *options])
        return status, json.loads((tmp_path / "results.json").read_text())["parts"]

    return run


def test_every_part_has_its_entry(check: Any, tmp_path: Path) -> None:
    status, found = check(WRITES, FAILS, GPU_ONLY)
    assert status == 1
    assert [entry["status"] for entry in found.values()] == ["passed", "failed", "skipped"]
    assert found["writes"]["figures"] == [[{"a, ms": 1.5, "b": "x"}]]
    assert found["writes"]["output"].strip() == "done" and found["writes"]["seconds"] > 0
    assert found["fails"]["reason"] == "exit status 1: it is broken"
    assert found["gpu_only"]["reason"] == "needs a CUDA device"
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("device cpu, torch 2.15.") and "| fails | failed |" in text
    assert "### On a GPU: writes\n\n| a, ms | b |" in text
    assert check(WRITES, GPU_ONLY)[0] == 0


def test_a_part_that_hangs_ends_with_all_that_it_has_started(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 1)
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    status, found = check(part("hangs", code, limit=1), WRITES)
    assert status == 1 and found["writes"]["status"] == "passed"
    assert found["hangs"]["status"] == "timed out"
    assert found["hangs"]["reason"] == "limit of 1 s"
    assert_gone(int(found["hangs"]["output"]))


def test_what_a_part_has_started_has_time_to_end(
    check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As torchrun, which ends its workers: they are in sessions of their own."""
    monkeypatch.setattr(runner, "PATIENCE", 1)
    launcher = tmp_path / "launcher.py"
    launcher.write_text(
        "import pathlib, signal, time\n"
        "def end(*_):\n"
        "    time.sleep(0.5)\n"
        "    pathlib.Path(__file__).with_name('ended').touch()\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "time.sleep(60)\n"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, {str(launcher)!r}])"
    assert check(part("starts", code, limit=2))[1]["starts"]["status"] == "timed out"
    assert (tmp_path / "ended").exists()


def test_a_part_that_ignores_its_end_is_killed(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PATIENCE", 1)
    monkeypatch.setattr(runner, "GRACE", 0.1)
    code = "import os, signal, time; signal.signal(15, lambda *_: None); print(os.getpid()); "
    found = check(part("deaf", f"{code}[time.sleep(1) for _ in range(60)]", limit=1))[1]
    assert found["deaf"]["status"] == "timed out"
    assert_gone(int(found["deaf"]["output"]))


def assert_gone(pid: int) -> None:
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} is still running")


def test_what_has_passed_is_not_done_again(check: Any, tmp_path: Path) -> None:
    count = "open('{folder}.count', 'a').write('x')"
    mended = f"import os; fails = not os.path.exists('{{folder}}.count'); {count}; exit(fails)"
    parts = (part("passes", count), part("mended", mended))
    assert check(*parts)[0] == 1
    status, found = check(*parts)
    assert status == 0 and found["mended"]["status"] == "passed"
    check(*parts, options=("--only", "passes"))
    counts = [len((tmp_path / f"{name}.count").read_text()) for name in ("passes", "mended")]
    assert counts == [2, 2]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_goes_on_after_a_kill(check: Any, tmp_path: Path, how: signal.Signals) -> None:
    waits = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = (
        "import gpu_check\n"
        "gpu_check.machine = lambda device: {'device': device, 'torch': '2.15'}\n"
        f"from gpu.parts import Part\ngpu_check.PARTS = ({WRITES!r}, {part('later', waits)!r})\n"
        f"gpu_check.main(['--device', 'cpu', '--output', {str(tmp_path)!r}])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        stdout=subprocess.DEVNULL,
    )
    log = tmp_path / "later.log"
    while not (log.exists() and log.read_text().endswith("\n")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) == (143 if how == signal.SIGTERM else -how)
    pid = int(log.read_text())
    if how == signal.SIGTERM:
        assert_gone(pid)
    else:
        os.kill(pid, signal.SIGKILL)
    done = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert list(done) == ["writes"]
    status, found = check(WRITES, part("later", "pass"))
    assert status == 0 and found["writes"] == done["writes"]


def test_time_of_the_whole_check(check: Any) -> None:
    status, found = check(WRITES, options=("--minutes", "0"))
    assert status == 0 and found["writes"]["status"] == "skipped"
    assert found["writes"]["reason"].endswith("start it again")
    assert check(WRITES)[1]["writes"]["status"] == "passed"


def test_folder_of_another_machine(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    check(WRITES)
    monkeypatch.setattr(gpu_check, "machine", lambda device: {"device": device, "torch": "2.16"})
    with pytest.raises(SystemExit, match="holds a check with torch '2.15', here it is '2.16'"):
        check(WRITES)


def test_folder_that_cannot_be_used(tmp_path: Path) -> None:
    for text in ("{ broken", "{}", "[]"):
        (tmp_path / "results.json").write_text(text)
        for output in (tmp_path, tmp_path / "results.json"):
            with pytest.raises(SystemExit, match="error: --output .* holds no check .*"):
                runner.Check(output, {})


def test_machine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "PATIENCE", 0)
    with pytest.raises(SystemExit, match="^error: --device cuda: no answer from PyTorch in 0 s"):
        gpu_check.machine("cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "tets"], "--only 'tets' is no part; one of: build, tests, "),
        (["--device", "cpu", "--update-docs"], "--update-docs takes figures of a GPU"),
    ],
)
def test_bad_arguments(options: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        gpu_check.main(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_one_line(tmp_path: Path) -> None:
    output = tmp_path / "made"
    command = [sys.executable, str(ROOT / "tools" / "gpu_check.py"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and not output.exists()
    assert done.stderr.startswith("error: --device cuda: PyTorch ")
    assert "finds no CUDA device" in done.stderr and done.stderr.count("\n") == 1


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in PARTS]
    assert lines[0].endswith("; needs CUDA") and not lines[1].endswith("; needs CUDA")


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("named", PARTS, ids=lambda part: part.name)
def test_options_of_every_part_exist(named: Part, device: str, tmp_path: Path) -> None:
    places = {"figures": tmp_path / "x.md", "folder": tmp_path / "x", "processes": 2}
    command = named.command(device, **places)
    if not command:
        assert device == "cpu" and not named.cpu
        return
    script, *words = command
    assert "{" not in " ".join(command)
    if script == "tools/benchmarks":
        subcommand, output, figures, *options = words
        parser = argparse.ArgumentParser()
        importlib.import_module(f"benchmarks.{subcommand}").add_arguments(parser)
        assert (output, figures) == ("--output", str(tmp_path / "x.md"))
        assert parser.parse_args(options).device == device
    elif script == "tools/gpu/short_training.py":
        arguments = short_training.parse_arguments(words)
        training = short_training.command(arguments, tmp_path / "run")
        assert arguments.device == device and ("--standalone" in training) == (
            "torchrun" in words[-2]
        )
        opts = training[training.index("--num-gpus") + 2 :]
        cfg = load_config(str(ROOT / short_training.CONFIG), opts)
        assert cfg.SOLVER.AMP.ENABLED == (device == "cuda") and cfg.MODEL.DEVICE == device
    else:
        assert script == "-m" or (ROOT / script).exists()


def test_target_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"iteration": 19, "images_per_second": 30.0, "data_share": 0.1, "train_seconds": 4.0},
        {"iteration": 39, "images_per_second": 50.0, "data_share": 0.3, "train_seconds": 9.0},
        {"iteration": 40, "bbox/AP": 53.96},
    ]

    def train(command: list[str], **_: object) -> subprocess.CompletedProcess:
        run = Path(command[-1])
        run.mkdir()
        (run / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
        (run / "log.txt").write_text("lr: 1  max_mem: 800M\nlr: 1  max_mem: 900M\n")
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", train)
    options = ["--iterations", "40", "--folder", str(tmp_path / "x")]
    options += ["--output", str(tmp_path / "x.md"), "--target"]
    status = 0
    short_training.main([*options, "53.9"])
    (row,) = report.tables((tmp_path / "x.md").read_text())[0]
    assert list(row.values()) == [54.0, 9.0, 40.0, "20 %", 900.0]
    with pytest.raises(SystemExit, match="54.0 AP after the training, and the target is 54.5"):
        short_training.main([*options, "54.5"])
    rows[-1]["bbox/AP"] = float("nan")
    with pytest.raises(SystemExit, match="nan AP"):
        short_training.main([*options, "1"])
    status = 1
    with pytest.raises(SystemExit, match="the training failed"):
        short_training.main([*options, "1"])


def test_build_for_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict] = []
    statuses = [0, 0]

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess:
        calls.append(options["env"])
        return subprocess.CompletedProcess(command, statuses[len(calls) - 1], "CUDA compiled", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(sys, "argv", ["build.py", "--output", str(tmp_path / "x.md")])
    build.main()
    assert calls[0]["FORCE_CUDA"] == "1" and calls[0]["TORCH_CUDA_ARCH_LIST"] == "9.0"
    assert report.tables((tmp_path / "x.md").read_text())[0][0]["report"] == "CUDA compiled"
    for given, message in ([1, 0], "the build failed"), ([0, 1], "built, but not in use: CUDA"):
        calls.clear()
        statuses[:] = given
        with pytest.raises(SystemExit, match=message):
            build.main()


def test_environment_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    card = argparse.Namespace(name="Card X", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    done = subprocess.CompletedProcess([], 0, "580.65.06\n580.65.06\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    found = environment.environment("cuda")
    assert (found["card"], found["capability"], found["memory_gib"]) == ("Card X", "9.0", 80.0)
    assert (found["driver"], found["cards"]) == ("580.65.06", 2)
    json.dumps(found)

    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert environment.driver() == "unknown"


def test_numbers_of_tables() -> None:
    (first, second) = report.tables("text\n\n| a |\n|---|\n| 1e3 |\n| nan |\n\n| b |\n|:-:|\n| x |")
    assert first == [{"a": 1000.0}, {"a": "nan"}] and second == [{"b": "x"}]


def test_page_has_a_place_for_the_report() -> None:
    text = report.PAGE.read_text()
    assert [text.count(marker) for marker in report.MARKERS] == [1, 1]


def test_docs_are_updated_when_told(
    check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n{}\nold\n{}\nafter\n".format(*report.MARKERS))
    monkeypatch.setattr(gpu_check, "PAGE", page)
    check(WRITES, options=("--device", "cuda", "--update-docs"))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "### On a GPU: writes" in text
