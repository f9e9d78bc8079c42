"""Matchers by name: built from their node, one's own registered, unknown names refused."""

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Instances
from helpers import random_inputs, tiny_cfg

from defcn_d2 import MATCHER_REGISTRY, add_defcn_config
from defcn_d2.matchers import build_matcher
from defcn_d2.matchers.poto import POTO
from defcn_d2.matchers.poto_aux import POTOAux
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
    assert "did you mean" not in str(error.value)
