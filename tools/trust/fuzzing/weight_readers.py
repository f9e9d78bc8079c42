"""Files of weights that ``fuzz_files.py`` damages: whole ones, their readers, the judgement."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from defcn_d2.weights.checkpointer import Checkpointer
from defcn_d2.weights.reader import CheckpointError
from fuzzing.file_damage import CHECKPOINT_CHANGES, Damage
from fuzzing.file_readers import Kind, Wrong


class Training:
    """A model with what a training keeps beside it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10)

    def step(self) -> None:
        self.model(torch.ones(2, 3, 8, 8)).square().mean().backward()
        self.optimizer.step()
        self.scheduler.step()

    def checkpointer(self, folder: Path) -> Checkpointer:
        beside: dict[str, Any] = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        return Checkpointer(self.model, str(folder), **beside)

    def state(self) -> Any:
        return copy.deepcopy(
            [self.model.state_dict(), self.optimizer.state_dict(), self.scheduler.state_dict()]
        )


class CheckpointFile(Kind):
    """A checkpoint with checksums: what is read must be what was written."""

    name = "checkpoint (.pth)"
    damaged: tuple[str, ...] = ("model_0000009.pth",)
    errors = (CheckpointError,)

    def write(self) -> None:
        training = Training()
        training.step()
        numbers = torch.random.get_rng_state()
        training.checkpointer(self.folder).save("model_0000009", iteration=9, numbers=numbers)

    def read(self) -> Any:
        training = Training()
        rest = training.checkpointer(self.folder).resume_or_load("", resume=True)
        return [*training.state(), rest]

    def judge(self, found: Any) -> str:
        if not _same(found, self.expected):
            raise Wrong("a checkpoint that is not what was written")
        return "the same"


class EditedCheckpoint(CheckpointFile):
    """A whole checkpoint whose content somebody has changed."""

    name = "edited checkpoint"

    def ways(self, name: str) -> Mapping[str, Damage]:
        return CHECKPOINT_CHANGES

    def judge(self, found: Any) -> str:
        return _judge_weights(found[0], self.expected[0])


class LastCheckpoint(CheckpointFile):
    name = "last_checkpoint"
    damaged = ("last_checkpoint",)

    def names(self, message: str, name: str) -> bool:
        return str(self.folder) in message and name in message


class OldCheckpoint(CheckpointFile):
    """A file of torch before 1.6, as the release's: it has no checksums."""

    name = "release (.pth)"

    def write(self) -> None:
        training = Training()
        path = self.folder / self.damaged[0]
        content = {"model": training.model.state_dict(), "iteration": 9}
        torch.save(content, path, _use_new_zipfile_serialization=False)

    def read(self) -> Any:
        training = Training()
        training.checkpointer(self.folder).load(str(self.folder / self.damaged[0]))
        return training.model.state_dict()

    def judge(self, found: Any) -> str:
        return _judge_weights(found, self.expected)


class PickleFile(OldCheckpoint):
    """A backbone as Detectron2's model zoo has them."""

    name = "backbone (.pkl)"
    damaged = ("R-50.pkl",)

    def write(self) -> None:
        state = Training().model.state_dict()
        weights = {name: value.numpy() for name, value in state.items()}
        content = {"model": weights, "__author__": "Model Zoo", "matching_heuristics": True}
        (self.folder / self.damaged[0]).write_bytes(pickle.dumps(content, 2))


def _judge_weights(found: Any, expected: Any) -> str:
    if [value.shape for value in found.values()] != [value.shape for value in expected.values()]:
        raise Wrong("weights of other shapes")
    return "the same" if _same(found, expected) else "other"


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b)


WEIGHTS: tuple[type[Kind], ...] = (
    CheckpointFile,
    EditedCheckpoint,
    LastCheckpoint,
    OldCheckpoint,
    PickleFile,
)
