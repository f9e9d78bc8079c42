"""Peak selection: scores, gradients and the sets of predictions, against loops and formulas."""

import itertools
import math

import pytest
import torch
from detectron2.modeling import build_model
from helpers import make_priors, tiny_cfg
from torch import Tensor

from defcn_d2.config.rules import ArgumentError
from defcn_d2.modeling.box_ops import iou
from defcn_d2.modeling.head.dense import DeFCNHead
from defcn_d2.modeling.head.gfl import GFLHead
from defcn_d2.modeling.head.peak import PeakHead, score_logits
from defcn_d2.modeling.head.peak_gfl import PeakGFLHead
from defcn_d2.structures import Predictions, Priors

STRIDES = [8, 16, 32]
SHAPES = [(5, 7), (3, 4), (2, 2)]
GIVEN = {"in_channels": 32, "strides": STRIDES, "num_classes": 3, "num_convs": 1, "box_bias": 4.0}


def make_head(**options: object) -> PeakHead:
    torch.manual_seed(0)
    head = PeakHead(**{**GIVEN, **options})
    for parameter in head.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return head


def make_features() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 32, *shape, generator=generator) for shape in SHAPES]


def priors() -> Priors:
    return make_priors(40, 56, STRIDES)


def slow_peaks(logits: Tensor, compared: Tensor) -> Tensor:
    """(N, R, K): no location with which one is compared, (N, R, R), has a higher logit."""
    peaks = torch.ones_like(logits, dtype=torch.bool)
    for n, i, j in itertools.product(range(len(logits)), *[range(logits.shape[1])] * 2):
        if compared[n, i, j]:
            peaks[n, i] &= logits[n, j] <= logits[n, i]
    return peaks


def own_window() -> Tensor:
    """(R, R): both on one level, at most one row and one column apart."""
    levels = [torch.full((h * w,), level) for level, (h, w) in enumerate(SHAPES)]
    cells = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in SHAPES]
    level, cell = torch.cat(levels), torch.cat(cells)  # (R,) and (R, 2)
    near = (cell[:, None] - cell[None]).abs().amax(dim=2) <= 1
    return near & (level[:, None] == level[None])


def selection(head: PeakHead, features: list[Tensor]) -> Tensor:
    """(N, R, C): what the selector says of each location."""
    maps = [head.select(head.select_subnet(head.towers([x])[1][0])) for x in features]
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def test_the_base_is_the_dense_head() -> None:
    head = make_head()
    plain = DeFCNHead(**GIVEN)
    missing = plain.load_state_dict(head.state_dict(), strict=False).missing_keys
    assert not missing  # the same names: a trained detector's weights fit
    expected = plain(make_features(), priors())["main"]
    found = head(make_features(), priors())["one_to_many"]
    assert torch.equal(found.cls_logits, expected.cls_logits)
    assert torch.equal(found.boxes, expected.boxes)


def test_scores_of_a_window_on_the_own_level() -> None:
    head = make_head(compare="window", tau=0).eval()
    features = make_features()
    sets = head(features, priors())
    base = sets["one_to_many"].scores()
    peaks = slow_peaks(sets["one_to_many"].cls_logits, own_window().expand(2, -1, -1))
    b, w = selection(head, features).unbind(dim=2)
    sign = torch.where(peaks, 1.0, -1.0)
    expected = base * (b[..., None] + (3 + w[..., None]) * sign).sigmoid()
    torch.testing.assert_close(sets["main"].scores(), expected)
    assert 0.05 < peaks.float().mean() < 0.5  # both kinds occur


def test_only_overlapping_boxes_are_compared() -> None:
    head = make_head(selector=False, tau=0, iou_thresh=0.3).eval()
    base, main = (head(make_features(), priors())[name] for name in ("one_to_many", "main"))
    overlap = iou(base.boxes[:, :, None], base.boxes[:, None]) > 0.3
    peaks = slow_peaks(base.cls_logits, own_window() & overlap)
    torch.testing.assert_close(main.scores(), base.scores() * peaks)
    assert peaks.any() and not peaks.all()
    assert not torch.equal(peaks, slow_peaks(base.cls_logits, own_window().expand(2, -1, -1)))


def test_scores_by_the_overlap_with_a_better_neighbour() -> None:
    head = make_head(tau=0, iou_thresh=0.5).eval()
    features = make_features()
    sets = head(features, priors())
    base = sets["one_to_many"]
    overlap = iou(base.boxes[:, :, None], base.boxes[:, None]) * own_window()  # (N, R, R)
    better = base.cls_logits[:, None] > base.cls_logits[:, :, None]  # (N, R, R, K)
    largest = (overlap[..., None] * better).amax(dim=2)  # (N, R, K)
    b, w, t = (x[..., None] for x in selection(head, features).unbind(dim=2))
    peak = 1 - 2 * ((largest - 0.5 - 0.3 * t) / 0.05).sigmoid()
    torch.testing.assert_close(
        sets["main"].scores(), base.scores() * (b + (3 + w) * peak).sigmoid()
    )


def test_at_the_start_a_peak_keeps_95_percent() -> None:
    head = PeakHead(**GIVEN, compare="window")
    torch.nn.init.zeros_(head.select.weight)
    sets = head.eval()(make_features(), priors())
    shares = (sets["main"].scores() / sets["one_to_many"].scores()).unique()
    low, high = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))
    assert all(min(abs(share - low), abs(share - high)) < 1e-4 for share in shares.tolist())
    assert high == pytest.approx(0.9526, abs=1e-4)


def test_main_teaches_the_selector_alone() -> None:
    head = make_head()
    main = head(make_features(), priors())["main"]
    assert not main.boxes.requires_grad
    main.cls_logits.sum().backward()
    learned = {name for name, p in head.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in head.named_parameters() if name.startswith("select")}


def test_one_to_many_does_not_teach_the_selector() -> None:
    head = make_head()
    base = head(make_features(), priors())["one_to_many"]
    (base.cls_logits.sum() + base.boxes.sum()).backward()
    left = {name for name, p in head.named_parameters() if p.grad is None}
    assert left == {name for name, _ in head.named_parameters() if name.startswith("select")}


def test_without_comparison_the_selector_decides() -> None:
    head = make_head(compare="none").eval()
    sets = head(make_features(), priors())
    shares = sets["main"].scores() / sets["one_to_many"].scores()  # (N, R, K)
    torch.testing.assert_close(shares, shares[..., :1].expand_as(shares))


@pytest.mark.parametrize("branch", ["none", "filter", "centerness"])
def test_logits_are_those_of_the_scores(branch: str) -> None:
    base = make_head(quality_branch=branch)(make_features(), priors())["one_to_many"]
    torch.testing.assert_close(score_logits(base).sigmoid(), base.scores())


def test_the_logit_of_a_certain_centerness_score_is_finite() -> None:
    logits = torch.tensor([[[30.0]], [[-90.0]]])
    certain = Predictions(logits, torch.zeros(2, 1, 4), torch.tensor([[30.0], [-90.0]]), True)
    assert score_logits(certain).isfinite().all()


def test_logits_are_not_rounded_in_mixed_precision() -> None:
    head = make_head()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(make_features(), priors())["one_to_many"].cls_logits
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_anchors": 3}, "num_anchors is 3"),
        ({"compare": "none", "selector": False}, "nothing would be selected"),
        ({"tau": 4}, "tau is 4"),
    ],
)
def test_arguments_that_do_not_fit(options: dict, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        PeakHead(**{**GIVEN, **options})


def test_inference_with_the_base() -> None:
    cfg = tiny_cfg()
    cfg.MODEL.DEFCN.HEAD.NAME = "PeakHead"
    image = {"image": torch.rand(3, 64, 64) * 255}
    cfg.MODEL.DEFCN.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    selected = model([image])[0]["instances"]
    model.predictions = "one_to_many"
    every = model([image])[0]["instances"]
    assert every.scores.max() > selected.scores.max()
    cfg.MODEL.DEFCN.PREDICTIONS_TEST = "one_to_meny"
    with pytest.raises(
        ValueError, match=r"PREDICTIONS_TEST 'one_to_meny' is unknown; one of: main, one_to_many"
    ):
        build_model(cfg).eval()([image])


def test_the_form_with_distributions_has_the_boxes_of_its_head() -> None:
    options = {**GIVEN, "box_bias": 0.0, "reg_max": 4}
    torch.manual_seed(0)
    peak = PeakGFLHead(**options, iou_thresh=0.5).double()
    torch.nn.init.normal_(peak.bbox_pred.weight, std=0.1)
    plain = GFLHead(**options).double()
    plain.load_state_dict({k: v for k, v in peak.state_dict().items() if "select" not in k})
    features = [x.double() for x in make_features()]
    expected = plain(features, priors())["main"]
    found = peak(features, priors())
    for predictions in (found["one_to_many"], found["main"]):
        assert torch.equal(predictions.boxes, expected.boxes)
        assert torch.equal(predictions.extra["box_logits"], expected.extra["box_logits"])
    assert torch.equal(found["one_to_many"].cls_logits, expected.cls_logits)
    assert found["one_to_many"].boxes.requires_grad and not found["main"].boxes.requires_grad
    assert not torch.equal(found["main"].cls_logits, expected.cls_logits)
