"""The runs of the study: what is trained, one run's command, and the figures it leaves."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from demo_results import EVALUATIONS, last_evaluation, read_metrics, training_seconds, write_json

ROOT = Path(__file__).resolve().parents[2]

# Variants by folder of configs/, which is the data's name, too.
VARIANTS = {
    "shapes": (
        *("POTO", "POTO-argmax", "POTO-3DMF", "POTO-3DMF-Aux", "ForegroundLoss", "Anchor"),
        *("Center", "FCOS", "ATSS", "OneNet", "Peak", "Peak-GFL"),
        *("GFL", "FCOS-GFL", "POTO-GFL", "TAL", "Dual-TAL", "DATE", "DATE-3DMF", "OneToFew"),
        *("AutoAssign", "POTO-AutoAssign", "POTO-MAL", "POTO-IA-BCE", "AP-Loss", "DR-Loss"),
        *("POTO-AP-Loss", "POTO-DR-Loss", "NoisyAnchors", "NoisyAnchors-dense"),
        *("POTO-alpha-0.86", "POTO-alpha-0.92", "Peak-wo-selector", "PSS"),
    ),
    "shapes_crowd": (
        *("FCOS", "ATSS", "POTO", "POTO-3DMF", "POTO-3DMF-Aux", "Peak", "Peak-GFL"),
        *("GFL", "POTO-GFL", "Dual-TAL", "DATE", "OneToFew", "AutoAssign"),
    ),
    "bccd": ("FCOS", "ATSS", "GFL", "POTO", "POTO-3DMF-Aux", "Peak", "Peak-GFL"),
}

# Variants that are another's config with a few keys changed: its name, and the keys.
DERIVED: dict[str, tuple[str, tuple[str, ...]]] = {
    "POTO-alpha-0.86": ("POTO", ("MODEL.DEFCN.MATCHER.POTO.ALPHA", "0.86")),
    "POTO-alpha-0.92": ("POTO", ("MODEL.DEFCN.MATCHER.POTO.ALPHA", "0.92")),
    "Peak-wo-selector": ("Peak", ("MODEL.DEFCN.HEAD.PeakHead.SELECTOR", "False")),
    "PSS": ("Peak", ("MODEL.DEFCN.HEAD.PeakHead.COMPARE", "none")),
}

# Config overrides by name of the network: the same for all variants.
NETWORKS: dict[str, list[str]] = {
    "narrow": [],
    "resnet50": [
        *("MODEL.BACKBONE.NAME", "build_defcn_resnet_fpn_backbone"),
        *("MODEL.RESNETS.STEM_OUT_CHANNELS", "64", "MODEL.FPN.OUT_CHANNELS", "256"),
        *("MODEL.DEFCN.NUM_CONVS", "4"),
    ],
}
# Of the narrow network on a processor that multiplies it, where it is faster.
BFLOAT16 = ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", "bfloat16"]
CHECKPOINT_PERIOD = 100
DETECTIONS = "coco_instances_results.json"


@dataclass(frozen=True)
class Settings:
    """Settings that all runs of a study share; a run's folder keeps them and accepts no others."""

    iterations: int
    batch: int
    network: str
    opts: tuple[str, ...] = ()


def blood_cells(folder: str) -> list:
    """Config overrides for photographs of blood cells on top of a config for ``shapes``."""
    sets = (("TRAIN", "train.json"), ("VAL", "val.json"))
    places = [
        (f"DATASETS.REGISTER.{split}.{key}", f"{folder}/{name}")
        for split, annotations in sets
        for key, name in (("ANNOTATIONS", annotations), ("IMAGES", "images"))
    ]
    sizes = [("INPUT.MIN_SIZE_TRAIN", (240,)), ("INPUT.MAX_SIZE_TRAIN", 320)]
    sizes += [("INPUT.MIN_SIZE_TEST", 240), ("INPUT.MAX_SIZE_TEST", 320)]
    return [word for pair in (*places, *sizes) for word in pair]


@dataclass(frozen=True)
class Run:
    """One training: a variant on a data set from one seed.

    Attributes:
        images: folder of the data where it is not built in.
    """

    data: str
    variant: str
    seed: int
    images: str = ""

    @property
    def name(self) -> str:
        return f"{self.data}/{self.variant}/seed{self.seed}"

    def folder(self, output: Path) -> Path:
        return output / self.name

    def command(self, output: Path, settings: Settings) -> list[str]:
        """``train_net.py`` with its arguments; it goes on with what a killed run has left."""
        folder = "shapes" if self.images else self.data
        base, keys = DERIVED.get(self.variant, (self.variant, ()))
        config = ROOT / "configs" / folder / f"{base}.yaml"
        overrides = [
            *(blood_cells(self.images) if self.images else ()),
            *("SOLVER.MAX_ITER", settings.iterations),
            *("SOLVER.IMS_PER_BATCH", settings.batch // (2 if self.images else 1)),
            *("SOLVER.CHECKPOINT_PERIOD", CHECKPOINT_PERIOD, "TEST.EVAL_PERIOD", 0),
            *("TEST.WITH_NMS", True, "SEED", self.seed),
            *NETWORKS[settings.network],
            *(BFLOAT16 if in_bfloat16(settings.network) else ()),
            *keys,
            *settings.opts,
            *("OUTPUT_DIR", self.folder(output)),
        ]
        start = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config)]
        return [*start, "--resume", *map(str, overrides)]

    def figures(self, output: Path) -> dict[str, float] | None:
        """Figures of the run, or None where it is not finished."""
        path = self.folder(output) / "figures.json"
        return json.loads(path.read_text()) if path.exists() else None


def in_bfloat16(network: str) -> bool:
    """Whether runs of this network are in bfloat16 on this machine."""
    from defcn_d2.engine.cpu import has_bfloat16

    return network == "narrow" and has_bfloat16()


def plan(seeds: int, names: Sequence[str] = (), bccd: str = "") -> list[Run]:
    """All runs, seed by seed, so that a study cut short has whole seeds.

    Args:
        bccd: folder of the blood cells; without it they are no part of the study.
        names: parts of the study, such as "shapes" or "shapes/FCOS"; all of it without.

    Raises:
        ValueError: a name is of no part.
    """
    every = [
        Run(data, variant, seed, bccd if data == "bccd" else "")
        for seed in range(seeds)
        for data, variants in VARIANTS.items()
        for variant in variants
        if data != "bccd" or bccd
    ]
    known = {part for run in every for part in (run.data, f"{run.data}/{run.variant}")}
    for name in names:
        if name not in known:
            raise ValueError(f"--only {name!r} is no part of the study; one of: {sorted(known)}")
    wanted = set(names)
    return [run for run in every if not names or {run.data, f"{run.data}/{run.variant}"} & wanted]


def claim(run: Run, output: Path, settings: Settings) -> None:
    """Claim the folder of a run for these settings.

    Raises:
        ValueError: it was begun with others.
    """
    folder = run.folder(output)
    path = folder / "settings.json"
    mine = json.loads(json.dumps(asdict(settings)))
    if path.exists() and (theirs := json.loads(path.read_text())) != mine:
        raise ValueError(
            f"{folder} was begun with other settings ({theirs}): remove it, or give another "
            "--output"
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, mine)


def start(run: Run, output: Path, settings: Settings, threads: int) -> "Training":
    """Begin or continue a run in a process of its own; what it prints goes to ``console.txt``."""
    claim(run, output, settings)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = run.command(output, settings)
    console = (run.folder(output) / "console.txt").open("a")
    print("$", shlex.join(command), file=console, flush=True)
    process = subprocess.Popen(command, env=environment, stdout=console, stderr=console, cwd=ROOT)
    return Training(run, process, console, time.monotonic())


@dataclass(frozen=True)
class Training:
    """A run that is under way."""

    run: Run
    process: subprocess.Popen
    console: IO[str]
    begun: float

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.console.close()


def collect(run: Run, output: Path, annotations: Path, iterations: int) -> dict[str, float]:
    """The figures of a finished run, which are written to its ``figures.json``.

    Args:
        annotations: of the validation images, in the data's own format.

    Raises:
        ValueError: the run has left no evaluation.
    """
    folder = run.folder(output)
    rows = read_metrics(folder / "metrics.json")
    scores = last_evaluation(rows, iterations)
    if scores is None:
        raise ValueError(f"{folder}/metrics.json holds no evaluation after {iterations} iterations")
    network = json.loads((folder / "settings.json").read_text())["network"]
    figures = {"training_seconds": training_seconds(rows), "bfloat16": float(in_bfloat16(network))}
    for prefix, evaluation in (("", "without NMS"), ("nms_", "with NMS")):
        found = folder / "inference" / EVALUATIONS[evaluation]
        figures |= {prefix + name: v for name, v in _figures(run, found, annotations).items()}
        task = "bbox_nms" if prefix else "bbox"
        for metric in ("AP", "AP50"):
            if f"{task}/{metric}" in scores:
                figures[prefix + metric] = scores[f"{task}/{metric}"]
    write_json(folder / "figures.json", figures)
    for checkpoint in folder.glob("model_[0-9]*.pth"):
        checkpoint.unlink()
    return figures


def _figures(run: Run, found: Path, annotations: Path) -> dict[str, float]:
    if run.data == "shapes_crowd":
        return json.loads((found / "crowdhuman_figures.json").read_text())
    from defcn_d2.evaluation.duplicates import coco_figures

    return coco_figures(annotations, found / DETECTIONS)
