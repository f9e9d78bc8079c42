"""The head with distributions of the sides of boxes, against loops; its start and precision."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import make_priors
from torch import Tensor

from defcn_d2.modeling.head.gfl import GFLHead, expected_bin
from defcn_d2.structures import Predictions, Priors

STRIDES = [8, 16, 32]


def make_head(**options: object) -> GFLHead:
    arguments: dict = {
        "in_channels": 32,
        "strides": STRIDES,
        "num_classes": 5,
        "num_convs": 1,
        **options,
    }
    return GFLHead(**arguments)


def make_inputs() -> tuple[list[Tensor], Priors]:
    priors = make_priors(72, 88, STRIDES)
    assert priors.level_shapes is not None
    return [torch.randn(2, 32, *shape) for shape in priors.level_shapes], priors


def slow_boxes(predictions: Predictions, priors: Priors, reg_max: int) -> list:
    """(N, R, 4) from ``extra["box_logits"]``, side by side and bin by bin."""
    images = []
    for of_image in predictions.extra["box_logits"].tolist():
        boxes = []
        for logits, (x, y), stride in zip(
            of_image, priors.centers.tolist(), priors.strides.tolist(), strict=True
        ):
            sides = []
            for side in range(4):
                own = logits[side * (reg_max + 1) : (side + 1) * (reg_max + 1)]
                weights = [math.exp(z - max(own)) for z in own]
                mean = sum(i * weight for i, weight in enumerate(weights)) / sum(weights)
                sides.append(mean * stride)
            boxes.append([x - sides[0], y - sides[1], x + sides[2], y + sides[3]])
        images.append(boxes)
    return images


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("reg_max", [1, 5, 16])
def test_boxes_are_expectations(reg_max: int, memory_format: torch.memory_format) -> None:
    head = make_head(reg_max=reg_max, quality_branch="filter").double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.2)
    for level in range(3):
        head.state_dict()[f"scales.{level}.scale"].fill_(1 + level / 2)
    features, priors = make_inputs()
    features = [x.double().contiguous(memory_format=memory_format) for x in features]
    predictions = head(features, priors)["main"]
    assert predictions.extra["box_logits"].shape == (2, len(priors), 4 * (reg_max + 1))
    assert predictions.extra["box_logits"].std() > 0.5
    expected = torch.tensor(slow_boxes(predictions, priors, reg_max), dtype=torch.float64)
    torch.testing.assert_close(predictions.boxes, expected, rtol=1e-10, atol=1e-8)
    assert predictions.quality_logits is not None

    # The logits are those of the convolution, times the level's factor.
    box_features = head.towers(features)[1]
    for level, x in enumerate(box_features):
        logits = head.bbox_pred(x) * head.scales[level].scale
        torch.testing.assert_close(
            head.maps(box_features, box_features)["box_logits"][level], logits
        )


def test_distributions_start_uniform() -> None:
    head = make_head()
    torch.nn.init.zeros_(head.bbox_pred.weight)
    assert head.state_dict()["bbox_pred.bias"].tolist() == [0] * 68
    features, priors = make_inputs()
    reach = 8 * priors.strides[:, None]
    expected = torch.cat([priors.centers - reach, priors.centers + reach], dim=1)
    found = head(features, priors)["main"].boxes[0]
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-3)


def test_expected_bins() -> None:
    logits = torch.full((1, 3, 17, 1, 1), -1e4)
    logits[0, 0, 5] = logits[0, 1, 16] = logits[0, 2, 2] = 1e4
    logits[0, 2, 3] = 1e4
    assert expected_bin(logits).flatten().tolist() == [5, 16, 2.5]


def test_mixed_precision_ends_before_the_expectation() -> None:
    """In autocast the convolution rounds; from its result on nothing does."""
    head = make_head()
    torch.nn.init.normal_(head.bbox_pred.weight, std=0.3)
    features, priors = make_inputs()
    with torch.autocast("cpu", torch.bfloat16):
        predictions = head(features, priors)["main"]
    assert predictions.extra["box_logits"].dtype == torch.float32
    expected = torch.tensor(slow_boxes(predictions, priors, 16), dtype=torch.float64)
    assert (predictions.boxes - expected).abs().max() < 1e-3  # pixels, of up to 600
    half = torch.randn(1, 4, 17, 2, 2).bfloat16()
    torch.testing.assert_close(expected_bin(half), expected_bin(half.float()), rtol=0, atol=0)


def test_every_logit_takes_a_gradient() -> None:
    head = make_head()
    features, priors = make_inputs()
    predictions = head(features, priors)["main"]
    (gradient,) = torch.autograd.grad(predictions.boxes.square().sum(), head.bbox_pred.weight)
    assert (gradient.abs().sum(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"reg_max": 0}, "reg_max is 0, but must be at least 1"),
        ({"box_bias": 4.0}, "box_bias is 4.0, but distributions of distances start uniform"),
        ({"norm_reg_targets": False}, "norm_reg_targets is False, but distributions are of"),
    ],
)
def test_arguments_that_mean_nothing(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_head(**options)
