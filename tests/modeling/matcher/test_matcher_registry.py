"""Matchers by name: made from their own keys, one's own registered, unknown names refused."""

import re
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances
from helpers import random_inputs, tiny_cfg

from defcn_d2 import MATCHER_REGISTRY, add_defcn_config
from defcn_d2.config.rules import ArgumentError, ConfigError
from defcn_d2.modeling.matcher import build_matcher
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.modeling.matcher.poto_aux import POTOAux
from defcn_d2.structures import BACKGROUND, Assignment, Predictions, Priors


@pytest.fixture
def node() -> CfgNode:
    cfg = get_cfg()
    add_defcn_config(cfg)
    return cfg.MODEL.DEFCN


@pytest.fixture
def own_matcher() -> Iterator[str]:
    """As a user of the package would write one, with a key of its own."""

    @MATCHER_REGISTRY.register()
    class OneLocation:
        def __init__(self, *, place: int = 0):
            self.place = place

        def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
            assert not torch.is_grad_enabled()
            assert len(gt) >= 1
            gt_idxs = torch.full((len(priors),), BACKGROUND)
            gt_idxs[self.place] = 0
            return Assignment(gt_idxs)

    yield "OneLocation"
    del MATCHER_REGISTRY._obj_map["OneLocation"]


def test_defaults_are_those_of_the_method(node: CfgNode) -> None:
    matcher = build_matcher(node.MATCHER)
    assert isinstance(matcher, POTO)
    assert vars(matcher) == {
        "alpha": 0.8,
        "radius": 1.5,
        "solver": "hungarian",
        "keep_unreachable": False,
        "enlarge_tiny": False,
    }
    auxiliary = build_matcher(node.AUX.MATCHER)
    assert isinstance(auxiliary, POTOAux)
    assert vars(auxiliary) == {"alpha": 0.8, "topk": 9, "enlarge_tiny": False}


@pytest.mark.parametrize("name", MATCHER_REGISTRY.names())
def test_built_from_the_config_as_alone(node: CfgNode, name: str) -> None:
    for place in (node.MATCHER, node.AUX.MATCHER):
        place.NAME = name
        built, alone = vars(build_matcher(place)), vars(MATCHER_REGISTRY.get(name)())
        assert {key: _listed(value) for key, value in built.items()} == {
            key: _listed(value) for key, value in alone.items()
        }


def _listed(value: object) -> object:
    return [_listed(x) for x in value] if isinstance(value, (list, tuple)) else value


RANGES = [[-1, 64], [64, 128]]


@pytest.mark.parametrize(
    ("name", "good", "bad", "sentence"),
    [
        ("POTO", {"alpha": 0}, {"alpha": -0.1}, "alpha is -0.1, but must be at least 0 and"),
        ("POTO", {"alpha": 1}, {"alpha": 1.1}, "alpha is 1.1, but must be at least 0 and at most"),
        ("POTO", {"radius": 0}, {"radius": -1}, "radius is -1, but must be at least 0"),
        (
            *("POTO", {"solver": "argmax"}, {"solver": "argmx"}),
            "solver 'argmx' is unknown; one of: argmax, hungarian (did you mean 'argmax'?)",
        ),
        (
            *("POTO", {"keep_unreachable": True}, {"keep_unreachable": True, "solver": "argmax"}),
            "keep_unreachable is True, which the solver 'argmax' cannot do; set it to False",
        ),
        ("POTOAux", {"alpha": 0}, {"alpha": -1}, "alpha is -1, but must be at least 0"),
        ("POTOAux", {"alpha": 1}, {"alpha": 2}, "alpha is 2, but must be at least 0"),
        ("POTOAux", {"topk": 1}, {"topk": 0}, "topk is 0, but must be at least 1"),
        ("POTOAux", {"topk": 2}, {"topk": 1.5}, "topk is 1.5, but must be a whole number at least"),
        ("ATSS", {"topk": 1}, {"topk": 0}, "topk is 0, but must be at least 1"),
        (
            *("ATSS", {"anchor_scale": 0.5}, {"anchor_scale": 0}),
            "anchor_scale is 0, but must be above 0",
        ),
        ("FCOS", {"radius": 0}, {"radius": -1}, "radius is -1, but must be at least 0"),
        *(
            (
                *(name, {"size_ranges": RANGES}, {"size_ranges": [[-1, 64], [64, 64]]}),
                "size_ranges [[-1, 64], [64, 64]]: a value is [64, 64], but must be [smallest, "
                "largest] in pixels",
            )
            for name in ("FCOS", "Center")
        ),
        ("ForegroundLoss", {"radius": 0}, {"radius": -0.5}, "radius is -0.5, but must be at least"),
        *(
            (name, {key: 0}, {key: -1.0}, f"{key} is -1.0, but must be at least 0")
            for name, key in (
                *(("ForegroundLoss", "giou_weight"), ("ForegroundLoss", "focal_gamma")),
                *(("ForegroundLoss", "focal_alpha"), ("OneNet", "focal_alpha")),
                *(("OneNet", "focal_gamma"), ("OneNet", "cls_weight")),
                *(("OneNet", "l1_weight"), ("OneNet", "giou_weight")),
            )
        ),
    ],
)
def test_limits_of_the_arguments(name: str, good: dict, bad: dict, sentence: str) -> None:
    cls = MATCHER_REGISTRY.get(name)
    assert vars(cls(**good)).items() >= good.items()
    with pytest.raises(ArgumentError, match=f"^{re.escape(sentence)}"):
        cls(**bad)


def test_numbers_of_the_node(node: CfgNode) -> None:
    node.MATCHER.merge_from_list(["POTO.ALPHA", 0.5, "POTO.RADIUS", 0.0, "POTOAux.ALPHA", 0.1])
    node.MATCHER.POTO.KEEP_UNREACHABLE = True
    assert vars(build_matcher(node.MATCHER)) == {
        "alpha": 0.5,
        "radius": 0.0,
        "solver": "hungarian",
        "keep_unreachable": True,
        "enlarge_tiny": False,
    }


@pytest.mark.parametrize("place", ["MATCHER", "AUX.MATCHER"])
def test_the_error_of_a_value_names_its_key(node: CfgNode, place: str) -> None:
    node.merge_from_list([f"{place}.NAME", "POTO", f"{place}.POTO.ALPHA", 1.5])
    matchers = node.AUX.MATCHER if place.startswith("AUX") else node.MATCHER
    key = f"MODEL.DEFCN.{place}"
    with pytest.raises(ConfigError, match=rf"^{key}\.POTO\.ALPHA is 1.5, but must be at least 0"):
        build_matcher(matchers, key)


def test_a_matcher_of_ones_own_has_its_key_and_trains(own_matcher: str) -> None:
    cfg = tiny_cfg(
        *("MODEL.DEFCN.MATCHER.NAME", own_matcher),
        *(f"MODEL.DEFCN.MATCHER.{own_matcher}.PLACE", 3),
    )
    model = build_model(cfg)
    assert model.criteria[0].matcher.place == 3
    losses = model(random_inputs([(64, 64)] * 2, [1, 2], num_classes=1))
    assert losses["loss_box_reg"] > 0


def test_unknown_name(node: CfgNode) -> None:
    node.MATCHER.NAME = "POT0"
    with pytest.raises(ConfigError, match=r"MODEL.DEFCN.MATCHER.NAME 'POT0' is unknown; one of: A"):
        build_matcher(node.MATCHER)
    with pytest.raises(ConfigError, match=r"POTOAux.*\(did you mean 'POTO'\?\)"):
        build_matcher(node.MATCHER)
    node.AUX.MATCHER.NAME = "zzz"
    with pytest.raises(ConfigError, match=r"MODEL.DEFCN.AUX.MATCHER.NAME 'zzz' is") as error:
        build_matcher(node.AUX.MATCHER, "MODEL.DEFCN.AUX.MATCHER")
    names = ", ".join(MATCHER_REGISTRY.names())
    assert str(error.value).endswith(f"'zzz' is unknown; one of: {names}")
