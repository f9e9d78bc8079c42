"""Values and combinations of values that are refused before anything is built or loaded."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import registries
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from helpers import ROOT, make_cfg, tiny_cfg
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.config.defaults import REGISTRIES
from defcn_d2.config.load import load_config
from defcn_d2.config.model_rules import MODEL_RULES, check_model_config
from defcn_d2.config.rules import (
    ConfigError,
    check_rules,
    list_of,
    numbers,
    one_of,
    optional,
    value_of,
    whole_numbers,
)
from defcn_d2.config.training_rules import EVALUATION_RULES, TRAINING_RULES, check_training_config
from defcn_d2.engine.preflight import check
from defcn_d2.modeling.backbone import build_defcn_narrow_fpn_backbone
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.utils.errors import UserError

DEFCN = "MODEL.DEFCN."
MATCHER = DEFCN + "MATCHER."
AUX = DEFCN + "AUX.MATCHER."
CRITERION = DEFCN + "CRITERION.DenseCriterion."
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
SHARES = [-0.1, 1.1, math.nan]  # of [0, 1]
FACTORS = [-1.0, math.nan, math.inf]  # of [0, inf)
SIZE_RANGES = [[-1, 64], [64, 128], [128, 256], [256, 512]]
WRONG_RANGES = [[1], [5, 1], [0, math.nan], ["0", "1"], 7]
NO_RANGES = [0.5, (0.5,), (0.6, 0.4), (0.4, 0.5, 0.6), ("a", "b"), (0.5, math.nan)]
MIXED = ("MOSAIC", "MIXUP", "COPY_PASTE")
CRITERIA = {
    "CLS_WEIGHT": FACTORS,
    "REG_WEIGHT": FACTORS,
    "L1_WEIGHT": FACTORS,
    "BOX_LOSS": ["iou"],
    "BETA": FACTORS,
    "DELTA_WEIGHTS": [[1.0], [1.0, 1.0, 1.0, -1.0], ["1", "1", "1", "1"], 7],
    "BOX_WEIGHTS": ["centernes"],
    "NORMALIZER": ["gt"],
    "SOFT_LABELS": ["yes"],
    "WEIGHTS": ["all"],
    "CLASS_WEIGHTS": [[1.0, 0.0], [-1.0], [math.nan], ["1"], 7],
}

# Of each key of a component: values that break the rule of its argument.
BAD_ARGUMENTS: dict[str, dict[str, dict[str, list]]] = {
    "NECK": {},
    "HEAD": {
        "DeFCNHead": {},
        "DualHead": {"ONE_TO_MANY_QUALITY": ["centernes"]},
        "GFLHead": {"REG_MAX": [0]},
        "PeakHead": {
            "COMPARE": ["overlaps"],
            "IOU_THRESH": SHARES,
            "TAU": [1, 4, -2],
            "SELECT_CONVS": [-1],
            "PEAK_WEIGHT": FACTORS,
        },
        "PeakGFLHead": {
            "REG_MAX": [0],
            "COMPARE": ["overlaps"],
            "IOU_THRESH": SHARES,
            "TAU": [1, 4, -2],
            "SELECT_CONVS": [-1],
            "PEAK_WEIGHT": FACTORS,
        },
    },
    "MATCHER": {
        "Anchor": {},
        "ATSS": {"TOPK": [0], "ANCHOR_SCALE": [0.0, math.inf]},
        "Center": {"SIZE_RANGES": [[], *([*SIZE_RANGES, wrong] for wrong in WRONG_RANGES)]},
        "FCOS": {
            "SIZE_RANGES": [[], *([*SIZE_RANGES, wrong] for wrong in WRONG_RANGES)],
            "RADIUS": FACTORS,
        },
        "ForegroundLoss": {
            "RADIUS": FACTORS,
            "GIOU_WEIGHT": FACTORS,
            "FOCAL_ALPHA": SHARES,
            "FOCAL_GAMMA": FACTORS,
        },
        "MaxIoU": {"FOREGROUND_IOU": [*SHARES, 0.0], "BACKGROUND_IOU": [*SHARES, 0.6]},
        "NoisyAnchors": {
            "TOPK": [0],
            "ALPHA": SHARES,
            "ANCHOR_SCALE": FACTORS,
            "WARMUP": SHARES,
        },
        "OneNet": {
            "CLS_WEIGHT": FACTORS,
            "L1_WEIGHT": FACTORS,
            "GIOU_WEIGHT": FACTORS,
            "FOCAL_ALPHA": SHARES,
            "FOCAL_GAMMA": FACTORS,
        },
        "OneToFew": {
            "ALPHA": SHARES,
            "RADIUS": FACTORS,
            "TOPK": [0],
            "START": SHARES,
            "END": SHARES,
            "WEIGHT": FACTORS,
        },
        "POTO": {"ALPHA": SHARES, "RADIUS": FACTORS, "SOLVER": ["hungary"]},
        "POTOAux": {"ALPHA": SHARES, "TOPK": [0]},
        "TaskAligned": {"ALPHA": FACTORS, "BETA": FACTORS, "TOPK": [0], "KEEP": [-1]},
    },
    "CRITERION": {
        "DenseCriterion": CRITERIA,
        "AuxiliaryCriterion": CRITERIA,
        "AutoAssign": {
            "POS_WEIGHT": [0.0, *FACTORS],
            "NEG_WEIGHT": [0.0, *FACTORS],
            "NORM_WEIGHT": FACTORS,
            "REG_WEIGHT": [0.0, *FACTORS],
        },
        "GFLCriterion": {**CRITERIA, "DFL_WEIGHT": FACTORS},
        "NoisyAnchorsCriterion": {**CRITERIA, "INITIAL_COUNT": FACTORS, "MOMENTUM": SHARES},
    },
    "LOSS": {
        "APLoss": {"DELTA": [0.0, math.inf]},
        "DRLoss": {
            "MARGIN": FACTORS,
            "SMOOTHNESS": [0.0, math.inf],
            "TAU": [0.0, math.inf],
            "FOREGROUND_LAMBDA": [0.0, math.inf],
            "BACKGROUND_LAMBDA": [0.0, math.inf],
        },
        "FocalLoss": {"ALPHA": SHARES, "GAMMA": FACTORS},
        "QualityFocalLoss": {"BETA": FACTORS},
        "SoftCrossEntropy": {"BACKGROUND_WEIGHT": FACTORS, "GAMMA": FACTORS},
        "MatchabilityAwareLoss": {"GAMMA": [0.0, *FACTORS], "BACKGROUND_GAMMA": FACTORS},
        "IoUAwareLoss": {"ALPHA": SHARES, "GAMMA": FACTORS, "LEAST": SHARES},
    },
}
# Keys of components that need no rule: every value of their type is one.
ANY_VALUE = (
    *("KEEP_UNREACHABLE", "ENLARGE_TINY", "FUSED", "PREDICTIONS"),
    *("OWN_TOWERS", "DETACH", "SELECTOR"),
)
COMPONENT_KEYS = {
    f"{DEFCN}{aux}{place}.{name}.{key}": values
    for aux in ("", "AUX.")
    for place, components in BAD_ARGUMENTS.items()
    for name, keys in components.items()
    for key, values in keys.items()
}

# Of each other key with a rule of its own: values that break it.
BAD_VALUES = {
    DEFCN + "FREEZE": [[1], [""]],
    DEFCN + "FREEZE_EXCEPT": [[1], [""]],
    DEFCN + "PRIORS": ["point", ""],
    DEFCN + "SCORE_THRESH_TEST": [-0.1, 1.1],
    DEFCN + "TOPK_CANDIDATES_TEST": [0],
    DEFCN + "NMS_TYPE": ["classwise"],
    DEFCN + "NMS_THRESH_TEST": [-0.1, 1.1],
    "MODEL.DEVICE": ["gpu", "cuda:x"],
    "MODEL.PIXEL_MEAN": [[], ["a"], [math.nan]],
    "MODEL.PIXEL_STD": [[], [0.0, 1.0, 1.0], [-1.0]],
    "MODEL.FPN.OUT_CHANNELS": [0],
    "MODEL.FPN.NORM": ["bn"],
    "MODEL.FPN.FUSE_TYPE": ["mean"],
    "MODEL.RESNETS.NORM": ["B"],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": [0],
    "MODEL.TIMM.NORM": ["GN", ""],
    "MODEL.BACKBONE.FREEZE_AT": [-1],
    "MODEL.EMA.DECAY": [1.0, -0.1],
    "MODEL.EMA.WARMUP": [-1],
    "INPUT.MIN_SIZE_TEST": [-1],
    "INPUT.MAX_SIZE_TEST": [0],
    "INPUT.MAX_PIXELS": [-1],
    "TEST.DETECTIONS_PER_IMAGE": [0, -1],
    "SEED": [2**32],
    "DATALOADER.NUM_WORKERS": [-1],
    "DATALOADER.ON_ERROR": ["skipp", ""],
    "TEST.SCORE_REPORT": ["pages", ""],
    "TEST.COCO_BACKEND": ["faster_coco_eval", ""],
    "SOLVER.OPTIMIZER": ["adamw"],
    "SOLVER.BASE_LR": [0.0, -1.0, math.nan, math.inf],
    "SOLVER.MOMENTUM": [1.0, -0.1],
    "SOLVER.WEIGHT_DECAY": [-1.0],
    "SOLVER.WEIGHT_DECAY_NORM": [-1.0],
    "SOLVER.WEIGHT_DECAY_BIAS": [-1.0],
    "SOLVER.BIAS_LR_FACTOR": [-1.0],
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ["all"],
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": [0.0],
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": [0.0, math.nan],
    "SOLVER.MAX_ITER": [0],
    "SOLVER.IMS_PER_BATCH": [0],
    "SOLVER.ACCUMULATE": [0],
    "SOLVER.CHECKPOINT_PERIOD": [0],
    "SOLVER.CHECKPOINT_KEEP": [-1],
    "SOLVER.LR_SCHEDULER_NAME": ["Cosine"],
    "SOLVER.STEPS": [(0,), ("a",), (2.5,)],
    "SOLVER.GAMMA": [0.0, 1.1, math.nan],
    "SOLVER.BASE_LR_END": [-1.0],
    "SOLVER.WARMUP_FACTOR": [-0.1, 1.1],
    "SOLVER.WARMUP_ITERS": [-1],
    "SOLVER.WARMUP_METHOD": ["linea"],
    "INPUT.MIN_SIZE_TRAIN": [(), (-1,), ("a",)],
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ["choices"],
    "INPUT.MAX_SIZE_TRAIN": [0],
    "INPUT.RANDOM_FLIP": ["both"],
    "INPUT.CROP.TYPE": ["half"],
    "INPUT.CROP.SIZE": [[0.5], [0.0, 1.0]],
    **{f"INPUT.{name}.{key}": SHARES for name in MIXED for key in ("PROB", "START", "STOP")},
    "INPUT.MOSAIC.ROTATION": [-1.0, 181.0],
    "INPUT.MOSAIC.TRANSLATION": SHARES,
    "INPUT.MOSAIC.SCALE": [(0.0, 1.0), *NO_RANGES],
    "INPUT.MOSAIC.MIN_VISIBLE": SHARES,
    "INPUT.MIXUP.SHARE": [(0.0, 0.5), (0.5, 1.0), *NO_RANGES],
    "INPUT.COPY_PASTE.OBJECTS": [0, 1.5],
    "INPUT.COPY_PASTE.MIN_AREA": FACTORS,
    "INPUT.COPY_PASTE.EXPAND": [(-0.1, 0.5), *NO_RANGES],
    "INPUT.COPY_PASTE.SHARE": [(0.5, 1.0), *NO_RANGES],
    "INPUT.SCALE_JITTER.RANGE": [(0.0, 1.0), *NO_RANGES],
    "INPUT.SCALE_JITTER.SIZE": [0, 10.5],
    "DATALOADER.SAMPLER_TRAIN": ["Sampler"],
    "DATALOADER.REPEAT_THRESHOLD": [-1.0],
    "TEST.EVAL_PERIOD": [-1],
    "TEST.EARLY_STOPPING.PATIENCE": [-1],
    "TEST.PRECISE_BN.NUM_ITER": [0],
    "VIS_PERIOD": [-1],
    "LOG.WRITERS": ["wandb", ["wandbb"], [1]],
}
RULES = {**EVALUATION_RULES, **TRAINING_RULES, **MODEL_RULES}
# Of arguments that all heads share.
BAD_SHARED = {
    DEFCN + "NUM_CLASSES": [0, -1],
    DEFCN + "NUM_CONVS": [-1],
    DEFCN + "NORM": ["gn", "GM"],
    DEFCN + "PRIOR_PROB": [0.0, 1.0, math.nan],
    DEFCN + "BOX_BIAS": [-1.0, math.inf],
    DEFCN + "QUALITY_BRANCH": ["filtr"],
    DEFCN + "MAX_FILTERING.TAU": [1, -2],
    DEFCN + "MAX_FILTERING.KERNEL_SIZE": [2, 0, -1],
    DEFCN + "MAX_FILTERING.NORM": ["LM"],
}


def changed(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """A copy with a value assigned, of whatever type."""
    cfg = cfg.clone()
    node = cfg
    *parents, name = key.split(".")
    for parent in parents:
        node = node[parent]
    node[name] = value
    return cfg


def is_sentence_about(key: str, error: BaseException) -> bool:
    return key in str(error) and "\n" not in str(error)


def test_every_rule_is_tried() -> None:
    assert set(BAD_VALUES) == set(RULES)
    for place, registry in REGISTRIES.items():
        keys = {name: {key.upper() for key in registry.keys_of(name)} for name in registry.names()}
        tried = {name: set(keys) for name, keys in BAD_ARGUMENTS[place].items()}
        assert {name: of_name - set(ANY_VALUE) for name, of_name in keys.items()} == tried


@pytest.mark.parametrize("key", BAD_VALUES)
def test_a_rule_refuses(key: str) -> None:
    good = tiny_cfg()
    if key == "SOLVER.BASE_LR_END" and "BASE_LR_END" not in good.SOLVER:
        pytest.skip("not in this version of Detectron2")
    for value in [*BAD_VALUES[key], {}, b""]:
        cfg = changed(good, key, value)
        with pytest.raises(ConfigError) as caught:
            check_model_config(cfg)
            check_rules(cfg, EVALUATION_RULES)
            check_training_config(cfg)
        assert is_sentence_about(key, caught.value)


@pytest.mark.parametrize("key", COMPONENT_KEYS)
def test_the_argument_of_a_component_is_refused(key: str) -> None:
    """By its constructor, and by the model that is to have it; the sentence has the whole key."""
    node_name, name, _ = key.rsplit(".", 2)
    good = changed(tiny_cfg(), f"{node_name}.NAME", name)
    for value in COMPONENT_KEYS[key]:
        cfg = changed(good, key, value)
        given = {"matcher": None, "class_loss": None}
        given |= {"in_channels": 64, "strides": [8], "num_classes": 3}
        registry = REGISTRIES[node_name.rpartition(".")[2]]
        with pytest.raises(ConfigError) as caught:
            registry.build(value_of(cfg, node_name), node_name, **given)
        assert is_sentence_about(key, caught.value)
        with pytest.raises(ConfigError) as caught, torch.device("meta"):
            build_model(cfg)
        assert "\n" not in str(caught.value)
    for value in ({}, b""):
        with pytest.raises(ConfigError, match=f"{key} is .*, but must be a"):
            check_model_config(changed(good, key, value))


@pytest.mark.parametrize("key", BAD_SHARED)
def test_an_argument_that_all_heads_share_is_refused(key: str) -> None:
    good = tiny_cfg()
    for value in [*BAD_SHARED[key], {}, b""]:
        with pytest.raises(ConfigError) as caught, torch.device("meta"):
            build_model(changed(good, key, value))
        assert is_sentence_about(key, caught.value)


@pytest.mark.parametrize("key", [DEFCN + "CHANNELS_LAST", DEFCN + "IN_FEATURES", AUX + "NAME"])
def test_none_is_refused_where_detectron2_lets_it_pass(key: str) -> None:
    cfg = tiny_cfg(key, None)
    with pytest.raises(ConfigError, match=f"{key} is None, but must be a"):
        check_model_config(cfg)


@pytest.mark.parametrize(
    "key, sentence",
    [
        (
            DEFCN + "NUM_CLASS",
            "key 'MODEL.DEFCN.NUM_CLASS'; did you mean 'MODEL.DEFCN.NUM_CLASSES'?",
        ),
        (MATCHER + "ALPHA", "did you mean 'MODEL.DEFCN.MATCHER.POTO.ALPHA'?"),
        (DEFCN + "LOSS.REG_WEIGHT", "mean 'MODEL.DEFCN.CRITERION.DenseCriterion.REG_WEIGHT'?"),
        (MATCHER + "FCOS.ALPHA", "'MODEL.DEFCN.MATCHER.FCOS.ALPHA'; did you mean"),
        (DEFCN + "ZZ", "Keys of your own go beside MODEL.DEFCN"),
    ],
)
def test_a_name_that_a_program_has_assigned_in_vain(key: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match="unknown configuration") as caught:
        check_model_config(changed(tiny_cfg(), key, 3))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "old, hint",
    [
        (MATCHER + "ALPHA", "MODEL.DEFCN.MATCHER.POTO.ALPHA"),
        (MATCHER + "SOLVER", "MODEL.DEFCN.MATCHER.POTO.SOLVER"),
        (AUX + "ALPHA", "MODEL.DEFCN.AUX.MATCHER.POTOAux.ALPHA"),
        (DEFCN + "LOSS.REG_WEIGHT", "MODEL.DEFCN.CRITERION.DenseCriterion.REG_WEIGHT"),
    ],
)
def test_keys_of_former_versions_lead_to_the_new_ones(old: str, hint: str, tmp_path: Path) -> None:
    """On the command line and in a yaml."""
    sentence = f"unknown configuration key '{old}'; did you mean '{hint}'?"
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, [old, "0.5"])
    assert str(caught.value) == sentence
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(old.split("."))]
    (tmp_path / "old.yaml").write_text("\n".join(lines) + " 0.5\n")
    with pytest.raises(UserError) as caught:
        load_config(str(tmp_path / "old.yaml"))
    assert str(caught.value).endswith(sentence)


def test_keys_of_components_that_are_not_chosen() -> None:
    """They have a type, and no effect; and nothing but their own component's node has them."""
    key = MATCHER + "FCOS.RADIUS"
    cfg = load_config(CONFIG, [key, "-1.0", "MODEL.DEVICE", "cpu"])
    assert build_model(cfg).criteria[0].matcher.radius == 1.5
    with pytest.raises(UserError, match=f"{key} is 'wide', but must be a float, such as 1.5"):
        load_config(CONFIG, [key, "wide"])
    with pytest.raises(ConfigError, match=f"{key} is 'wide', but must be a float"):
        check_model_config(changed(tiny_cfg(), key, "wide"))


def test_a_component_that_is_registered_after_the_config_was_made() -> None:
    """It has its defaults, is checked, and its keys can be set by a program."""
    cfg = tiny_cfg()
    with registries.restored():

        @REGISTRIES["CRITERION"].register()
        class LateCriterion(DenseCriterion):
            def __init__(self, *, factor: float = 3.0, **arguments: Any):
                super().__init__(**arguments)
                self.factor = factor

        cfg = changed(cfg, DEFCN + "CRITERION.NAME", "LateCriterion")
        assert build_model(cfg).criteria[0].factor == 3.0
        cfg = changed(cfg, DEFCN + "CRITERION.LateCriterion", CfgNode({"FACTOR": 4.0}))
        assert build_model(cfg).criteria[0].factor == 4.0
        cfg = changed(cfg, DEFCN + "CRITERION.LateCriterion.CLS_WEIGHT", 0.0)
        with pytest.raises(ConfigError, match="LateCriterion.CLS_WEIGHT is 0, but must be above"):
            build_model(cfg)


CENTERNESS = {MATCHER + "NAME": "FCOS", DEFCN + "QUALITY_BRANCH": "centerness"}
AUX_CRITERION = DEFCN + "AUX.CRITERION.AuxiliaryCriterion."
DUAL = {
    DEFCN + "HEAD.NAME": "DualHead",
    DEFCN + "HEAD.DualHead.ONE_TO_MANY_QUALITY": "centerness",
    AUX_CRITERION + "PREDICTIONS": "one_to_many",
}
ONENET = {MATCHER + "NAME": "OneNet", CRITERION + "NORMALIZER": "gts"}
RESNET = {"MODEL.BACKBONE.NAME": "build_defcn_resnet_fpn_backbone"}
GFL = {DEFCN + "CRITERION.NAME": "GFLCriterion", DEFCN + "LOSS.NAME": "QualityFocalLoss"}
MULTI_STEP = {"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR"}
CROP = {"INPUT.CROP.ENABLED": True}
CONTRADICTIONS = [
    ({DEFCN + "IN_FEATURES": []}, "IN_FEATURES is [], but must name feature maps"),
    ({DEFCN + "IN_FEATURES": ["p3", "p3"]}, "each once"),
    ({DEFCN + "IN_FEATURES": [3, 4]}, "IN_FEATURES is [3, 4]"),
    ({"MODEL.PIXEL_STD": [1.0]}, "PIXEL_MEAN has 3 numbers and PIXEL_STD 1"),
    ({"MODEL.FPN.NORM": "GN", "MODEL.FPN.OUT_CHANNELS": 48}, "MODEL.FPN.NORM 'GN' needs"),
    ({"MODEL.RESNETS.NORM": "GN"}, "set MODEL.RESNETS.STEM_OUT_CHANNELS"),
    ({"MODEL.FPN.IN_FEATURES": ["res9"]}, "IN_FEATURES is ['res9'], but must be of"),
    ({"MODEL.FPN.IN_FEATURES": []}, "MODEL.FPN.IN_FEATURES is []"),
    ({"MODEL.FPN.IN_FEATURES": ["res4", "res3"]}, "in its order"),
    ({**RESNET, "MODEL.RESNETS.DEPTH": 51}, "DEPTH is 51, but must be one of"),
    ({MATCHER + "NAME": "Anchor"}, "'Anchor' works on anchors, but MODEL.DEFCN.PRIORS is 'poin"),
    ({DEFCN + "PRIORS": "anchors", MATCHER + "NAME": "FCOS"}, "'FCOS' works on points"),
    ({AUX + "NAME": "Anchor"}, "AUX.MATCHER.NAME 'Anchor' works on anchors"),
    ({DEFCN + "LOSS.NAME": ""}, "MODEL.DEFCN.LOSS.NAME '' is unknown; one of: APLoss"),
    ({DEFCN + "CRITERION.NAME": ""}, "MODEL.DEFCN.CRITERION.NAME '' is unknown"),
    ({DEFCN + "HEAD.NAME": "DeFCNhead"}, "HEAD.NAME 'DeFCNhead' is unknown; one of: DeFCNHead"),
    ({DEFCN + "NECK.NAME": "FPN"}, "MODEL.DEFCN.NECK.NAME 'FPN' is unknown"),
    ({AUX + "NAME": ""}, "MODEL.DEFCN.AUX.MATCHER.NAME '' is unknown"),
    ({DEFCN + "AUX.HEAD.NAME": "Head"}, "MODEL.DEFCN.AUX.HEAD.NAME 'Head' is unknown"),
    (
        {MATCHER + "NAME": "FCOS", MATCHER + "FCOS.SIZE_RANGES": [[0, 1]]},
        "MODEL.DEFCN.MATCHER.FCOS.SIZE_RANGES has 1 ranges, but",
    ),
    (
        {AUX + "NAME": "Center", AUX + "Center.SIZE_RANGES": [[0, 1]]},
        "AUX.MATCHER.Center.SIZE_RANGES has 1",
    ),
    ({**ONENET, MATCHER + "OneNet.FOCAL_ALPHA": 0.5}, "FOCAL_ALPHA is 0.5, but OneNet"),
    (
        {MATCHER + "NAME": "ForegroundLoss", DEFCN + "LOSS.FocalLoss.GAMMA": 1.0},
        "FOCAL_GAMMA is 2.0, but ForegroundLoss matches by the loss itself, whose MODEL.DEFCN.LOSS",
    ),
    (
        {AUX + "NAME": "ForegroundLoss", DEFCN + "AUX.LOSS.FocalLoss.GAMMA": 1.0},
        "whose MODEL.DEFCN.AUX.LOSS.FocalLoss.GAMMA is 1.0; give both",
    ),
    (
        {MATCHER + "POTO.SOLVER": "argmax", MATCHER + "POTO.KEEP_UNREACHABLE": True},
        "MODEL.DEFCN.MATCHER.POTO.KEEP_UNREACHABLE is True, which the solver",
    ),
    ({CRITERION + "CLS_WEIGHT": 0.0}, "DenseCriterion.CLS_WEIGHT is 0, but must be above 0"),
    ({CRITERION + "REG_WEIGHT": 0.0}, "REG_WEIGHT and L1_WEIGHT are both 0"),
    (
        {DEFCN + "AUX.CRITERION.AuxiliaryCriterion.CLS_WEIGHT": 0.0},
        "AUX.CRITERION.AuxiliaryCriterion.CLS_WEIGHT, REG_WEIGHT and L1_WEIGHT are all 0",
    ),
    ({MATCHER + "NAME": "OneNet"}, "DenseCriterion.NORMALIZER is 'foreground', but OneNet"),
    (
        {AUX + "NAME": "OneNet"},
        "AUX.CRITERION.AuxiliaryCriterion.NORMALIZER is 'foreground', but OneNet",
    ),
    (
        {CRITERION + "SOFT_LABELS": "iou", DEFCN + "LOSS.NAME": "APLoss"},
        "SOFT_LABELS is 'iou', but APLoss takes hard labels",
    ),
    ({CRITERION + "BOX_LOSS": "deltas"}, "BOX_LOSS 'deltas' is of offsets from anchors, but MODEL"),
    (
        {DEFCN + "LOSS.NAME": "QualityFocalLoss", CRITERION + "SOFT_LABELS": "quality"},
        "quality, not POTO; set MODEL.DEFCN.MATCHER.NAME to one of ATSS, FCOS",
    ),
    ({DEFCN + "QUALITY_BRANCH": "centerness"}, "gives a quality, not POTO"),
    (
        {**CENTERNESS, CRITERION + "REG_WEIGHT": 0.0, CRITERION + "L1_WEIGHT": 1.0},
        "DenseCriterion.REG_WEIGHT is 0",
    ),
    (
        {**CENTERNESS, DEFCN + "AUX.CRITERION.AuxiliaryCriterion.REG_WEIGHT": 1.0},
        "not POTOAux; set MODEL.DEFCN.AUX.MATCHER.NAME to one of",
    ),
    ({DEFCN + "CRITERION.NAME": "GFLCriterion"}, "set MODEL.DEFCN.HEAD.NAME to one of GFLHead"),
    (
        GFL,
        "DeFCNHead gives none; set MODEL.DEFCN.HEAD.NAME to one of GFLHead, PeakGFLHead, or DFL_W",
    ),
    (
        {
            DEFCN + "AUX.CRITERION.NAME": "GFLCriterion",
            DEFCN + "AUX.LOSS.NAME": "QualityFocalLoss",
            DEFCN + "AUX.CRITERION.GFLCriterion.PREDICTIONS": "aux",
            DEFCN + "AUX.HEAD.NAME": "DeFCNHead",
            DEFCN + "HEAD.NAME": "GFLHead",
        },
        "but DeFCNHead gives none; set MODEL.DEFCN.AUX.HEAD.NAME to one of GFLHead",
    ),
    ({DEFCN + "HEAD.NAME": "GFLHead", DEFCN + "PRIORS": "anchors"}, "'GFLHead' works on points"),
    (
        {CRITERION + "BOX_WEIGHTS": "quality"},
        "DenseCriterion.BOX_WEIGHTS 'quality' needs a matcher that gives a quality, not POTO",
    ),
    ({CRITERION + "NORMALIZER": "quality"}, "NORMALIZER 'quality' needs a matcher that gives"),
    (
        {DEFCN + "HEAD.NAME": "DualHead"},
        "HEAD.NAME is 'DualHead', but no criterion takes its set 'one_to_many'; set MODEL.DEFCN",
    ),
    (
        {**DUAL, AUX_CRITERION + "REG_WEIGHT": 1.0},
        "MODEL.DEFCN.HEAD.DualHead.ONE_TO_MANY_QUALITY 'centerness' needs a matcher that gives a "
        "quality, not POTOAux",
    ),
    ({DEFCN + "TOPK_ONLY_TEST": True, DEFCN + "NMS_TYPE": "class_wise"}, "which knows no NMS"),
    ({"INPUT.MAX_SIZE_TEST": 32}, "INPUT.MAX_SIZE_TEST is 32, but must be at least"),
]
TRAINING_CONTRADICTIONS = [
    ({"INPUT.MAX_SIZE_TRAIN": 32}, "INPUT.MAX_SIZE_TRAIN is 32, but must be at least"),
    ({"INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, "the smallest and the largest size"),
    ({**CROP, "INPUT.CROP.SIZE": [2.0, 0.5]}, "INPUT.CROP.SIZE is [2.0, 0.5]"),
    ({"SOLVER.STEPS": (3, 2)}, "SOLVER.STEPS is (3, 2), but must ascend"),
    ({"SOLVER.STEPS": (2, 2)}, "must ascend"),
    ({"SOLVER.DETERMINISTIC": True}, "SEED is -1, which draws another seed"),
    ({"SOLVER.CHECKPOINT_BEST": "bbox/AP"}, "nothing is evaluated"),
    (
        {"SOLVER.CHECKPOINT_BEST": "bbox/AP", "TEST.EVAL_PERIOD": 5, "DATASETS.TEST": ()},
        "nothing is evaluated",
    ),
    ({"TEST.EARLY_STOPPING.PATIENCE": 3}, "SOLVER.CHECKPOINT_BEST is '', so nothing says what is"),
    ({"MODEL.EMA.ENABLED": True, "TEST.PRECISE_BN.ENABLED": True}, "set one of them False"),
    (
        {"SOLVER.OPTIMIZER": "SGD", "SOLVER.NESTEROV": True, "SOLVER.MOMENTUM": 0.0},
        "SOLVER.NESTEROV is True, but",
    ),
    ({"VIS_PERIOD": 20, "DATASETS.TEST": ()}, "VIS_PERIOD is 20, but there are no images"),
    ({"INPUT.MIXUP.PROB": 0.5, "INPUT.MIXUP.START": 0.5}, "INPUT.MIXUP.START is 0.5, but must be"),
    ({"INPUT.MOSAIC.PROB": 0.5, "MODEL.MASK_ON": True}, "MODEL.MASK_ON is True"),
    (
        {
            "INPUT.COPY_PASTE.PROB": 0.5,
            "DATALOADER.SAMPLER_TRAIN": "RandomSubsetTrainingSampler",
        },
        "INPUT.COPY_PASTE.PROB is 0.5, but takes others from all images",
    ),
]


def with_values(values: dict) -> CfgNode:
    cfg = tiny_cfg()
    for key, value in values.items():
        cfg = changed(cfg, key, value)
    return cfg


@pytest.mark.parametrize("values, sentence", CONTRADICTIONS)
def test_keys_that_contradict_each_other_give_no_model(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(with_values(values))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("values, sentence", TRAINING_CONTRADICTIONS)
def test_keys_that_contradict_each_other_give_no_training(values: dict, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_training_config(with_values(values))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {**MULTI_STEP, "SOLVER.STEPS": (10, 801)},  # Detectron2 warns, and leaves them out
        {"SOLVER.DETERMINISTIC": True, "SEED": 0},
        {"SOLVER.CHECKPOINT_BEST": "bbox/AP", "TEST.EVAL_PERIOD": 5},
        {"SOLVER.CLIP_GRADIENTS.NORM_TYPE": math.inf},
        {"SOLVER.WEIGHT_DECAY_BIAS": None},
        {"INPUT.MIN_SIZE_TRAIN": (32, 64), "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"},
        {**CROP, "INPUT.CROP.TYPE": "absolute", "INPUT.CROP.SIZE": [32, 32]},
        {"INPUT.MOSAIC.START": 0.5, "MODEL.MASK_ON": True},  # PROB is 0
        {AUX + "NAME": "", DEFCN + "AUX.ENABLED": False},
        {**CENTERNESS, AUX + "FCOS.SIZE_RANGES": [[0, 1]]},  # of no effect with POTOAux
        {AUX + "NAME": "FCOS", DEFCN + "AUX.HEAD.NAME": "DeFCNHead"},
        {**DUAL, AUX + "NAME": "FCOS", AUX_CRITERION + "REG_WEIGHT": 1.0},
        # centerness of the deployed predictor is no matter of the other's matcher
        {**DUAL, **CENTERNESS, DEFCN + "HEAD.DualHead.ONE_TO_MANY_QUALITY": "none"},
        {DEFCN + "NUM_CONVS": 0},
        {DEFCN + "NORM": ""},
        {DEFCN + "PRIOR_PROB": 0.5, "MODEL.PIXEL_STD": [1, 1, 1]},
        {"INPUT.MIN_SIZE_TEST": 0},
    ],
)
def test_what_fits_together_passes(values: dict) -> None:
    cfg = with_values(values)
    check_model_config(cfg)
    check_rules(cfg, EVALUATION_RULES)
    check_training_config(cfg)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_every_config_passes(path) -> None:
    cfg = make_cfg(str(path.relative_to(ROOT / "configs")))
    check_model_config(cfg)
    check_rules(cfg, EVALUATION_RULES)
    check_training_config(cfg)


def checked(*opts: str) -> None:
    """Load and check the config of a command line on the tiny sets."""
    tiny_sets()
    command = ["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, *opts]
    args = default_argument_parser().parse_args(command)
    check(load_config(args.config_file, args.opts), args)


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (
            [DEFCN + "MAX_FILTERING.TAU", "1"],
            "MAX_FILTERING.TAU is 1, but must be even",
        ),
        ([AUX + "NAME", "POTOaux"], "AUX.MATCHER.NAME 'POTOaux' is unknown"),
        ([DEFCN + "IN_FEATURES", "['p9']"], r"IN_FEATURES \['p9'\] are not given by the backbone"),
        ([DEFCN + "IN_FEATURES", "['p4', 'p3']"], r"have the strides \[16, 8\], but must go from"),
        (
            [DEFCN + "PRIORS", "anchors", "MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64]]"],
            "is not one list of anchors a level, all as long, on 5 levels",
        ),
        (["MODEL.FPN.OUT_CHANNELS", "48"], "MODEL.DEFCN.NORM 'GN' needs a multiple of 32"),
        (
            [DEFCN + "HEAD_CHECKPOINTING", "True", DEFCN + "NORM", "BN"],
            "HEAD_CHECKPOINTING is True, but",
        ),
        (["SOLVER.GAMMA", "-1.0"], "SOLVER.GAMMA is -1.0, but must be above 0 and at most 1"),
        (["DATALOADER.ON_ERROR", "skpi"], r"'skpi' is unknown; one of: skip, stop \(did you mean"),
    ],
)
def test_a_command_is_refused_before_anything_is_loaded(opts: list, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        checked(*opts)
    assert "\n" not in str(caught.value)


def test_a_backbone_that_cannot_be_built_without_memory(caplog: pytest.LogCaptureFixture) -> None:
    """As Detectron2's Swin and MViT, which look at values of tensors; it passes the check."""

    def build_looking_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
        assert torch.linspace(0, 1, 3)[1].item() == 0.5
        return build_defcn_narrow_fpn_backbone(cfg, input_shape)

    BACKBONE_REGISTRY.register(build_looking_backbone)
    try:
        caplog.set_level(logging.DEBUG, "defcn_d2")
        opts = ["MODEL.BACKBONE.NAME", "build_looking_backbone"]
        checked(*opts)
        assert "cannot be tried before it is built" in caplog.text
        build_model(tiny_cfg(*opts))
        with pytest.raises(UserError, match="POTO.RADIUS is -1.0"):
            checked(*opts, MATCHER + "POTO.RADIUS", "-1.0")
    finally:
        del BACKBONE_REGISTRY._obj_map["build_looking_backbone"]


@pytest.mark.parametrize("interval", ["[0, 1]", "(0, 1)", "[0, 1)", "(0, 1]", "[0, inf)"])
@given(value=st.floats() | st.integers())
def test_numbers_of_an_interval(interval: str, value: float) -> None:
    low, high = (float(x) for x in interval[1:-1].split(","))
    inside = low < value < high
    inside |= interval[0] == "[" and value == low
    inside |= interval[-1] == "]" and value == high
    assert (numbers(interval)("KEY", value) is None) == inside


@given(st.integers(-20, 20), st.sampled_from([(2, 0), (2, 1), (1, 0)]))
def test_whole_numbers(value: int, parity: tuple[int, int]) -> None:
    rule = numbers("[0, inf)", *parity)
    assert (rule("KEY", value) is None) == (value >= 0 and value % parity[0] == parity[1])
    assert rule("KEY", value + 0.5) is not None and rule("KEY", True) is not None


def test_sentences_of_rules() -> None:
    assert numbers("(0, 1]")("A.B", 2) == "A.B is 2, but must be above 0 and at most 1"
    assert numbers("[0, inf)", 2)("A.B", 1) == "A.B is 1, but must be even and at least 0"
    assert (
        whole_numbers("[1, inf)")("A.B", 1.0) == "A.B is 1.0, but must be a whole number at least 1"
    )
    assert numbers("[0, inf)")("A.B", math.nan) == "A.B is nan, but must be finite"
    words = "A.B 'Stop' is unknown; one of: '', skip, stop (did you mean 'stop'?)"
    assert one_of("stop", "skip", "")("A.B", "Stop") == words
    each_one = list_of(whole_numbers("[1, inf)"))
    assert each_one("A.B", (1, 0)) == "A.B [1, 0]: a value is 0, but must be at least 1"
    assert each_one("A.B", ()) == "A.B is (), but must be a list of at least 1"
    assert optional(whole_numbers("[1, inf)"))("A.B", None) is None
