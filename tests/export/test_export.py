"""``tools/export.py``: graphs against the model, on any number and size of images; mistakes."""

from __future__ import annotations

import builtins
import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from coco_files import write_set
from detectron2.modeling import build_model
from helpers import ROOT, make_cfg
from tiny_data import CONFIG, TINY_MODEL
from torch import nn

from defcn_d2 import export
from defcn_d2.config.load import load_config
from defcn_d2.export import artifacts, onnx_graph, verification
from defcn_d2.export import export_command as command_line
from defcn_d2.export.detector import DeployedDetector, GridPriors
from defcn_d2.utils.errors import UserError

TINY = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.FPN.OUT_CHANNELS", 64]
TINY += ["MODEL.DEFCN.NUM_CONVS", 1]
# 3DMF; plain; anchors; centerness with NMS; one class, whose smallest images have few candidates;
# distributions
CONFIGS = ["shapes/POTO-3DMF", "shapes/POTO", "shapes/Anchor", "shapes/FCOS", "shapes_crowd/POTO"]
CONFIGS += ["shapes/POTO-GFL"]


def random_model(config: str, *opts: object) -> nn.Module:
    """A narrow model whose scores and boxes differ everywhere, as a trained one's."""
    torch.manual_seed(0)
    model = build_model(make_cfg(f"{config}.yaml", *TINY, *opts)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that folding has to get right
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    for name in ("cls_score", "bbox_pred", "filter", "centerness"):
        if hasattr(model.head, name):
            nn.init.normal_(getattr(model.head, name).weight, std=0.1)
    nn.init.constant_(model.head.bbox_pred.bias, 1.0)
    return model


def batches(*shapes: tuple[int, int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [255 * torch.rand(n, 3, h, w, generator=generator) for n, h, w in shapes]


SIZES = [(1, 96, 128), (3, 70, 45), (2, 1, 33), (1, 300, 131)]


@pytest.mark.parametrize("config", CONFIGS)
def test_detector_gives_what_the_model_gives(config):
    model = random_model(config)
    deployed = DeployedDetector(model, topk=50)
    difference = verification.verify_deployed(model, deployed, batches(*SIZES))
    assert difference.compared > 100 and difference.missing == 0


def test_detector_leaves_the_model_as_it_was():
    model = random_model("shapes/POTO-3DMF")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    DeployedDetector(model, topk=5, half=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert len(model.criteria) > 0 and next(model.parameters()).requires_grad


def test_detector_always_gives_k():
    """More than the smallest image has candidates: empty boxes of score 0 at the end."""
    model = random_model("shapes_crowd/POTO")
    boxes, scores, classes = DeployedDetector(model, topk=100)(batches((2, 20, 31))[0])
    assert boxes.shape == (2, 100, 4) and classes.dtype == torch.int64
    # padded to 32 x 32: 16, 4, 1, 1 and 1 locations
    assert (scores[:, :23] > 0).all() and (scores[:, 23:] == 0).all()
    assert (boxes[:, 23:] == 0).all() and (classes == 0).all()
    assert (boxes >= 0).all() and (boxes <= torch.tensor([31, 20, 31, 20])).all()


@pytest.mark.parametrize("config", ["shapes/POTO", "shapes_crowd/POTO", "shapes/POTO-3DMF"])
def test_the_best_are_chosen_by_their_scores(config):
    """Also where logits are chosen from, and the scores of the rest are never computed."""
    detector = DeployedDetector(random_model(config), topk=50)
    (images,) = batches((2, 64, 96))
    _, predictions = detector.detector.predict(detector._preprocess(images).float())
    wanted = detector.best(predictions.scores(), predictions.boxes, images)
    for found, value in zip(detector(images), wanted, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-6, atol=0)


def test_detector_stretches_images():
    model = random_model("shapes/POTO")
    (batch,) = batches((2, 64, 96))
    stretched = DeployedDetector(model, topk=50, resize=(128, 192))
    difference = verification.verify_deployed(model, stretched, [batch])
    assert difference.compared > 50
    plain = DeployedDetector(model, topk=50)
    assert not torch.allclose(stretched(batch)[1], plain(batch)[1], atol=1e-3)


def test_priors_are_those_of_detectron2():
    for config in ("shapes/Anchor", "shapes/POTO"):
        generator = random_model(config).prior_generator
        maps = [torch.zeros(1, 1, h, w) for h, w in ((7, 5), (4, 3), (2, 2), (1, 1), (1, 1))]
        for ours, theirs in zip(GridPriors(generator)(maps), generator(maps), strict=True):
            assert torch.equal(ours.tensor, theirs.tensor)


# ------------------------------------------------------------------------------ the formats


def metadata() -> dict[str, str]:
    return {"version": "1", "config": "", "class_names": '["é"]'}


@pytest.mark.parametrize(
    "config, name, half",
    [
        ("shapes/POTO-3DMF", "onnx", False),
        ("shapes/POTO-3DMF", "exported", False),
        ("shapes/Anchor", "exported", False),
        ("shapes/POTO-GFL", "onnx", False),
        ("shapes/POTO-GFL", "exported", True),
        ("shapes_crowd/POTO", "exported", True),
    ],
)
def test_files_give_what_the_model_gives(config, name, half):
    model = random_model(config)
    reference = DeployedDetector(model, topk=50)
    detector = DeployedDetector(model, topk=50, half=half)
    artifact = export.FORMATS[name](detector, metadata())
    tolerance = verification.tolerance_of("float16" if half else "float32")
    difference = verification.verify_artifact(artifact, reference, batches(*SIZES), tolerance)
    assert difference.compared > (10 if half else 100)
    assert sum(artifact.operators.values()) > 50
    assert not any("defcn_d2" in operator for operator in artifact.operators)
    if name == "onnx":
        check_onnx_file(artifact, half=False, sizes=("batch", 3, "height", "width"))


@pytest.mark.parametrize("config", ["shapes/POTO-3DMF", "shapes/FCOS"])
def test_one_class_a_location(config):
    """Graphs have the model's rule inside, those without top-k too."""
    model = random_model(
        config, "TEST.ONE_CLASS_PER_LOCATION", True, "MODEL.DEFCN.NMS_TYPE", "none"
    )
    reference = DeployedDetector(model, topk=50)
    assert verification.verify_deployed(model, reference, batches(*SIZES)).compared > 100
    images = batches((2, 64, 96))[0]
    with torch.no_grad():
        _, predictions = reference.detector.predict(images)
    assert ((predictions.scores() > 0).sum(dim=2) == 1).all()
    artifact = export.export_onnx(reference, metadata())
    assert verification.verify_artifact(artifact, reference, batches(*SIZES)).compared > 100
    raw = export.export_onnx(export.RawDetector(reference, (64, 96)), metadata())
    assert verification.verify_artifact(raw, reference, [images]).compared > 20


def check_onnx_file(artifact: export.Artifact, half: bool, sizes: tuple[int | str, ...]) -> None:
    import onnx

    model = onnx.load_from_string(artifact.content)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": artifacts.OPSET}
    assert {p.key: p.value for p in model.metadata_props} == metadata()
    (image,) = model.graph.input
    assert tuple(d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim) == sizes
    types = {output.name: output.type.tensor_type.elem_type for output in model.graph.output}
    proto = onnx.TensorProto
    assert types == {"boxes": proto.FLOAT, "scores": proto.FLOAT, "classes": proto.INT64}
    weights = {x.data_type for x in model.graph.initializer if len(x.dims) == 4 and x.dims[2] == 3}
    assert weights == {proto.FLOAT16 if half else proto.FLOAT}
    assert artifact.operators["TopK"] == 1 and not artifact.operators["BatchNormalization"]
    assert str(ROOT).encode() not in artifact.content  # no stack traces of this machine


def test_onnx_of_a_fixed_size_in_half_precision():
    """Stretching inside: the feature maps have sizes known at export."""
    model = random_model("shapes/POTO")
    reference = DeployedDetector(model, topk=50, resize=(96, 128))
    detector = DeployedDetector(model, topk=50, resize=(96, 128), half=True)
    artifact = export.export_onnx(detector, metadata())
    check_onnx_file(artifact, half=True, sizes=("batch", 3, "height", "width"))
    images = batches((1, 50, 60), (3, 200, 111))
    tolerance = verification.tolerance_of("float16")
    assert verification.verify_artifact(artifact, reference, images, tolerance).compared > 10


def test_graphs_with_control_flow_are_refused():
    from onnx import helper

    def model_of(*nodes: Any) -> Any:
        return helper.make_model(helper.make_graph(list(nodes), "g", [], []))

    relu = helper.make_node("Relu", ["x"], ["y"])
    assert onnx_graph.check_graph(model_of(relu, relu)) == Counter(Relu=2)
    for name, domain in (("If", ""), ("NonMaxSuppression", ""), ("MaxFilter", "defcn_d2")):
        node = helper.make_node(name, ["x"], ["z"], domain=domain)
        with pytest.raises(RuntimeError, match=f"the ONNX graph holds {domain or name}"):
            onnx_graph.check_graph(model_of(relu, node))


def test_a_model_too_large_for_a_file_is_refused(monkeypatch):
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    relu = helper.make_node("Relu", ["x"], ["y"])
    graph = helper.make_graph([relu], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert len(onnx_graph.serialized(model, {})) > 20
    monkeypatch.setattr(onnx_graph, "MAX_BYTES", 20)
    with pytest.raises(RuntimeError, match="and an ONNX file holds 2: export with --fp16"):
        onnx_graph.serialized(model, {})


# ----------------------------------------------------------------------------- verification


@pytest.mark.parametrize("index, name", list(enumerate(DeployedDetector.output_names)))
def test_wrong_outputs_are_refused(index, name):
    reference = DeployedDetector(random_model("shapes/POTO"), topk=20)

    def wrong(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = [x.clone() for x in reference(images)]
        outputs[index][:, 0] += 1
        return tuple(outputs)

    artifact = export.Artifact(b"", wrong, Counter())
    with pytest.raises(export.VerificationError, match=f"do not agree on images .*'{name}' differ"):
        verification.verify_artifact(artifact, reference, batches((1, 96, 128)))
    fewer = export.Artifact(b"", lambda x: tuple(y[:, :5] for y in reference(x)), Counter())
    with pytest.raises(export.VerificationError, match="outputs of shapes"):
        verification.verify_artifact(fewer, reference, batches((1, 96, 128)))


def test_a_detector_that_is_not_the_model_is_refused():
    model = random_model("shapes/POTO")
    deployed = DeployedDetector(model, topk=20)
    deployed.pixel_mean += 50
    with pytest.raises(export.VerificationError, match=r"DeFCN.forward do not agree"):
        verification.verify_deployed(model, deployed, batches((1, 96, 128)))


def test_batches_for_verification():
    images = export.drawn_images(2)
    made = export.make_batches(images, 800, 1333, "RGB")
    assert [len(batch) for batch in made] == [1, 2, 3]
    assert made[0].shape[2:] == (800, 1066) and made[1].shape[2] > made[1].shape[3]
    expected = cv2.resize(images[0], (1066, 800))[:, :, ::-1].transpose(2, 0, 1)
    assert np.array_equal(made[0][0].numpy(), expected)
    assert made[0].mean() > 10  # of 255, not of 1
    assert [x.shape[1] for x in export.make_batches(images, 64, 96, "L")] == [1, 1, 1]


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = str(tmp_path_factory.mktemp("weights") / "model.pth")
    model = build_model(make_cfg("shapes/POTO-3DMF-Aux.yaml", *TINY_MODEL[2:8]))
    torch.save({"model": model.state_dict()}, path)
    return path


def run(weights: str, *arguments: object) -> int:
    opts = [*TINY_MODEL, "MODEL.WEIGHTS", weights]
    return export.run(["--config-file", CONFIG, *map(str, arguments), *opts])


def instant(
    detector: DeployedDetector, properties: dict[str, str], calibration: Any = ()
) -> export.Artifact:
    """A format whose file holds the properties alone."""
    return export.Artifact(json.dumps(properties).encode(), detector, Counter())


def test_command(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "latency", lambda run, batch: run(batch)[1].numel())
    target = tmp_path / "new" / "model.pt2"
    cv2.imwrite(str(tmp_path / "a.png"), export.drawn_images(1)[0])
    arguments = ["--format", "exported", "--output", target, "--topk", 7, "--benchmark"]
    assert run(weights, *arguments, "--images", tmp_path / "*.png") == 0
    output = capsys.readouterr().out
    assert "PyTorch, DeFCN.forward: " in output and "aten.topk 1" in output
    assert "latency for images 1 x 3 x 64 x 85" in output and "NMS" not in output
    extra = {"metadata.json": ""}
    program = torch.export.load(target, extra_files=extra).module()
    boxes, scores, classes = program(torch.rand(2, 3, 50, 60))
    assert boxes.shape == (2, 7, 4) and scores.shape == classes.shape == (2, 7)
    properties = json.loads(extra["metadata.json"])
    assert json.loads(properties["class_names"])[0] == "ellipse"
    assert json.loads(properties["strides"]) == [8, 16, 32, 64, 128]
    assert "QUALITY_BRANCH: filter" in properties["config"]
    assert os.listdir(target.parent) == ["model.pt2"]


def test_command_says_that_nms_remains(tmp_path, capsys, monkeypatch):
    path = tmp_path / "fcos.pth"
    torch.save({"model": random_model("shapes/FCOS").state_dict()}, path)
    config = str(ROOT / "configs" / "shapes" / "FCOS.yaml")
    arguments = ["--format", "exported", "--output", str(tmp_path / "a.pt2")]
    opts = [*map(str, TINY), "MODEL.WEIGHTS", str(path)]
    monkeypatch.setitem(export.FORMATS, "exported", instant)
    assert export.run(["--config-file", config, *arguments, *opts]) == 0
    output = capsys.readouterr().out
    assert "NMS remains to be done" in output and "the 1000 best candidates" in output
    assert json.loads((tmp_path / "a.pt2").read_bytes())["nms_threshold"] == "0.6"


@pytest.mark.parametrize("ids", [[1, 2], [3, 20]])
def test_category_ids_are_those_of_the_data(ids, tmp_path):
    """Also those with gaps, from the config alone: the annotations of the training are gone."""
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 64, "height": 48}],
        "categories": [{"id": i, "name": f"class {i}"} for i in ids],
        "annotations": [{"id": 1, "image_id": 5, "category_id": ids[1], "bbox": [4, 6, 20, 30]}],
    }
    annotations, images = write_set(tmp_path, content)
    where = "DATASETS.REGISTER.TRAIN"
    opts = [*TINY_MODEL, f"{where}.ANNOTATIONS", str(annotations), f"{where}.IMAGES", str(images)]
    config = tmp_path / "config.yaml"
    config.write_text(load_config(CONFIG, opts).dump())
    annotations.unlink()
    cfg = load_config(str(config))
    properties = export.describe(cfg, DeployedDetector(build_model(cfg), 7))
    assert json.loads(properties["category_ids"]) == ids


def test_category_ids_of_shapes():
    """Of a set that is only drawn when it is asked for."""
    cfg = load_config(CONFIG, TINY_MODEL)
    properties = export.describe(cfg, DeployedDetector(build_model(cfg), 7))
    assert json.loads(properties["category_ids"]) == [1, 2, 3, 4, 5, 6, 7]


def test_command_wants_a_whole_detector(weights, tmp_path, capsys):
    content = torch.load(weights)["model"]
    path = str(tmp_path / "backbone.pth")
    torch.save({k: v for k, v in content.items() if k.startswith("backbone.")}, path)
    assert run(path, "--format", "exported", "--output", tmp_path / "a.pt2") == 1
    assert f"error: weights {path!r} give" in capsys.readouterr().err
    assert not (tmp_path / "a.pt2").exists()


def test_failed_verification_leaves_no_file(weights, tmp_path, capsys, monkeypatch):
    def broken(detector: DeployedDetector, *rest: Any) -> export.Artifact:
        return export.Artifact(b"x", lambda x: tuple(y + 1 for y in detector(x)), Counter())

    monkeypatch.setitem(export.FORMATS, "exported", broken)
    assert run(weights, "--format", "exported", "--output", tmp_path / "model.pt2") == 1
    assert "error: the export and PyTorch do not agree" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_an_export_that_cannot_be_written_is_told(weights, tmp_path, capsys, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(export.FORMATS, "exported", instant)
    monkeypatch.setattr(command_line, "write_atomically", full)
    assert run(weights, "--format", "exported", "--output", tmp_path / "model.pt2") == 1
    error = capsys.readouterr().err
    assert "model.pt2' cannot be written" in error and "No space left on device" in error
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert run(weights, "--format", "exported", "--output", tmp_path / "model.pt2") == 1
    assert f"the folder '{tmp_path}' is not writable" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--topk", "0"], "--topk is 0: give 1 to"),
        (["--resize", "0", "9"], "--resize is 0 9: give pixels"),
        (["--images", "nowhere/*.jpg"], "--images 'nowhere/*.jpg' holds no image"),
        (["--images", "text.png"], "--images: 'text.png' cannot be read as an image"),
        (["--output", "."], "--output '.' is a folder"),
        (["--output", "text.png/a.pt2"], "--output 'text.png/a.pt2' cannot be written"),
        (["--config-file", "no.yaml"], "configuration file 'no.yaml' does not exist"),
        (["MODEL.WEIGHTS", "no.pth"], "weights 'no.pth' do not exist"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no image")
    fixed = ["--config-file", CONFIG, "--format", "exported", "--output", "a.pt2"]
    keys = [] if arguments[0].isupper() else [*TINY_MODEL, "MODEL.WEIGHTS", "x.pth"]
    assert export.run([*fixed, *arguments, *keys]) == 1
    assert sentence in capsys.readouterr().err
    assert sorted(os.listdir()) == ["text.png"]


def test_unknown_format(capsys):
    with pytest.raises(SystemExit):
        export.run(["--config-file", CONFIG, "--format", "caffe", "--output", "x"])
    assert "invalid choice: 'caffe'" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["model.pth", "link.pth", "c.yaml", "a.png"])
def test_inputs_are_not_overwritten(tmp_path, monkeypatch, capsys, output):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(f"_BASE_: {CONFIG}\n")
    for name in ("model.pth", "a.png"):
        Path(name).write_bytes(b"anything")
    os.symlink("model.pth", "link.pth")
    content = Path(output).read_bytes()
    inputs = ["--config-file", "c.yaml", "--weights", "model.pth", "--images", "."]
    monkeypatch.setattr(command_line, "Predictor", lambda *_, **__: pytest.fail("model is loaded"))
    assert export.run([*inputs, "--format", "exported", "--output", output]) == 1
    assert f"error: --output: {output!r} is an input itself" in capsys.readouterr().err
    assert Path(output).read_bytes() == content


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages_are_named(missing, monkeypatch):
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == missing:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=rf"'{missing}'.*pip install \"defcn-d2\[export\]\""):
        artifacts.require_onnx()


def test_old_torch_is_told(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.6.0+cpu")
    with pytest.raises(UserError, match="torch 2.6.0.* is too old for ONNX"):
        artifacts.require_onnx()


def test_program():
    """The script itself: a mistake is reported in one line."""
    script = str(ROOT / "tools" / "export.py")
    arguments = ["--config-file", "no.yaml", "--format", "onnx", "--output", "x"]
    result = subprocess.run(
        [sys.executable, script, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: configuration file 'no.yaml'")
