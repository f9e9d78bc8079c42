"""Values: centres of priors, parts of a batch, scores and logits with a quality branch."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import make_priors, random_predictions
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from defcn_d2.modeling.inference import find_candidates, find_topk
from defcn_d2.structures import Predictions, Priors, fuse_logits

LOGITS = st.floats(-60, 60, width=32)
EXTREMES = [-1e4, -120.0, -88.0, -17.0, 0.0, 17.0, 88.0, 120.0, 1e4]


def log_product(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and log(1 - p) of p = sigmoid(a) sigmoid(b), in float64."""
    log_p = F.logsigmoid(a.double()) + F.logsigmoid(b.double())
    return log_p, (-torch.expm1(log_p)).log()


def test_centers_of_priors() -> None:
    priors = make_priors(40, 70, strides=(8, 32))
    assert len(priors) == 5 * 9 + 2 * 3
    assert priors.level_sizes == [45, 6]
    assert priors.centers[0].tolist() == [4, 4]
    assert priors.centers[1].tolist() == [12, 4]  # row-major
    assert priors.centers[45].tolist() == [16, 16]
    assert priors.centers[-1].tolist() == [2 * 32 + 16, 32 + 16]


def test_centers_of_anchors_do_not_depend_on_their_size() -> None:
    anchors = Priors(torch.tensor([[-12.0, -10, 20, 18]]), torch.tensor([8.0]), [1])
    assert anchors.centers.tolist() == [[4, 4]]


@pytest.mark.parametrize("quality", [True, False])
def test_one_image_of_the_predictions(quality: bool) -> None:
    predictions = random_predictions(make_priors(16, 16), 3, num_images=2, quality=quality)
    assert len(predictions) == 2
    image = predictions[1]
    assert torch.equal(image.cls_logits, predictions.cls_logits[1])
    assert torch.equal(image.boxes, predictions.boxes[1])
    if quality:
        assert torch.equal(image.quality_logits, predictions.quality_logits[1])
        assert torch.equal(image.fused(), predictions.fused()[1])
    else:
        assert image.quality_logits is None


def test_indices_go_to_every_field() -> None:
    predictions = random_predictions(make_priors(16, 16), 3, num_images=2)
    shape = predictions.boxes.shape[:2]
    extra = {"visible": torch.rand(*shape, 4), "embedding": torch.rand(*shape, 2, 5)}
    predictions = replace(predictions, centerness=True, extra=extra)
    images, locations = torch.tensor([1, 0, 1]), torch.tensor([3, 0, 2])
    for index in (1, None, (images, locations)):
        part = predictions[index]
        assert part.centerness
        assert torch.equal(part.cls_logits, predictions.cls_logits[index])
        assert torch.equal(part.boxes, predictions.boxes[index])
        assert torch.equal(part.quality_logits, predictions.quality_logits[index])
        assert part.extra.keys() == extra.keys()
        assert all(torch.equal(part.extra[name], x[index]) for name, x in extra.items())
    assert torch.equal(predictions[1][None][0].extra["embedding"], extra["embedding"][1])


@pytest.mark.parametrize("quality", [True, False])
def test_what_is_not_finite_is_found(quality: bool) -> None:
    """In any field; large values whose sum is beyond float32 are finite."""
    predictions = random_predictions(make_priors(16, 16), 3, num_images=2, quality=quality)
    predictions.extra["visible"] = torch.zeros(2, len(predictions.boxes[0]), 4)
    predictions.cls_logits[0, :4] = 3e38
    predictions.boxes[1, :4] = -3e38
    flag = predictions.nan_if_not_finite()
    assert flag == 0 and flag.dtype == torch.float32 and flag.shape == ()
    for field in ("cls_logits", "boxes", "quality_logits")[: 2 + quality]:
        for value in (float("nan"), float("inf"), -float("inf")):
            changed = getattr(predictions, field).clone()
            changed.view(-1)[-1] = value
            assert replace(predictions, **{field: changed}).nan_if_not_finite().isnan()
            visible = torch.full((2, 1), value)
            assert replace(predictions, extra={"visible": visible}).nan_if_not_finite().isnan()


SIZE = (40, 56)


def literal_scores(predictions: Predictions) -> list[list[list[float]]]:
    """Of images, locations and classes."""
    qualities = torch.ones(predictions.boxes.shape[:2])
    if predictions.quality_logits is not None:
        qualities = predictions.quality_logits.double().sigmoid()
    return [
        [
            [(p * q) ** 0.5 if predictions.centerness else p * q for p in of_location]
            for of_location, q in zip(of_image, of_qualities, strict=True)
        ]
        for of_image, of_qualities in zip(
            predictions.cls_logits.double().sigmoid().tolist(), qualities.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("branch", ["none", "filter", "centerness"])
def test_scores_are_those_of_the_detections(branch: str) -> None:
    priors = make_priors(*SIZE)
    predictions = random_predictions(priors, 3, num_images=2, quality=branch != "none")
    predictions = replace(predictions, centerness=branch == "centerness")
    scores = predictions.scores()
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor(literal_scores(predictions)))
    # vectors of the processor and what is left over are not rounded alike
    torch.testing.assert_close(predictions[1].scores(), scores[1], rtol=1e-6, atol=0.0)

    candidates = find_candidates(
        predictions, priors.level_sizes, [SIZE, SIZE], score_thresh=0.0, topk=1000
    )
    best = find_topk(predictions, [SIZE, SIZE], topk=1000)
    for i in range(2):
        assert (len(candidates[i]), len(best[i])) == (len(priors), 3 * len(priors))
        for found in (candidates[i], best[i]):
            for box, label, score in zip(
                found.pred_boxes.tensor, found.pred_classes, found.scores, strict=True
            ):
                (location,) = (predictions.boxes[i] == box).all(dim=1).nonzero().flatten()
                assert score.item() == pytest.approx(scores[i, location, label].item(), rel=1e-6)


def test_quality_is_the_probability_of_its_branch() -> None:
    predictions = random_predictions(make_priors(16, 16), 3, num_images=2)
    half = replace(predictions, quality_logits=predictions.quality_logits.bfloat16())
    quality = half.quality()
    assert quality.dtype == torch.float32
    torch.testing.assert_close(quality, half.quality_logits.float().sigmoid())
    assert replace(predictions, quality_logits=None).quality() is None


@given(LOGITS, LOGITS)
def test_fused_logit_has_the_product_of_the_probabilities(a: float, b: float) -> None:
    a, b = torch.tensor(a), torch.tensor(b)
    log_p, log_not_p = log_product(a, b)
    z = fuse_logits(a, b)
    torch.testing.assert_close(z.double(), log_p - log_not_p, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(F.logsigmoid(z.double()), log_p, rtol=1e-5, atol=1e-6)
    assert torch.equal(z, fuse_logits(b, a))


@pytest.mark.parametrize(("a", "b"), list(itertools.product(EXTREMES, EXTREMES)))
def test_fused_logit_at_extremes(a: float, b: float) -> None:
    logits = torch.tensor([a, b], requires_grad=True)
    z = fuse_logits(logits[0], logits[1])
    assert z.isfinite()
    log_p, log_not_p = log_product(*logits.detach())
    if log_not_p.isfinite():
        assert z.item() == pytest.approx((log_p - log_not_p).item(), rel=1e-6, abs=1e-6)
    else:  # 1 - p is beyond float64: both logits are large
        assert z.item() >= 80

    z.backward()
    assert logits.grad.isfinite().all()
    if log_not_p.isfinite():  # dz/da = (1 - sigmoid(a)) / (1 - p)
        expected = (F.logsigmoid(-logits.detach().double()) - log_not_p).exp()
        torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_fused_shapes_and_dtypes() -> None:
    predictions = random_predictions(make_priors(16, 16), 3, num_images=2)
    expected = predictions.cls_logits.sigmoid() * predictions.quality_logits.sigmoid()[:, :, None]
    assert predictions.fused().shape == predictions.cls_logits.shape
    torch.testing.assert_close(predictions.fused().sigmoid(), expected)

    half = Predictions(
        predictions.cls_logits.bfloat16(), predictions.boxes, predictions.quality_logits.bfloat16()
    )
    assert half.fused().dtype == torch.float32
    without = Predictions(half.cls_logits, half.boxes)
    assert torch.equal(without.fused(), half.cls_logits.float())
