"""A deployed detector as the content of a file: ONNX, OpenVINO or an exported program."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..ops import standard_operators
from ..utils.detectron2_compat import is_operator
from ..utils.errors import UserError
from .detector import DeployedDetector, Outputs
from .onnx_graph import check_graph, serialized
from .quantization import quantize_onnx, quantize_openvino
from .raw_detector import RawDetector

if TYPE_CHECKING:
    import onnx

Detector = DeployedDetector | RawDetector
OPSET = 18
"""Operator set of the ONNX file: the exporter's own; newer ones add nothing that is used."""

MIN_TORCH = (2, 10)
PROPERTIES = "defcn_d2"
"""The section of an OpenVINO file that holds the properties."""


@dataclass(frozen=True)
class Artifact:
    """An exported model, and its program in its own runtime.

    Attributes:
        content: of the file.
        run: the file's own program, loaded by its runtime, on a batch (N, C, H, W) float32.
        operators: how many of each kind its graph holds.
        weights: content of the .bin file beside it, of the format that has one.
    """

    content: bytes
    run: Callable[[Tensor], Outputs]
    operators: Counter[str]
    weights: bytes | None = None


def export_onnx(
    detector: Detector,
    metadata: Mapping[str, str],
    calibration: Sequence[Tensor] = (),
    model: onnx.ModelProto | None = None,
) -> Artifact:
    """An ONNX model of standard operators, with ``metadata`` among its properties.

    Args:
        calibration: images (1, C, H, W) float32 that say which values occur, for a model in INT8;
            none: in the detector's own precision.
        model: of ``onnx_model``, which is left as it is; None: it is made.

    Raises:
        UserError: a package of the extra is missing.
        RuntimeError: the graph has an operator that is not standard, or control flow.
    """
    onnxruntime = require_onnx()
    model = onnx_model(detector) if model is None else copy.deepcopy(model)
    if calibration:
        model = quantize_onnx(model, calibration)
    operators = check_graph(model)
    content = serialized(model, metadata)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as PyTorch, for comparisons
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> list[Tensor]:
        outputs = session.run(detector.output_names, {"images": images.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return Artifact(content, _to_detections(detector, run), operators)


def export_openvino(
    detector: Detector,
    metadata: Mapping[str, str],
    calibration: Sequence[Tensor] = (),
    model: onnx.ModelProto | None = None,
) -> Artifact:
    """OpenVINO's .xml and .bin, made of the ONNX model; arguments and errors as there."""
    openvino = require_openvino(bool(calibration))
    core = openvino.Core()
    source = onnx_model(detector) if model is None else copy.deepcopy(model)
    made = core.read_model(serialized(source, {}))
    if calibration:
        made = quantize_openvino(made, calibration)
    for name, value in metadata.items():
        made.set_rt_info(value, [PROPERTIES, name])
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(made, f"{folder}/model.xml", compress_to_fp16=False)
        content, weights = (Path(folder, f"model.{x}").read_bytes() for x in ("xml", "bin"))
    loaded = core.read_model(content, weights)
    # the processor would take bfloat16 where it can, and as many threads as it likes
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(loaded, "CPU", hints)

    def run(images: Tensor) -> list[Tensor]:
        outputs = compiled(images.numpy())
        return [torch.from_numpy(outputs[name].copy()) for name in detector.output_names]

    operators = Counter(node.get_type_name() for node in loaded.get_ops())
    for name in ("Constant", "Parameter", "Result"):
        del operators[name]
    return Artifact(content, _to_detections(detector, run), operators, weights)


def export_exported(
    detector: Detector, metadata: Mapping[str, str], calibration: Sequence[Tensor] = ()
) -> Artifact:
    """A program for ``torch.export.load`` (.pt2), with ``metadata`` as its file metadata.json.

    Raises:
        UserError: there is ``calibration``, but no INT8 of this format.
    """
    if calibration:
        raise UserError("--format exported has no INT8: leave --int8 out, or give another format")
    program = export_program(detector)
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
        buffer.seek(0)
        loaded: Any = torch.export.load(buffer).module()
    operators = Counter(
        _operator_name(node.target) for node in program.graph.nodes if node.op == "call_function"
    )

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(loaded(images))

    return Artifact(buffer.getvalue(), _to_detections(detector, run), operators)


FORMATS: dict[str, Callable[[Detector, Mapping[str, str], Sequence[Tensor]], Artifact]] = {
    "onnx": export_onnx,
    "openvino": export_openvino,
    "exported": export_exported,
}


def onnx_model(detector: Detector) -> onnx.ModelProto:
    """The detector as ONNX has it, constants folded."""
    require_onnx()
    program = export_program(detector)
    with _quiet():
        converted = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["images"],
            output_names=list(detector.output_names),
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert converted is not None
    return converted.model_proto


def _to_detections(
    detector: Detector, run: Callable[[Tensor], list[Tensor]]
) -> Callable[[Tensor], Outputs]:
    """``run`` on as many images as the graph takes, and what is left to do afterwards."""

    def run_batch(images: Tensor) -> Outputs:
        parts = images.split(1) if isinstance(detector, RawDetector) else [images]
        found = [detector.detections(run(part.contiguous()), part) for part in parts]
        boxes, scores, classes = (torch.cat(values) for values in zip(*found))
        return boxes, scores, classes

    return run_batch


def export_program(detector: Detector) -> ExportedProgram:
    """The detector as a graph of ATen operators."""
    with torch.no_grad(), standard_operators(), _any_size(), _quiet():
        program = torch.export.export(
            detector,
            (detector.example(),),
            dynamic_shapes=detector.dynamic_shapes(),
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
            f"torch {torch.__version__} is too old for ONNX, which needs "
            f"{'.'.join(map(str, MIN_TORCH))}; update it, or take --format exported"
        )
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise missing(error, "ONNX", "export") from error
    return onnxruntime


def require_openvino(int8: bool) -> ModuleType:
    """openvino.

    Raises:
        UserError: it is missing, or what ONNX needs, or nncf for INT8.
    """
    require_onnx()
    try:
        import openvino

        if int8:
            import nncf  # noqa: F401
    except ImportError as error:
        raise missing(error, "OpenVINO", "openvino") from error
    return openvino


def missing(error: ImportError, what: str, extra: str) -> UserError:
    """The sentence for a package of an extra that is not installed."""
    return UserError(f'{what}: {error}; install what it needs: pip install "defcn-d2[{extra}]"')


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


def _operator_name(target: object) -> str:
    name = str(target) if is_operator(target) else ""
    return name.rpartition(".")[0] or getattr(target, "__name__", str(target))
