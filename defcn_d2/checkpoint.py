"""Weights of the original release (method section 10)."""

import re
from collections.abc import Mapping
from typing import Any

# State that can be derived from the config: anchors, and pixel statistics.
_DERIVED = re.compile(r"anchor_generator\.|pixel_(mean|std)$|.*\.num_batches_tracked$")


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
    weights = state_dict.get("model", state_dict)
    names = {name.removeprefix("module."): name for name in weights}
    converted = {new: weights[old] for new, old in names.items() if not _DERIVED.match(new)}
    if not any(name.startswith("head.cls_score") for name in converted):
        raise ValueError(
            f"no weights of a DeFCN release: 'head.cls_score' is missing among {len(names)} names "
            f"(first: {', '.join(list(names)[:3]) or 'none'})"
        )
    return converted
