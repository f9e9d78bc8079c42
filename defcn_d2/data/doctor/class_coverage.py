"""Classes with few objects, classes that a split lacks, images without objects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from detectron2.config import CfgNode

from .splits import Split

FEW = 20  # objects of a class to train with


def check_classes(cfg: CfgNode, splits: Sequence[Split]) -> None:
    """Note classes of data sets to train with, and of those to evaluate with."""
    for split in splits:
        if split.classes != splits[0].classes:
            differing = sorted(set(split.classes) ^ set(splits[0].classes)) or ["another order"]
            what = f"classes other than those of {splits[0].title}"
            split.note(what, differing, str, "give both the same classes", fatal=True)
            return
    train = [split for split in splits if split.key == "TRAIN"]
    if not train:
        return
    learned = np.sum([split.counts() for split in train], axis=0)  # (K,)
    _check_training(cfg, train, learned)
    for split in splits:
        if split.key == "TEST":
            counts = split.counts()
            show = partial(_count, split, counts)
            unknown = np.flatnonzero((counts > 0) & (learned == 0))
            remedy = "move images of them to the training data"
            split.note("classes that no image to train with has", unknown, show, remedy, fatal=True)
            unseen = np.flatnonzero((counts == 0) & (learned > 0))
            remedy = "move images of them there, as their AP is no number"
            split.note("classes to train with that have no objects", unseen, show, remedy)


def _check_training(cfg: CfgNode, train: Sequence[Split], learned: np.ndarray) -> None:
    show = partial(_count, train[0], learned)
    absent, few = np.flatnonzero(learned == 0), np.flatnonzero((learned > 0) & (learned < FEW))
    remedy = "add images of them, or take them out of the classes"
    train[0].note("classes without objects", absent, show, remedy)
    remedy = (
        "add images of them, or show these more often, DATALOADER.SAMPLER_TRAIN "
        "RepeatFactorTrainingSampler"
    )
    train[0].note(f"classes with fewer than {FEW} objects", few, show, remedy)
    left_out = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    fate = "left out" if left_out else "kept as background"
    remedy = f"they are {fate}, as DATALOADER.FILTER_EMPTY_ANNOTATIONS is {left_out}"
    for split in train:
        empty = np.setdiff1d(np.arange(len(split.records)), split.images)
        split.note("images without objects", empty, split.file, remedy)


def _count(split: Split, counts: np.ndarray, label: int) -> str:
    return f"{split.classes[label]!r} ({counts[label]:,})"
