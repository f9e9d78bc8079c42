"""Every config: what it says, that it builds, trains and infers, and that it says nothing twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers import ROOT, make_cfg, make_priors, random_inputs
from slow_matching import locations

CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
# Losses of which one pair teaches classes and boxes.
LOSSES = [{"loss_cls", "loss_box_reg"}, {"loss_pos", "loss_neg"}]
LEAVES = [str(path.relative_to(CONFIGS)) for path in FILES if not path.name.startswith("Base-")]

# Method section 9, and below it what a variant's text says of it.
RELEASE = [
    "FCOS.yaml",
    "FCOS-wo-centerness.yaml",
    "Anchor.yaml",
    "Center.yaml",
    "ForegroundLoss.yaml",
    "POTO.yaml",
    "POTO-6x.yaml",
    "POTO-9x.yaml",
    "POTO-argmax.yaml",
    "POTO-3DMF.yaml",
    "POTO-3DMF-wo-GN.yaml",
    "POTO-3DMF-Aux.yaml",
    "POTO-3DMF-Aux-wo-GN.yaml",
    "crowdhuman/FCOS.yaml",
    "crowdhuman/ATSS.yaml",
    "crowdhuman/POTO.yaml",
    "crowdhuman/POTO-3DMF.yaml",
    "crowdhuman/POTO-3DMF-Aux.yaml",
]
COCO = {
    "MODEL.DEFCN.NUM_CLASSES": 80,
    "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800),
    "INPUT.MAX_SIZE_TRAIN": 1333,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MOMENTUM": 0.9,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.MAX_ITER": 270000,
    "SOLVER.STEPS": (210000, 250000),
    "TEST.DETECTIONS_PER_IMAGE": 100,
}
CROWDHUMAN = {
    "MODEL.DEFCN.NUM_CLASSES": 1,
    "DATASETS.TRAIN": ("crowdhuman_train",),
    "DATASETS.TEST": ("crowdhuman_val",),
    "INPUT.MIN_SIZE_TRAIN": (800,),
    "INPUT.MAX_SIZE_TRAIN": 1400,
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1400,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.MAX_ITER": 30000,
    "SOLVER.STEPS": (20000, 25000),
    "TEST.DETECTIONS_PER_IMAGE": 500,
}
REG_WEIGHT = "MODEL.DEFCN.CRITERION.DenseCriterion.REG_WEIGHT"
END_TO_END = {
    "MODEL.DEFCN.NMS_TYPE": "none",
    REG_WEIGHT: 2.0,
    "MODEL.DEFCN.MATCHER.POTO.KEEP_UNREACHABLE": False,
    "MODEL.DEFCN.MATCHER.ForegroundLoss.KEEP_UNREACHABLE": False,
}
WITH_NMS = {"MODEL.DEFCN.NMS_TYPE": "class_wise", "MODEL.DEFCN.NMS_THRESH_TEST": 0.6}
TASK_ALIGNED = {
    "MODEL.DEFCN.MATCHER.NAME": "TaskAligned",
    "MODEL.DEFCN.MATCHER.TaskAligned.ALPHA": 0.5,
    "MODEL.DEFCN.MATCHER.TaskAligned.BETA": 6.0,
    "MODEL.DEFCN.LOSS.NAME": "SoftCrossEntropy",
    "MODEL.DEFCN.LOSS.SoftCrossEntropy.BACKGROUND_WEIGHT": 1.0,
    "MODEL.DEFCN.LOSS.SoftCrossEntropy.GAMMA": 0.0,
    "MODEL.DEFCN.CRITERION.DenseCriterion.CLS_WEIGHT": 0.5,
    REG_WEIGHT: 7.5,
    "MODEL.DEFCN.CRITERION.DenseCriterion.BOX_LOSS": "ciou",
    "MODEL.DEFCN.CRITERION.DenseCriterion.SOFT_LABELS": "quality",
    "MODEL.DEFCN.CRITERION.DenseCriterion.BOX_WEIGHTS": "quality",
    "MODEL.DEFCN.CRITERION.DenseCriterion.NORMALIZER": "quality",
}
DATE = {
    **END_TO_END,
    "MODEL.DEFCN.HEAD.NAME": "DualHead",
    "MODEL.DEFCN.HEAD.DualHead.OWN_TOWERS": False,
    "MODEL.DEFCN.HEAD.DualHead.DETACH": False,
    "MODEL.DEFCN.HEAD.DualHead.ONE_TO_MANY_QUALITY": "centerness",
    "MODEL.DEFCN.MATCHER.NAME": "POTO",
    "MODEL.DEFCN.MATCHER.POTO.ALPHA": 0.8,
    "MODEL.DEFCN.MATCHER.POTO.RADIUS": 1.5,
    "MODEL.DEFCN.CRITERION.DenseCriterion.CLS_WEIGHT": 2.0,
    "MODEL.DEFCN.CRITERION.DenseCriterion.L1_WEIGHT": 5.0,
    "MODEL.DEFCN.AUX.MATCHER.NAME": "FCOS",
    "MODEL.DEFCN.AUX.MATCHER.FCOS.RADIUS": 0.0,
    "MODEL.DEFCN.AUX.CRITERION.DenseCriterion.PREDICTIONS": "one_to_many",
    "MODEL.DEFCN.AUX.CRITERION.DenseCriterion.CLS_WEIGHT": 1.0,
    "MODEL.DEFCN.AUX.CRITERION.DenseCriterion.REG_WEIGHT": 1.0,
    "MODEL.DEFCN.SCORE_THRESH_TEST": 0.01,
    "SOLVER.OPTIMIZER": "AdamW",
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.1,
}
RETINANET = {
    "MODEL.DEFCN.PRIORS": "anchors",
    "MODEL.DEFCN.NORM": "",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    "MODEL.DEFCN.CRITERION.DenseCriterion.BOX_LOSS": "deltas",
    "MODEL.DEFCN.NMS_TYPE": "class_wise",
    "MODEL.DEFCN.NMS_THRESH_TEST": 0.5,
    REG_WEIGHT: 0.25,  # of a sum over four coordinates, of which the releases take the mean
    "MODEL.DEFCN.CRITERION.DenseCriterion.DELTA_WEIGHTS": [10.0, 10.0, 5.0, 5.0],
    "MODEL.DEFCN.MATCHER.NAME": "MaxIoU",
    "MODEL.DEFCN.MATCHER.MaxIoU.FOREGROUND_IOU": 0.5,
}
AP_LOSS = {
    "MODEL.DEFCN.LOSS.NAME": "APLoss",
    "MODEL.DEFCN.LOSS.APLoss.DELTA": 1.0,
    "MODEL.DEFCN.PRIOR_PROB": 0.01,
}
DR_LOSS = {
    "MODEL.DEFCN.LOSS.NAME": "DRLoss",
    "MODEL.DEFCN.LOSS.DRLoss.SMOOTHNESS": 6.0,
    "MODEL.DEFCN.LOSS.DRLoss.TAU": 4.0,
    "MODEL.DEFCN.PRIOR_PROB": 0.5,
}
NOISY = "MODEL.DEFCN.CRITERION.NoisyAnchorsCriterion."
NOISY_ANCHORS = {
    "MODEL.DEFCN.CRITERION.NAME": "NoisyAnchorsCriterion",
    f"{NOISY}SOFT_LABELS": "quality",
    f"{NOISY}WEIGHTS": "prior",
    f"{NOISY}INITIAL_COUNT": 100.0,
    f"{NOISY}MOMENTUM": 0.9,
    "MODEL.DEFCN.LOSS.NAME": "FocalLoss",
    "MODEL.DEFCN.LOSS.FocalLoss.ALPHA": 0.5,
    "MODEL.DEFCN.MATCHER.NAME": "NoisyAnchors",
    "MODEL.DEFCN.MATCHER.NoisyAnchors.TOPK": 30,
    "MODEL.DEFCN.MATCHER.NoisyAnchors.ALPHA": 0.75,
}
EXPECTED: dict[str, dict[str, Any]] = {
    "FCOS.yaml": {
        **COCO,
        **WITH_NMS,
        "MODEL.DEFCN.MATCHER.NAME": "FCOS",
        "MODEL.DEFCN.QUALITY_BRANCH": "centerness",
        REG_WEIGHT: 1.0,
        "MODEL.DEFCN.MATCHER.FCOS.RADIUS": 1.5,
    },
    "FCOS-wo-centerness.yaml": {
        **COCO,
        **WITH_NMS,
        "MODEL.DEFCN.MATCHER.NAME": "FCOS",
        "MODEL.DEFCN.QUALITY_BRANCH": "none",
        REG_WEIGHT: 1.0,
    },
    "Anchor.yaml": {**COCO, **END_TO_END, "MODEL.DEFCN.PRIORS": "anchors"},
    "Center.yaml": {**COCO, **END_TO_END, "MODEL.DEFCN.MATCHER.NAME": "Center"},
    "ForegroundLoss.yaml": {**COCO, **END_TO_END, "MODEL.DEFCN.MATCHER.NAME": "ForegroundLoss"},
    "POTO.yaml": {**COCO, **END_TO_END, "MODEL.DEFCN.MATCHER.POTO.SOLVER": "hungarian"},
    "POTO-6x.yaml": {"SOLVER.MAX_ITER": 540000, "SOLVER.STEPS": (480000, 520000)},
    "POTO-9x.yaml": {"SOLVER.MAX_ITER": 810000, "SOLVER.STEPS": (750000, 790000)},
    "POTO-argmax.yaml": {**COCO, **END_TO_END, "MODEL.DEFCN.MATCHER.POTO.SOLVER": "argmax"},
    "POTO-3DMF.yaml": {
        **COCO,
        **END_TO_END,
        "MODEL.DEFCN.QUALITY_BRANCH": "filter",
        "MODEL.DEFCN.MAX_FILTERING.NORM": "GN",
        "MODEL.DEFCN.AUX.ENABLED": False,
    },
    "POTO-3DMF-wo-GN.yaml": {
        "MODEL.DEFCN.MAX_FILTERING.NORM": "",
        "MODEL.DEFCN.AUX.ENABLED": False,
    },
    "POTO-3DMF-Aux.yaml": {**COCO, **END_TO_END, "MODEL.DEFCN.AUX.ENABLED": True},
    "POTO-3DMF-Aux-wo-GN.yaml": {
        "MODEL.DEFCN.MAX_FILTERING.NORM": "",
        "MODEL.DEFCN.AUX.ENABLED": True,
    },
    "crowdhuman/FCOS.yaml": {
        **CROWDHUMAN,
        **WITH_NMS,
        "MODEL.DEFCN.QUALITY_BRANCH": "centerness",
        REG_WEIGHT: 1.0,
        "MODEL.DEFCN.MATCHER.FCOS.RADIUS": 1.5,
    },
    "crowdhuman/ATSS.yaml": {
        **CROWDHUMAN,
        **WITH_NMS,
        "MODEL.DEFCN.MATCHER.NAME": "ATSS",
        "MODEL.DEFCN.QUALITY_BRANCH": "centerness",
        REG_WEIGHT: 2.0,
    },
    "crowdhuman/POTO.yaml": {**CROWDHUMAN, **END_TO_END, "MODEL.DEFCN.MATCHER.POTO.RADIUS": 0.0},
    "crowdhuman/POTO-3DMF.yaml": {
        **CROWDHUMAN,
        "MODEL.DEFCN.MATCHER.POTO.RADIUS": 0.0,
        "MODEL.DEFCN.QUALITY_BRANCH": "filter",
    },
    "crowdhuman/POTO-3DMF-Aux.yaml": {
        **CROWDHUMAN,
        "MODEL.DEFCN.MATCHER.POTO.RADIUS": 0.0,
        "MODEL.DEFCN.AUX.ENABLED": True,
    },
    "OneNet.yaml": {
        "MODEL.DEFCN.CRITERION.DenseCriterion.L1_WEIGHT": 5.0,
        "MODEL.DEFCN.CRITERION.DenseCriterion.NORMALIZER": "gts",
        "MODEL.DEFCN.CONV_BIAS": False,
        "MODEL.DEFCN.NMS_TYPE": "none",
        "MODEL.DEFCN.TOPK_ONLY_TEST": True,
        "INPUT.MIN_SIZE_TRAIN": (640, 672, 704, 736, 768, 800, 832, 864, 896),
        "INPUT.MAX_SIZE_TRAIN": 1500,
        "SOLVER.OPTIMIZER": "AdamW",
        "SOLVER.BASE_LR": 4e-5,
        "SOLVER.WEIGHT_DECAY": 1e-4,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
        "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
        "TEST.DETECTIONS_PER_IMAGE": 100,
    },
    # Not of the release: what the texts of their methods say.
    "TAL.yaml": {
        **WITH_NMS,
        **TASK_ALIGNED,
        "MODEL.DEFCN.AUX.ENABLED": False,
        "MODEL.DEFCN.MATCHER.TaskAligned.TOPK": 10,
    },
    "Dual-TAL.yaml": {
        **TASK_ALIGNED,
        **{key.replace("DEFCN.", "DEFCN.AUX."): value for key, value in TASK_ALIGNED.items()},
        "MODEL.DEFCN.NMS_TYPE": "none",
        "MODEL.DEFCN.HEAD.NAME": "DualHead",
        "MODEL.DEFCN.HEAD.DualHead.OWN_TOWERS": True,
        "MODEL.DEFCN.HEAD.DualHead.DETACH": True,
        "MODEL.DEFCN.MATCHER.TaskAligned.TOPK": 1,
        "MODEL.DEFCN.AUX.MATCHER.TaskAligned.TOPK": 10,
        "MODEL.DEFCN.AUX.CRITERION.DenseCriterion.PREDICTIONS": "one_to_many",
    },
    "DATE.yaml": DATE,
    "DATE-3DMF.yaml": {**DATE, "MODEL.DEFCN.QUALITY_BRANCH": "filter"},
    "OneToFew.yaml": {
        **END_TO_END,
        "MODEL.DEFCN.MATCHER.NAME": "OneToFew",
        "MODEL.DEFCN.MATCHER.OneToFew.ALPHA": 0.8,
        "MODEL.DEFCN.MATCHER.OneToFew.RADIUS": 1.5,
        "MODEL.DEFCN.MATCHER.OneToFew.TOPK": 7,
        "MODEL.DEFCN.MATCHER.OneToFew.START": 0.6,
        "MODEL.DEFCN.MATCHER.OneToFew.END": 0.2,
        "MODEL.DEFCN.MATCHER.OneToFew.WEIGHT": 0.4,
        "MODEL.DEFCN.LOSS.NAME": "SoftCrossEntropy",
        "MODEL.DEFCN.LOSS.SoftCrossEntropy.BACKGROUND_WEIGHT": 0.75,
        "MODEL.DEFCN.LOSS.SoftCrossEntropy.GAMMA": 2.0,
        "MODEL.DEFCN.CRITERION.DenseCriterion.NORMALIZER": "foreground",
        "MODEL.DEFCN.CRITERION.DenseCriterion.SOFT_LABELS": "quality",
        "MODEL.DEFCN.CRITERION.DenseCriterion.WEIGHTS": "class",
        "MODEL.DEFCN.CRITERION.DenseCriterion.BOX_WEIGHTS": "centerness",
    },
    "AP-Loss.yaml": {
        **RETINANET,
        **AP_LOSS,
        "MODEL.DEFCN.MATCHER.MaxIoU.BACKGROUND_IOU": 0.4,
        "MODEL.DEFCN.CRITERION.DenseCriterion.BETA": 1.0,
        "SOLVER.BASE_LR": 0.001,
    },
    "DR-Loss.yaml": {
        **RETINANET,
        **DR_LOSS,
        "MODEL.DEFCN.MATCHER.MaxIoU.BACKGROUND_IOU": 0.5,
        "MODEL.DEFCN.CRITERION.DenseCriterion.BETA": 0.11,
        "MODEL.DEFCN.SCORE_THRESH_TEST": 0.2,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.MAX_ITER": 90000,
        "SOLVER.STEPS": (60000, 80000),
    },
    "POTO-AP-Loss.yaml": {**END_TO_END, **AP_LOSS, "MODEL.DEFCN.MATCHER.NAME": "POTO"},
    "POTO-DR-Loss.yaml": {**END_TO_END, **DR_LOSS, "MODEL.DEFCN.MATCHER.NAME": "POTO"},
    "NoisyAnchors.yaml": {
        **NOISY_ANCHORS,
        "MODEL.DEFCN.PRIORS": "anchors",
        f"{NOISY}REG_WEIGHT": 1.0,
        f"{NOISY}BOX_LOSS": "deltas",
        f"{NOISY}BETA": 0.1,
        f"{NOISY}DELTA_WEIGHTS": [1.0] * 4,
        "MODEL.DEFCN.MATCHER.NoisyAnchors.ANCHOR_SCALE": 0.0,
        "MODEL.DEFCN.MATCHER.NoisyAnchors.WARMUP": 0.0,
        "SOLVER.IMS_PER_BATCH": 8,
        "SOLVER.BASE_LR": 0.005,
        "SOLVER.MAX_ITER": 180000,
        "SOLVER.STEPS": (120000, 160000),
    },
    "NoisyAnchors-dense.yaml": {**NOISY_ANCHORS, **WITH_NMS, f"{NOISY}BOX_LOSS": "giou"},
    "shapes_crowd/OneToFew.yaml": {
        "MODEL.DEFCN.NUM_CLASSES": 1,
        "MODEL.DEFCN.MATCHER.OneToFew.TOPK": 4,
        "TEST.DETECTIONS_PER_IMAGE": 500,
    },
}


def value_of(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_every_variant_of_the_release_has_its_config() -> None:
    assert {*RELEASE, "OneNet.yaml"} <= set(EXPECTED) <= set(LEAVES)


@pytest.mark.parametrize("config", EXPECTED)
def test_a_config_has_the_methods_numbers(config: str) -> None:
    cfg = make_cfg(config)
    assert {key: value_of(cfg, key) for key in EXPECTED[config]} == EXPECTED[config]


@pytest.mark.parametrize("config", RELEASE)
def test_a_config_of_the_release_names_its_published_result(config: str) -> None:
    comment = (CONFIGS / config).read_text().split("_BASE_")[0]
    figures = ("AP50 ", "mMR ", "recall ") if "crowdhuman" in config else ("mAP ", "mAR ")
    assert comment.startswith("# Release: ")
    assert all(figure in comment for figure in figures)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_config_says_only_what_its_bases_do_not(path: Path) -> None:
    own = yaml.safe_load(path.read_text())
    bases = own.pop("_BASE_", [])
    inherited: dict = {}
    for base in [bases] if isinstance(bases, str) else bases:
        merge(CfgNode.load_yaml_with_base(str(path.parent / base)), inherited)
    repeated = [key for key, value in flat(own).items() if flat(inherited).get(key) == value]
    assert not repeated


def merge(node: dict, into: dict) -> None:
    for key, value in node.items():
        if isinstance(value, dict) and key in into:
            merge(value, into[key])
        else:
            into[key] = value


def flat(node: dict, prefix: str = "") -> dict[str, Any]:
    """``{"A": {"B": 1}}`` to ``{"A.B": 1}``."""
    result: dict[str, Any] = {}
    for key, value in node.items():
        result.update(
            flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return result


def test_infinity_survives_being_written_and_read_again(tmp_path: Path) -> None:
    cfg = make_cfg("FCOS.yaml")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = make_cfg("POTO.yaml")
    again.merge_from_file(str(tmp_path / "config.yaml"))
    ranges = again.MODEL.DEFCN.MATCHER.FCOS.SIZE_RANGES
    assert ranges == cfg.MODEL.DEFCN.MATCHER.FCOS.SIZE_RANGES
    assert ranges[-1] == [512, float("inf")]


def small_model(config: str) -> Any:
    """The model of a config, except its backbone and its width."""
    return build_model(
        make_cfg(
            config,
            *("MODEL.BACKBONE.NAME", "build_defcn_narrow_fpn_backbone"),
            *("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.STEM_OUT_CHANNELS", 16),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.DEFCN.NUM_CONVS", 1),
        )
    )


@pytest.mark.parametrize("config", LEAVES)
def test_a_config_trains_two_steps_and_infers(config: str) -> None:
    model = small_model(config)
    num_classes = make_cfg(config).MODEL.DEFCN.NUM_CLASSES
    inputs = random_inputs([(64, 64), (48, 64), (64, 40)], [3, 0, 12], num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        losses = model(inputs)
        assert any(pair <= set(losses) for pair in LOSSES)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    torch.nn.init.constant_(model.head.cls_score.bias, 0.0)  # scores above the threshold
    model.eval()
    with torch.no_grad():
        detections = model(inputs)
    assert len(detections) == len(inputs)
    for x, detected in zip(inputs, detections, strict=True):
        instances = detected["instances"]
        assert 0 < len(instances) <= 500
        assert instances.image_size == (x["height"], x["width"])
        assert (instances.scores[:-1] >= instances.scores[1:]).all()
        assert instances.pred_boxes.tensor.isfinite().all()


@pytest.mark.parametrize(
    "config", [*(name for name in LEAVES if "/" not in name), "crowdhuman/ATSS.yaml"]
)
def test_a_batch_without_ground_truth_reaches_every_parameter(config: str) -> None:
    model = small_model(config)
    num_classes = make_cfg(config).MODEL.DEFCN.NUM_CLASSES
    losses = model(random_inputs([(64, 64), (64, 64)], [0, 0], num_classes))
    sum(losses.values()).backward()
    of_background = {name.removesuffix("_aux") for name, loss in losses.items() if loss > 0}
    # nothing is ranked wrongly without foreground
    assert bool(of_background) == ("AP-Loss" not in config)
    assert of_background <= {"loss_cls", "loss_neg"}
    assert all(loss >= 0 for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())


def test_anchors_are_squares_of_32_to_512_around_the_locations() -> None:
    model = small_model("Anchor.yaml")
    torch.nn.init.zeros_(model.head.bbox_pred.weight)
    deltas = torch.tensor([0.5, -0.25, math.log(2), 0.0])
    model.head.bbox_pred.bias.data.copy_(deltas)
    assert not any(name.startswith("head.scales") for name in model.state_dict())
    priors, predictions = model.predict(torch.zeros(1, 3, 128, 256))
    points = make_priors(128, 256)
    expected = []
    for location in locations(points):
        size = 4 * location.stride
        # dx, dy move the centre by shares of the side; dw doubles the width.
        x, y = location.x + 0.5 * size, location.y - 0.25 * size
        expected.append([x - size, y - size / 2, x + size, y + size / 2])
    assert len(priors) == len(expected)
    torch.testing.assert_close(predictions.boxes[0], torch.tensor(expected))


def test_a_config_as_it_stands_trains_all_but_the_frozen_stages() -> None:
    """ResNet-50 and all, on a small image."""
    cfg = make_cfg("POTO-3DMF-Aux.yaml")
    model = build_model(cfg)
    losses = model(random_inputs([(64, 64)], [2], cfg.MODEL.DEFCN.NUM_CLASSES))
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_cls_aux"}
    sum(losses.values()).backward()
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert all(
        name.startswith(("backbone.bottom_up.stem", "backbone.bottom_up.res2")) for name in frozen
    )
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
