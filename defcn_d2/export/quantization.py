"""INT8 by post-training quantisation: scales from images, weights by channel."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    import onnx

INPUT = "images"
#: Convolutions at the start that stay in float32. EfficientNet-Lite0 on photographs of blood cells
#: has 55.7 AP in float32 and so, and 45.6 without (tools/compare_exports.py).
FIRST = 3


def quantize_onnx(
    model: onnx.ModelProto, images: Sequence[Tensor], keep: Sequence[str] | None = None
) -> onnx.ModelProto:
    """The model with its convolutions in INT8, as pairs of QuantizeLinear and DequantizeLinear.

    Zero points are 0 everywhere, as TensorRT needs them.

    Args:
        model: in float32.
        images: (1, C, H, W) float32 each.
        keep: names of the nodes that stay as they are; None: the ``FIRST`` convolutions and
            ``last_convolutions``.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.rest, None)
            return None if image is None else {INPUT: image.numpy()}

    if keep is None:
        convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
        keep = [*convolutions[:FIRST], *last_convolutions(model)]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        path = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            model,
            path,
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            nodes_to_exclude=list(keep),
            extra_options={"ActivationSymmetric": True},
        )
        return onnx.load(path)


def quantize_openvino(
    model: Any, images: Sequence[Tensor], keep: Sequence[str] | None = None
) -> Any:
    """The same of an ``openvino.Model``, by nncf, which leaves zero points free.

    It would quantise more than convolutions: what follows the last ones stays in float32 as well,
    as heads compare scores and boxes there.
    """
    import nncf

    if keep is None:
        convolutions = [
            node.get_friendly_name() for node in model.get_ordered_ops() if _is_convolution(node)
        ]
        keep = [*convolutions[:FIRST], *_and_what_follows(model, last_convolutions_openvino(model))]
    kept = list(keep)
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset([image.numpy() for image in images]),
            subset_size=len(images),
            ignored_scope=nncf.IgnoredScope(names=kept) if kept else None,
        )


def last_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions after which no other comes: they give scores and boxes."""
    makers = {name: node for node in model.graph.node for name in node.output}
    last = _first_found(
        [makers[output.name] for output in model.graph.output],
        lambda node: [makers[name] for name in node.input if name in makers],
        lambda node: node.op_type == "Conv",
        lambda node: node.output[0],
    )
    return sorted({node.name for node in last})


def last_convolutions_openvino(model: Any) -> list[str]:
    """The same of an ``openvino.Model``."""
    last = _first_found(
        model.get_results(),
        lambda node: [value.get_node() for value in node.input_values()],
        _is_convolution,
        lambda node: node.get_friendly_name(),
    )
    return sorted({node.get_friendly_name() for node in last})


def _is_convolution(node: Any) -> bool:
    return node.get_type_name() in ("Convolution", "GroupConvolution")


def _and_what_follows(model: Any, names: Sequence[str]) -> list[str]:
    """These operators of an ``openvino.Model``, and all that depend on them, but the results."""
    found = dict.fromkeys(names)
    for node in model.get_ordered_ops():  # inputs come first
        inputs = (value.get_node().get_friendly_name() for value in node.input_values())
        if node.get_type_name() != "Result" and any(name in found for name in inputs):
            found[node.get_friendly_name()] = None
    return list(found)


def _first_found(
    nodes: Iterable[Any],
    inputs: Callable[[Any], list[Any]],
    wanted: Callable[[Any], bool],
    name: Callable[[Any], str],
) -> Iterator[Any]:
    """The wanted nodes met first on every way from ``nodes`` towards the input of a graph."""
    seen, waiting = set(), list(nodes)
    while waiting:
        node = waiting.pop()
        if name(node) in seen:
            continue
        seen.add(name(node))
        if wanted(node):
            yield node
        else:
            waiting += inputs(node)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
