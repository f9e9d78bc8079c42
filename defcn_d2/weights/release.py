"""Weights of the original release (method section 10)."""

import re
from collections.abc import Mapping
from typing import Any

# State that can be derived from the config: anchors, and pixel statistics.
_DERIVED = re.compile(r"(?:.*\.)?anchor_generator\.|pixel_(mean|std)$|.*\.num_batches_tracked$")


def convert_cvpods_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """State dict of an original checkpoint, with the names of ``DeFCN``.

    Args:
        state_dict: the state dict, or the whole file ``{"model": state_dict, ...}``; names may
            have the prefix ``module.`` of DistributedDataParallel.

    Returns:
        name to tensor, for ``model.load_state_dict(..., strict=True)`` of the same variant.

    Raises:
        ValueError: the dict holds no weights of a detector.
    """
    weights = strip_prefix(state_dict.get("model", state_dict))
    converted = {name: value for name, value in weights.items() if not is_derived(name)}
    if not is_of_detector(converted):
        raise ValueError(
            f"no weights of a detector: none of {len(weights)} names begins with 'head.' "
            f"(first: {', '.join(list(weights)[:3]) or 'none'})"
        )
    return converted


def strip_prefix(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The same weights, with names as a model outside of DistributedDataParallel has them."""
    return {name.removeprefix("module."): value for name, value in weights.items()}


def is_of_detector(weights: Mapping[str, Any]) -> bool:
    """Reports if weights are of a detector, whatever its head, and not of a backbone alone."""
    return any(name.startswith("head.") for name in weights)


def is_derived(name: str) -> bool:
    """Reports if the state of this name need not stand in a checkpoint."""
    return _DERIVED.match(name) is not None
