"""Trainings that are to be broken: how one is started, ended by a signal, and what it ends with."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
_CONFIG = ROOT / "configs" / "shapes" / "POTO-3DMF-Aux.yaml"
_IMAGES = {"--train": 48, "--val": 16}
# seconds that a run may take, on a busy machine
_LIMIT = 600


#: When a run is ended: at any time of it, after its first checkpoint, while it writes one.
MOMENTS = ("any time", "training", "writing")


@dataclass
class Bench:
    """The folder of all runs, and how one is started."""

    folder: Path
    steps: int
    random: random.Random
    reference: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # that a whole run takes

    def prepare(self) -> None:
        """Draw the data, and train once without a fault."""
        module = [
            sys.executable,
            "-m",
            "defcn_d2.data.synthetic.shapes",
            "--root",
            str(self.folder / "data"),
        ]
        images = [str(x) for pair in _IMAGES.items() for x in pair]
        command = [*module, *images]
        subprocess.run(command, env=self.environment(), check=True, capture_output=True)
        start = time.monotonic()
        status, text = self.finish(self.folder / "reference")
        if status:
            raise SystemExit(f"the run without a fault failed:\n{text}")
        self.seconds = time.monotonic() - start
        self.reference = final_state(self.folder / "reference")

    def environment(self) -> dict[str, str]:
        paths = {"PYTHONPATH": str(ROOT), "DETECTRON2_DATASETS": str(self.folder / "data")}
        return {**os.environ, **paths, "OMP_NUM_THREADS": "1"}

    def command(self, output: Path) -> list[str]:
        keys = {
            "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
            "MODEL.FPN.OUT_CHANNELS": 32,
            "MODEL.DEFCN.NUM_CONVS": 1,
            "MODEL.EMA.ENABLED": True,
            "MODEL.DEVICE": "cpu",
            "INPUT.MIN_SIZE_TRAIN": "(48,64)",
            "INPUT.MAX_SIZE_TRAIN": 96,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 96,
            "DATALOADER.NUM_WORKERS": 2,
            "SOLVER.IMS_PER_BATCH": 4,
            "SOLVER.MAX_ITER": self.steps,
            "SOLVER.WARMUP_ITERS": 3,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SOLVER.CHECKPOINT_KEEP": 3,
            "SOLVER.DETERMINISTIC": True,
            "SEED": 1,
            "DATASETS.TEST": "()",
            "OUTPUT_DIR": output,
        }
        pairs = [str(x) for pair in keys.items() for x in pair]
        script = str(ROOT / "train_net.py")
        return [sys.executable, script, "--config-file", str(_CONFIG), "--resume", *pairs]

    def start(self, output: Path, **options: Any) -> subprocess.Popen:
        """A run in a session of its own, so that all its processes can be killed."""
        return subprocess.Popen(
            self.command(output),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )

    def finish(self, output: Path, **options: Any) -> tuple[int, str]:
        """Exit status and output of a run that is left alone."""
        process = self.start(output, **options)
        text, _ = process.communicate(timeout=_LIMIT)
        return process.returncode, text

    def interrupt(self, output: Path, number: int, moment: str) -> tuple[int, str]:
        """Send a signal at a random time; exit status and output.

        Args:
            moment: one of ``MOMENTS``.
        """
        before = set(output.glob("model_0*.pth"))
        process = self.start(output)
        begun = {
            "any time": lambda: True,
            "training": lambda: set(output.glob("model_0*.pth")) - before,
            "writing": lambda: list(output.glob("*.part")),
        }[moment]
        latest = {"any time": self.seconds, "training": 1.0, "writing": 0.002}[moment]
        while process.poll() is None and not begun():
            time.sleep(0.0005)
        try:
            text, _ = process.communicate(timeout=self.random.uniform(0, latest))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, number)
            text, _ = process.communicate(timeout=_LIMIT)
        return process.returncode, text

    def must_end_alike(self, output: Path) -> None:
        """Finish a run, and compare what it ends with."""
        status, text = self.finish(output)
        assert status == 0, text
        different = differences(final_state(output), self.reference)
        assert not different, f"not the same: {', '.join(different[:5])}"

    def copy_of_broken(self, name: str) -> Path:
        """The output of a run that was killed some checkpoints on its way."""
        stopped, output = self.folder / "stopped", self.folder / name
        if not stopped.exists():
            process = self.start(stopped)
            while len(list(stopped.glob("model_0*.pth"))) < 2 and process.poll() is None:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        shutil.copytree(stopped, output)
        return output


def final_state(output: Path) -> dict[str, Any]:
    """State at the end of a run, without the time that it took."""
    state = torch.load(output / "model_final.pth", weights_only=True)
    del state["trainer"]["hooks"]["TrainingTime"]
    return state


def differences(found: Any, expected: Any, name: str = "") -> list[str]:
    """Names of what is not the same, bit for bit."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return [name]
        return [x for k in expected for x in differences(found[k], expected[k], f"{name}/{k}")]
    if isinstance(expected, torch.Tensor):
        return [] if torch.equal(found, expected) else [name]
    return [] if found == expected else [name]
