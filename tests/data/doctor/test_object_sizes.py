"""Objects too small for the finest stride, too many, twice, or of odd shapes."""

import re

import pytest
from doctor_sets import CATS, DOGS, SIZE, found, keys, write
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.data.doctor.object_sizes import finest_stride

NATIVE = ["INPUT.MIN_SIZE_TRAIN", f"({min(SIZE)},)", "INPUT.MAX_SIZE_TRAIN", max(SIZE)]


def of_boxes(tmp_path, boxes, *opts):
    objects = [*CATS, *DOGS, *(("cat", box) for box in boxes)]
    train = write(tmp_path / "train", {"a.png": objects})
    return found(*keys("TRAIN", train), *NATIVE, *opts)


@pytest.mark.parametrize("size, stride", [(None, 8), ("['p4','p5']", 16)])
def test_finest_stride(size, stride):
    cfg = load_config(CONFIG, ["MODEL.DEFCN.IN_FEATURES", size] if size else [])
    assert finest_stride(cfg) == stride


def test_a_few_small_objects(tmp_path):
    """Each box is 12 pixels wide at least, two are not; 40 objects."""
    assert of_boxes(tmp_path, [[0, 0, 7, 20], [30.25, 30, 20, 6]]) == [
        "warning: TRAIN: objects narrower than the finest stride, 8 pixels, after resizing: 2, "
        "first 'a.png' (cat, 0, 0, 7, 20), 'a.png' (cat, 30.2, 30, 50.2, 36); "
        "INPUT.MIN_SIZE_TRAIN (96,) with INPUT.MAX_SIZE_TRAIN 144 makes 99% of all wide enough; or "
        "cut the images into tiles"
    ]


def test_the_size_that_is_named_mends_it(tmp_path):
    boxes = [[2 * i, 3 * i, 5 + i / 8, 10] for i in range(16)]
    (finding,) = of_boxes(tmp_path, boxes)
    assert finding.startswith("error: TRAIN: objects narrower") and ": 16, first" in finding
    pairs = re.search(
        r"(INPUT.MIN_SIZE_TRAIN) (\(\d+,\)) with (INPUT.MAX_SIZE_TRAIN) (\d+)", finding
    )
    assert of_boxes(tmp_path, boxes, *pairs.groups()) == []


@pytest.mark.parametrize("sizes, expected", [((64, 96), 8), ((128, 96), 8), ((128, 192), 0)])
def test_both_sizes_count(tmp_path, sizes, expected):
    """Images of 96 x 64 stay what they are while the longer side may have 96 pixels."""
    objects = [("cat", [4 * i, 2, 5, 5]) for i in range(8)]
    val = write(tmp_path / "val", {"a.png": objects})
    keys_of_size = ["INPUT.MIN_SIZE_TEST", sizes[0], "INPUT.MAX_SIZE_TEST", sizes[1]]
    findings = found(*keys("VAL", val), *keys_of_size)
    if not expected:
        assert findings == []
        return
    (finding,) = findings
    assert finding.startswith("error: TEST: objects narrower") and f": {expected}," in finding


def test_images_that_are_not_resized(tmp_path):
    val = write(tmp_path / "val", {"a.png": [("cat", [4 * i, 2, 4, 4]) for i in range(8)]})
    (finding,) = found(*keys("VAL", val), "INPUT.MIN_SIZE_TEST", 0)
    assert "INPUT.MIN_SIZE_TEST 128 with INPUT.MAX_SIZE_TEST 192 makes 99%" in finding


def test_odd_boxes(tmp_path):
    findings = of_boxes(tmp_path, [[0, 0, 95, 9], [0, 0, 96, 64], [2, 8, 20, 20], [2.1, 8, 20, 20]])
    assert findings == [
        "warning: TRAIN: boxes more than 10 times as long as wide: 1, first 'a.png' (cat, 0, 0, "
        "95, 9); look at them",
        "warning: TRAIN: boxes of a whole image: 1, first 'a.png' (cat, 0, 0, 96, 64); box the "
        "single objects, or leave these images out",
        "warning: TRAIN: boxes that stand twice: 1, first 'a.png' (cat, 2.1, 8, 22.1, 28); remove "
        "one of each, as it would have to be detected twice",
    ]


def test_the_same_box_of_another_class_is_another_object(tmp_path):
    train = write(tmp_path, {"a.png": CATS + DOGS + [("dog", CATS[0][1])], "b.png": CATS})
    assert found(*keys("TRAIN", train), *NATIVE) == []


def test_crowded_images(tmp_path):
    train = write(tmp_path / "train", {"a.png": CATS + DOGS, "b.png": DOGS})
    assert found(*keys("TRAIN", train), *NATIVE, "TEST.DETECTIONS_PER_IMAGE", 40) == []
    assert found(*keys("TRAIN", train), *NATIVE, "TEST.DETECTIONS_PER_IMAGE", 39) == [
        "warning: TRAIN: images with more than 39 objects, the limit of detections: 1, first "
        "'a.png' (40); set TEST.DETECTIONS_PER_IMAGE 100"
    ]
