"""Rows of ``deploy``: a detector in PyTorch and, exported, in other runtimes."""

from __future__ import annotations

import functools
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks import deploy_models
from benchmarks.deploy_models import Peer
from defcn_d2.export import artifacts

PYTORCH, ONNX, ONNX_INT8 = "PyTorch", "onnxruntime", "onnxruntime INT8"
OPENVINO, OPENVINO_INT8 = "OpenVINO", "OpenVINO INT8"
_ONNX = ("onnx", "onnxscript", "onnxruntime")
#: Runtime to the packages that it needs.
RUNTIMES: dict[str, tuple[str, ...]] = {
    PYTORCH: (),
    ONNX: _ONNX,
    ONNX_INT8: _ONNX,
    OPENVINO: (*_ONNX, "openvino"),
    OPENVINO_INT8: (*_ONNX, "openvino", "nncf"),
}
TOLERANCE = 1e-3  # of scores in float32


@dataclass
class Row:
    """A detector in a runtime.

    Attributes:
        call: image to detections.
        ending: what follows the head alone, where it can be called.
        inside: seconds of that in each call, where the detector notes them.
    """

    call: Callable[[], Any]
    ending: Callable[[], Any] | None = None
    inside: list[float] = field(default_factory=list)


def lacking(runtime: str) -> list[str]:
    """Packages for a runtime that are not installed."""
    return [name for name in RUNTIMES[runtime] if importlib.util.find_spec(name) is None]


def of_ours(
    peer: Peer, runtimes: list[str], images: list[Tensor], clock: Callable[[], float]
) -> dict[str, Row]:
    """A detector of this project and its exports, which give the same before they are timed."""
    image = images[0][None]
    detector = deploy_models.OneSize(peer, images[0])
    with torch.no_grad():
        scores = detector(image)[1]
    rows = {}
    if PYTORCH in runtimes:
        rows[PYTORCH] = _eager(peer, clock)
    exports = [runtime for runtime in runtimes if runtime != PYTORCH]
    graph = artifacts.onnx_model(detector) if exports else None
    ending = _ending(detector, image) if exports else None
    for runtime in exports:
        export = artifacts.export_openvino if "OpenVINO" in runtime else artifacts.export_onnx
        int8 = [x[None] for x in images] if "INT8" in runtime else []
        artifact = export(detector, {}, int8, graph)
        found = artifact.run(image)[1]
        assert found.shape == scores.shape and found.isfinite().all()
        if not int8:
            _assert_close(found, scores)
        rows[runtime] = Row(functools.partial(artifact.run, image), ending)
    return rows


def of_others(peer: Peer, runtimes: list[str], clock: Callable[[], float]) -> dict[str, Row]:
    """Another detector; of torchvision's SSD the export as well."""
    rows = {PYTORCH: _eager(peer, clock)} if PYTORCH in runtimes else {}
    if ONNX in runtimes and deploy_models.is_ssd(peer.model):
        session = _session(_traced(peer.model, {"images": peer.inputs[0]}, [peer.inputs]))
        feed = {session.get_inputs()[0].name: peer.inputs[0].numpy()}
        rows[ONNX] = Row(functools.partial(session.run, None, feed))
        found = [torch.from_numpy(x) for x in rows[ONNX].call()]
        scores = next(x for x in found if x.ndim == 1 and x.is_floating_point())
        _assert_close(scores, peer()[0]["scores"])
    return rows


def _eager(peer: Peer, clock: Callable[[], float]) -> Row:
    peer.time_after_head(clock)
    return Row(peer, inside=peer.seconds)


def _ending(detector: Any, image: Tensor) -> Callable[[], Any]:
    """The end of the graph, after the head, on one image's outputs, by onnxruntime."""
    with torch.no_grad():
        predictions = detector.detector.predict(detector._preprocess(image))[1]
    inputs = {"logits": predictions.cls_logits, "boxes": predictions.boxes, "images": image}
    session = _session(_traced(deploy_models.Ending(detector).eval(), inputs, inputs.values()))
    names = {x.name for x in session.get_inputs()}
    values = {name: x.contiguous().numpy() for name, x in inputs.items() if name in names}
    return functools.partial(session.run, None, values)


def _traced(model: Any, names: Iterable[str], inputs: Iterable[Any]) -> bytes:
    """ONNX by the exporter that takes torchvision's loops and NMS."""
    buffer: Any = io.BytesIO()  # which the types do not know, but the documentation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            tuple(inputs),
            buffer,
            dynamo=False,
            opset_version=artifacts.OPSET,
            input_names=list(names),
        )
    return buffer.getvalue()


def _assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)


def _session(content: bytes) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
