"""A whole training in two and three processes is that of one: data, steps, average, evaluation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_files import CLASSES
from detectron2.utils import comm
from helpers import random_boxes
from PIL import Image
from process_groups import in_group
from torch import Tensor

from defcn_d2.config.load import load_config
from defcn_d2.engine import Trainer

NUM_IMAGES = 10
SIDE = 64
# Of the weights' changes in a training, relative to the largest of a tensor; and of detections.
TOLERANCE = 1e-5
MIXING = {
    f"INPUT.{name}.{key}": value
    for name in ("MOSAIC", "MIXUP", "COPY_PASTE")
    for key, value in (("PROB", 0.5), ("STOP", 0.75))
}


class DoubleTrainer(Trainer):
    """In float64, in which rounding does not change who is assigned to whom."""

    @classmethod
    def build_model(cls, cfg):
        return super().build_model(cfg).double()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keys that name ten images with up to three boxes each.

    They have one size: others would be padded to the largest of their process.
    """
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    for i in range(NUM_IMAGES):
        pixels = generator.integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        boxes = random_boxes(SIDE, SIDE, i % 4, torch.Generator().manual_seed(i), min_size=8)
        for x1, y1, x2, y2 in boxes.tolist():
            number = len(annotations)
            box = [x1, y1, x2 - x1, y2 - y1]
            category = number % len(CLASSES)
            annotations.append(
                {"id": number + 1, "image_id": i, "category_id": category, "bbox": box}
            )
    images = [
        {"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(NUM_IMAGES)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(content))
    return {
        f"DATASETS.REGISTER.{split}.{key}": str(folder / file)
        for split in ("TRAIN", "VAL")
        for key, file in (("ANNOTATIONS", "annotations.json"), ("IMAGES", ""))
    }


def train(folder: Path, data: dict[str, str], resume: bool = False) -> dict[str, Any]:
    """Train in this group of processes; returns its results and how the weights have changed."""
    number = comm.get_world_size()
    keys = {
        **data,
        "OUTPUT_DIR": folder,
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "FrozenBN",  # statistics would be those of a process's own images
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
        "MODEL.DEFCN.NUM_CONVS": 1,
        "MODEL.DEFCN.SCORE_THRESH_TEST": 0.001,
        "MODEL.EMA.ENABLED": True,
        "MODEL.EMA.DECAY": 0.5,
        "INPUT.MIN_SIZE_TRAIN": (SIDE,),
        "INPUT.MIN_SIZE_TEST": SIDE,
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS": False,
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
        "SOLVER.IMS_PER_BATCH": 6,
        "SOLVER.ACCUMULATE": {1: 1, 2: 3, 3: 2}[number],
        "SOLVER.WARMUP_ITERS": 1,
        "SOLVER.MAX_ITER": 4,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "TEST.EVAL_PERIOD": 0,
        "TEST.WITH_NMS": True,
        "SEED": 1,
        **MIXING,
    }
    opts = [str(x) for x in itertools.chain.from_iterable(keys.items())]
    torch.manual_seed(0)
    trainer = DoubleTrainer(load_config("shapes/POTO-3DMF-Aux", opts))
    model = getattr(trainer.model, "module", trainer.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.resume_or_load(resume)
    trainer.train()
    assert trainer.ema is not None
    changes = {name: value - before[name] for name, value in model.state_dict().items()}
    averaged = {name: value - before[name] for name, value in trainer.ema.weights.items()}
    return {
        "start": trainer.start_iter,
        "results": trainer._last_eval_results,
        "changes": changes,
        "averaged": averaged,
    }


def detections(folder: Path, part: str) -> list[dict[str, Any]]:
    path = folder / "inference" / part / "coco_instances_results.json"
    found = json.loads(path.read_text())
    return sorted(found, key=lambda x: (x["image_id"], -x["score"], x["category_id"]))


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of the numbers of all tensors, relative to the largest number of each."""
    return max(
        ((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-9)).item()
        for name, value in expected.items()
    )


def assert_same(name: str, members: list[dict], folder: Path, one: dict, expected: Path) -> None:
    """Checks that processes of a group have found, and written, the same as one alone."""
    for key in ("changes", "averaged"):
        worst = max(largest_difference(member[key], one[key]) for member in members)
        print(f"training by {name}: {key} differ by {worst:.1e}")
        assert worst < TOLERANCE
    assert not any(member["results"] for member in members[1:])
    assert members[0]["results"].keys() == one["results"].keys()
    assert one["results"].keys() >= {"bbox", "bbox_nms", "nms_gap", "f1_threshold"}
    for part in ("without_nms", "with_nms"):
        ours, theirs = detections(folder, part), detections(expected, part)
        assert len(ours) == len(theirs) > NUM_IMAGES
        for key in ("image_id", "category_id"):
            assert [x[key] for x in ours] == [x[key] for x in theirs]
        for key in ("score", "bbox"):
            np.testing.assert_allclose(
                np.array([x[key] for x in ours]),
                np.array([x[key] for x in theirs]),
                rtol=TOLERANCE,
                atol=TOLERANCE,
            )


def test_a_training_is_that_of_one_process(tmp_path, data):
    """With the sampler, accumulation, clipping, averaging, and the evaluation at the end."""
    folders = {number: tmp_path / str(number) for number in (1, 2, 3)}
    found = {n: in_group(n, train, tmp_path, folder, data) for n, folder in folders.items()}
    one = found[1][0]
    for number in (2, 3):
        name = f"{number} processes"
        assert_same(name, found[number], folders[number], one, folders[1])
    # two steps by two processes, and two by three
    (folders[2] / "last_checkpoint").write_text("model_0000001.pth")
    (tmp_path / "again").mkdir()
    members = in_group(3, train, tmp_path / "again", folders[2], data, True)
    assert [member["start"] for member in members] == [2, 2, 2]
    assert_same("2, then 3 processes", members, folders[2], one, folders[1])
