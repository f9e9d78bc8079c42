"""Figures and pictures of a training for trackers of experiments: Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import os
import re
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..utils.detectron2_compat import images_of_storage
from ..utils.errors import UserError
from ..utils.files import write_atomically

_WINDOW = 20  # steps that noisy figures are smoothed over, as in metrics.json


class Tracker(EventWriter, ABC):
    """A run of a tracker, which begins when there is something to write.

    Its id is kept in ``OUTPUT_DIR``, where a resumed training finds it and goes on in the same run.
    """

    package: str

    def __init__(self, cfg: CfgNode, resumed: Callable[[], bool]):
        """
        Args:
            cfg: of the training; its ``LOG`` counts, and all of it is kept with the run.
            resumed: reports if the training goes on from a checkpoint.
        """
        self.cfg = cfg
        self._resumed = resumed
        self._begun = False
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        if not self._begun:
            self._begin()
        figures: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(_WINDOW).items():
            if iteration > self._last:
                figures[iteration][name] = value
        for iteration in sorted(figures):
            self._last = iteration
            self.log_figures(figures[iteration], iteration)
        for name, pixels, iteration in images_of_storage(storage):
            self.log_picture(name, np.asarray(pixels).transpose(1, 2, 0), iteration)

    def _begin(self) -> None:
        file = Path(self.cfg.OUTPUT_DIR) / f"{self.package}_run.txt"
        known = file.read_text() if self._resumed() and file.is_file() else None
        write_atomically(file, self.begin(known).encode())
        self._begun = True

    def close(self) -> None:
        if self._begun:
            self.end()

    @property
    def run_name(self) -> str:
        """That of the folder of the outputs."""
        return Path(self.cfg.OUTPUT_DIR).resolve().name

    @abstractmethod
    def begin(self, known: str | None) -> str:
        """Begin a run, or go on with the one of the id ``known``; returns its id."""

    @abstractmethod
    def log_figures(self, figures: dict[str, float], iteration: int) -> None:
        """Keep figures by name."""

    @abstractmethod
    def log_picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        """Keep a picture, (H, W, 3) uint8 RGB."""

    @abstractmethod
    def end(self) -> None:
        """End the run, which can still be resumed."""


class Wandb(Tracker):
    """Weights & Biases: below ``OUTPUT_DIR``/wandb, unless ``$WANDB_MODE`` is "online"."""

    package = "wandb"

    def begin(self, known: str | None) -> str:
        import wandb

        self._run: Any = wandb.init(
            project=self.cfg.LOG.PROJECT,
            name=self.run_name,
            dir=self.cfg.OUTPUT_DIR,
            id=known,
            resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=yaml.safe_load(self.cfg.dump()),
        )
        self._run.define_metric("*", step_metric="iteration")  # a resumed run repeats some
        return str(self._run.id)

    def log_figures(self, figures: dict[str, float], iteration: int) -> None:
        self._run.log({**figures, "iteration": iteration})

    def log_picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(pixels), "iteration": iteration})

    def end(self) -> None:
        self._run.finish()


class Mlflow(Tracker):
    """MLflow: a database in ``OUTPUT_DIR``, unless ``$MLFLOW_TRACKING_URI`` names a server."""

    package = "mlflow"

    def begin(self, known: str | None) -> str:
        import mlflow

        project = self.cfg.LOG.PROJECT
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            folder = Path(self.cfg.OUTPUT_DIR).resolve()
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            if mlflow.get_experiment_by_name(project) is None:  # files in the current folder, else
                mlflow.create_experiment(project, artifact_location=(folder / "mlflow").as_uri())
        mlflow.set_experiment(project)
        name = None if known else self.run_name
        run = mlflow.start_run(run_id=known, run_name=name)
        mlflow.log_text(self.cfg.dump(), "config.yaml")
        return str(run.info.run_id)

    def log_figures(self, figures: dict[str, float], iteration: int) -> None:
        import mlflow

        mlflow.log_metrics({_plain(k): x for k, x in figures.items()}, step=iteration)

    def log_picture(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        import mlflow

        mlflow.log_image(pixels, key=_plain(name), step=iteration)

    def end(self) -> None:
        import mlflow

        mlflow.end_run()


class ForgetPictures(EventWriter):
    """Drops the pictures that the writers before it have written, as TensorBoard's writer does."""

    def write(self) -> None:
        get_event_storage().clear_images()


#: Trackers by the name in ``LOG.WRITERS``.
TRACKERS: dict[str, type[Tracker]] = {x.package: x for x in (Wandb, Mlflow)}


def check_packages(names: Iterable[str]) -> None:
    """Raise ``UserError`` for a tracker of ``LOG.WRITERS`` whose package is not installed."""
    for name in names:
        if name in TRACKERS and importlib.util.find_spec(name) is None:
            raise UserError(
                f"LOG.WRITERS has {name!r}, which needs the package {name}: pip install {name}, or "
                "leave it out"
            )


def _plain(name: str) -> str:
    """A name as MLflow allows it: of classes, too, whatever they are called."""
    return re.sub(r"[^\w\-./ :]", "_", name, flags=re.ASCII)
