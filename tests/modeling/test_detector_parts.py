"""Parts of a detector that a config chooses: several anchors a location, necks, auxiliary heads."""

from __future__ import annotations

import math

import pytest
import registries
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers import random_inputs, tiny_cfg
from torch import Tensor, nn

from defcn_d2.config.rules import ConfigError
from defcn_d2.export.detector import DeployedDetector
from defcn_d2.modeling.neck import NECK_REGISTRY
from defcn_d2.structures import Priors

NUM_CLASSES = 3
SIZES, RATIOS = [[4.0 * s, 6.0 * s] for s in (8, 16, 32, 64, 128)], [0.5, 1.0, 2.0]
SIX_ANCHORS = (
    *("MODEL.DEFCN.PRIORS", "anchors"),
    *("MODEL.ANCHOR_GENERATOR.SIZES", SIZES, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [RATIOS]),
)
MATCHER = "MODEL.DEFCN.MATCHER.NAME"
ONENET = (MATCHER, "OneNet", "MODEL.DEFCN.CRITERION.DenseCriterion.NORMALIZER", "gts")
VARIANTS = [
    pytest.param(ONENET, id="OneNet"),
    pytest.param((MATCHER, "ATSS", "MODEL.DEFCN.QUALITY_BRANCH", "centerness"), id="ATSS"),
    pytest.param((MATCHER, "POTO", "MODEL.DEFCN.QUALITY_BRANCH", "filter"), id="POTO"),
    pytest.param((MATCHER, "Anchor", "MODEL.DEFCN.QUALITY_BRANCH", "none"), id="Anchor"),
]


def small_cfg(*opts: object) -> CfgNode:
    return tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES, *opts)


def scattered(model: nn.Module) -> nn.Module:
    """Outputs that are not all alike, whatever else is in the batch."""
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    return model.eval()


def step(model: nn.Module) -> dict[str, Tensor]:
    """Losses of a batch, whose gradients are computed; two images, one of them empty."""
    losses = model.train()(random_inputs([(64, 64)] * 2, [3, 0], NUM_CLASSES))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    return losses


def locations_of_anchors(maps: list[Tensor]) -> list[tuple[int, int, int, int]]:
    """(level, row, column, anchor) of every prior, as they follow each other."""
    return [
        (level, i, j, anchor)
        for level, x in enumerate(maps)
        for i in range(x.shape[2])
        for j in range(x.shape[3])
        for anchor in range(len(SIZES[0]) * len(RATIOS))
    ]


def slow_anchor(level: int, i: int, j: int, anchor: int) -> tuple[float, float, float, float]:
    """Centre, width and height: all ratios of the first size, then those of the second."""
    stride = 8 * 2**level
    size, ratio = SIZES[level][anchor // len(RATIOS)], RATIOS[anchor % len(RATIOS)]
    width = math.sqrt(size * size / ratio)
    return (j + 0.5) * stride, (i + 0.5) * stride, width, width * ratio


def slow_box(deltas: list[float], anchor: tuple[float, float, float, float]) -> list[float]:
    """Box2BoxTransform with weights of 1: shifts in sides, sides in logarithms."""
    (dx, dy, dw, dh), (x, y, width, height) = deltas, anchor
    limit = math.log(1000 / 16)
    x, y = x + dx * width, y + dy * height
    half_width = width * math.exp(min(dw, limit)) / 2
    half_height = height * math.exp(min(dh, limit)) / 2
    return [x - half_width, y - half_height, x + half_width, y + half_height]


@pytest.mark.parametrize("opts", VARIANTS)
def test_six_anchors_a_location_train_and_infer(opts: tuple) -> None:
    model = build_model(small_cfg(*SIX_ANCHORS, *opts))
    assert model.head.cls_score.out_channels == 6 * NUM_CLASSES
    assert model.head.bbox_pred.out_channels == 6 * 4
    losses = step(model)
    assert losses["loss_cls"] > 0 and losses["loss_box_reg"] > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.figures["num_foreground"] > 0
    scattered(model)
    model.score_thresh = 0.0
    for found in model(random_inputs([(128, 128), (80, 128)], [0, 0], NUM_CLASSES)):
        assert len(found["instances"]) > 10


def test_six_anchors_a_location_are_decoded_as_one_by_one() -> None:
    model = scattered(
        build_model(small_cfg(*SIX_ANCHORS, *ONENET, "MODEL.DEFCN.QUALITY_BRANCH", "filter"))
    )
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        priors, predictions = model.predict(images)
        _, features = model.features(images)
        maps = model.head.maps(*model.head.towers(features))
    places = locations_of_anchors(maps["boxes"])
    assert len(priors) == len(places) == sum(priors.level_sizes)
    assert priors.level_shapes is None
    for r, (level, i, j, a) in enumerate(places):
        x, y, width, height = anchor = slow_anchor(level, i, j, a)
        corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
        assert priors.boxes[r].tolist() == pytest.approx(corners, rel=1e-5, abs=1e-4)
        assert priors.strides[r] == 8 * 2**level
        logits = maps["cls_logits"][level][:, a * NUM_CLASSES : (a + 1) * NUM_CLASSES, i, j]
        assert torch.equal(predictions.cls_logits[:, r], logits)
        quality = maps["quality_logits"][level][:, a, i, j]
        assert torch.equal(predictions.quality_logits[:, r], quality)
        for image in range(2):
            deltas = maps["boxes"][level][image, 4 * a : 4 * a + 4, i, j].tolist()
            box = predictions.boxes[image, r].tolist()
            assert box == pytest.approx(slow_box(deltas, anchor), rel=1e-4, abs=1e-2)


def test_six_anchors_a_location_are_exported() -> None:
    model = scattered(build_model(small_cfg(*SIX_ANCHORS, *ONENET)))
    detector = DeployedDetector(model, topk=20).eval()
    image = torch.rand(1, 3, 64, 96) * 255
    with torch.no_grad():
        expected = detector(image)
        found = torch.export.export(detector, (image,)).module()(image)
        best = model.predict(model.preprocess_image([{"image": image[0]}]).tensor)[1].scores()
    torch.testing.assert_close(expected[1][0], best.flatten().topk(20).values, rtol=1e-4, atol=0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


AUX = "MODEL.DEFCN.AUX."
AUX_HEAD = (AUX + "HEAD.NAME", "DeFCNHead")
OWN_SET = (AUX + "CRITERION.AuxiliaryCriterion.PREDICTIONS", "aux")


def test_an_auxiliary_head_gives_a_set_that_a_criterion_learns() -> None:
    model = build_model(small_cfg(*AUX_HEAD, *OWN_SET))
    images = torch.randn(1, 3, 64, 64)
    priors, sets = model.train().predict_all(images)
    assert set(sets) == {"main", "aux"}
    _, features = model.features(images)
    for name, head in (("main", model.head), ("aux", model.aux_head)):
        assert torch.equal(sets[name].cls_logits, head(features, priors)["main"].cls_logits)
    assert not torch.equal(sets["main"].cls_logits, sets["aux"].cls_logits)

    inputs = random_inputs([(64, 64)] * 2, [3, 0], NUM_CLASSES)
    losses = model(inputs)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_cls_aux"}
    losses["loss_cls_aux"].backward()
    assert model.aux_head.cls_score.weight.grad.abs().sum() > 0
    assert not any(p.grad is not None and p.grad.any() for p in model.head.parameters())
    with torch.no_grad():
        expected = model.eval()(inputs)
        for parameter in model.aux_head.parameters():
            parameter.zero_()
        for found, wanted in zip(model(inputs), expected, strict=True):
            assert torch.equal(found["instances"].scores, wanted["instances"].scores)


def test_a_head_that_no_criterion_learns_from_is_none_of_the_model_s() -> None:
    """Neither where the auxiliary loss is off, nor where no head is named."""
    assert build_model(small_cfg(*AUX_HEAD, AUX + "ENABLED", False)).aux_head is None
    assert build_model(small_cfg()).aux_head is None


def test_a_set_that_no_head_gives() -> None:
    message = r"CRITERION.AuxiliaryCriterion.PREDICTIONS 'aux' is unknown; one of: main$"
    with pytest.raises(ConfigError, match=message):
        step(build_model(small_cfg(*OWN_SET)))


def test_a_neck_may_change_the_channels() -> None:
    """The head is built for what it gives; its parameters are learnt and saved with the model's."""
    with registries.restored():

        @NECK_REGISTRY.register()
        class Widen(nn.Module):
            def __init__(self, *, in_channels: int, strides: list[int], out_channels: int = 64):
                super().__init__()
                assert strides == [8, 16, 32, 64, 128]
                self.out_channels = out_channels
                self.conv = nn.Conv2d(in_channels, out_channels, 1)

            def forward(self, features: list[Tensor]) -> list[Tensor]:
                return [self.conv(x) for x in features]

        opts = ("MODEL.DEFCN.NECK.NAME", "Widen", "MODEL.DEFCN.NECK.Widen.OUT_CHANNELS", 128)
        model = build_model(small_cfg(*opts))
    assert model.head.cls_score.in_channels == 128
    assert "neck.conv.weight" in model.state_dict()
    step(model)
    assert all(p.grad is not None for p in model.parameters())
    priors, features = model.features(torch.randn(1, 3, 64, 64))
    assert isinstance(priors, Priors) and all(x.shape[1] == 128 for x in features)
    assert len(model.eval()(random_inputs([(64, 64)], [0], NUM_CLASSES))) == 1
