"""A deployed detector as the content of a file: ONNX or an exported program."""

import contextlib
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from ..ops import standard_operators
from ..utils.detectron2_compat import is_operator
from ..utils.errors import UserError
from .detector import DeployedDetector
from .onnx_graph import check_graph, serialized

Outputs = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, k, 4), scores (N, k), classes (N, k)."""

OUTPUT_NAMES = ("boxes", "scores", "classes")
OPSET = 18
"""Operator set of the ONNX file: the exporter's own; newer ones add nothing that is used."""

MIN_TORCH = (2, 10)
EXTRA = 'pip install "defcn-d2[export]"'


@dataclass(frozen=True)
class Artifact:
    """An exported model, and its program in its own runtime.

    Attributes:
        content: of the file.
        run: the file's own program, loaded by its runtime, on a batch (N, C, H, W) float32.
        operators: how many of each kind its graph holds.
    """

    content: bytes
    run: Callable[[Tensor], Outputs]
    operators: Counter[str]


def export_onnx(detector: DeployedDetector, metadata: Mapping[str, str]) -> Artifact:
    """An ONNX model of standard operators, with ``metadata`` among its properties.

    Raises:
        UserError: a package of the extra is missing.
        RuntimeError: the graph has an operator that is not standard, or control flow.
    """
    onnxruntime = require_onnx()
    program = export_program(detector)
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(OUTPUT_NAMES),
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert converted is not None
    model = converted.model_proto
    operators = check_graph(model)
    content = serialized(model, metadata)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as PyTorch, for comparisons
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Outputs:
        boxes, scores, classes = session.run(OUTPUT_NAMES, {"images": images.numpy()})
        return torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes)

    return Artifact(content, run, operators)


def export_exported(detector: DeployedDetector, metadata: Mapping[str, str]) -> Artifact:
    """A program for ``torch.export.load`` (.pt2), with ``metadata`` as its file metadata.json."""
    program = export_program(detector)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
    operators = Counter(
        _operator_name(node.target) for node in program.graph.nodes if node.op == "call_function"
    )
    return Artifact(buffer.getvalue(), _without_gradient(loaded), operators)


FORMATS: dict[str, Callable[[DeployedDetector, Mapping[str, str]], Artifact]] = {
    "onnx": export_onnx,
    "exported": export_exported,
}


def export_program(detector: DeployedDetector) -> ExportedProgram:
    """The detector as a graph of ATen operators, for any number and size of images."""
    sizes = {0: Dim("batch"), 2: Dim("height"), 3: Dim("width")}
    with torch.no_grad(), standard_operators(), _any_size(), _quiet():
        program = torch.export.export(
            detector,
            (_example(detector),),
            dynamic_shapes={"images": sizes},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    # Each says that some map has more than one cell, which holds for the example and mattered to
    # nothing but the choice of memory formats; the verification tries maps of a single cell.
    for node in list(program.graph.nodes):
        if node.op == "call_function" and "assert" in str(node.target):
            program.graph.erase_node(node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def require_onnx() -> ModuleType:
    """onnxruntime.

    Raises:
        UserError: it, or another package of the extra, is missing or too old.
    """
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < MIN_TORCH:
        raise UserError(
            f"torch {torch.__version__} is too old for --format onnx, which needs "
            f"{'.'.join(map(str, MIN_TORCH))}; update it, or take --format exported"
        )
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx: {error}; install what it needs: {EXTRA}") from error
    return onnxruntime


def _example(detector: DeployedDetector) -> Tensor:
    """Two images with several cells on every level, of sizes that differ and divide by nothing."""
    coarsest = max(detector.strides)
    height, width = 2 * coarsest + 13, 3 * coarsest - 21
    generator = torch.Generator().manual_seed(0)
    channels = len(detector.pixel_mean)
    return 255 * torch.rand(2, channels, height, width, generator=generator)


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Sizes that are 1 are treated as any other while a graph is made.

    Its maker's memory of operators, which costs more than it saves with symbolic sizes, is off.
    """
    import torch._dynamo.config as dynamo
    import torch.fx.experimental._config as symbols

    saved = symbols.backed_size_oblivious, dynamo.fake_tensor_cache_enabled
    symbols.backed_size_oblivious, dynamo.fake_tensor_cache_enabled = True, False
    try:
        yield
    finally:
        symbols.backed_size_oblivious, dynamo.fake_tensor_cache_enabled = saved


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' warnings: their work is verified afterwards."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _without_gradient(module: Callable[[Tensor], Outputs]) -> Callable[[Tensor], Outputs]:
    def run(images: Tensor) -> Outputs:
        with torch.no_grad():
            return module(images)

    return run


def _operator_name(target: object) -> str:
    name = str(target) if is_operator(target) else ""
    return name.rpartition(".")[0] or getattr(target, "__name__", str(target))
