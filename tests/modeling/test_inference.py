"""From scores to detections, against a transcription of the method's section 8 in Python lists."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from helpers import make_priors, random_inputs, random_predictions, tiny_cfg
from hypothesis import given
from hypothesis import strategies as st
from slow_matching import iou
from torch import nn

from defcn_d2.modeling.inference import best_class_only, find_candidates, find_topk, keep_best
from defcn_d2.structures import Predictions

SIZE = (48, 80)
NUM_CLASSES = 3
# (score, box, class)
Detection = tuple[float, list[float], int]


def listed(instances: Instances) -> list[Detection]:
    return list(
        zip(
            instances.scores.tolist(),
            instances.pred_boxes.tensor.tolist(),
            instances.pred_classes.tolist(),
            strict=True,
        )
    )


def slow_scores(predictions: Predictions, centerness: bool) -> list[tuple[float, float]]:
    """(score to choose by, score of the detection) of location r and class c at r * K + c."""
    classes = predictions.cls_logits.double().sigmoid().tolist()
    scores = []
    for r, of_location in enumerate(classes):
        quality = 1.0
        if predictions.quality_logits is not None:
            quality = predictions.quality_logits[r].double().sigmoid().item()
        for p in of_location:
            scores.append((p, (p * quality) ** 0.5) if centerness else (p * quality, p * quality))
    return scores


def slow_candidates(
    predictions: Predictions,
    level_sizes: list[int],
    centerness: bool = False,
    threshold: float = 0.05,
    limit: int = 1000,
) -> list[Detection]:
    scores = slow_scores(predictions, centerness)
    detections = []
    start = 0
    for size in level_sizes:
        pairs = range(start * NUM_CLASSES, (start + size) * NUM_CLASSES)
        best = sorted(pairs, key=lambda pair: -scores[pair][0])[: min(limit, size)]
        for pair in best:
            if scores[pair][0] > threshold:
                box = predictions.boxes[pair // NUM_CLASSES].tolist()
                detections.append((scores[pair][1], box, pair % NUM_CLASSES))
        start += size
    return detections


def slow_best(detections: list[Detection], limit: int, nms: float | None) -> list[Detection]:
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda detection: -detection[0]):
        rivals = [other for other in kept if other[2] == detection[2]] if nms is not None else []
        if all(iou(detection[1], other[1]) <= nms for other in rivals):
            kept.append(detection)
    return kept[:limit]


def assert_equal(actual: list[Detection], expected: list[Detection]) -> None:
    assert len(actual) == len(expected)
    for (score, box, label), (slow_score, slow_box, slow_label) in zip(
        actual, expected, strict=True
    ):
        assert score == pytest.approx(slow_score, rel=1e-5)
        assert box == pytest.approx(slow_box, abs=1e-3)
        assert label == slow_label


@given(
    seed=st.integers(0, 2**16),
    quality=st.sampled_from(["none", "filter", "centerness"]),
    limit=st.sampled_from([1, 5, 1000]),
    threshold=st.sampled_from([0.0, 0.05, 0.4]),
    nms=st.sampled_from([None, 0.1, 0.6]),
    max_detections=st.sampled_from([3, 100]),
)
def test_against_the_method(
    seed: int, quality: str, limit: int, threshold: float, nms: float | None, max_detections: int
) -> None:
    priors = make_priors(*SIZE)
    predictions = random_predictions(
        priors, NUM_CLASSES, num_images=2, seed=seed, quality=quality != "none"
    )
    predictions = replace(predictions, centerness=quality == "centerness")
    candidates = find_candidates(
        predictions,
        priors.level_sizes,
        [SIZE, (40, 70)],
        score_thresh=threshold,
        topk=limit,
    )
    assert [x.image_size for x in candidates] == [SIZE, (40, 70)]
    for i in range(2):
        expected = slow_candidates(
            predictions[i], priors.level_sizes, quality == "centerness", threshold, limit
        )
        assert_equal(listed(candidates[i]), expected)
        best = keep_best(candidates[i], max_detections, nms)
        assert_equal(listed(best), slow_best(expected, max_detections, nms))


@pytest.mark.parametrize("quality", ["none", "filter", "centerness"])
@pytest.mark.parametrize("topk", [1, 20, 10_000])
def test_one_topk_over_everything(quality: str, topk: int) -> None:
    priors = make_priors(*SIZE)
    predictions = random_predictions(priors, NUM_CLASSES, 2, quality=quality != "none")
    centerness = quality == "centerness"
    predictions = replace(predictions, centerness=centerness)
    results = find_topk(predictions, [SIZE, SIZE], topk=topk)
    for i in range(2):
        scores = [score for _, score in slow_scores(predictions[i], centerness)]
        best = sorted(range(len(scores)), key=lambda pair: -scores[pair])[:topk]
        expected = [
            (scores[pair], predictions.boxes[i, pair // NUM_CLASSES].tolist(), pair % NUM_CLASSES)
            for pair in best
        ]
        assert_equal(listed(results[i]), expected)


@given(st.integers(0, 2**16), st.sampled_from([-4.0, -7.0]))
def test_both_paths_agree_above_the_threshold(seed: int, mean: float) -> None:
    """Where a level has at least as many locations as pairs above the threshold."""
    priors = make_priors(*SIZE)
    predictions = random_predictions(priors, NUM_CLASSES, 1, seed=seed)
    predictions = Predictions(
        predictions.cls_logits + mean, predictions.boxes, predictions.quality_logits
    )
    (candidates,) = find_candidates(predictions, priors.level_sizes, [SIZE], topk=1000)
    levels = (predictions.fused().sigmoid() > 0.05)[0].split(priors.level_sizes)
    if all(int(level.sum()) <= len(level) for level in levels):
        (topk,) = find_topk(predictions, [SIZE], topk=100)
        assert_equal(listed(topk[topk.scores > 0.05]), listed(keep_best(candidates, 100)))


@given(st.integers(0, 2**16), st.sampled_from(["none", "filter", "centerness"]), st.booleans())
def test_one_class_a_location(seed: int, quality: str, rounded: bool) -> None:
    """All but the first of the best classes of a location are gone, on every path."""
    priors = make_priors(*SIZE)
    drawn = random_predictions(priors, NUM_CLASSES, 2, seed=seed, quality=quality != "none")
    logits = drawn.cls_logits.round() if rounded else drawn.cls_logits  # of which many are equal
    drawn = replace(drawn, cls_logits=logits, centerness=quality == "centerness")
    alone = best_class_only(drawn)
    found = find_candidates(alone, priors.level_sizes, [SIZE] * 2, score_thresh=0.0)
    ranked = find_topk(alone, [SIZE] * 2, topk=len(priors))
    for i in range(2):
        scores = slow_scores(drawn[i], quality == "centerness")
        expected = []
        for r in range(len(priors)):
            own = scores[r * NUM_CLASSES : (r + 1) * NUM_CLASSES]
            best = max(range(NUM_CLASSES), key=lambda c: own[c][0])  # the first of them
            expected.append((own[best][1], drawn.boxes[i, r].tolist(), best))
        for detections in (found[i], ranked[i]):
            order = detections.pred_boxes.tensor.tolist()
            by_box = {tuple(box): k for k, box in enumerate(order)}
            places = [by_box[tuple(box)] for _, box, _ in expected]
            assert len(by_box) == len(order) == len(priors)
            assert_equal([listed(detections)[k] for k in places], expected)


@given(st.integers(0, 2**16), st.sampled_from([1, 3, 10]), st.booleans())
def test_scores_that_are_equal(seed: int, limit: int, quality: bool) -> None:
    """Which of them are taken is open; the scores are those of the method, each pair comes once."""
    priors = make_priors(*SIZE)
    drawn = random_predictions(priors, NUM_CLASSES, 1, seed=seed, quality=quality)
    rounded = None if drawn.quality_logits is None else drawn.quality_logits.round()
    boxes = torch.arange(float(len(priors)))[:, None].repeat(1, 4)[None]
    predictions = Predictions(drawn.cls_logits.round(), boxes, rounded)
    (found,) = find_candidates(predictions, priors.level_sizes, [SIZE], topk=limit)
    expected = slow_candidates(predictions[0], priors.level_sizes, limit=limit)
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)
    locations = found.pred_boxes.tensor[:, 0].long()
    scores = predictions.fused().sigmoid()[0, locations, found.pred_classes]
    torch.testing.assert_close(found.scores, scores)
    assert len(set(zip(locations.tolist(), found.pred_classes.tolist()))) == len(found)


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_layout_of_the_logits(layout: str) -> None:
    priors = make_priors(*SIZE)
    predictions = random_predictions(priors, NUM_CLASSES, 2)
    logits = predictions.cls_logits
    if layout == "contiguous":  # (N, K, R) in memory
        logits = logits.transpose(1, 2).contiguous().transpose(1, 2)
    other = Predictions(logits, predictions.boxes, predictions.quality_logits)
    arguments = (priors.level_sizes, [SIZE, SIZE])
    for a, b in zip(
        find_candidates(predictions, *arguments, topk=7),
        find_candidates(other, *arguments, topk=7),
        strict=True,
    ):
        assert listed(a) == listed(b)


def test_at_most_as_many_candidates_as_the_level_has_locations() -> None:
    priors = make_priors(8, 16, strides=(8,))
    predictions = Predictions(torch.zeros(1, 2, 5), priors.boxes[None])
    (candidates,) = find_candidates(predictions, [2], [(8, 16)])
    assert len(candidates) == 2


def test_score_equal_to_the_threshold_is_dropped() -> None:
    predictions = Predictions(torch.zeros(1, 2, 1), torch.zeros(1, 2, 4))
    (at,) = find_candidates(predictions, [2], [(8, 8)], score_thresh=0.5)
    (below,) = find_candidates(predictions, [2], [(8, 8)], score_thresh=0.4999)
    assert (len(at), len(below)) == (0, 2)


def test_nms_is_within_classes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [20, 20, 30, 30]])
    candidates = Instances(
        (40, 40),
        pred_boxes=Boxes(boxes),
        scores=torch.tensor([0.3, 0.9, 0.8, 0.1]),
        pred_classes=torch.tensor([0, 0, 1, 0]),
    )
    assert keep_best(candidates, 100, 0.6).scores.tolist() == pytest.approx([0.9, 0.8, 0.1])
    assert keep_best(candidates, 100, 0.95).scores.tolist() == pytest.approx([0.9, 0.8, 0.3, 0.1])
    assert keep_best(candidates, 2).scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(keep_best(candidates[:0], 100, 0.6)) == len(keep_best(candidates[:0], 100)) == 0


@pytest.mark.parametrize("max_detections", [1, 5, 50])
def test_nms_among_many_that_overlap(max_detections: int) -> None:
    """The best few candidates leave too few detections, so that more of them must be looked at."""
    generator = torch.Generator().manual_seed(0)
    corners = 4 * torch.rand(600, 2, generator=generator) - 10
    candidates = Instances(
        (40, 40),
        pred_boxes=Boxes(torch.cat([corners, corners + 20], dim=1)),
        scores=torch.rand(600, generator=generator),
        pred_classes=torch.arange(600) % 2,
    )
    expected = slow_best(listed(candidates), max_detections, 0.7)
    assert_equal(listed(keep_best(candidates, max_detections, 0.7)), expected)


def trained_like(*opts: object) -> nn.Module:
    """A detector with few scores above the threshold, which vary from location to location."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg("MODEL.DEFCN.NUM_CLASSES", NUM_CLASSES, *opts)).eval()
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    nn.init.constant_(model.head.bbox_pred.bias, 1.0)  # boxes with an area
    return model


@pytest.mark.parametrize("nms", ["none", "class_wise"])
@pytest.mark.parametrize("quality", ["none", "filter", "centerness"])
def test_detections_of_the_model(nms: str, quality: str) -> None:
    matcher = "FCOS" if quality == "centerness" else "POTO"
    model = trained_like(
        *("MODEL.DEFCN.QUALITY_BRANCH", quality, "MODEL.DEFCN.MATCHER.NAME", matcher),
        *("MODEL.DEFCN.NMS_TYPE", nms, "MODEL.DEFCN.SCORE_THRESH_TEST", 0.01),
        *("MODEL.DEFCN.NMS_THRESH_TEST", 0.3, "TEST.DETECTIONS_PER_IMAGE", 40),
    )
    inputs = random_inputs([(60, 90), (64, 64)], [0, 0], NUM_CLASSES)
    with torch.no_grad():
        results = model(inputs)
        images = model.preprocess_image(inputs)
        priors, predictions = model.predict(images.tensor)
    for i, x in enumerate(inputs):
        candidates = slow_candidates(
            predictions[i], priors.level_sizes, quality == "centerness", threshold=0.01
        )
        best = slow_best(candidates, limit=40, nms=0.3 if nms == "class_wise" else None)
        expected = []
        for score, (x1, y1, x2, y2), label in best:
            x1, x2 = (min(max(value, 0), x["width"]) for value in (x1, x2))
            y1, y2 = (min(max(value, 0), x["height"]) for value in (y1, y2))
            if x2 > x1 and y2 > y1:
                expected.append((score, [x1, y1, x2, y2], label))
        assert len(expected) > 3
        assert_equal(listed(results[i]["instances"]), expected)


def test_both_paths_of_the_model() -> None:
    model = trained_like()
    inputs = random_inputs([(60, 90), (64, 64)], [0, 0], NUM_CLASSES)
    model.score_thresh = 0.02
    with torch.no_grad():
        usual = model(inputs)
        model.topk_only = True
        deployed = model(inputs)
    for a, b in zip(usual, deployed, strict=True):
        fixed = b["instances"]
        assert len(a["instances"]) > 3
        assert_equal(listed(fixed[fixed.scores > 0.02]), listed(a["instances"]))


@pytest.mark.parametrize(
    "opts",
    [
        (),
        ("MODEL.DEFCN.TOPK_ONLY_TEST", True),
        ("MODEL.DEFCN.NMS_TYPE", "class_wise"),
        ("MODEL.DEFCN.QUALITY_BRANCH", "centerness", "MODEL.DEFCN.MATCHER.NAME", "FCOS"),
    ],
)
@pytest.mark.parametrize("layer", ["cls_score", "bbox_pred"])
def test_detections_that_are_not_finite_are_an_error(layer: str, opts: tuple) -> None:
    model = trained_like(*opts, "MODEL.DEFCN.SCORE_THRESH_TEST", 0.0)
    inputs = random_inputs([(60, 90), (64, 64)], [0, 0], NUM_CLASSES)
    inputs[0]["file_name"] = "a.jpg"
    with torch.no_grad():
        getattr(model.head, layer).bias[0] = torch.nan
        with pytest.raises(FloatingPointError, match=r"image 0 of the batch \('a.jpg'\): .* NaN"):
            model(inputs)


def test_switches_of_the_config() -> None:
    model = trained_like(
        *("MODEL.DEFCN.SCORE_THRESH_TEST", 0.2, "MODEL.DEFCN.TOPK_CANDIDATES_TEST", 50),
        *("MODEL.DEFCN.NMS_TYPE", "class_wise", "MODEL.DEFCN.NMS_THRESH_TEST", 0.7),
        *("TEST.DETECTIONS_PER_IMAGE", 7),
    )
    assert (model.score_thresh, model.topk_candidates) == (0.2, 50)
    assert (model.nms_thresh, model.max_detections) == (0.7, 7)
    assert trained_like().nms_thresh is None
    assert trained_like().topk_only is False
    assert trained_like("MODEL.DEFCN.TOPK_ONLY_TEST", True).topk_only is True


@pytest.mark.parametrize("topk_only", [False, True])
def test_a_model_of_one_class_a_location(topk_only: bool) -> None:
    """The key changes nothing else: neither boxes nor the scores of what is left."""
    opts = ["MODEL.DEFCN.SCORE_THRESH_TEST", 0.0, "MODEL.DEFCN.TOPK_ONLY_TEST", topk_only]
    found = []
    for key in (False, True):
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*opts, "TEST.ONE_CLASS_PER_LOCATION", key)).eval()
        nn.init.normal_(model.head.cls_score.weight, std=0.5)
        with torch.no_grad():
            priors, predictions = model.predict(torch.randn(1, 3, 64, 64))
            (detections,) = model.detections(priors, predictions, [(64, 64)])
        found.append((predictions, detections[detections.scores > 0]))
    (every, mixed), (alone, detections) = found
    assert torch.equal(alone.cls_logits, best_class_only(every).cls_logits)
    assert torch.equal(alone.boxes, every.boxes)
    per_location = [len(set(map(tuple, x.pred_boxes.tensor.tolist()))) for x in (mixed, detections)]
    assert per_location[1] == len(detections) == len(priors) > per_location[0]
    assert set(detections.scores.tolist()) <= set(every.scores().flatten().tolist())
