"""A tiny set of figures and options for a tiny model, for tests that train or evaluate."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from detectron2.data import DatasetCatalog
from helpers import ROOT

from defcn_d2.data import register_shapes, register_shapes_crowd

CONFIG = str(ROOT / "configs" / "shapes" / "POTO-3DMF-Aux.yaml")
TINY_MODEL = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "16"),
    *("MODEL.FPN.OUT_CHANNELS", "64"),
    *("MODEL.DEFCN.NUM_CONVS", "1"),
    # a model that has seen a few images is sure of nothing
    *("MODEL.DEFCN.SCORE_THRESH_TEST", "0.001"),
    *("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "96"),
    *("INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "96"),
    *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.MAX_ITER", "4", "SOLVER.WARMUP_ITERS", "1"),
    *("TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "0", "SEED", "1"),
]
TINY_SETS = ["DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
NUM_IMAGES = 16


@functools.lru_cache(maxsize=1)
def tiny_sets() -> Path:
    """Register ``tiny_train`` and ``tiny_val``, once a process; returns the folder they lie in."""
    folder = tempfile.TemporaryDirectory(prefix="tiny_shapes")
    _keep_until_exit.append(folder)
    for split in ("train", "val"):
        register_shapes(f"tiny_{split}", folder.name, split, NUM_IMAGES)
        DatasetCatalog.get(f"tiny_{split}")  # drawn now
    return Path(folder.name)


@functools.lru_cache(maxsize=1)
def tiny_crowd() -> Path:
    """Register ``tiny_crowd_train`` and ``tiny_crowd_val`` in the folder of ``tiny_sets``."""
    folder = tiny_sets()
    for split in ("train", "val"):
        register_shapes_crowd(f"tiny_crowd_{split}", folder, split, NUM_IMAGES)
        DatasetCatalog.get(f"tiny_crowd_{split}")
    return folder


_keep_until_exit: list[tempfile.TemporaryDirectory] = []
