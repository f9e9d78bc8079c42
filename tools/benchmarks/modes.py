"""A whole training step, optimizer included, in number and memory formats, compiled or not."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics

import torch
from detectron2.utils.events import EventStorage

from benchmarks import detectors
from benchmarks.timing import interleave, machine, markdown, wall_clock_on
from defcn_d2.engine.mixed_precision import PRECISIONS, MixedPrecisionTrainer
from defcn_d2.engine.step import StepTrainer
from defcn_d2.modeling.compilation import Compilation, is_compiled
from defcn_d2.modeling.head.norm import GroupNorm

DESCRIPTION = "a training step in float32, float16 and bfloat16, channels_last, compiled"
MODES = (
    "float32",
    "float16",
    "bfloat16",
    "float32, channels_last",
    "float16, channels_last",
    "bfloat16, channels_last",
    "bfloat16, channels_last, compiled",
    "float32, channels_last, compiled",
    "float32, channels_last, AdamW",
    "float32, channels_last, AdamW by a loop",
    "float32, channels_last, fused AdamW",
    "float32, channels_last, PyTorch's GroupNorm",
    "bfloat16, channels_last, PyTorch's GroupNorm",
)
OPTIMIZERS: dict[str, dict] = {
    "AdamW": {},
    "AdamW by a loop": {"foreach": False},
    "fused AdamW": {"fused": True},
}
# Losses of the first step may differ so much from those of the first mode, in relation to them.
TOLERANCE = 0.1
LEARNING_RATE = 1e-6  # the weights stay what they are


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``modes``."""
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--rounds", type=int, default=9, help="steps of every mode")
    parser.add_argument(
        "--image", type=int, nargs=2, default=(320, 416), metavar=("HEIGHT", "WIDTH")
    )
    parser.add_argument("--batch", type=int, default=2, help="images a step")
    parser.add_argument(
        "--detector", default="POTO-3DMF-Aux", help="a config, such as shapes/POTO [%(default)s]"
    )
    parser.add_argument(
        "--modes", nargs="+", choices=MODES, help="[those of SGD that the device can do]"
    )


def run(arguments: argparse.Namespace) -> str:
    """The table as Markdown; ratios are to the first mode.

    Raises:
        SystemExit: an option is out of range.
        AssertionError: a mode's loss is not that of the first one.
    """
    device, image = arguments.device, tuple(arguments.image)
    if arguments.rounds < 2 or arguments.batch < 1 or min(image) < 32:
        raise SystemExit("--rounds must be at least 2, --batch 1 and --image 32 32")
    if not detectors.is_ours(arguments.detector):
        raise SystemExit(f"--detector {arguments.detector!r} is no config of configs/")
    modes = arguments.modes or [mode for mode in MODES if _is_usual(mode, device)]
    inputs = detectors.make_inputs(arguments.batch, image, 7, device)
    steps = {mode: OptimizerStep(arguments.detector, mode, inputs) for mode in modes}
    losses = {mode: step() for mode, step in steps.items()}
    for mode, loss in losses.items():
        assert math.isclose(loss, losses[modes[0]], rel_tol=TOLERANCE), losses
        steps[mode].assert_compiled()
    samples = interleave(steps, arguments.rounds, wall_clock_on(device))
    base = samples[modes[0]].seconds
    rows = []
    for mode, sample in samples.items():
        ratio = statistics.median(own / other for own, other in zip(sample.seconds, base))
        memory = [f"{steps[mode].peak_bytes() / 2**20:.0f}"] if device != "cpu" else []
        rows.append([mode, str(sample), f"{ratio:.2f}x", *memory, f"{losses[mode]:.4g}"])
    header = ["mode", "step, ms", f"against {modes[0]}"]
    header += ["peak memory beyond the weights, MiB"] * (device != "cpu") + ["loss"]
    note = (
        f"{machine(device)}; {arguments.detector}, {arguments.batch} x 3 x {image[0]} x {image[1]}"
    )
    note += "; forward, backward and optimizer."
    return f"{note}\n\n{markdown(header, rows)}"


def _is_usual(mode: str, device: str) -> bool:
    if any(word in mode for word in ("AdamW", "GroupNorm", "float32, channels_last, compiled")):
        return False
    return device != "cpu" or not mode.startswith("float16") and not mode.endswith("compiled")


class OptimizerStep:
    """A training step as ``train_net.py`` does it, over and over for the same images."""

    def __init__(self, detector: str, mode: str, inputs: list[dict]):
        """
        Args:
            detector: of ``detectors.names()``; Detectron2's in float32 alone.
            mode: of ``MODES``.
            inputs: with ground truth, on the device to run on.
        """
        precision, *formats = mode.split(", ")
        device = inputs[0]["image"].device.type
        options = ["MODEL.DEFCN.CHANNELS_LAST", "channels_last" in formats]
        model = detectors.build(detector, device, opts=options).train()
        if "PyTorch's GroupNorm" in formats:
            norms: list[torch.nn.Module] = [x for x in model.modules() if isinstance(x, GroupNorm)]
            for norm in norms:
                norm.__class__ = torch.nn.GroupNorm
        self.compiled = [model.backbone, model.head] if "compiled" in formats else []
        if self.compiled:
            model.compilation = Compilation(self.compiled)
        parameters = [x for x in model.parameters() if x.requires_grad]
        optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9)
        for name, keys in OPTIMIZERS.items():
            if name in formats:
                optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, **keys)
        loader = itertools.repeat(inputs)
        if precision == "float32":
            self.trainer = StepTrainer(model, loader, optimizer)
        else:
            self.trainer = MixedPrecisionTrainer(
                model, loader, optimizer, device_type=device, dtype=PRECISIONS[precision]
            )
        self.trainer.iter = 0
        self.storage = EventStorage(0)

    def __call__(self) -> float:
        """The sum of the losses."""
        with self.storage:
            self.trainer.run_step()
        return self.storage.latest()["total_loss"][0]

    def assert_compiled(self) -> None:
        """No compilation has failed, after which a model goes on without it."""
        assert all(map(is_compiled, self.compiled)), "torch.compile failed, see the warning"

    def peak_bytes(self) -> int:
        """Bytes that a step needs at its peak beyond weights and optimizer, on a GPU."""
        self.trainer.optimizer.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self()
        return torch.cuda.max_memory_allocated() - before
