"""``DATASETS.EXTRA_BOXES``: extra boxes are augmented, clipped and dropped with their objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from helpers import make_cfg
from PIL import Image

from defcn_d2.data.errors import DatasetError
from defcn_d2.data.extra_boxes import extra_box_names
from defcn_d2.data.mapper import CheckedMapper, ImageError
from defcn_d2.engine.seeds import seeded_generators

WIDTH, HEIGHT = 60, 40
CROP = ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [24, 30]]


def config(*opts: object, names: Sequence[object] = ("visible", "head")) -> CfgNode:
    sizes = ["INPUT.MIN_SIZE_TRAIN", (40, 60, 80), "INPUT.MAX_SIZE_TRAIN", 200]
    return make_cfg("shapes/POTO.yaml", *sizes, "DATASETS.EXTRA_BOXES", list(names), *opts)


def annotation(bbox: list[float], visible: list[float], head: list[float], **more: object) -> dict:
    boxes = {"bbox": bbox, "visible_bbox": visible, "head_bbox": head}
    return {**boxes, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, **more}


@pytest.fixture
def record(tmp_path) -> dict:
    """An image with a crowd, a box without area between others, and boxes beyond the image."""
    pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {
        "file_name": str(tmp_path / "a.png"),
        "image_id": 0,
        "width": WIDTH,
        "height": HEIGHT,
        "annotations": [
            {"bbox": [0, 0, 60, 40], "bbox_mode": 1, "category_id": 0, "iscrowd": 1},
            annotation([4, 6, 20, 30], [5, 7, 10, 12], [8, 6, 4, 5]),
            annotation([7, 7, 0, 9], [1, 1, 5, 5], [1, 1, 5, 5], category_id=3),
            annotation([40, 10, 30, 20], [44, 12, 30, 10.5], [100, 100, 9, 9], category_id=5),
        ],
    }


def fields_of(cfg: CfgNode, record: dict) -> dict[str, object]:
    gt = CheckedMapper.from_config(cfg, True)(record)["instances"]
    boxes = {name: gt.get(name).tensor.tolist() for name in gt.get_fields() if name != "gt_classes"}
    return {**boxes, "gt_classes": gt.gt_classes.tolist()}


def test_boxes_by_hand(record):
    """No augmentation except for twice the size; the object without area goes with its boxes."""
    cfg = config("INPUT.MIN_SIZE_TRAIN", (80,), "INPUT.RANDOM_FLIP", "none")
    assert fields_of(cfg, record) == {
        "gt_boxes": [[8, 12, 48, 72], [80, 20, 120, 60]],
        "gt_visible_boxes": [[10, 14, 30, 38], [88, 24, 120, 45]],
        "gt_head_boxes": [[16, 12, 24, 22], [120, 80, 120, 80]],
        "gt_classes": [2, 5],
    }


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("flip", ["horizontal", "vertical"])
@pytest.mark.parametrize("crop", [[], CROP])
def test_they_go_where_detectron2_would_take_them(record, seed, flip, crop):
    """Each kind of box as the only box of its object, through Detectron2's own mapper."""
    cfg = config("INPUT.RANDOM_FLIP", flip, *crop)
    mapper, plain = CheckedMapper.from_config(cfg, True), DatasetMapper(cfg, True)
    with seeded_generators(seed, 0):
        image = mapper(record)
    gt = image["instances"]
    with seeded_generators(seed, 0):
        expected = plain(record)
    assert torch.equal(image["image"], expected["image"])
    assert torch.equal(gt.gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
    assert torch.equal(gt.gt_classes, expected["instances"].gt_classes)
    for name in ("visible", "head"):
        for label in (2, 5):
            (own,) = [x for x in record["annotations"] if x["category_id"] == label]
            alone = {**own, "bbox": own[f"{name}_bbox"]}
            with seeded_generators(seed, 0):
                (one,) = [plain({**record, "annotations": [alone]})["instances"]]
            boxes = gt.get(f"gt_{name}_boxes").tensor[gt.gt_classes == label]
            if len(boxes) and len(one):  # Detectron2 drops what has no area
                assert torch.equal(boxes, one.gt_boxes.tensor)
            elif len(boxes):
                assert (boxes[:, 2:] - boxes[:, :2]).min() < 1e-4


def test_crops_drop_objects(record):
    """Some seed crops away one object, whose extra boxes go with it."""
    lengths = set()
    for seed in range(20):
        with seeded_generators(seed, 0):
            found = fields_of(config(*CROP), record)
        lengths |= {tuple(len(x) for x in found.values())}
    assert {(1,) * 4, (2,) * 4} <= lengths <= {(0,) * 4, (1,) * 4, (2,) * 4}


def test_images_without_objects(record):
    empty = {**record, "annotations": record["annotations"][:1]}
    found = fields_of(config(), empty)
    assert found == {
        "gt_boxes": [], "gt_visible_boxes": [], "gt_head_boxes": [], "gt_classes": []
    }  # fmt: skip
    del empty["annotations"]
    assert "instances" not in CheckedMapper.from_config(config(), True)(empty)


def test_without_names_nothing_is_added(record):
    assert set(fields_of(config(names=()), record)) == {"gt_boxes", "gt_classes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "annotation 3 has no 'head_bbox', which DATASETS.EXTRA_BOXES asks for"),
        ([1, 2, 3], r"annotation 3 has the head_bbox \[1, 2, 3\], not 4 finite numbers"),
        ([1, 2, float("nan"), 4], r"annotation 3 has the head_bbox \[1, 2, nan, 4\], not 4"),
    ],
)
def test_a_box_that_is_missing_or_none_is_named(record, change, message):
    record["annotations"][3].pop("head_bbox")
    if change:
        record["annotations"][3]["head_bbox"] = change
    with pytest.raises(ImageError, match=f"image '{record['file_name']}' .*: {message}"):
        CheckedMapper.from_config(config(), True)(record)
    assert "image" in CheckedMapper.from_config(config(), False)(record)  # evaluations need none


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["the head"], "DATASETS.EXTRA_BOXES has the name 'the head'; give letters"),
        ([""], "has the name ''"),
        ([3], "has the name 3"),
        (["head", "head"], r"DATASETS.EXTRA_BOXES is \['head', 'head'\]; give each name once"),
    ],
)
def test_names_that_are_none(names, message):
    with pytest.raises(DatasetError, match=message):
        extra_box_names(config(names=names))
