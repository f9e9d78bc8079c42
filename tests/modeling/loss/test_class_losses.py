"""Class losses against the formula of every entry, with one-hot labels, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from fvcore.nn import sigmoid_focal_loss
from helpers import make_cfg
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defcn_d2 import add_defcn_config
from defcn_d2.config.model_rules import check_model_config
from defcn_d2.config.rules import ArgumentError, ConfigError
from defcn_d2.modeling.loss import CLASS_LOSS_REGISTRY, build_class_loss
from defcn_d2.modeling.loss.class_losses import FocalLoss, QualityFocalLoss, SoftCrossEntropy
from defcn_d2.modeling.loss.functional import focal_negative
from defcn_d2.modeling.loss.iou_aware import IoUAwareLoss
from defcn_d2.modeling.loss.matchability import MatchabilityAwareLoss
from defcn_d2.structures import fuse_logits

ALPHAS = st.sampled_from([0.25, 0.5, 0.9])
SOFT = [QualityFocalLoss, MatchabilityAwareLoss, IoUAwareLoss]
BCE = SoftCrossEntropy()
EXPONENTS = st.sampled_from([0.0, 1.0, 1.5, 2.0])
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4))


class Case(NamedTuple):
    """Arguments of a class loss."""

    logits: Tensor
    foreground: Tensor
    targets: Tensor
    weights: Tensor
    valid: Tensor


def random_case(sizes: tuple[int, int, int], seed: int, valid_as: str = "bool") -> Case:
    """Logits in float64; one entry in four is foreground, each once, some locations twice.

    Args:
        valid_as: "bool", where a location with foreground is never ignored; or "float".
    """
    generator = torch.Generator().manual_seed(seed)
    images, locations, classes = sizes
    logits = 3 * torch.randn(sizes, generator=generator).double()
    entries = torch.randperm(logits.numel(), generator=generator)[: logits.numel() // 4]
    of_images = entries // (locations * classes)
    of_locations = entries // classes % locations
    foreground = torch.stack([of_images, of_locations, entries % classes])
    targets, weights = torch.rand(2, len(entries), generator=generator).double()
    valid = torch.rand(images, locations, generator=generator).double()
    if valid_as == "bool":
        valid = valid < 0.5
        valid[of_images, of_locations] = True
    return Case(logits, foreground, targets, 3 * weights, valid)


def slow_focal(p: float, foreground: bool, alpha: float, gamma: float) -> float:
    if foreground:
        return alpha * (1 - p) ** gamma * -math.log(p)
    return (1 - alpha) * p**gamma * -math.log(1 - p)


def one_hot(case: Case, values: Tensor, rest: float = 0.0) -> Tensor:
    """(N, R, K) with the values (P,) at the foreground entries."""
    full = torch.full_like(case.logits, rest)
    for (image, location, label), value in zip(case.foreground.t().tolist(), values, strict=True):
        full[image, location, label] = value
    return full


@given(SIZES, st.integers(0, 99), ALPHAS, EXPONENTS, st.sampled_from(["", "bool", "float"]))
def test_focal_loss_is_the_sum_of_its_terms(
    sizes: tuple[int, int, int], seed: int, alpha: float, gamma: float, valid_as: str
) -> None:
    case = random_case(sizes, seed, valid_as or "bool")
    labels = one_hot(case, torch.ones(len(case.weights)))
    for weighted in (False, True):
        factors = one_hot(case, case.weights if weighted else torch.ones_like(case.weights), 1)
        if valid_as:
            factors = factors * case.valid[..., None]
        expected = sum(
            factor * slow_focal(1 / (1 + math.exp(-logit)), bool(label), alpha, gamma)
            for logit, label, factor in zip(
                *(x.flatten().tolist() for x in (case.logits, labels, factors)), strict=True
            )
        )
        loss = FocalLoss(alpha=alpha, gamma=gamma)(
            case.logits,
            case.foreground,
            weights=case.weights if weighted else None,
            valid=case.valid if valid_as else None,
        )
        assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(SIZES, st.integers(0, 99), ALPHAS, EXPONENTS, st.booleans())
def test_focal_loss_of_soft_labels(
    sizes: tuple[int, int, int], seed: int, alpha: float, gamma: float, hard: bool
) -> None:
    """y al (1 - p)^g (-log p) + (1 - y) (1 - al) p^g (-log(1 - p)); of y = 1 the plain one."""
    case = random_case(sizes, seed, "float")
    targets = torch.ones_like(case.targets) if hard else case.targets
    ours, literal = case.logits.clone().requires_grad_(), case.logits.clone().requires_grad_()
    loss = FocalLoss(alpha=alpha, gamma=gamma)(ours, case.foreground, targets, valid=case.valid)
    y, p = one_hot(case, targets), literal.sigmoid()
    entries = -y * alpha * (1 - p) ** gamma * p.log()
    entries = entries - (1 - y) * (1 - alpha) * p**gamma * (1 - p).log()
    expected = (entries * case.valid[..., None]).sum()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    if hard:
        plain = FocalLoss(alpha=alpha, gamma=gamma)(ours, case.foreground, valid=case.valid)
        torch.testing.assert_close(loss, plain, rtol=1e-12, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, literal.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_and_gradient_against_fvcore(gamma: float) -> None:
    case = random_case((2, 25, 7), 0)
    ours, theirs = case.logits.clone().requires_grad_(), case.logits.clone().requires_grad_()
    loss = FocalLoss(gamma=gamma)(ours, case.foreground)
    labels = one_hot(case, torch.ones(len(case.weights)))
    expected = sigmoid_focal_loss(theirs, labels, alpha=0.25, gamma=gamma, reduction="sum")
    # fvcore computes in float32.
    torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_focal_loss_of_fused_logits_is_that_of_the_product_of_probabilities() -> None:
    case = random_case((1, 40, 4), 0)
    quality = 3 * torch.randn(1, 40, 1, dtype=torch.float64)
    p = case.logits.sigmoid() * quality.sigmoid()
    labels = one_hot(case, torch.ones(len(case.weights))).bool()
    expected = torch.where(
        labels, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
    ).sum()
    loss = FocalLoss()(fuse_logits(case.logits.float(), quality.float()), case.foreground)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)


def cross_entropy(p: Tensor, y: Tensor) -> Tensor:
    return -(y * p.log() + (1 - y) * (1 - p).log())


def literal_quality_focal(p: Tensor, y: Tensor, foreground: Tensor, beta: float) -> Tensor:
    """|y - p|^beta BCE(p, y) of every entry."""
    return (y - p).abs() ** beta * cross_entropy(p, y)


def literal_matchability(p: Tensor, y: Tensor, foreground: Tensor, gamma: float) -> Tensor:
    """BCE(p, y^gamma) of foreground, p^2 BCE(p, 0) of background, its factor without gradient."""
    background = p.detach() ** 2 * cross_entropy(p, torch.zeros_like(p))
    return torch.where(foreground, cross_entropy(p, y**gamma), background)


def literal_iou_aware(p: Tensor, y: Tensor, foreground: Tensor, gamma: float) -> Tensor:
    """t (-log p) + (1 - t) (-log(1 - p)) of foreground, p^gamma BCE(p, 0) of background."""
    label = (p.detach() ** 0.25 * y**0.75).clamp(min=0.01)
    background = p**gamma * cross_entropy(p, torch.zeros_like(p))
    return torch.where(foreground, cross_entropy(p, label), background)


SOFT_LOSSES: dict[str, tuple[Callable, Callable]] = {
    "quality focal": (lambda x: QualityFocalLoss(beta=x), literal_quality_focal),
    "matchability": (lambda x: MatchabilityAwareLoss(gamma=x), literal_matchability),
    "IoU-aware": (lambda x: IoUAwareLoss(gamma=x), literal_iou_aware),
}


@given(
    SIZES,
    st.integers(0, 99),
    st.sampled_from([(1.0, 0.0), (0.75, 2.0), (0.5, 1.5)]),
    st.sets(st.sampled_from(["targets", "weights", "valid"])),
    st.sampled_from(["bool", "float"]),
)
def test_soft_cross_entropy_and_gradient(
    sizes: tuple[int, int, int],
    seed: int,
    keys: tuple[float, float],
    given_ones: set[str],
    valid_as: str,
) -> None:
    """BCE(p, y) of foreground entries, w p^gamma BCE(p, 0) of others; p^gamma has a gradient."""
    case = random_case(sizes, seed, valid_as)
    options = {name: getattr(case, name) for name in given_ones}
    ours, literal = case.logits.clone().requires_grad_(), case.logits.clone().requires_grad_()
    loss = SoftCrossEntropy(background_weight=keys[0], gamma=keys[1])(
        ours, case.foreground, **options
    )
    ones, p = torch.ones_like(case.weights), literal.sigmoid()
    labels = one_hot(case, options.get("targets", ones))
    entropy = -(labels * p.log() + (1 - labels) * (1 - p).log())
    others = keys[0] * p ** keys[1] * -(1 - p).log()
    entries = torch.where(one_hot(case, ones).bool(), entropy, others)
    factors = one_hot(case, options.get("weights", ones), 1)
    expected = (entries * factors * options.get("valid", torch.ones(1))[..., None]).sum()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, literal.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", SOFT_LOSSES)
@given(
    SIZES,
    st.integers(0, 99),
    st.sampled_from([1.0, 1.5, 2.0, 3.0]),
    st.sets(st.sampled_from(["targets", "weights", "valid"])),
    st.sampled_from(["bool", "float"]),
)
def test_losses_of_soft_labels_and_gradients(
    name: str,
    sizes: tuple[int, int, int],
    seed: int,
    exponent: float,
    given_ones: set[str],
    valid_as: str,
) -> None:
    """The labels and factors of every entry written out; some labels are 0."""
    make, literal = SOFT_LOSSES[name]
    case = random_case(sizes, seed, valid_as)
    case.targets[::3] = 0
    options = {key: getattr(case, key) for key in given_ones}
    ones = torch.ones_like(case.weights)
    y = one_hot(case, options.get("targets", ones))
    factors = one_hot(case, options.get("weights", ones), 1)
    ours, theirs = case.logits.clone().requires_grad_(), case.logits.clone().requires_grad_()
    loss = make(exponent)(ours, case.foreground, **options)
    expected = literal(theirs.sigmoid(), y, one_hot(case, ones).bool(), exponent) * factors
    expected = (expected * options.get("valid", torch.ones(1))[..., None]).sum()
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-12)


def test_soft_labels_on_paper() -> None:
    """One entry of p = 0.5, whose label is made from an IoU of 0.64 or 0."""
    logits, entry = torch.zeros(1, 1, 1, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.int64)
    for kind, overlap in ((MatchabilityAwareLoss, 0.64), (IoUAwareLoss, 0.0)):
        leaf = logits.clone().requires_grad_()
        loss = kind()(leaf, entry, torch.tensor([overlap], dtype=leaf.dtype))
        assert loss.item() == pytest.approx(math.log(2))  # whatever the label, and of weight 1
        loss.backward()
        label = 0.512 if overlap else 0.01  # 0.64^1.5, or the least
        assert leaf.grad.item() == pytest.approx(0.5 - label)
    leaf = logits.clone().requires_grad_()
    IoUAwareLoss()(leaf, entry, torch.tensor([0.5])).backward()
    assert leaf.grad.item() == pytest.approx(0)  # p and the IoU agree


def test_the_background_of_a_dense_head_at_the_start() -> None:
    """18,102 locations of 80 classes with p = 0.01: what the exponents make of their sum."""
    logits = torch.full((1, 18102, 80), -math.log(99))
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    for background_gamma, expected in ((1.5, 14.6), (2.0, 1.46)):
        loss = MatchabilityAwareLoss(background_gamma=background_gamma)(logits, nothing)
        assert loss.item() == pytest.approx(expected, rel=0.01)
    assert FocalLoss()(logits, nothing).item() == pytest.approx(1.09, rel=0.01)


@pytest.mark.parametrize("config", ["POTO-MAL.yaml", "POTO-IA-BCE.yaml"])
@pytest.mark.parametrize("place", ["", "AUX."])
def test_a_loss_for_soft_labels_is_not_taken_for_hard_ones(config: str, place: str) -> None:
    """Of the main criterion as of the auxiliary one."""
    cfg = make_cfg(config)
    name, node = cfg.MODEL.DEFCN.LOSS.NAME, f"MODEL.DEFCN.{place}"
    criterion = "AuxiliaryCriterion" if place else "DenseCriterion"
    labels = f"{node}CRITERION.{criterion}.SOFT_LABELS"
    cfg.merge_from_list(["MODEL.DEFCN.AUX.ENABLED", True, f"{node}LOSS.NAME", name])
    cfg.merge_from_list([labels, "iou"])
    check_model_config(cfg)
    cfg.merge_from_list([labels, "none"])
    with pytest.raises(
        ConfigError, match=f"^{node}LOSS.NAME '{name}' is for soft labels; set {labels}"
    ):
        check_model_config(cfg)


def test_hard_labels_and_exponent_0_are_the_cross_entropy() -> None:
    case = random_case((2, 9, 3), 0)
    labels = one_hot(case, torch.ones(len(case.weights)))
    found = [kind(case.logits, case.foreground) for kind in (QualityFocalLoss(beta=0), BCE)]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        case.logits, labels, reduction="sum"
    )
    for loss in found:
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", [MatchabilityAwareLoss, IoUAwareLoss])
@pytest.mark.parametrize("logit", [-1e4, -200.0, 200.0, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_losses_of_soft_labels_at_extreme_logits(kind: type, logit: float, target: float) -> None:
    logits = torch.full((1, 1, 2), logit, requires_grad=True)
    loss = kind()(logits, torch.zeros(3, 1, dtype=torch.int64), torch.tensor([target]))
    loss.backward()
    assert loss.isfinite() and loss >= 0 and logits.grad.isfinite().all()


@pytest.mark.parametrize("logit", [-1e4, -200.0, -50.0, 50.0, 200.0, 1e4])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_quality_focal_loss_at_extreme_logits(logit: float, target: float) -> None:
    """p is 0 or 1 by then: of the label's distance from it squared, the logit remains."""
    logits = torch.full((1, 1, 1), logit, requires_grad=True)
    entry = torch.zeros(3, 1, dtype=torch.int64)
    loss = QualityFocalLoss()(logits, entry, torch.tensor([target]))
    away = abs(target - (logit > 0))
    assert loss.item() == pytest.approx(away**3 * abs(logit), rel=1e-6, abs=1e-12)
    loss.backward()
    slope = math.copysign(away**3, logit)
    assert logits.grad.item() == pytest.approx(slope, rel=1e-6, abs=1e-12)


def test_a_label_that_is_met_has_no_loss_of_its_own() -> None:
    logits = torch.tensor([[[0.4, -0.3]]], dtype=torch.float64, requires_grad=True)
    entry = torch.tensor([[0], [0], [1]])
    loss = QualityFocalLoss()(logits, entry, logits.detach()[0, 0, 1:].sigmoid())
    p = logits.detach()[0, 0, 0].sigmoid()
    torch.testing.assert_close(loss, -(p**2) * (1 - p).log())
    loss.backward()
    assert logits.grad[0, 0, 1] == 0


@pytest.mark.parametrize(
    "loss",
    [FocalLoss(), *(kind() for kind in SOFT), SoftCrossEntropy(background_weight=0.75, gamma=2.0)],
)
def test_without_foreground(loss) -> None:
    logits = torch.randn(2, 3, 3)
    found = loss(logits, torch.zeros(3, 0, dtype=torch.int64), torch.zeros(0), torch.zeros(0))
    # The losses of SOFT have no factor that balances the two kinds.
    alpha = 0.0 if isinstance(loss, tuple(SOFT)) else 0.25
    torch.testing.assert_close(found, focal_negative(logits, alpha, 2.0).sum())


@pytest.mark.parametrize("kind", [FocalLoss, *SOFT, SoftCrossEntropy])
@pytest.mark.parametrize("valid_as", ["bool", "float"])
def test_a_location_of_factor_0_has_no_gradient(kind: type, valid_as: str) -> None:
    case = random_case((2, 8, 3), 1, valid_as)
    valid = case.valid.clone()
    valid[0, 0] = 0
    others = case.foreground[:, (case.foreground[:2] != 0).any(dim=0)]
    foreground = case.foreground if valid_as == "float" else others
    logits = case.logits.clone().requires_grad_()
    kind()(logits, foreground, valid=valid).backward()
    assert (logits.grad[0, 0] == 0).all()
    assert (logits.grad[valid.bool()] != 0).all()


@pytest.fixture
def node() -> CfgNode:
    cfg = get_cfg()
    add_defcn_config(cfg)
    return cfg.MODEL.DEFCN.LOSS


def test_class_losses_of_the_config(node: CfgNode) -> None:
    default = build_class_loss(node)
    assert isinstance(default, FocalLoss) and vars(default) == {"alpha": 0.25, "gamma": 2.0}
    node.merge_from_list(["NAME", "QualityFocalLoss", "QualityFocalLoss.BETA", 1.5])
    chosen = build_class_loss(node)
    assert isinstance(chosen, QualityFocalLoss) and vars(chosen) == {"beta": 1.5}
    node.NAME = "QualityFocal"
    with pytest.raises(
        ConfigError,
        match=r"^MODEL\.DEFCN\.LOSS\.NAME 'QualityFocal' is unknown; .*"
        r"\(did you mean 'QualityFocalLoss'\?\)$",
    ):
        build_class_loss(node)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("FocalLoss", {"alpha": 1.5}),
        ("FocalLoss", {"alpha": -0.5}),
        ("FocalLoss", {"gamma": -1.0}),
        ("QualityFocalLoss", {"beta": -1.0}),
        ("MatchabilityAwareLoss", {"background_gamma": -1.0}),
        ("IoUAwareLoss", {"alpha": 1.5}),
        ("SoftCrossEntropy", {"background_weight": -1.0}),
        ("SoftCrossEntropy", {"gamma": -1.0}),
    ],
)
def test_limits_of_the_arguments(node: CfgNode, name: str, arguments: dict) -> None:
    ((argument, value),) = arguments.items()
    with pytest.raises(ArgumentError, match=f"^{argument} is {value}, but must be at least 0"):
        CLASS_LOSS_REGISTRY.get(name)(**arguments)
    node.merge_from_list(["NAME", name, f"{name}.{argument.upper()}", value])
    key = f"MODEL.DEFCN.LOSS.{name}.{argument.upper()}"
    with pytest.raises(ConfigError, match=f"^{key} is {value}, but must be at least 0"):
        build_class_loss(node)
