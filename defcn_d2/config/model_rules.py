"""What a config has to say for a model: the values of single keys, and how they fit together.

What only the parts themselves know, they check when they are built: a matcher its own keys, the
head its channels, the backbone its maps. Keys of training stand in ``engine/training_checks.py``.
"""

import difflib
from collections.abc import Iterator

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import get_norm

from ..modeling.head.dense import QUALITY_BRANCHES
from .defaults import add_defcn_config
from .rules import (
    ConfigError,
    check_rules,
    each,
    first,
    numbers,
    one_of,
    unknown_name,
    value_of,
    whole,
)

_NORMS = ("", "BN", "FrozenBN", "GN", "LN", "SyncBN", "naiveSyncBN", "nnSyncBN")


def _norm(key: str, value: object) -> str | None:
    try:
        get_norm(value, 32)
    except (KeyError, TypeError, AttributeError):
        return unknown_name(key, value, _NORMS)
    return None


def _device(key: str, value: object) -> str | None:
    try:
        torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        return unknown_name(key, value, ("cpu", "cuda", "cuda:1", "mps"))
    return None


def _range(key: str, value: object) -> str | None:
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(x, (int, float)) for x in value)
        and value[0] < value[1]
    ):
        return None
    return f"{key} is {value!r}, but must be [smallest, largest] in pixels"


_DEFCN = {
    "NUM_CLASSES": whole("[1, inf)"),
    "PRIORS": one_of("points", "anchors"),
    "NUM_CONVS": whole("[0, inf)"),
    "NORM": _norm,
    "PRIOR_PROB": numbers("(0, 1)"),
    "QUALITY_BRANCH": one_of(*QUALITY_BRANCHES),
    "MAX_FILTERING.TAU": numbers("[0, inf)", divisor=2),
    "MAX_FILTERING.KERNEL_SIZE": numbers("[1, inf)", divisor=2, remainder=1),
    "MAX_FILTERING.NORM": _norm,
    "LOSS.FOCAL_ALPHA": numbers("[0, 1]"),
    "LOSS.FOCAL_GAMMA": numbers("[0, inf)"),
    "LOSS.CLS_WEIGHT": numbers("(0, inf)"),
    "LOSS.REG_WEIGHT": numbers("[0, inf)"),
    "LOSS.L1_WEIGHT": numbers("[0, inf)"),
    "LOSS.NORMALIZER": one_of("foreground", "gts"),
    "AUX.WEIGHT": numbers("(0, inf)"),
    "SCORE_THRESH_TEST": numbers("[0, 1]"),
    "TOPK_CANDIDATES_TEST": whole("[1, inf)"),
    "NMS_TYPE": one_of("none", "class_wise"),
    "NMS_THRESH_TEST": numbers("[0, 1]"),
}
_MATCHER = {
    "ALPHA": numbers("[0, 1]"),
    "RADIUS": numbers("[0, inf)"),
    "SOLVER": one_of("hungarian", "argmax"),
    "TOPK": whole("[1, inf)"),
    "SIZE_RANGES": each(_range),
    "ANCHOR_SCALE": numbers("(0, inf)"),
    "COST_CLS": numbers("[0, inf)"),
    "COST_L1": numbers("[0, inf)"),
    "COST_GIOU": numbers("[0, inf)"),
    "FOCAL_ALPHA": numbers("[0, 1]"),
    "FOCAL_GAMMA": numbers("[0, inf)"),
}
#: Rules for all keys that a DeFCN, and inference with one, depend on.
MODEL_RULES = {
    **{f"MODEL.DEFCN.{key}": rule for key, rule in _DEFCN.items()},
    **{f"MODEL.DEFCN.MATCHER.{key}": rule for key, rule in _MATCHER.items()},
    **{f"MODEL.DEFCN.AUX.MATCHER.{key}": rule for key, rule in _MATCHER.items()},
    "MODEL.DEVICE": _device,
    "MODEL.PIXEL_MEAN": each(numbers("(-inf, inf)")),
    "MODEL.PIXEL_STD": each(numbers("(0, inf)")),
    "MODEL.FPN.OUT_CHANNELS": whole("[1, inf)"),
    "MODEL.FPN.NORM": _norm,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.RESNETS.NORM": _norm,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": whole("[1, inf)"),
    "MODEL.BACKBONE.FREEZE_AT": whole("[0, inf)"),
    "INPUT.MIN_SIZE_TEST": whole("[0, inf)"),
    "INPUT.MAX_SIZE_TEST": whole("[1, inf)"),
    "INPUT.MAX_PIXELS": whole("[0, inf)"),
    "TEST.DETECTIONS_PER_IMAGE": whole("[1, inf)"),
}

# Of the matchers that come with the package: what the method wants of them.
_PRIORS_OF = {"Anchor": "anchors", "Center": "points", "FCOS": "points"}
_WITH_SIZE_RANGES = ("Center", "FCOS")
_WITH_FOCAL_COST = ("ForegroundLoss", "OneNet")
_WITHOUT_QUALITY = ("Anchor", "Center", "ForegroundLoss", "OneNet", "POTO", "POTOAux")


def check_model_config(cfg: CfgNode) -> None:
    """Raise ``ConfigError`` for the first thing in a config that no DeFCN can be built from.

    The message is one sentence that names the key, its value and what it must be.
    """
    _check_names_and_types(cfg)
    check_rules(cfg, MODEL_RULES)
    problem = first(_contradictions(cfg))
    if problem is not None:
        raise ConfigError(problem)


def keys_of(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """All keys of a config that hold a value, with dots."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _check_names_and_types(cfg: CfgNode) -> None:
    """Of what a program has assigned: Detectron2 looks where it merges, and lets None pass."""
    defaults = get_cfg()
    add_defcn_config(defaults)
    known = list(keys_of(defaults.MODEL.DEFCN, "MODEL.DEFCN."))
    for key in keys_of(cfg.MODEL.DEFCN, "MODEL.DEFCN."):
        if key not in known and ".MATCHER." not in key:  # a matcher may have keys of its own
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise ConfigError(
                f"unknown configuration key {key!r}; did you mean {near!r}? Keys of your own go "
                "beside MODEL.DEFCN"
            )
    for key in known:
        default, value = value_of(defaults, key), value_of(cfg, key)
        kinds = (list, tuple) if isinstance(default, list) else type(default)
        if not isinstance(value, (int, float) if kinds is float else kinds):
            raise ConfigError(
                f"{key} is {value!r}, but must be a {type(default).__name__}, such as {default!r}"
            )


def _contradictions(cfg: CfgNode) -> Iterator[str | None]:
    node = cfg.MODEL.DEFCN
    yield _levels(node.IN_FEATURES)
    yield from _backbone(cfg)
    yield from _matching(node, "MODEL.DEFCN.MATCHER")
    if node.AUX.ENABLED:
        yield from _matching(node, "MODEL.DEFCN.AUX.MATCHER")
    yield from _losses(node)
    if node.TOPK_ONLY_TEST and node.NMS_TYPE != "none":
        yield (
            f"MODEL.DEFCN.TOPK_ONLY_TEST is True, which knows no NMS, but NMS_TYPE is "
            f"{node.NMS_TYPE!r}; set NMS_TYPE to 'none', or TOPK_ONLY_TEST to False"
        )
    low, high = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    if low > high:
        yield f"INPUT.MAX_SIZE_TEST is {high}, but must be at least MIN_SIZE_TEST, {low}"


def _levels(names: list) -> str | None:
    if names and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        return None
    return (
        f"MODEL.DEFCN.IN_FEATURES is {names!r}, but must name feature maps, each once, such as "
        "['p3', 'p4', 'p5', 'p6', 'p7']"
    )


def _backbone(cfg: CfgNode) -> Iterator[str]:
    model = cfg.MODEL
    if len(model.PIXEL_MEAN) != len(model.PIXEL_STD):
        yield (
            f"MODEL.PIXEL_MEAN has {len(model.PIXEL_MEAN)} numbers and PIXEL_STD "
            f"{len(model.PIXEL_STD)}; give one number a channel in both"
        )
    if not model.BACKBONE.NAME.startswith("build_defcn_"):
        return
    for key, channels in (
        ("RESNETS", model.RESNETS.STEM_OUT_CHANNELS),
        ("FPN", model.FPN.OUT_CHANNELS),
    ):
        if model[key].NORM == "GN" and channels % 32:
            yield (
                f"MODEL.{key}.NORM 'GN' needs a multiple of 32 channels, not {channels}; set "
                f"MODEL.{key}.{'STEM_' if key == 'RESNETS' else ''}OUT_CHANNELS to one"
            )
    stages = [name for name in model.RESNETS.OUT_FEATURES if name in model.FPN.IN_FEATURES]
    if not stages or stages != list(model.FPN.IN_FEATURES):
        yield (
            f"MODEL.FPN.IN_FEATURES is {model.FPN.IN_FEATURES}, but must be of "
            f"MODEL.RESNETS.OUT_FEATURES, {model.RESNETS.OUT_FEATURES}, in its order"
        )
    depths = (18, 34, 50, 101, 152)
    if model.BACKBONE.NAME == "build_defcn_resnet_fpn_backbone":
        if model.RESNETS.DEPTH not in depths:
            yield f"MODEL.RESNETS.DEPTH is {model.RESNETS.DEPTH}, but must be one of {depths}"


def _matching(node: CfgNode, key: str) -> Iterator[str]:
    """What is wrong with one matcher and the keys around it."""
    matcher = node.MATCHER if key == "MODEL.DEFCN.MATCHER" else node.AUX.MATCHER
    name = matcher.NAME
    if node.PRIORS != _PRIORS_OF.get(name, node.PRIORS):
        yield (
            f"{key}.NAME {name!r} works on {_PRIORS_OF[name]}, but MODEL.DEFCN.PRIORS is "
            f"{node.PRIORS!r}; set it to {_PRIORS_OF[name]!r}, or take another matcher"
        )
    if name in _WITH_SIZE_RANGES and len(matcher.SIZE_RANGES) != len(node.IN_FEATURES):
        yield (
            f"{key}.SIZE_RANGES has {len(matcher.SIZE_RANGES)} ranges, but MODEL.DEFCN.IN_FEATURES "
            f"{len(node.IN_FEATURES)} levels; give one range a level"
        )
    for focal in ("FOCAL_ALPHA", "FOCAL_GAMMA"):
        if name in _WITH_FOCAL_COST and matcher[focal] != node.LOSS[focal]:
            yield (
                f"{key}.{focal} is {matcher[focal]}, but {name} matches by the loss itself, whose "
                f"MODEL.DEFCN.LOSS.{focal} is {node.LOSS[focal]}; give both the same value"
            )
    if name == "POTO" and matcher.SOLVER == "argmax" and matcher.KEEP_UNREACHABLE:
        yield (
            f"{key}.KEEP_UNREACHABLE is True, which SOLVER 'argmax' cannot do; set it to False, or "
            "SOLVER to 'hungarian'"
        )


def _losses(node: CfgNode) -> Iterator[str]:
    loss, name = node.LOSS, node.MATCHER.NAME
    if not loss.REG_WEIGHT and not loss.L1_WEIGHT:
        yield (
            "MODEL.DEFCN.LOSS.REG_WEIGHT and L1_WEIGHT are both 0, so boxes would not be learned; "
            "set one of them above 0"
        )
    if name == "OneNet" and loss.NORMALIZER != "gts":
        yield (
            f"MODEL.DEFCN.LOSS.NORMALIZER is {loss.NORMALIZER!r}, but OneNet divides its losses by "
            "the number of ground truths; set it to 'gts'"
        )
    if node.QUALITY_BRANCH != "centerness":
        return
    if name in _WITHOUT_QUALITY:
        yield (
            "MODEL.DEFCN.QUALITY_BRANCH 'centerness' needs a matcher that gives a quality, not "
            f"{name}; set MATCHER.NAME to FCOS or ATSS"
        )
    if not loss.REG_WEIGHT:
        yield (
            "MODEL.DEFCN.QUALITY_BRANCH 'centerness' is learned beside the GIoU loss, but "
            "LOSS.REG_WEIGHT is 0; set it above 0, or the branch to 'none'"
        )
