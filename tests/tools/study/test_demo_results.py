"""``demo/demo.py --json`` and ``--parallel``."""

import json
import os
import queue
import signal

import numpy as np
import pytest
import torch
from demo_runs import FEW, demo, picture, tiny_weights
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS

import defcn_d2
from defcn_d2.config.load import load_config
from defcn_d2.demo import demo_command as command_line
from defcn_d2.demo import parallel
from defcn_d2.demo.coco_results import Results, image_ids
from defcn_d2.demo.parallel import Workers, one_by_one
from defcn_d2.engine import Predictor
from defcn_d2.engine.image_predictor import metadata_of
from defcn_d2.utils.errors import UserError


def one_detection() -> Instances:
    """Of class 3."""
    found = Instances((4, 4), pred_boxes=Boxes(torch.tensor([[1.0, 0, 3, 2]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([3])
    return found


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
    results = Results(tmp_path / "x.json", MetadataCatalog.get("__no_data_set"))
    results.add(0, "a.jpg", one_detection())
    results.write()
    (entry,) = json.loads((tmp_path / "x.json").read_text())
    assert entry["category_id"] == 3 and entry["bbox"] == [1, 0, 2, 2]


def test_categories_that_are_known_when_their_set_is_loaded(tmp_path):
    """The annotation files of some sets tell them, and may not be on this machine."""
    key = "thing_dataset_id_to_contiguous_id"

    def load_late() -> list:
        MetadataCatalog.get("tiny_late").set(**{key: {17: 0, 40: 3}})
        return []

    loaders = {"tiny_late": load_late, "tiny_gone": lambda: open(tmp_path / "gone.json").read()}
    for name, expected in (("tiny_late", 40), ("tiny_gone", 3)):
        DatasetCatalog.register(name, loaders[name])
        try:
            results = Results(tmp_path / "x.json", MetadataCatalog.get(name))
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        results.add(0, "a.jpg", one_detection())
        results.write()
        assert json.loads((tmp_path / "x.json").read_text())[0]["category_id"] == expected


def test_results_that_cannot_be_written_are_told(tmp_path):
    results = Results(tmp_path / "x.json", MetadataCatalog.get("__no_data_set"))
    (tmp_path / "x.json").mkdir()
    with pytest.raises(UserError, match="cannot write --json '.*x.json' \\(Is a directory\\)"):
        results.write()
    assert os.listdir(tmp_path) == ["x.json"]


def test_parallel_on_one_device(tmp_path, capsys):
    source = picture(tmp_path / "a.png")
    assert demo("--input", source, "--output", tmp_path / "b.png", "--parallel") == 0
    assert "--parallel: there is one device alone (cpu)" in capsys.readouterr().out


def test_a_process_for_each_gpu(monkeypatch, capsys):
    """With a threshold that holds for their detections, too."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cuda"])
    assert parallel.gpus(cfg) == ["cuda:0", "cuda:1"]
    assert parallel.gpus(load_config(CONFIG, ["MODEL.DEVICE", "cpu"])) == ["cpu"]
    calls = []

    class Recorded:
        def __init__(self, cfg, devices):
            calls.append(devices)

        def __enter__(self):
            return lambda items: ((tag, image, one_detection()) for tag, image in items)

        def __exit__(self, *args):
            calls.append("ended")

    monkeypatch.setattr(command_line, "Workers", Recorded)
    arguments = ["--config-file", CONFIG, "--input", "a.jpg", "--parallel"]
    for threshold, count in (("0.5", 1), ("0.6", 0)):
        args = command_line.parse_arguments([*arguments, "--confidence-threshold", threshold])
        with command_line.detector(cfg, args) as detect:
            ((tag, _, found),) = detect([(7, np.zeros((4, 4, 3), np.uint8))])
        assert tag == 7 and len(found) == count
    assert calls == [["cuda:0", "cuda:1"], "ended"] * 2
    assert "--parallel: 2 GPUs, a process each" in capsys.readouterr().out


def test_what_a_process_does(monkeypatch):
    """Its body in this process, which ends when there are no images any more."""
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    cfg = load_config(CONFIG, [*TINY_MODEL, *FEW, "MODEL.WEIGHTS", tiny_weights()])
    image = np.random.default_rng(1).integers(256, size=(40, 60, 3), dtype=np.uint8)

    class Tasks:
        left = [(5, image)]

        def get(self):
            return self.left.pop()

    results = queue.Queue()
    parallel._work(cfg, Tasks(), results)
    number, packed = results.get()
    found, expected = parallel._unpack(packed), Predictor(cfg)(image)
    assert number == 5 and found.image_size == expected.image_size == (40, 60)
    assert torch.allclose(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-3)
    assert torch.allclose(found.scores, expected.scores, atol=1e-5)
    assert torch.equal(found.pred_classes, expected.pred_classes) and len(found) == 5
    assert results.get() == (
        None,
        "a process of --parallel on cpu failed: IndexError: pop from empty list",
    )


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
