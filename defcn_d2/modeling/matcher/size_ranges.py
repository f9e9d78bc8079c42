"""The distances that each level regresses (arXiv 1904.01355, section 3.2), as keys of matchers."""

from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode

from ...config.rules import list_of, value_of
from .registry import MATCHER_REGISTRY

#: Of the levels P3 to P7: smallest and largest distance in pixels, both included.
SIZE_RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, float("inf")))


def _range(key: str, value: Any) -> str | None:
    if (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and all(isinstance(x, (int, float)) for x in value)
        and value[0] < value[1]
    ):
        return None
    return f"{key} is {value!r}, but must be [smallest, largest] in pixels"


size_ranges_rule = list_of(_range)


def size_range_problems(cfg: CfgNode, key: str) -> Iterator[str]:
    """The sentence for a number of ranges that is not that of the levels.

    Args:
        key: of the node of matchers. One that has fixed its ranges is left alone.
    """
    node, levels = value_of(cfg, key), cfg.MODEL.DEFCN.IN_FEATURES
    ranges = MATCHER_REGISTRY.values_of(node).get("size_ranges", levels)
    if len(ranges) != len(levels):
        yield (
            f"{key}.{node.NAME}.SIZE_RANGES has {len(ranges)} ranges, but MODEL.DEFCN.IN_FEATURES "
            f"{len(levels)} levels; give one range a level"
        )
