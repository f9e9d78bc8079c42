"""``demo/demo.py --json`` and ``--parallel``."""

import json
import os
import queue
import signal

import numpy as np
import pytest
import torch
from demo_runs import FEW, demo, picture, tiny_weights
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS

import defcn_d2
from defcn_d2.demo import parallel
from defcn_d2.demo.parallel import Workers, one_by_one
from defcn_d2.demo.results import Results, image_ids
from defcn_d2.engine import Predictor, UserError, load_config
from defcn_d2.engine.predictor import metadata_of


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


def test_categories_without_an_annotation_file(tmp_path):
    found = Instances((4, 4), pred_boxes=Boxes(torch.tensor([[1.0, 0, 3, 2]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([3])
    results = Results(tmp_path / "x.json", MetadataCatalog.get("__no_data_set"))
    results.add(0, "a.jpg", found)
    results.write()
    (entry,) = json.loads((tmp_path / "x.json").read_text())
    assert entry["category_id"] == 3 and entry["bbox"] == [1, 0, 2, 2]


def test_parallel_on_one_device(tmp_path, capsys):
    source = picture(tmp_path / "a.png")
    assert demo("--input", source, "--output", tmp_path / "b.png", "--parallel") == 0
    assert "--parallel: there is one device alone (cpu)" in capsys.readouterr().out


def test_parallel_gives_the_same_in_the_same_order():
    cfg = load_config(CONFIG, [*TINY_MODEL, *FEW, "MODEL.WEIGHTS", tiny_weights()])
    rng = np.random.default_rng(1)
    sizes = [(40, 60), (64, 64), (90, 50)] * 3
    images = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    expected = list(one_by_one(Predictor(cfg), enumerate(images)))
    with Workers(cfg, ["cpu", "cpu"]) as workers:
        results = list(workers(enumerate(images)))
        processes = workers._processes
    assert not any(process.is_alive() for process in processes)
    for (tag, image, found), (number, same, alone) in zip(results, expected, strict=True):
        assert tag == number and image is same and found.image_size == alone.image_size
        assert torch.allclose(found.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3)
        assert torch.equal(found.pred_classes, alone.pred_classes)


def test_parallel_tells_why_a_process_failed(monkeypatch):
    """The body of a process, here in this one, and what the first process makes of it."""
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    cfg = load_config(CONFIG, [*TINY_MODEL, "MODEL.WEIGHTS", "/no/such/model.pth"])
    results = queue.Queue()
    parallel._work(cfg, queue.Queue(), results)
    workers = Workers(cfg, ["cpu"])
    workers._results = results
    with pytest.raises(UserError, match="on cpu failed: .*/no/such/model.pth"):
        list(workers([(0, np.zeros((32, 32, 3), np.uint8))]))


def test_parallel_notices_a_process_that_died():
    cfg = load_config(CONFIG, [*TINY_MODEL, "MODEL.WEIGHTS", tiny_weights()])
    image = np.zeros((32, 32, 3), np.uint8)
    with Workers(cfg, ["cpu"]) as workers:
        workers._processes[0].kill()
        with pytest.raises(UserError, match="has ended \\(exit code -9"):
            list(workers([(0, image)]))
