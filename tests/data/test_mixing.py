"""Mosaic, mixup and copy-paste: on drawn figures, the pixels of an object are where its box is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, BoxMode, Instances
from helpers import make_cfg, make_instances
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from defcn_d2.data.mapper import CheckedMapper
from defcn_d2.data.mixing import MIXED_WITH, Mixing, copy_paste, mixup, mosaic
from defcn_d2.engine.seeds import seeded_generators

FILL = [104.0, 117.0, 124.0]
GROUND = 40
# Far from the ground, the fill and each other in every channel but one.
COLORS = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]], dtype=torch.uint8)
STILL = ["INPUT.MOSAIC.ROTATION", 0.0, "INPUT.MOSAIC.SCALE", (1.0, 1.0)]
STILL += ["INPUT.MOSAIC.TRANSLATION", 0.0]
BOX = (8, 6, 26, 22)


def nodes(*opts: object):
    return make_cfg("shapes/POTO.yaml", *opts).INPUT


NODES = nodes()


def drawn(height: int, width: int, boxes: list[tuple[int, ...]], number: int = 0) -> dict:
    """An image of rectangles in the colour ``number``, which is their class, too."""
    pixels = torch.full((3, height, width), GROUND, dtype=torch.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[:, y1:y2, x1:x2] = COLORS[number][:, None, None]
    objects = make_instances(height, width, boxes, [number] * len(boxes))
    inner = [[x1 + 2, y1 + 2, x2 + 30, y2 - 2] for x1, y1, x2, y2 in boxes]  # sticks out
    objects.gt_inner_boxes = Boxes(torch.tensor(inner, dtype=torch.float32).reshape(-1, 4))
    return {"image": pixels, "instances": objects, "file_name": f"{number}.png", "image_id": number}


def four(size: tuple[int, int] = (60, 80), box: tuple[int, ...] = BOX) -> list[dict]:
    return [drawn(*size, [box], number) for number in range(4)]


def extent(pixels: Tensor, number: int) -> list[float]:
    """The box around all pixels that are nearly of a colour."""
    near = (pixels.float() - COLORS[number].float()[:, None, None]).abs().amax(dim=0) < 60
    ys, xs = near.nonzero().T
    return [float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]


@pytest.mark.parametrize("size", [(60, 80), (61, 83), (80, 60)])
def test_a_mosaic_that_lies_still(size):
    """Each image at half its size in its quarter; the last has another shape and fits in."""
    images = [*four(size)[:3], drawn(40, 200, [BOX], 3)]
    found = mosaic(images, nodes(*STILL).MOSAIC, FILL)
    assert found["image"].shape == (3, *size) and found["image"].dtype == torch.uint8
    height, width = size
    assert found["instances"].gt_classes.tolist() == [0, 1, 2, 3]
    for number, box in enumerate(found["instances"].gt_boxes.tensor.tolist()):
        assert extent(found["image"], number) == pytest.approx(box, abs=1)
        x, y = number % 2 * width / 2, number // 2 * height / 2
        scale = width / 400 if number == 3 and width / 400 < height / 80 else 0.5
        expected = [v * scale + o for v, o in zip(BOX, (x, y, x, y))]
        assert box == pytest.approx(expected, abs=1)
    corner = found["image"][:, -1, -1]  # where the last, flat image ends
    assert corner.tolist() == FILL
    assert found["file_name"] == "0.png" and found[MIXED_WITH] == ["1.png", "2.png", "3.png"]
    assert images[0]["image"].equal(four(size)[0]["image"])
    assert images[0]["instances"].gt_boxes.tensor.tolist() == [list(map(float, BOX))]


@given(st.integers(0, 2**20), st.sampled_from([(90, 120), (121, 77)]))
@settings(max_examples=25, deadline=None)
def test_a_mosaic_that_is_turned_shifted_and_scaled(seed, size):
    """Boxes lie inside and hold the colour of their object; one that is not cut off touches it."""
    with seeded_generators(seed):
        found = mosaic(four(size, (20, 16, 60, 56)), NODES.MOSAIC, FILL)
    height, width = size
    for box, number in zip(
        found["instances"].gt_boxes.tensor, found["instances"].gt_classes.tolist()
    ):
        x1, y1, x2, y2 = box.tolist()
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
        if min(x2 - x1, y2 - y1) > 6:
            seen = extent(found["image"], number)
            assert seen[0] >= x1 - 2 and seen[1] >= y1 - 2
            assert seen[2] <= x2 + 2 and seen[3] <= y2 + 2
            if min(x1, y1, width - x2, height - y2) > 0:
                assert seen == pytest.approx([x1, y1, x2, y2], abs=2)
    inner = found["instances"].gt_inner_boxes.tensor
    assert (inner >= 0).all() and (inner[:, 2:] <= torch.tensor([width, height])).all()


@pytest.mark.parametrize("seed", range(3))
def test_there_is_no_rim_around_a_mosaic(seed):
    """Grey images on the same grey stay grey."""
    images = [drawn(40, 50, [], i) for i in range(4)]
    with seeded_generators(seed):
        found = mosaic(images, NODES.MOSAIC, [GROUND] * 3)
    assert (found["image"] == GROUND).all()


def test_pixels_and_boxes_turn_alike():
    """Pixels and boxes by the same angle, however large."""
    node = nodes(*STILL).MOSAIC
    node.ROTATION = 180.0
    seen = []
    for seed in range(12):
        with seeded_generators(seed):
            found = mosaic(four((64, 64), (8, 8, 24, 16)), node, FILL)
        for box, number in zip(
            found["instances"].gt_boxes.tensor.tolist(), found["instances"].gt_classes.tolist()
        ):
            if min(box) > 0 and max(box) < 64:  # not cut off, after which it would be looser
                assert extent(found["image"], number) == pytest.approx(box, abs=1.6)
                seen.append(box)
    assert len(seen) > 15


def test_what_is_cut_away_or_tiny_is_dropped():
    """Everything is shifted to the right by some share; a box of a pixel is halved."""
    node = nodes(*STILL, "INPUT.MOSAIC.MIN_VISIBLE", 0.4).MOSAIC
    images = [drawn(40, 40, [(0, 0, 40, 40)], i) for i in range(3)]
    images.append(drawn(40, 40, [(4, 4, 5, 30), (10, 4, 13, 30)], 3))
    whole = mosaic(images, node, FILL)["instances"]
    assert whole.gt_classes.tolist() == [0, 1, 2, 3]  # the thin one is half a pixel
    node.TRANSLATION = 0.5
    lefts = {number: [] for number in range(3)}
    for seed in range(30):
        with seeded_generators(seed):
            found = mosaic(images, node, FILL)["instances"]
        for number, area in zip(found.gt_classes.tolist(), found.gt_boxes.area().tolist()):
            if number < 3:
                lefts[number].append(area / 400)
    shares = sum(lefts.values(), [])
    assert min(shares) >= 0.4 and len([x for x in shares if x < 0.6]) > 2
    assert len(shares) < 85  # of 90


def test_mixup_blends_and_keeps_the_objects_of_both():
    first, other = drawn(60, 80, [BOX], 0), drawn(30, 20, [(2, 4, 12, 14), (15, 4, 15, 20)], 1)
    found = mixup(first, other, 0.75, FILL)
    assert found["instances"].gt_classes.tolist() == [0, 1]  # the flat box is left out
    mine, theirs = found["instances"].gt_boxes.tensor.tolist()
    assert mine == list(BOX) and theirs == [4, 8, 24, 28]
    pixels = found["image"]
    own = 0.75 * COLORS[0].float()
    assert pixels[:, 12, 25].tolist() == (own + 0.25 * GROUND).round().tolist()
    assert pixels[:, 20, 12].tolist() == (own + 0.25 * COLORS[1].float()).round().tolist()
    beside = torch.full((3,), 0.75 * GROUND) + 0.25 * torch.tensor(FILL)
    assert pixels[:, 50, 70].tolist() == beside.round().tolist()
    assert found["instances"].gt_inner_boxes.tensor.tolist()[1] == [8, 12, 80, 24]
    assert first["image"].equal(drawn(60, 80, [BOX], 0)["image"]) and len(first["instances"]) == 1


@given(st.integers(0, 2**20), st.booleans())
@settings(max_examples=30, deadline=None)
def test_pasted_objects_are_where_their_boxes_are(seed, fractional):
    """Also at the rim of both images; what is too large or too small is not taken."""
    boxes = [(0, 0, 14, 11), (30, 20, 50, 45), (70, 40, 80, 60), (0, 0, 75, 58), (20, 2, 24, 6)]
    other = drawn(60, 80, boxes[:3], 1)
    many = Instances.cat([other["instances"], drawn(60, 80, boxes[3:], 1)["instances"]])
    if fractional:
        many.gt_boxes.tensor[:, :2] += 0.25
    first = drawn(50, 70, [], 0)
    first["image"][:] = 0
    node = NODES.COPY_PASTE.clone()
    node.SHARE, node.OBJECTS = (0.5, 0.5), 9
    with seeded_generators(seed):
        assert len(copy_paste(first, {**other, "instances": many}, node)["instances"]) == 3
        node.OBJECTS = 1  # of which no other lies above
        found = copy_paste(first, {**other, "instances": many}, node)
    assert not first["image"].any() and found[MIXED_WITH] == ["1.png"]
    ((x1, y1, x2, y2),) = found["instances"].gt_boxes.tensor.tolist()
    assert 0 <= x1 < x2 <= 70 and 0 <= y1 < y2 <= 50
    inside = found["image"][1, math.floor(y1) : int(y2), math.floor(x1) : int(x2)]
    assert (inside == 125).all()
    assert (found["image"][1] == 125).sum() == inside.numel()
    inner = found["instances"].gt_inner_boxes.tensor
    assert (inner[:, 2:] <= torch.tensor([70, 50])).all()


def test_a_pasted_rectangle_is_larger_than_the_box():
    other = drawn(60, 80, [(30, 20, 50, 40)], 1)
    first = drawn(200, 200, [], 0)
    node = nodes("INPUT.COPY_PASTE.EXPAND", (0.1, 0.1), "INPUT.COPY_PASTE.SHARE", (0.9, 0.9))
    first["image"][:] = 0
    with seeded_generators(3):
        found = copy_paste(first, other, node.COPY_PASTE)
    ((x1, y1, x2, y2),) = found["instances"].gt_boxes.tensor.tolist()
    ys, xs = found["image"].amax(dim=0).nonzero().T
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == [x1 - 2, y1 - 2, x2 + 2, y2 + 2]
    assert found["image"][:, int(y1) - 1, int(x1) - 1].tolist() == [0.9 * GROUND] * 3


def test_images_without_objects():
    empty = [drawn(30, 40, [], i) for i in range(4)]
    for found in (
        mosaic(empty, NODES.MOSAIC, FILL),
        mixup(empty[0], empty[1], 0.5, FILL),
        copy_paste(empty[0], empty[1], NODES.COPY_PASTE),
    ):
        assert found["image"].shape == (3, 30, 40) and len(found["instances"]) == 0
        assert found["instances"].gt_boxes.tensor.shape == (0, 4)


def test_other_dtypes_and_sizes_of_a_pixel():
    images = [drawn(1, 1, [], i) for i in range(4)]
    assert mosaic(images, NODES.MOSAIC, FILL)["image"].shape == (3, 1, 1)
    floats = [{**x, "image": x["image"].double() + 0.25} for x in four()]
    found = mixup(floats[0], floats[1], 0.5, FILL)["image"]
    assert found.dtype == torch.float64 and found[0, 0, 0] == GROUND + 0.25
    assert mosaic(floats, NODES.MOSAIC, FILL)["image"].dtype == torch.float64


def test_what_is_mixed_and_when():
    """START <= progress < STOP; copy-paste where there is no mixup; none by default."""
    assert Mixing.from_config(make_cfg("shapes/POTO.yaml")) is None
    window = ["START", 0.2, "STOP", 0.6]

    def kinds(progress: float, *names: str) -> int:
        opts = [x for name in names for x in (f"INPUT.{name}.PROB", 1.0)]
        for name in names:
            opts += [x if i % 2 else f"INPUT.{name}.{x}" for i, x in enumerate(window)]
        mixing = Mixing.from_config(make_cfg("shapes/POTO.yaml", *opts))
        image = drawn(60, 80, [BOX], 0)
        with seeded_generators(1):
            return len(mixing(image, lambda: drawn(60, 80, [BOX], 1), progress).get(MIXED_WITH, ()))

    for progress in (0.0, 0.199, 0.6, 1.0):
        assert kinds(progress, "MOSAIC", "MIXUP", "COPY_PASTE") == 0
    assert kinds(0.2, "MOSAIC") == 3 and kinds(0.5999, "MIXUP") == 1
    assert kinds(0.3, "COPY_PASTE") == 1 and kinds(0.3, "MIXUP", "COPY_PASTE") == 1
    assert kinds(0.3, "MOSAIC", "MIXUP") == 7  # a mosaic with a mosaic


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_scale_jitter(factor, tmp_path):
    """Instead of MIN_SIZE_TRAIN: the image fits into SIZE times the factor, and is cropped."""
    pixels = np.full((60, 80, 3), GROUND, np.uint8)
    pixels[20:40, 30:60] = COLORS[2].numpy()[::-1]  # written as RGB, read as BGR
    Image.fromarray(pixels).save(tmp_path / "a.png")
    box = {"bbox": [30, 20, 60, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2}
    record = {"file_name": str(tmp_path / "a.png"), "height": 60, "width": 80}
    record = {**record, "image_id": 1, "annotations": [box]}
    opts = ["INPUT.SCALE_JITTER.ENABLED", True, "INPUT.SCALE_JITTER.RANGE", (factor, factor)]
    cfg = make_cfg("shapes/POTO.yaml", *opts, "INPUT.SCALE_JITTER.SIZE", 160)
    with seeded_generators(4):
        found = CheckedMapper.from_config(cfg, True)(record)
    full = round(120 * factor), round(160 * factor)
    assert found["image"].shape == (3, min(full[0], 160), min(full[1], 160))
    (inside,) = found["instances"].gt_boxes.tensor.tolist()
    assert extent(found["image"], 2) == pytest.approx(inside, abs=1)
    plain = CheckedMapper.from_config(cfg, False)(record)["image"]  # evaluations: as ever
    assert plain.shape[1] == cfg.INPUT.MIN_SIZE_TEST
