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

from defcn_d2.engine import Trainer, load_config

NUM_IMAGES = 10
SIDE = 64
# Of the weights' changes in a training, relative to the largest of a tensor; and of detections.
TOLERANCE = 1e-5


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


def train(folder: Path, data: dict[str, str]) -> dict[str, Any]:
    """Train in this group of processes; returns its results and weights."""
    number = comm.get_world_size()
    keys = {
        **data,
        "OUTPUT_DIR": folder / str(number),
        "MODEL.DEVICE": "cpu",
        "MODEL.RESNETS.NORM": "FrozenBN",  # statistics would be those of a process's own images
        "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
        "MODEL.DEFCN.NUM_CONVS": 1,
        "MODEL.DEFCN.SCORE_THRESH_TEST": 0.001,
        "MODEL.EMA.ENABLED": True,
        "MODEL.EMA.DECAY": 0.5,
        "INPUT.MIN_SIZE_TRAIN": (SIDE,),
        "INPUT.MIN_SIZE_TEST": SIDE,
        "INPUT.RANDOM_FLIP": "none",  # drawn by each process
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.ASPECT_RATIO_GROUPING": False,  # each process gathers its own groups
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
        "TEST.EVAL_PERIOD": 0,
        "TEST.WITH_NMS": True,
        "SEED": 1,
    }
    opts = [str(x) for x in itertools.chain.from_iterable(keys.items())]
    torch.manual_seed(0)
    trainer = DoubleTrainer(load_config("shapes/POTO-3DMF-Aux", opts))
    model = getattr(trainer.model, "module", trainer.model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    assert trainer.ema is not None
    changes = {name: value - before[name] for name, value in model.state_dict().items()}
    averaged = {name: value - before[name] for name, value in trainer.ema.weights.items()}
    return {"results": trainer._last_eval_results, "changes": changes, "averaged": averaged}


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


def test_a_training_is_that_of_one_process(tmp_path, data):
    """With the sampler, accumulation, clipping, averaging, and the evaluation at the end."""
    (one,) = in_group(1, train, tmp_path, tmp_path, data)
    for number in (2, 3):
        members = in_group(number, train, tmp_path, tmp_path, data)
        for name in ("changes", "averaged"):
            worst = max(largest_difference(member[name], one[name]) for member in members)
            print(f"training by {number} processes: {name} differ by {worst:.1e}")
            assert worst < TOLERANCE
        results = members[0]["results"]
        assert all(not member["results"] for member in members[1:])
        assert results.keys() == one["results"].keys() == {"bbox", "bbox_nms", "nms_gap"}
        for part in ("without_nms", "with_nms"):
            found = detections(tmp_path / str(number), part)
            expected = detections(tmp_path / "1", part)
            assert len(found) == len(expected) > NUM_IMAGES
            for name in ("image_id", "category_id"):
                assert [x[name] for x in found] == [x[name] for x in expected]
            for name in ("score", "bbox"):
                np.testing.assert_allclose(
                    np.array([x[name] for x in found]),
                    np.array([x[name] for x in expected]),
                    rtol=TOLERANCE,
                    atol=TOLERANCE,
                )
