"""Yaml files whose aliases stand for no more than a config can hold."""

import io
from typing import IO

import yaml
from detectron2.config import CfgNode

MAX_VALUES = 100_000
"""Of a file with all aliases written out; Detectron2's whole config has some 400."""


class BoundedYaml(CfgNode):
    """``BoundedYaml.load_yaml_with_base(file)`` is Detectron2's, but refuses bombs.

    Ten lines of lists, each of ten aliases of the one before, are ten thousand million values for
    whoever copies or prints them. The files of ``_BASE_`` are looked at as well.
    """

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        with super()._open_cfg(filename) as file:
            text = file.read()
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None and _size(root, {}) > MAX_VALUES:
            raise yaml.YAMLError(
                f"its aliases stand for more than {MAX_VALUES:,} values; write out what is needed"
            )
        return io.StringIO(text)


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Values of a node with its aliases written out; infinity where it holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is known
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]
