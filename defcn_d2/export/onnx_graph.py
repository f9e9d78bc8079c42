"""The ONNX graph: what it may hold, and how it becomes bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

STANDARD_DOMAINS = ("", "ai.onnx")
# Control flow, operators whose output sizes depend on the values of their inputs, and NMS.
FORBIDDEN = ("If", "Loop", "Scan", "SequenceMap", "NonZero", "NonMaxSuppression", "Unique")
MAX_BYTES = 2**31 - 1


def check_graph(model: onnx.ModelProto) -> Counter[str]:
    """Number of operators of each kind in a model of standard operators.

    Raises:
        RuntimeError: one is not of the standard's, or is control flow.
    """
    operators = Counter(node.op_type for node in _nodes(model))
    domains = {node.domain for node in _nodes(model)} - set(STANDARD_DOMAINS)
    forbidden = [name for name in FORBIDDEN if operators[name]]
    if domains or forbidden or len(model.functions):
        found = [*sorted(domains), *forbidden, *(function.name for function in model.functions)]
        raise RuntimeError(
            f"the ONNX graph holds {', '.join(found)}, which is not standard or control flow"
        )
    return operators


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    return iter(model.graph.node)


def serialized(model: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a checked model with these properties, and without traces of its making.

    Raises:
        RuntimeError: it is larger than a single file may be.
    """
    import onnx

    for node in model.graph.node:  # stack traces of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    _name_sizes(model)
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    model.producer_name, model.producer_version = "defcn_d2", metadata.get("version", "")
    onnx.helper.set_model_props(model, dict(metadata))
    if model.ByteSize() > MAX_BYTES:
        raise RuntimeError(
            f"the model has {model.ByteSize() / 2**30:.1f} GiB, and an ONNX file holds 2: "
            "export with --fp16 or to another format"
        )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _name_sizes(model: onnx.ModelProto) -> None:
    """Call the free sizes of inputs and outputs by what they are."""
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    names = dict(zip([size.dim_param for size in sizes], ("batch", "channels", "height", "width")))
    for value in (*model.graph.input, *model.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param and size.dim_param in names:
                size.dim_param = names[size.dim_param]
