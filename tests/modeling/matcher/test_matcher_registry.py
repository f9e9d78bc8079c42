"""Matchers by name: built from their node, one's own registered, unknown names refused."""

import re
from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances
from helpers import random_inputs, tiny_cfg

from defcn_d2 import MATCHER_REGISTRY, add_defcn_config
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
    """As a user of the package would write one."""

    @MATCHER_REGISTRY.register()
    class FirstLocation:
        def __init__(self, cfg: CfgNode):
            self.offset = cfg.TOPK

        def __call__(self, priors: Priors, predictions: Predictions, gt: Instances) -> Assignment:
            assert not torch.is_grad_enabled()
            assert len(gt) >= 1
            gt_idxs = torch.full((len(priors),), BACKGROUND)
            gt_idxs[self.offset] = 0
            return Assignment(gt_idxs)

    yield "FirstLocation"
    del MATCHER_REGISTRY._obj_map["FirstLocation"]


def test_defaults_are_those_of_the_method(node: CfgNode) -> None:
    matcher = build_matcher(node.MATCHER)
    assert isinstance(matcher, POTO)
    assert vars(matcher) == {
        "alpha": 0.8,
        "radius": 1.5,
        "solver": "hungarian",
        "keep_unreachable": False,
    }
    auxiliary = build_matcher(node.AUX.MATCHER)
    assert isinstance(auxiliary, POTOAux)
    assert vars(auxiliary) == {"alpha": 0.8, "topk": 9}


SIZES = {"size_ranges": [[-1, 64], [64, 128], [128, 256], [256, 512], [512, float("inf")]]}


@pytest.mark.parametrize("name", sorted(name for name, _ in MATCHER_REGISTRY))
def test_defaults_of_the_classes_are_those_of_the_config(node: CfgNode, name: str) -> None:
    node.MATCHER.NAME = name
    cls = MATCHER_REGISTRY.get(name)
    alone = cls(**(SIZES if name in ("Center", "FCOS") else {}))
    assert vars(alone) == vars(build_matcher(node.MATCHER))


@pytest.mark.parametrize(
    ("name", "good", "bad", "sentence"),
    [
        ("POTO", {"alpha": 0}, {"alpha": -0.1}, "MATCHER.ALPHA -0.1 is out of range; take one in"),
        ("POTO", {"alpha": 1}, {"alpha": 1.1}, "MATCHER.ALPHA 1.1 is out of range; take one in"),
        ("POTO", {"radius": 0}, {"radius": -1}, "MATCHER.RADIUS -1 is negative; take 0 or more"),
        (
            *("POTO", {"solver": "argmax"}, {"solver": "auction"}),
            "MATCHER.SOLVER 'auction' is unknown; one of: argmax, hungarian",
        ),
        ("POTOAux", {"alpha": 0}, {"alpha": -1}, "AUX.MATCHER.ALPHA -1 is out of range; take one"),
        ("POTOAux", {"alpha": 1}, {"alpha": 2}, "AUX.MATCHER.ALPHA 2 is out of range; take one in"),
        ("POTOAux", {"topk": 1}, {"topk": 0}, "AUX.MATCHER.TOPK 0 is too small; take 1 or more"),
        ("ATSS", {"topk": 1}, {"topk": 0}, "MATCHER.TOPK 0 is too small; take 1 or more"),
        (
            *("ATSS", {"anchor_scale": 0.5}, {"anchor_scale": 0}),
            "MATCHER.ANCHOR_SCALE 0 is no size; take more than 0 strides",
        ),
        (
            *("FCOS", {**SIZES, "radius": 0}, {**SIZES, "radius": -1}),
            "MATCHER.RADIUS -1 is negative; take 0 or more strides",
        ),
        (
            *("ForegroundLoss", {"radius": 0}, {"radius": -0.5}),
            "MATCHER.RADIUS -0.5 is negative; take 0 or more strides",
        ),
    ],
)
def test_limits_of_the_arguments(name: str, good: dict, bad: dict, sentence: str) -> None:
    cls = MATCHER_REGISTRY.get(name)
    assert vars(cls(**good)).items() >= good.items()
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        cls(**bad)


def test_numbers_of_the_node(node: CfgNode) -> None:
    node.MATCHER.merge_from_list(["ALPHA", 0.5, "RADIUS", 0.0, "SOLVER", "argmax"])
    node.MATCHER.KEEP_UNREACHABLE = True
    assert vars(build_matcher(node.MATCHER)) == {
        "alpha": 0.5,
        "radius": 0.0,
        "solver": "argmax",
        "keep_unreachable": True,
    }


def test_all_matchers_of_the_package_are_registered() -> None:
    names = {name for name, _ in MATCHER_REGISTRY}
    assert names >= {
        *("POTO", "POTOAux", "ForegroundLoss", "Anchor", "Center", "FCOS", "ATSS", "OneNet"),
    }


def test_a_matcher_of_ones_own_trains(own_matcher: str) -> None:
    cfg = tiny_cfg("MODEL.DEFCN.MATCHER.NAME", own_matcher, "MODEL.DEFCN.MATCHER.TOPK", 3)
    model = build_model(cfg)
    assert model.criteria[0].matcher.offset == 3
    losses = model(random_inputs([(64, 64)] * 2, [1, 2], num_classes=1))
    assert losses["loss_box_reg"] > 0


def test_unknown_name(node: CfgNode) -> None:
    node.MATCHER.NAME = "POT0"
    with pytest.raises(ValueError, match=r"MODEL.DEFCN.MATCHER.NAME 'POT0' is unknown; one of: A"):
        build_matcher(node.MATCHER)
    with pytest.raises(ValueError, match=r"POTOAux.*\(did you mean 'POTO'\?\)"):
        build_matcher(node.MATCHER)
    node.AUX.MATCHER.NAME = "zzz"
    with pytest.raises(ValueError, match=r"MODEL.DEFCN.AUX.MATCHER.NAME 'zzz' is unknown") as error:
        build_matcher(node.AUX.MATCHER, "MODEL.DEFCN.AUX.MATCHER")
    names = ", ".join(sorted(name for name, _ in MATCHER_REGISTRY))
    assert str(error.value).endswith(f"'zzz' is unknown; one of: {names}")
