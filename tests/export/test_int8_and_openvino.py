"""INT8 and OpenVINO: against the model, and their files."""

from __future__ import annotations

import json

import pytest
import torch
from test_export import batches, metadata, random_model, run, weights  # noqa: F401

from defcn_d2 import export
from defcn_d2.export import verification
from defcn_d2.export.comparison import INT8, Difference
from defcn_d2.export.quantization import FIRST, last_convolutions
from defcn_d2.utils.errors import UserError

SIZE = (64, 96)


@pytest.fixture(scope="module")
def detector() -> export.DeployedDetector:
    return export.DeployedDetector(random_model("shapes/POTO"), topk=20)


def agreement(artifact: export.Artifact, reference: export.DeployedDetector) -> float:
    """The mean distance of the scores by rank, and how those of the model are spread."""
    (images,) = batches((2, *SIZE))
    ours, theirs = artifact.run(images)[1], reference(images)[1]
    return float((ours - theirs).abs().mean() / (theirs.max() - theirs.min()))


def test_onnx_in_int8(detector):
    import onnx

    raw = export.RawDetector(detector, SIZE)
    artifact = export.export_onnx(raw, metadata(), batches((1, *SIZE), (1, *SIZE)))
    model = onnx.load_from_string(artifact.content)
    assert {p.key: p.value for p in model.metadata_props} == metadata()
    zeros = {x.input[2] for x in model.graph.node if x.op_type == "QuantizeLinear"}
    values = {x.name: onnx.numpy_helper.to_array(x) for x in model.graph.initializer}
    assert zeros and all((values[name] == 0).all() for name in zeros)  # TensorRT
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    kept = [node for node in convs if makers.get(node.input[1]) != "DequantizeLinear"]
    assert kept[:FIRST] == convs[:FIRST]
    assert len(kept) == FIRST + 10 < len(convs)  # scores and boxes of five levels
    assert all(values[node.input[1]].shape[0] in (4, 7) for node in kept[FIRST:])
    assert agreement(artifact, detector) < 0.1


def test_last_convolutions():
    from onnx import helper

    def conv(name: str, source: str) -> object:
        return helper.make_node("Conv", [source, "w"], [name], name=name)

    nodes = [conv("a", "x"), conv("b", "a"), conv("c", "a")]
    nodes += [helper.make_node("Mul", ["b", "c"], ["d"]), conv("e", "b")]
    outputs = [helper.make_tensor_value_info(name, 1, None) for name in ("d", "e")]
    model = helper.make_model(helper.make_graph(nodes, "g", [], outputs))
    assert last_convolutions(model) == ["b", "c", "e"]


def test_a_share_may_differ():
    few, many = Difference(20, missing=2, too_far=2), Difference(20, missing=3, too_far=3)
    assert few.faults(INT8) == [] and len(many.faults(INT8)) == 2


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_openvino(detector, precision):
    pytest.importorskip("openvino")
    if precision == "int8":
        pytest.importorskip("nncf")
    images = batches((1, *SIZE), (1, *SIZE)) if precision == "int8" else []
    made = detector
    if precision == "float16":
        made = export.DeployedDetector(random_model("shapes/POTO"), topk=20, half=True)
    if precision == "int8":
        made = export.RawDetector(detector, SIZE)
    artifact = export.export_openvino(made, metadata(), images)
    assert b"/tmp" not in artifact.content and artifact.weights
    assert (artifact.operators["FakeQuantize"] > 0) == (precision == "int8")
    if precision == "int8":
        assert agreement(artifact, detector) < 0.1
        return
    sizes = batches((1, 96, 128), (2, 1, 33))
    tolerance = verification.tolerance_of(precision)
    assert verification.verify_artifact(artifact, detector, sizes, tolerance).compared > 5


def test_what_follows_the_last_convolutions_stays_in_float32():
    """Peak compares scores and boxes there, which nncf would quantise."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    peak = export.DeployedDetector(random_model("shapes/Peak"), topk=20)
    raw = export.RawDetector(peak, SIZE)
    artifact = export.export_openvino(raw, metadata(), batches((1, *SIZE), (1, *SIZE)))
    model = openvino.Core().read_model(artifact.content, artifact.weights)
    before: set[str] = set()  # all that a quantised convolution still depends on
    for node in reversed(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if node.get_type_name() == "Convolution" or name in before:
            before |= {value.get_node().get_friendly_name() for value in node.input_values()}
    fakes = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    assert fakes and all(node.get_friendly_name() in before for node in fakes)
    assert agreement(artifact, peak) < 0.1


def test_openvino_by_command(weights, tmp_path, capsys):  # noqa: F811
    openvino = pytest.importorskip("openvino")
    target = tmp_path / "model.xml"
    assert run(weights, "--format", "openvino", "--output", target, "--raw") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    model = openvino.Core().read_model(target)
    assert model.get_rt_info(["defcn_d2", "kind"]).astype(str) == json.dumps("raw")
    assert run(weights, "--format", "openvino", "--output", tmp_path / "model.ir") == 1
    assert "give a name in .xml, as model.xml" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--int8", "*.png", "--fp16"], "--int8 and --fp16 are both given"),
        (["--int8", "*.png"], "--int8 '*.png' holds no image"),
        (["--size", "64", "96"], "--size is for --raw"),
        (["--raw", "--resize", "64", "96"], "--resize is not for --raw"),
    ],
)
def test_mistakes(weights, tmp_path, monkeypatch, capsys, arguments, sentence):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    assert run(weights, "--format", "exported", "--output", "a.pt2", *arguments) == 1
    assert sentence in capsys.readouterr().err


def test_exported_programs_have_no_int8(detector):
    with pytest.raises(UserError, match="has no INT8"):
        export.export_exported(detector, {}, [torch.zeros(1)])
