"""Rules of a config for a model: the values of single keys, and how they fit together.

Components check the values of their own keys when they are built, and say by ``problems`` what
contradicts them elsewhere. Keys of training stand in ``training_rules.py``.
"""

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode, get_cfg

from ..utils.errors import did_you_mean
from .defaults import REGISTRIES, add_defcn_config
from .rules import (
    ConfigError,
    check_rules,
    first_problem,
    list_of,
    norm_name,
    numbers,
    one_of,
    unknown_name,
    value_of,
    whole_numbers,
)


def _device(key: str, value: object) -> str | None:
    try:
        torch.device(value)  # type: ignore[call-overload]
    except (RuntimeError, TypeError):
        return unknown_name(key, value, ("cpu", "cuda", "cuda:1", "mps"))
    return None


def _text(key: str, value: object) -> str | None:
    return None if isinstance(value, str) and value else f"{key} is {value!r}, but must be a name"


#: Rules for keys that belong to no component, on which a model and inference with it depend.
MODEL_RULES = {
    "MODEL.DEFCN.FREEZE": list_of(_text, least=0),
    "MODEL.DEFCN.FREEZE_EXCEPT": list_of(_text, least=0),
    "MODEL.DEFCN.PRIORS": one_of("points", "anchors"),
    "MODEL.DEFCN.SCORE_THRESH_TEST": numbers("[0, 1]"),
    "MODEL.DEFCN.TOPK_CANDIDATES_TEST": whole_numbers("[1, inf)"),
    "MODEL.DEFCN.NMS_TYPE": one_of("none", "class_wise"),
    "MODEL.DEFCN.NMS_THRESH_TEST": numbers("[0, 1]"),
    "MODEL.DEVICE": _device,
    "MODEL.PIXEL_MEAN": list_of(numbers("(-inf, inf)")),
    "MODEL.PIXEL_STD": list_of(numbers("(0, inf)")),
    "MODEL.FPN.OUT_CHANNELS": whole_numbers("[1, inf)"),
    "MODEL.FPN.NORM": norm_name,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
    "MODEL.RESNETS.NORM": norm_name,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": whole_numbers("[1, inf)"),
    "MODEL.TIMM.NORM": one_of("BN", "FrozenBN", "SyncBN"),
    "MODEL.BACKBONE.FREEZE_AT": whole_numbers("[0, inf)"),
    "INPUT.MIN_SIZE_TEST": whole_numbers("[0, inf)"),
    "INPUT.MAX_SIZE_TEST": whole_numbers("[1, inf)"),
    "INPUT.MAX_PIXELS": whole_numbers("[0, inf)"),
    "TEST.DETECTIONS_PER_IMAGE": whole_numbers("[1, inf)"),
}


def check_model_config(cfg: CfgNode) -> None:
    """Raise ``ConfigError`` for the first thing in a config that no DeFCN can be built from.

    The message is one sentence that names the key, its value and what it must be.
    """
    defaults = get_cfg()
    add_defcn_config(defaults)
    cfg = cfg.clone()
    cfg.defrost()
    _add_missing(cfg, defaults)
    _check_names_and_types(cfg, defaults)
    check_rules(cfg, MODEL_RULES)
    problem = first_problem(_contradictions(cfg))
    if problem is not None:
        raise ConfigError(problem)


def keys_of(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """All keys of a config that hold a value, with dots."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def keys_in_use(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """``keys_of`` without those of components that the config does not choose."""
    for name, value in cfg.items():
        if not isinstance(value, CfgNode):
            yield f"{prefix}{name}"
        elif name == cfg.get("NAME", name):  # beside NAME stand components
            yield from keys_in_use(value, f"{prefix}{name}.")


def _add_missing(node: CfgNode, defaults: CfgNode) -> None:
    """Add the keys of components that were registered after the config was made."""
    for name, default in defaults.items():
        if name not in node:
            node[name] = default
        elif isinstance(default, CfgNode) and isinstance(node[name], CfgNode):
            _add_missing(node[name], default)


def _check_names_and_types(cfg: CfgNode, defaults: CfgNode) -> None:
    """Checks what a program has assigned: Detectron2 looks where it merges, and lets None pass."""
    known = list(keys_of(defaults.MODEL.DEFCN, "MODEL.DEFCN."))
    likely = list(keys_in_use(defaults.MODEL.DEFCN, "MODEL.DEFCN."))
    for key in keys_of(cfg.MODEL.DEFCN, "MODEL.DEFCN."):
        if key not in known:
            raise ConfigError(
                f"unknown configuration key {key!r}; {did_you_mean(key, known, likely)} Keys of "
                "your own go beside MODEL.DEFCN, or are arguments of a registered component"
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
    yield from _pixels(cfg)
    yield from _components(cfg, node, "MODEL.DEFCN")
    if node.AUX.ENABLED:
        yield from _components(cfg, node.AUX, "MODEL.DEFCN.AUX")
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


def _pixels(cfg: CfgNode) -> Iterator[str]:
    model = cfg.MODEL
    if len(model.PIXEL_MEAN) != len(model.PIXEL_STD):
        yield (
            f"MODEL.PIXEL_MEAN has {len(model.PIXEL_MEAN)} numbers and PIXEL_STD "
            f"{len(model.PIXEL_STD)}; give one number a channel in both"
        )


def _components(cfg: CfgNode, node: CfgNode, key: str) -> Iterator[str]:
    """Contradictions between components, and what they need of the rest, by their own word.

    Args:
        node: ``MODEL.DEFCN`` or its ``AUX``; ``key``: its name.
    """
    optional = "NECK" if key == "MODEL.DEFCN" else "HEAD"
    parts = [
        (registry, name)
        for name, registry in REGISTRIES.items()
        if name in node and (node[name].NAME or name != optional)
    ]
    for registry, name in parts:  # all have to be there before one looks at another
        registry.find(node[name], f"{key}.{name}")
    for registry, name in parts:
        kind, wanted = registry.get(node[name].NAME), cfg.MODEL.DEFCN.PRIORS
        if getattr(kind, "priors", wanted) != wanted:
            yield (
                f"{key}.{name}.NAME {kind.__name__!r} works on {kind.priors}, but "
                f"MODEL.DEFCN.PRIORS is {wanted!r}; set it to {kind.priors!r}, or take another"
            )
        yield from registry.problems(cfg, node[name], f"{key}.{name}")
