"""Runs of ``demo/demo.py`` with a tiny model on tiny pictures, for its tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.modeling import build_model
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.demo import run

FEW = ["TEST.DETECTIONS_PER_IMAGE", "5"]


@functools.lru_cache(maxsize=1)
def tiny_weights() -> str:
    """A model that finds something everywhere."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_weights")
    _keep_until_exit.append(folder)
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG, TINY_MODEL))
    nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    path = str(Path(folder.name) / "model.pth")
    torch.save({"model": model.state_dict()}, path)
    return path


_keep_until_exit: list[tempfile.TemporaryDirectory] = []


def picture(path: Path, height: int = 60, width: int = 90) -> Path:
    """A file of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def demo(*arguments: object) -> int:
    """The exit status of a run, which keeps the five best detections of an image."""
    tiny_sets()
    opts = ["--opts", *TINY_MODEL, *TINY_SETS, *FEW, "MODEL.WEIGHTS", tiny_weights()]
    threshold = ["--confidence-threshold", "0.001"]
    return run(["--config-file", CONFIG, *threshold, *map(str, arguments), *opts])
