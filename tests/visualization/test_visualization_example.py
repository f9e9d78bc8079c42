"""``defcn_d2.visualization.example``: images as the model sees them; what cannot be drawn."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from demo_runs import tiny_weights
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.evaluation.judged import load_judged
from defcn_d2.modeling.meta_arch import DeFCN
from defcn_d2.utils.errors import UserError
from defcn_d2.visualization import example as example_module
from defcn_d2.visualization.example import load_example

GREY = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[0.0]", "MODEL.PIXEL_STD", "[1.0]"]


def config(*opts: str) -> CfgNode:
    tiny_sets()
    return load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, "MODEL.WEIGHTS", "x.pth", *opts])


@pytest.mark.parametrize("opts", [[], ["INPUT.FORMAT", "RGB"], GREY])
def test_the_model_gets_the_image_as_in_a_test(opts, tmp_path, monkeypatch) -> None:
    path = str(tmp_path / "model.pth")
    cfg = config(*opts, "MODEL.WEIGHTS", path)
    torch.save({"model": build_model(cfg).state_dict()}, path)
    preprocess, seen = DeFCN.preprocess_image, []

    def watched(self: DeFCN, inputs: list) -> object:
        seen.extend(inputs)
        return preprocess(self, inputs)

    monkeypatch.setattr(DeFCN, "preprocess_image", watched)
    example = load_example(cfg, "", "0")
    (inputs,) = seen
    expected = convert_PIL_to_numpy(Image.fromarray(example.image), cfg.INPUT.FORMAT)
    difference = inputs["image"].numpy() - expected.transpose(2, 0, 1)
    assert abs(difference).max() <= (1 if cfg.INPUT.FORMAT == "L" else 0)  # resized as grey values
    assert min(example.image.shape[:2]) == 64  # INPUT.MIN_SIZE_TEST
    record = DatasetCatalog.get("tiny_val")[0]
    scale = example.image.shape[0] / record["height"]
    boxes = torch.tensor(
        [
            BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS)
            for a in record["annotations"]
        ]
    )
    assert torch.allclose(example.gt.gt_boxes.tensor, torch.tensor(boxes) * scale, atol=0.5)
    assert len(example.predictions.boxes) == len(example.priors)


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty: give --dataset NAME"),
    ],
)
def test_what_is_missing_is_told(opts, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        load_example(config(*opts), "", "0")


def test_a_set_may_be_named() -> None:
    cfg = config("DATASETS.TEST", "()", "MODEL.WEIGHTS", tiny_weights())
    example = load_example(cfg, "tiny_train", "0")
    assert example.name == Path(DatasetCatalog.get("tiny_train")[0]["file_name"]).name


def test_extra_boxes_are_scaled_with_the_image(monkeypatch) -> None:
    record = config_record()
    for annotation in record["annotations"]:
        annotation["head_bbox"] = [2 * x for x in annotation["bbox"]]
    monkeypatch.setattr(example_module, "load_records", lambda *args, **kwargs: [record])
    cfg = config("MODEL.WEIGHTS", tiny_weights(), "DATASETS.EXTRA_BOXES", "['head', 'other']")
    gt = load_example(cfg, "", "0").gt
    assert torch.allclose(gt.gt_head_boxes.tensor, 2 * gt.gt_boxes.tensor)
    assert not gt.has("gt_other_boxes")


def test_another_detector_has_no_locations(monkeypatch) -> None:
    other = SimpleNamespace(model=nn.Identity())
    monkeypatch.setattr(example_module, "Predictor", lambda cfg, confidence: other)
    with pytest.raises(UserError, match="only a DeFCN has locations to draw"):
        load_example(config(), "", "0")


@pytest.mark.parametrize("annotations", [[], [{"iscrowd": 1}]])
def test_an_image_without_objects_is_told(annotations, monkeypatch) -> None:
    record = {**config_record(), "annotations": annotations}
    monkeypatch.setattr(example_module, "load_records", lambda *args, **kwargs: [record])
    with pytest.raises(UserError, match="has no objects, so there is nothing to assign"):
        load_example(config("MODEL.WEIGHTS", tiny_weights()), "", "0")


def config_record() -> dict:
    tiny_sets()
    return DatasetCatalog.get("tiny_val")[0]


def test_annotations_that_are_not_there_are_named(tmp_path) -> None:
    DatasetCatalog.register("tiny_gone", lambda: open(tmp_path / "gone.json").read())
    try:
        with pytest.raises(UserError, match="data set 'tiny_gone': '.*gone.json' does not exist"):
            load_judged("tiny_gone", tmp_path / "found.json")
    finally:
        DatasetCatalog.remove("tiny_gone")
