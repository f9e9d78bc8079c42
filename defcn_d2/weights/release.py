"""Weights of the original release (method section 10), and the config that weights belong to."""

import re
from collections.abc import Mapping
from typing import Any

# State that can be derived from the config: anchors, and pixel statistics.
_DERIVED = re.compile(r"anchor_generator\.|pixel_(mean|std)$|.*\.num_batches_tracked$")

# (QUALITY_BRANCH, its norm, PRIORS, CONV_BIAS) to the configs that have such a head.
_CONFIGS = {
    ("none", None, "points", True): (
        *("POTO", "POTO-argmax", "POTO-6x", "POTO-9x"),
        *("ForegroundLoss", "Center", "FCOS-wo-centerness"),
    ),
    ("filter", "GN", "points", True): ("POTO-3DMF", "POTO-3DMF-Aux"),
    ("filter", "", "points", True): ("POTO-3DMF-wo-GN", "POTO-3DMF-Aux-wo-GN"),
    ("centerness", None, "points", True): ("FCOS", "ATSS"),
    ("none", None, "anchors", True): ("Anchor",),
    ("none", None, "points", False): ("OneNet",),
}
_CROWDHUMAN = ("FCOS", "ATSS", "POTO", "POTO-3DMF", "POTO-3DMF-Aux")
_NOT_IN_SHAPES = ("POTO-6x", "POTO-9x")


def convert_cvpods_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """State dict of an original checkpoint, with the names of ``DeFCN``.

    Args:
        state_dict: the state dict, or the whole file ``{"model": state_dict, ...}``; names may
            have the prefix ``module.`` of DistributedDataParallel.

    Returns:
        name to tensor, for ``model.load_state_dict(..., strict=True)`` of the same variant.

    Raises:
        ValueError: the dict holds no weights of such a model.
    """
    weights = strip_prefix(state_dict.get("model", state_dict))
    converted = {name: value for name, value in weights.items() if not is_derived(name)}
    if not any(name.startswith("head.cls_score") for name in converted):
        raise ValueError(
            f"no weights of a DeFCN release: 'head.cls_score' is missing among {len(weights)} "
            f"names (first: {', '.join(list(weights)[:3]) or 'none'})"
        )
    return converted


def strip_prefix(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights, with names as a model outside of DistributedDataParallel has them."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def is_derived(name: str) -> bool:
    """Whether the state of this name need not stand in a checkpoint."""
    return _DERIVED.match(name) is not None


def describe_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The config keys that the weights of a detector decide, with their values.

    Args:
        weights: name to tensor, with ``head.cls_score.weight`` (K, C, 3, 3) among them.
    """
    # of a hostile file it may have fewer dimensions
    num_classes, channels = (*weights["head.cls_score.weight"].shape, 0, 0)[:2]
    settings = {
        "MODEL.DEFCN.NUM_CLASSES": num_classes,
        "MODEL.FPN.OUT_CHANNELS": channels,
        "MODEL.DEFCN.NUM_CONVS": sum(
            name.startswith("head.cls_subnet.") and value.ndim == 4
            for name, value in weights.items()
        ),
        "MODEL.DEFCN.CONV_BIAS": "head.cls_subnet.0.bias" in weights,
        "MODEL.DEFCN.PRIORS": "points" if "head.scales.0.scale" in weights else "anchors",
        "MODEL.DEFCN.QUALITY_BRANCH": "none",
    }
    if "head.centerness.weight" in weights:
        settings["MODEL.DEFCN.QUALITY_BRANCH"] = "centerness"
    elif "head.filter.weight" in weights:
        settings["MODEL.DEFCN.QUALITY_BRANCH"] = "filter"
        has_norm = "head.max3d.norm.weight" in weights
        settings["MODEL.DEFCN.MAX_FILTERING.NORM"] = "GN" if has_norm else ""
    return settings


def fitting_configs(weights: Mapping[str, Any]) -> list[str]:
    """Paths under ``configs/`` whose models have a head like that of the weights.

    They may still differ in the number of classes, and in the numbers of channels and convs.

    Args:
        weights: as in ``describe_weights``.

    Returns:
        empty where no config has such a head.
    """
    settings = describe_weights(weights)
    head = (
        settings["MODEL.DEFCN.QUALITY_BRANCH"],
        settings.get("MODEL.DEFCN.MAX_FILTERING.NORM"),
        settings["MODEL.DEFCN.PRIORS"],
        settings["MODEL.DEFCN.CONV_BIAS"],
    )
    names = _CONFIGS.get(head, ())
    if "backbone.bottom_up.res2.0.conv3.weight" not in weights:  # basic blocks: the narrow ResNet
        return [f"configs/shapes/{name}.yaml" for name in names if name not in _NOT_IN_SHAPES]
    if settings["MODEL.DEFCN.NUM_CLASSES"] == 1:
        crowd = [f"configs/crowdhuman/{name}.yaml" for name in names if name in _CROWDHUMAN]
        if crowd:
            return crowd
    return [f"configs/{name}.yaml" for name in names if name != "ATSS"]
