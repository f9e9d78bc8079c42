"""What Windows lacks: everything is imported, and trains in one process, without it."""

import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

# What other packages and Python take from the system they have taken before it is gone.
PROGRAM = """
import os, pkgutil, signal, sys
import detectron2.engine, detectron2.evaluation, torch._dynamo, torch.onnx
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for name in ("getppid", "sched_getaffinity", "set_blocking", "fork", "killpg"):
    delattr(os, name)
kept = "SIGABRT SIGFPE SIGILL SIGINT SIGSEGV SIGTERM SIG_DFL SIG_IGN".split()
names = [x for x in vars(signal) if x.startswith("SIG") and x not in kept]
for name in (*names, "pthread_sigmask", "pthread_kill", "setitimer", "sigwait", "sigwaitinfo"):
    delattr(signal, name)

import defcn_d2
for module in pkgutil.walk_packages(defcn_d2.__path__, "defcn_d2."):
    if not module.name.startswith("defcn_d2._C"):  # loaded by torch
        __import__(module.name)

from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from defcn_d2.demo.demo_command import run as demo
from defcn_d2.engine import run
from defcn_d2.export.export_command import run as export

tiny_sets()
model = ["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS]
assert run([*model, "SOLVER.MAX_ITER", "2", "OUTPUT_DIR", "out"]) == 0
from detectron2.data import DatasetCatalog
image = DatasetCatalog.get("tiny_val")[0]["file_name"]
model = ["--config-file", "out/config.yaml", "--weights", "out/model_final.pth"]
assert demo([*model, "--input", image, "--output", "seen"]) == 0
assert export([*model, "--output", "exported.pt2", "--format", "exported", "--images", image]) == 0
"""


def test_without_what_windows_lacks(tmp_path: Path) -> None:
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests" / "support")))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "seen").exists()
    assert (tmp_path / "exported.pt2").exists()
