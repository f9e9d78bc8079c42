"""Batches that a model refuses: each error names the image, the value and the remedy."""

from __future__ import annotations

import math
import re

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from helpers import make_instances, random_inputs, tiny_cfg
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from defcn_d2.modeling.batch_checks import (
    MAX_COORDINATE,
    BatchError,
    check_ground_truths,
    check_images,
)

NUM_CLASSES = 3
IMAGE = torch.zeros(3, 32, 32)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_model(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES))


def batch() -> list[dict]:
    """Two images, the second one with two objects and a name."""
    inputs = random_inputs([(64, 64)] * 2, [1, 2], NUM_CLASSES)
    inputs[1]["file_name"] = "photos/a.jpg"
    return inputs


def with_gt(**fields: object) -> list[dict]:
    """``batch``, with these fields of the second image's ground truth, whatever they hold."""
    inputs = batch()
    inputs[1]["instances"]._fields.update(fields)
    return inputs


def boxes(*rows: list[float], dtype: torch.dtype = torch.float32) -> Boxes:
    result = Boxes(torch.zeros(0, 4))
    result.tensor = torch.tensor(rows, dtype=dtype)
    return result


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"gt_classes": torch.tensor([0, NUM_CLASSES])},
            r"gt_classes\[1\] is 3, and MODEL.DEFCN.NUM_CLASSES 3; classes count from 0",
        ),
        ({"gt_classes": torch.tensor([-1, 0])}, r"gt_classes\[0\] is -1, and .* correct the label"),
        (
            {"gt_boxes": boxes([0, 0, 9, 9], [5, 5, math.nan, 9])},
            r"gt_boxes\[1\] is \[5.0, 5.0, nan, 9.0\], no box in pixels .* remove the annotation",
        ),
        ({"gt_boxes": boxes([-math.inf, 0, 9, 9], [0] * 4)}, r"gt_boxes\[0\] is \[-inf, 0.0, 9.0"),
        (
            {"gt_boxes": boxes([0] * 4, [0, 0, 9, 2 * MAX_COORDINATE])},
            r"gt_boxes\[1\] .* no box in pixels \(at most 16777216 from the origin\)",
        ),
        (
            {"gt_boxes": boxes([30, 0, 29.5, 9], [0] * 4)},
            r"gt_boxes\[0\] is \[30.0, 0.0, 29.5, 9.0\], which ends before it begins; boxes are x0",
        ),
        (
            {"gt_boxes": boxes([0, 0, 9, 9])},
            "instances has 1 gt_boxes and 2 gt_classes; give each box a class",
        ),
        (
            {"gt_boxes": boxes([0] * 5, [0] * 5)},
            r"instances.gt_boxes is \(2, 5\) of torch.float32, expected \(M, 4\) of torch.float32",
        ),
        ({"gt_boxes": boxes([0] * 4, [0] * 4, dtype=torch.int64)}, r"\(2, 4\) of torch.int64"),
        ({"gt_boxes": torch.zeros(2, 4)}, "instances.gt_boxes is a Tensor, expected Boxes"),
        ({"gt_classes": torch.zeros(2)}, r"gt_classes is \(2,\) of torch.float32, expected \(M,\)"),
        ({"gt_classes": torch.zeros(2, 1).long()}, r"gt_classes is \(2, 1\) of torch.int64"),
        ({"gt_classes": [0, 1]}, "instances.gt_classes is a list, expected Tensor"),
        ({"gt_visible_boxes": torch.zeros(2, 4)}, "gt_visible_boxes is a Tensor, expected Boxes"),
        ({"gt_visible_boxes": boxes([0] * 4)}, "instances has 1 gt_visible_boxes and 2 gt_classes"),
        (
            {"gt_visible_boxes": boxes([0] * 5, [0] * 5)},
            r"instances.gt_visible_boxes is \(2, 5\) of",
        ),
    ],
)
def test_ground_truth_is_refused(model: nn.Module, fields: dict, message: str) -> None:
    model.train()
    with pytest.raises(BatchError, match=r"image 1 of the batch \('photos/a.jpg'\).*" + message):
        model(with_gt(**fields))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (([0, 0, 9, 9], [5, 5, math.nan, 9]), r"[1] is [5.0, 5.0, nan, 9.0], no box in pixels"),
        (([0, 0, 9, 9], [5, 5, -math.inf, 9]), r"[1] is [5.0, 5.0, -inf, 9.0], no box in pixels"),
        (([9, 0, 8, 9], [0, 0, 9, 9]), r"[0] is [9.0, 0.0, 8.0, 9.0], which ends before it begins"),
    ],
)
def test_extra_boxes_are_refused(model: nn.Module, rows: tuple, message: str) -> None:
    inputs = with_gt(gt_head_boxes=boxes(*rows))
    inputs[0]["instances"].gt_head_boxes = boxes([1, 2, 3, 4])
    message = f"image 1 of the batch ('photos/a.jpg'): gt_head_boxes{message}"
    with pytest.raises(BatchError, match=re.escape(message)):
        model.train()(inputs)


@pytest.mark.parametrize("second", [False, True])
def test_all_images_have_the_same_extra_boxes(model: nn.Module, second: bool) -> None:
    inputs = batch()
    inputs[second]["instances"].gt_head_boxes = inputs[second]["instances"].gt_boxes
    message = f"image {1 - second} of the batch.*no gt_head_boxes, which image {int(second)} has"
    with pytest.raises(BatchError, match=message):
        model.train()(inputs)


def test_extra_boxes_change_no_loss(model: nn.Module) -> None:
    """Of a criterion that does not ask for them."""
    inputs = batch()
    expected = model.train()(inputs)
    for x in inputs:
        x["instances"].gt_head_boxes = x["instances"].gt_boxes
    assert model(inputs) == expected


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        ({"gt_boxes": boxes()}, "instances is a dict, expected detectron2's Instances"),
        (Instances((64, 64)), r"has no gt_boxes; an image without objects has 0 of them"),
        (Instances((64, 64), gt_boxes=boxes([0] * 4)), "has no gt_classes"),
        (
            make_instances(0, 64, [], []),
            r"instances.image_size is \(0, 64\); give height and width in pixels",
        ),
    ],
)
def test_instances_are_refused(model: nn.Module, instances: object, message: str) -> None:
    model.train()
    with pytest.raises(BatchError, match="^image 0 of the batch: .*" + message):
        model([{**batch()[0], "instances": instances}, batch()[1]])


def without(key: str) -> dict:
    return {name: value for name, value in batch()[1].items() if name != key}


def with_pixel(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    image = IMAGE.to(dtype, copy=True)
    image[1, 2, 3] = value
    return image


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (without("image"), "lacks the key 'image'; give a dict"),
        (IMAGE, "is a Tensor; give a dict with 'image'"),
        (
            {"image": IMAGE.numpy()},
            r"is a ndarray, expected a tensor; torch.as_tensor\(image.trans",
        ),
        ({"image": IMAGE > 0}, "has dtype torch.bool; give uint8 or float32"),
        ({"image": IMAGE[0]}, r"shape \(32, 32\), expected \(3, H, W\) as MODEL.PIXEL_MEAN says"),
        ({"image": torch.tensor(1.0)}, r"has shape \(\), expected \(3, H, W\)"),
        ({"image": IMAGE[:, :, :0]}, r"has shape \(3, 32, 0\), which holds no pixel; leave it out"),
        ({"image": with_pixel(math.nan)}, "has the pixel value nan; look for what"),
        ({"image": with_pixel(-math.inf)}, "has the pixel value -inf"),
        ({"image": with_pixel(math.inf, torch.float16)}, "has the pixel value inf"),
        ({"image": with_pixel(1e300, torch.float64)}, r"has the pixel value 1e\+300"),
        ({"image": IMAGE, "height": 0}, "'height' of the output is 0; give 1 pixel or more"),
        ({"image": IMAGE, "width": None}, "'width' of the output is None; give 1 pixel or more"),
        ({"image": IMAGE, "width": math.inf}, "'width' of the output is inf"),
    ],
)
def test_images_are_refused(model: nn.Module, second: object, message: str, training: bool) -> None:
    model.train(training)
    with pytest.raises(BatchError, match="^image 1 of the batch.*" + message):
        model([batch()[0], second])


def test_a_batch_is_a_list(model: nn.Module) -> None:
    x = batch()[0]
    for training in (True, False):
        model.train(training)
        with pytest.raises(BatchError, match=r"the batch is a dict, .* a single one is model\(\[x"):
            model(x)
        with pytest.raises(BatchError, match="the batch is a Tensor"):
            model(x["image"][None])


def test_no_image_at_all(model: nn.Module) -> None:
    with pytest.raises(BatchError, match="the batch is empty; give at least one image"):
        model.train()([])
    assert model.eval()([]) == []


NUMBERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
NUMBERS += [torch.uint16, torch.uint32, torch.uint64]
NUMBERS += [torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_any_type_of_number_gives_the_result_of_float32(dtype: torch.dtype) -> None:
    model = build_model(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", 3, "MODEL.DEFCN.TOPK_ONLY_TEST", True))
    inputs = batch()
    for x in inputs:  # whole numbers that all types have
        x["image"] = torch.randint(128, IMAGE.shape, generator=torch.manual_seed(0)).float()
    cast = [{**x, "image": x["image"].to(dtype)} for x in inputs]
    model.train()
    expected, losses = model(inputs), model(cast)
    assert losses == expected
    model.eval()
    for ours, theirs in zip(model(cast), model(inputs), strict=True):
        assert len(ours["instances"]) > 0
        for name, value in ours["instances"].get_fields().items():
            assert_equal(value, theirs["instances"].get(name))


def assert_equal(value: object, other: object) -> None:
    pair = [x.tensor if isinstance(x, Boxes) else x for x in (value, other)]
    torch.testing.assert_close(*pair, rtol=0, atol=0)


def test_large_pixels_are_no_infinity() -> None:
    """Their sum overflows."""
    check_images([{"image": torch.full((3, 64, 64), 3e38)}], 3)
    check_images([{"image": torch.full((3, 64, 64), 6e4, dtype=torch.float16)}], 3)


def test_sizes_of_the_output_may_be_tensors(model: nn.Module) -> None:
    (found,) = model.eval()(
        [{"image": IMAGE, "height": torch.tensor(8), "width": torch.tensor(9.0)}]
    )
    assert found["instances"].pred_boxes.tensor.shape[1] == 4


def test_boxes_without_area_and_beyond_the_image_are_learnt(model: nn.Module) -> None:
    rows = [[5.0, 5, 5, 20], [5, 5, 5, 5], [-30, -40, -20, -1], [64, 64, 64, 64], [500, 0, 900, 9]]
    far = [-MAX_COORDINATE, -MAX_COORDINATE, MAX_COORDINATE, MAX_COORDINATE]
    gt = make_instances(64, 64, [*rows, far], [0, 1, 2, 0, 1, 2])
    losses = model.train()([{**x, "instances": gt} for x in batch()])
    assert all(loss.isfinite() for loss in losses.values())


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([0.0, 5, 9, -3, math.nan, math.inf]), min_size=4, max_size=4),
            st.integers(-1, NUM_CLASSES),
        ),
        max_size=4,
    ),
    st.integers(0, 4),
)
def test_the_first_fault_is_named(objects: list, cut: int) -> None:
    """Wherever the objects are shared out among two images."""
    inputs, expected = [], None
    for i, part in enumerate((objects[:cut], objects[cut:])):
        gt = make_instances(64, 64, [box for box, _ in part], [label for _, label in part])
        inputs.append({"image": IMAGE, "instances": gt})
        for index, ((x0, y0, x1, y1), label) in enumerate(part):
            finite = all(map(math.isfinite, (x0, y0, x1, y1)))
            if expected is None and not (finite and x0 <= x1 and y0 <= y1 and 0 <= label < 3):
                field = "boxes" if 0 <= label < 3 else "classes"
                expected = f"image {i} of the batch: gt_{field}[{index}] is "
    if expected is None:
        check_ground_truths(inputs, NUM_CLASSES)
    else:
        with pytest.raises(BatchError, match=re.escape(expected)):
            check_ground_truths(inputs, NUM_CLASSES)
