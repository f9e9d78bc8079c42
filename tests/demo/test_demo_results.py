"""``demo/demo.py --json``."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from demo_runs import FEW, demo, picture, tiny_weights
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS

import defcn_d2
from defcn_d2.config.load import load_config
from defcn_d2.demo.coco_results import Results, image_ids
from defcn_d2.engine.predictor import metadata_of
from defcn_d2.utils.errors import UserError


def one_detection() -> Instances:
    """Of class 3."""
    found = Instances((4, 4), pred_boxes=Boxes(torch.tensor([[1.0, 0, 3, 2]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([3])
    return found


@contextlib.contextmanager
def registered(name: str, load: Callable[[], object]) -> Iterator[Metadata]:
    DatasetCatalog.register(name, load)
    try:
        yield MetadataCatalog.get(name)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_json_of_images_is_what_coco_reads(tmp_path, capsys):
    """Boxes are x, y, width, height of the image; categories those of the annotation file."""
    for name in ("000000000139.png", "000000000007.png"):
        picture(tmp_path / "in" / name)
    target = tmp_path / "new" / "found.json"
    assert demo("--input", tmp_path / "in", "--json", target) == 0
    assert os.listdir(tmp_path / "new") == ["found.json"]
    entries = json.loads(target.read_text())
    assert f"{len(entries)} detections, see {target}" in capsys.readouterr().out
    assert [e["image_id"] for e in entries] == [7] * 5 + [139] * 5
    assert {e["file_name"] for e in entries[:5]} == {str(tmp_path / "in" / "000000000007.png")}
    found = defcn_d2.Predictor(CONFIG, tiny_weights(), opts=[*TINY_MODEL, *FEW])(
        entries[0]["file_name"]
    )
    categories = metadata_of(load_config(CONFIG, TINY_SETS)).thing_dataset_id_to_contiguous_id
    for i, entry in enumerate(entries[:5]):
        x, y, width, height = entry["bbox"]
        box = found.pred_boxes.tensor[i].tolist()
        assert np.allclose([x, y, x + width, y + height], box, atol=1e-3)
        assert np.isclose(entry["score"], float(found.scores[i]), atol=1e-6)
        assert categories[entry["category_id"]] == int(found.pred_classes[i])
    truth = COCO()
    truth.dataset = {"images": [{"id": 7}, {"id": 139}], "annotations": [], "categories": []}
    truth.createIndex()
    assert len(truth.loadRes(str(target)).anns) == 10


def test_image_ids():
    assert image_ids(["a/000042.jpg", "b/7.png"]) == [42, 7]
    assert image_ids(["a/1.jpg", "b/1.png"]) == [0, 1]
    assert image_ids(["a/1.jpg", "b/x.png"]) == [0, 1]


def test_categories_without_a_data_set(tmp_path, capsys):
    results = Results(tmp_path / "x.json", MetadataCatalog.get("__no_data_set"))
    assert "category_id is the model's number of the class, from 0" in capsys.readouterr().err
    results.add(0, "a.jpg", one_detection())
    results.write()
    (entry,) = json.loads((tmp_path / "x.json").read_text())
    assert entry["category_id"] == 3 and entry["bbox"] == [1, 0, 2, 2]


def test_categories_that_are_known_when_their_set_is_loaded(tmp_path):
    """The annotation files of some sets hold them; where one is gone, nothing is guessed."""
    key = "thing_dataset_id_to_contiguous_id"

    def load_late() -> list:
        MetadataCatalog.get("tiny_late").set(**{key: {17: 0, 40: 3}})
        return []

    with registered("tiny_late", load_late) as metadata:
        results = Results(tmp_path / "x.json", metadata)
    results.add(0, "a.jpg", one_detection())
    results.write()
    assert json.loads((tmp_path / "x.json").read_text())[0]["category_id"] == 40
    with (
        registered("tiny_gone", lambda: open(tmp_path / "gone.json").read()) as metadata,
        pytest.raises(UserError, match="--json: the category ids of .*'tiny_gone' are not known"),
    ):
        Results(tmp_path / "y.json", metadata)


@pytest.mark.parametrize("kind", ["lvis", "crowdhuman"])
def test_categories_of_sets_that_number_from_1(kind, tmp_path):
    metadata = MetadataCatalog.get(f"tiny_{kind}_of_4")
    metadata.set(evaluator_type=kind, thing_classes=list("abcd"))
    results = Results(tmp_path / "x.json", metadata)
    results.add(0, "a.jpg", one_detection())
    results.write()
    assert json.loads((tmp_path / "x.json").read_text())[0]["category_id"] == 4


def test_results_that_cannot_be_written_are_told(tmp_path):
    results = Results(tmp_path / "x.json", MetadataCatalog.get("__no_data_set"))
    (tmp_path / "x.json").mkdir()
    with pytest.raises(UserError, match="cannot write --json '.*x.json' \\(Is a directory\\)"):
        results.write()
    assert os.listdir(tmp_path) == ["x.json"]
