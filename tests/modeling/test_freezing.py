"""Frozen parts: what learns, what norms do, and beginnings of names that fit nothing."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from helpers import tiny_cfg

from defcn_d2.config.rules import ConfigError


def batch() -> list[dict]:
    truth = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8.0, 40.0, 48.0]])))
    truth.gt_classes = torch.tensor([0])
    return [{"image": torch.rand(3, 64, 64) * 255, "instances": truth}] * 2


def test_a_step_changes_what_is_not_frozen() -> None:
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.DEFCN.FREEZE = ["backbone", "head"]
    cfg.MODEL.DEFCN.FREEZE_EXCEPT = ["head.cls"]
    model = build_model(cfg).train()
    before = copy.deepcopy(model.state_dict())
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1, weight_decay=0.1)
    sum(model(batch()).values()).backward()
    optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed  # statistics of the backbone's norms are not among them
    assert all(name.startswith("head.cls") for name in changed)


def test_a_model_without_frozen_parts_trains_all_of_it() -> None:
    model = build_model(tiny_cfg()).eval().train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("freeze", "exceptions", "sentence"),
    [
        (["backbon3"], [], r"FREEZE has 'backbon3', with which no parameter begins; did you"),
        (["backbone"], ["hed"], r"FREEZE_EXCEPT has 'hed', with which no parameter begins"),
        (["backbone", "head"], [], r"FREEZE \['backbone', 'head'\] leaves no parameter to learn"),
    ],
)
def test_names_of_nothing(freeze: list[str], exceptions: list[str], sentence: str) -> None:
    cfg = tiny_cfg()
    cfg.MODEL.DEFCN.FREEZE, cfg.MODEL.DEFCN.FREEZE_EXCEPT = freeze, exceptions
    with pytest.raises(ConfigError, match=sentence):
        build_model(cfg)
