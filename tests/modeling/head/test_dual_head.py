"""The head of two predictors: what they share, what is detached, what inference runs."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from helpers import make_cfg, make_priors, random_inputs
from torch import Tensor, nn

from defcn_d2.export.detector import DeployedDetector
from defcn_d2.modeling.head.dense import DeFCNHead
from defcn_d2.modeling.head.dual import DualHead
from defcn_d2.structures import Predictions

STRIDES = [8, 16, 32]
SMALL = [
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 64),
    *("MODEL.DEFCN.NUM_CONVS", 1),
]
ARGUMENTS = {"in_channels": 32, "strides": STRIDES, "num_classes": 3, "num_convs": 1}


def make_head(**options: object) -> DualHead:
    """With predictors that differ, and boxes that are not empty."""
    head = DualHead(**ARGUMENTS, **options)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
            nn.init.normal_(module.bias, std=0.5)
    return head


def inputs() -> tuple[list[Tensor], object]:
    features = [torch.randn(2, 32, *size, requires_grad=True) for size in ((8, 12), (4, 6), (2, 3))]
    return features, make_priors(64, 96, STRIDES)


def total(predictions: Predictions) -> Tensor:
    """A function of all that is predicted."""
    quality = predictions.quality_logits
    values = [predictions.cls_logits, predictions.boxes, *([] if quality is None else [quality])]
    return sum((x.double() ** 2).sum() for x in values)


@pytest.mark.parametrize("own_towers", [True, False])
def test_sets_are_those_of_two_dense_heads(own_towers: bool) -> None:
    head = make_head(
        own_towers=own_towers, quality_branch="filter", one_to_many_quality="centerness"
    )
    features, priors = inputs()
    sets = head(features, priors)
    assert set(sets) == {"main", "one_to_many"}
    assert not sets["main"].centerness and sets["one_to_many"].centerness

    deployed = DeFCNHead(**ARGUMENTS, quality_branch="filter")
    deployed.load_state_dict(
        {k: x for k, x in head.state_dict().items() if not k.startswith("one_to_many.")}
    )
    many = DeFCNHead(**ARGUMENTS, quality_branch="centerness")
    own = head.one_to_many.state_dict()
    shared = {k: x for k, x in head.state_dict().items() if "subnet" in k.partition(".")[0]}
    many.load_state_dict(own if own_towers else {**shared, **own})
    for name, alone in (("main", deployed), ("one_to_many", many)):
        expected = alone(features, priors)["main"]
        for field in ("cls_logits", "boxes", "quality_logits"):
            assert torch.equal(getattr(sets[name], field), getattr(expected, field))


@pytest.mark.parametrize("own_towers", [True, False])
def test_predictors_begin_alike(own_towers: bool) -> None:
    head = DualHead(**ARGUMENTS, own_towers=own_towers)
    state, many = head.state_dict(), head.one_to_many.state_dict()
    assert {"cls_score.weight", "bbox_pred.bias", "scales.0.scale"} <= set(many)
    assert ("cls_subnet.0.weight" in many) == own_towers
    assert all(torch.equal(x, state[name]) for name, x in many.items())
    sets = head(*inputs())
    assert torch.equal(sets["main"].cls_logits, sets["one_to_many"].cls_logits)
    assert not {id(p) for p in head.one_to_many.parameters()} & {
        id(p) for name, p in head.named_parameters() if not name.startswith("one_to_many.")
    }


def gradients(head: DualHead, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Of the totals of these sets: of all parameters, and of the feature maps as "input"."""
    torch.manual_seed(1)
    features, priors = inputs()
    features = [x.detach().double().requires_grad_() for x in features]
    head.zero_grad()
    sets = head(features, priors)
    torch.stack([total(sets[name]) for name in names]).sum().backward()
    tensors = dict(head.named_parameters())
    tensors.update((f"input {level}", x) for level, x in enumerate(features))
    return {
        name: torch.zeros_like(x) if x.grad is None else x.grad.clone()
        for name, x in tensors.items()
    }


@pytest.mark.parametrize("own_towers", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_of_the_deployed_predictor(own_towers: bool, detach: bool) -> None:
    """Nothing for what both share, if detached: exactly 0. All have the sum of both."""
    head = make_head(own_towers=own_towers, detach=detach, quality_branch="filter").double()
    main, many = (gradients(head, (name,)) for name in ("main", "one_to_many"))
    both = gradients(head, ("main", "one_to_many"))
    for name, x in main.items():
        towers = "subnet" in name and not name.startswith("one_to_many.")
        of_main = not name.startswith("one_to_many.")
        if name.startswith("input") or towers and not own_towers:
            of_main = not detach
        assert (x != 0).any() == of_main, name
        torch.testing.assert_close(both[name], x + many[name], msg=name)
        if detach and not of_main:
            assert torch.equal(both[name], many[name]), name


@pytest.mark.parametrize("config", ["Dual-TAL", "DATE", "DATE-3DMF"])
def test_inference_does_not_run_the_second_predictor(config: str) -> None:
    model = build_model(make_cfg(f"shapes/{config}.yaml", *SMALL)).eval()
    images = random_inputs([(64, 64)], [0], num_classes=7)
    with torch.no_grad():
        expected = model.predict(model.preprocess_image(images).tensor)[1]
        for parameter in model.head.one_to_many.parameters():
            parameter.fill_(torch.nan)
        for module in model.head.one_to_many.modules():
            module.register_forward_pre_hook(refuse)
        found = model.predict(model.preprocess_image(images).tensor)[1]
    assert torch.equal(found.boxes, expected.boxes) and found.boxes.isfinite().all()
    assert torch.equal(found.cls_logits, expected.cls_logits)
    model.train()
    with pytest.raises(AssertionError, match="not for inference"):
        model(random_inputs([(64, 64)], [1], num_classes=7))


def test_an_export_has_no_second_predictor() -> None:
    model = build_model(make_cfg("shapes/Dual-TAL.yaml", *SMALL)).eval()
    nn.init.zeros_(model.head.cls_score.bias)  # scores above the threshold
    deployed = DeployedDetector(model, topk=10)
    assert not any("one_to_many" in name for name in deployed.state_dict())
    image = 255 * torch.rand(3, 64, 64)
    (found,) = model([{"image": image}])
    torch.testing.assert_close(deployed(image[None])[1][0], found["instances"].scores[:10])
    assert model.head.one_to_many is not None


@pytest.mark.parametrize("own_towers", [True, False])
def test_compiled_as_one_graph(own_towers: bool) -> None:
    head = make_head(own_towers=own_towers, detach=True)
    features, priors = inputs()
    expected = head(features, priors)
    found = torch.compile(head, backend="eager", fullgraph=True)(features, priors)
    for name, predictions in expected.items():
        torch.testing.assert_close(found[name].cls_logits, predictions.cls_logits)
        torch.testing.assert_close(found[name].boxes, predictions.boxes)


def refuse(*args: object) -> None:
    raise AssertionError("not for inference")


def test_without_the_loss_of_the_second_predictor_training_is_that_of_the_first() -> None:
    """DATE with factors of 0 is POTO with its losses."""
    off = [
        f"MODEL.DEFCN.AUX.CRITERION.DenseCriterion.{key}" for key in ("CLS_WEIGHT", "REG_WEIGHT")
    ]
    # One of them has to be above 0, and the L1 loss does not reach what is detached: a tiny one.
    dual = build_model(make_cfg("shapes/DATE.yaml", *SMALL, off[0], 1e-30, off[1], 0.0))
    plain = build_model(make_cfg("shapes/DATE.yaml", *SMALL, *PLAIN))
    missing, unexpected = plain.load_state_dict(dual.state_dict(), strict=False)
    assert not missing and all(name.startswith("head.one_to_many.") for name in unexpected)
    batch = random_inputs([(64, 64)] * 2, [3, 4], num_classes=7)
    losses = [model(copy.deepcopy(batch)) for model in (dual, plain)]
    for name, loss in losses[1].items():
        assert torch.equal(loss, losses[0][name])
    for of_model in losses:
        sum(of_model.values()).backward()
    of_dual = dict(dual.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(parameter.grad, of_dual[name].grad, msg=name)


PLAIN = ["MODEL.DEFCN.HEAD.NAME", "DeFCNHead", "MODEL.DEFCN.AUX.ENABLED", False]


def test_consistent_assignment_of_equal_predictors() -> None:
    """At the start of Dual-TAL, the one location is the best of the ten."""
    torch.manual_seed(3)
    model = build_model(make_cfg("shapes/Dual-TAL.yaml", *SMALL))
    batch = random_inputs([(64, 96)], [1], num_classes=7)
    priors, sets = model.predict_all(model.preprocess_image(batch).tensor)
    gts = [x["instances"] for x in batch]
    one, many = (
        criterion.match(priors, sets[criterion.predictions], gts)[0] for criterion in model.criteria
    )
    (best,) = (one.gt_idxs >= 0).nonzero().flatten().tolist()
    own = (many.gt_idxs >= 0).nonzero().flatten()
    assert len(own) == 10 and best == own[many.quality[own].argmax()]
