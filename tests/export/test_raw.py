"""Graphs that end at scores and boxes, of every config; the demo with such a file."""

from __future__ import annotations

import functools
import json
import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers import make_cfg
from test_export import TINY, batches, metadata, random_model
from test_onnx_demo import onnx_demo

import defcn_d2
from defcn_d2 import export
from defcn_d2.export import verification
from defcn_d2.export.export_command import input_size, parse_arguments
from defcn_d2.export.raw_detector import fitted
from defcn_d2.ops import (
    overlap_with_better,
    overlap_with_better_reference,
    standard_operators,
)
from defcn_d2.utils.errors import UserError

SIZE = (96, 128)
CONFIGS = [name for name in defcn_d2.config_names() if name.startswith("shapes/")]
# Operators of raw graphs. All are in the list of those that TensorRT supports, docs/operators.md of
# onnx-tensorrt.
ALLOWED = {
    *("Add", "Clip", "Concat", "Conv", "Div", "Exp", "InstanceNormalization", "Max", "MaxPool"),
    *("Mul", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Sqrt", "Squeeze", "Sub"),
    *("Transpose", "Unsqueeze"),
    # of heads that compare neighbours
    *("And", "Equal", "Greater", "GreaterOrEqual", "Log", "Min", "Neg", "Pad", "ReduceMax"),
    *("Split", "Where"),
    # of heads that predict distributions
    *("ReduceSum", "Softmax"),
}


def structure(config: str) -> str:
    """What tells the graphs of two configs apart."""
    model = build_model(make_cfg(f"{config}.yaml", *TINY))
    parts = [model.backbone, model.neck, model.head, model.prior_generator, model.predictions]
    settings = {k: v for k, v in vars(model.head).items() if not k.startswith("_")}
    return re.sub(r"0x\w+", "", f"{parts} {settings}")


@functools.cache
def kinds_of_graph() -> dict[str, list[str]]:
    """The configs by graph; the first stands for all."""
    groups: dict[str, list[str]] = {}
    for config in CONFIGS:
        groups.setdefault(structure(config), []).append(config)
    return {configs[0]: configs for configs in groups.values()}


@functools.cache
def exported(config: str) -> tuple[export.DeployedDetector, export.Artifact]:
    detector = export.DeployedDetector(random_model(config), topk=50)
    return detector, export.export_onnx(export.RawDetector(detector, SIZE), metadata())


def test_every_config_has_a_graph_that_is_tested():
    tested = [config for configs in kinds_of_graph().values() for config in configs]
    assert sorted(tested) == sorted(CONFIGS) and len(CONFIGS) > 10


@pytest.mark.parametrize("config", kinds_of_graph())
def test_operators_of_raw_graphs(config):
    """None that looks at sizes, gathers or sorts; one size of every tensor."""
    import onnx

    reference, artifact = exported(config)
    assert set(artifact.operators) <= ALLOWED, set(artifact.operators) - ALLOWED
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(artifact.content))
    sizes = {
        value.name: tuple(side.dim_value for side in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output, *model.graph.value_info)
    }
    assert all(0 not in shape for shape in sizes.values())
    locations = sizes["scores"][1]
    assert sizes["images"] == (1, 3, *SIZE) and sizes["boxes"] == (1, locations, 4)
    assert {x.data_type for x in model.graph.initializer} <= {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT64,
    }  # shapes and axes; TensorRT has no double
    difference = verification.verify_artifact(artifact, reference, batches((2, *SIZE)))
    assert difference.compared > 50


@pytest.mark.parametrize("kind, half", [("exported", False), ("exported", True)])
def test_raw_programs(kind, half):
    model = random_model("shapes/POTO-3DMF")
    reference = export.DeployedDetector(model, topk=50)
    deployed = export.DeployedDetector(model, topk=50, half=half)
    artifact = export.FORMATS[kind](export.RawDetector(deployed, SIZE), metadata(), [])
    tolerance = verification.tolerance_of("float16" if half else "float32")
    assert verification.verify_artifact(
        artifact, reference, batches((2, *SIZE)), tolerance
    ).compared
    refused = re.compile(r"topk|gather|index|arange|expand|sym_size|sort")
    assert not [name for name in artifact.operators if refused.search(name)]


def test_sizes_that_do_not_divide_are_refused():
    deployed = export.DeployedDetector(random_model("shapes/POTO"), topk=5)
    with pytest.raises(UserError, match="--size is 100 40, .* multiples of 32: give 96 32"):
        export.RawDetector(deployed, (100, 40))


def test_size_of_the_config():
    arguments = ["--config-file", "x", "--format", "onnx", "--output", "x", "--raw"]
    cfg = make_cfg("POTO.yaml")
    assert input_size(parse_arguments(arguments), cfg, 32) == (800, 1344)
    own = parse_arguments([*arguments, "--size", "64", "96"])
    assert input_size(own, cfg, 32) == (64, 96)
    cfg = make_cfg("POTO.yaml", "INPUT.MIN_SIZE_TEST", 0)
    with pytest.raises(UserError, match="give --raw --size H W"):
        input_size(parse_arguments(arguments), cfg, 32)


def test_images_are_made_to_fit():
    mean = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    image = torch.full((3, 200, 100), 7.0)
    small, scale = fitted(image, (100, 80), mean)
    assert small.shape == (3, 100, 80) and scale == 0.5
    assert torch.allclose(small[:, :, :50], torch.tensor(7.0))
    assert torch.equal(small[:, :, 50:], mean.expand(3, 100, 30))
    assert fitted(image, (200, 128), mean)[1] == 1


@pytest.mark.parametrize("tau", [0, 2])
def test_peaks_of_graphs_are_those_of_the_reference(tau):
    generator = torch.Generator().manual_seed(0)
    for height, width in ((1, 1), (7, 5), (12, 9)):
        shapes = [(height, width), (-(-height // 2), -(-width // 2))]
        locations = sum(h * w for h, w in shapes)
        logits = torch.randint(-2, 3, (2, locations, 3), generator=generator).float()
        logits[logits == -2] = -torch.inf
        corners = 3 * torch.rand(2, locations, 2, generator=generator)
        sides = 4 * torch.rand(2, locations, 2, generator=generator) - 0.3  # some of none
        boxes = torch.cat([corners, corners + sides], dim=2)
        wanted = overlap_with_better_reference(logits, boxes, shapes, tau)
        with standard_operators():
            assert torch.equal(overlap_with_better(logits, boxes, shapes, tau), wanted)


def test_demo_does_the_rest(tmp_path):
    """Twelve lines of numpy against the detector, on an image that is padded."""
    detector = export.DeployedDetector(random_model("shapes/POTO"), topk=20)
    raw = export.RawDetector(detector, SIZE)
    cfg = make_cfg("shapes/POTO.yaml", *TINY, "INPUT.MIN_SIZE_TEST", 64)
    properties = export.describe(cfg, detector, SIZE)
    assert json.loads(properties["kind"]) == "raw" and json.loads(properties["size"]) == [*SIZE]
    path = tmp_path / "raw.onnx"
    path.write_bytes(export.export_onnx(raw, properties).content)
    image = cv2.resize(export.drawn_images(1)[0], (100, 64))
    found = onnx_demo.Detector(str(path), threshold=0.0)(image)
    padded, _ = fitted(
        torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)), SIZE, detector.pixel_mean
    )
    boxes, scores, _ = (values[0] for values in detector(padded[None]))
    boxes = boxes.minimum(torch.tensor([100.0, 64, 100, 64]))
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    assert np.allclose(found.scores, scores[kept].numpy(), atol=1e-4)
    assert np.allclose(found.boxes, boxes[kept].numpy(), atol=0.05) and len(found.boxes) > 5
    portrait = onnx_demo.Detector(str(path), threshold=0.0)(cv2.resize(image, (64, 200)))
    assert (portrait.boxes <= [64, 200, 64, 200]).all() and len(portrait.boxes) > 5
