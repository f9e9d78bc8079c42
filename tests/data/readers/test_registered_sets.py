"""Data sets that Detectron2 (COCO, LVIS, Pascal VOC) or others register: evaluators, classes."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import torch
from coco_files import HEIGHT, WIDTH, make_content, write_set
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import (
    register_coco_instances,
    register_lvis_instances,
    register_pascal_voc,
)
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from detectron2.engine import default_argument_parser
from detectron2.evaluation import (
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.structures import Boxes, BoxMode, Instances
from helpers import ROOT

from defcn_d2.config.load import load_config
from defcn_d2.engine.datasets import load_records
from defcn_d2.engine.evaluators import build_evaluator, evaluator_type
from defcn_d2.engine.preflight import check
from defcn_d2.evaluation.coco_limit import LimitedCOCOEvaluator
from defcn_d2.evaluation.lvis import add_numpy_float
from defcn_d2.utils.errors import UserError

CONFIG = str(ROOT / "configs" / "POTO.yaml")
SETS = [  # training, evaluation, classes, type
    ("coco_2017_train", "coco_2017_val", 80, "coco"),
    ("lvis_v1_train", "lvis_v1_val", 1203, "lvis"),
    ("voc_2007_trainval", "voc_2007_test", 20, "pascal_voc"),
]


def opts(train, test, classes):
    sets = ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{test}',)"]
    return [*sets, "MODEL.DEFCN.NUM_CLASSES", str(classes), "MODEL.WEIGHTS", ""]


@pytest.mark.parametrize("train, test, classes, kind", SETS)
def test_registered_by_detectron2(train, test, classes, kind):
    """All that can be told without the data themselves."""
    assert evaluator_type(test) == kind
    args = default_argument_parser().parse_args([])
    check(load_config(CONFIG, opts(train, test, classes)), args)
    sentence = f"NUM_CLASSES is 7, but the data set '{train}' has {classes} classes"
    with pytest.raises(UserError, match=sentence):
        check(load_config(CONFIG, opts(train, test, 7)), args)


@pytest.mark.parametrize("train, test, classes, kind", SETS)
def test_data_that_are_not_there(train, test, classes, kind, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cfg = load_config(CONFIG, opts(train, test, classes))
    if kind == "lvis" and not importlib.util.find_spec("lvis"):
        with pytest.raises(UserError, match="'lvis_v1_train' needs another package: .*lvis"):
            load_records(cfg, [train], False)
        return
    with pytest.raises(UserError, match=f"data set '{train}': .* does not exist; put it there"):
        load_records(cfg, [train], False)


@pytest.fixture
def registered():
    """Names of this test's sets, which are gone after it."""
    names: list[str] = []
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def perfect(evaluator, name):
    """The figures for detections that are the ground truth."""
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        modes = [(x["bbox"], x["bbox_mode"]) for x in record["annotations"]]
        boxes = [BoxMode.convert(list(box), mode, BoxMode.XYXY_ABS) for box, mode in modes]
        found = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
            scores=torch.full((len(boxes),), 0.9),
            pred_classes=torch.tensor([x["category_id"] for x in record["annotations"]]).long(),
        )
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_evaluation_of_pascal_voc(tmp_path, registered):
    content, classes = make_content(), ["cat", "dog"]
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for image in content["images"][:3]:
        name = image["file_name"].rpartition("/")[2].removesuffix(".png")
        objects = "".join(
            "<object><name>{}</name><difficult>{}</difficult><truncated>0</truncated>"
            "<pose>x</pose><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>"
            "<ymax>{}</ymax></bndbox></object>".format(
                classes[x["category_id"] != 3], x["iscrowd"], x0 + 1, y0 + 1, x0 + w, y0 + h
            )
            for x in content["annotations"]
            if x["image_id"] == image["id"]
            for x0, y0, w, h in [map(int, x["bbox"])]
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(text)
        (tmp_path / "JPEGImages" / f"{name}.jpg").touch()
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("a\nb\nc\n")
    registered.append("tiny_voc")
    register_pascal_voc("tiny_voc", str(tmp_path), "test", 2012, classes)
    MetadataCatalog.get("tiny_voc").evaluator_type = "pascal_voc"
    cfg = load_config(CONFIG, ["MODEL.DEFCN.NUM_CLASSES", "2", "OUTPUT_DIR", str(tmp_path)])
    assert len(load_records(cfg, ["tiny_voc"], False)) == 3
    evaluator = build_evaluator(cfg, "tiny_voc")
    assert isinstance(evaluator, PascalVOCDetectionEvaluator)
    assert perfect(evaluator, "tiny_voc")["AP"] == pytest.approx(100)


def test_evaluation_of_lvis(tmp_path, registered):
    pytest.importorskip("lvis")
    content = make_content()
    content["annotations"] = [x for x in content["annotations"] if not x.pop("iscrowd")]
    for image in content["images"]:
        name = image["file_name"] = image["file_name"].rpartition("/")[2]
        image["coco_url"] = f"http://host/images/{name}"
        image.update(not_exhaustive_category_ids=[], neg_category_ids=[])
    for number, category in enumerate(content["categories"], 1):
        for entry in content["annotations"]:
            if entry["category_id"] == category["id"]:
                entry["category_id"] = -number
        category.update(id=number, frequency="f")
    for entry in content["annotations"]:
        entry.update(category_id=-entry["category_id"], segmentation=[[1, 1, 1, 9, 9, 9]])
    path, root = write_set(tmp_path, content)
    registered.append("lvis_v1_tiny")
    metadata = get_lvis_instances_meta("lvis_v1")  # by which Detectron2 knows the name below
    register_lvis_instances("lvis_v1_tiny", metadata, str(path), f"{root.parent}/")
    cfg = load_config(CONFIG, ["MODEL.DEFCN.NUM_CLASSES", "1203", "OUTPUT_DIR", str(tmp_path)])
    assert len(load_records(cfg, ["lvis_v1_tiny"], False)) == 4
    evaluator = build_evaluator(cfg, "lvis_v1_tiny")
    assert isinstance(evaluator, LVISEvaluator)
    assert perfect(evaluator, "lvis_v1_tiny")["AP"] == pytest.approx(100)


def test_lvis_finds_what_numpy_dropped(monkeypatch):
    package, module = types.ModuleType("lvis"), types.ModuleType("lvis.eval")
    module.np, package.eval = np, module
    monkeypatch.setitem(sys.modules, "lvis", package)
    monkeypatch.setitem(sys.modules, "lvis.eval", module)
    add_numpy_float()
    assert module.np.ones(2).astype(dtype=module.np.float).sum() == 2
    assert module.np.cumsum is np.cumsum


def test_coco_is_evaluated_by_detectron2s(tmp_path, registered):
    path, root = write_set(tmp_path)
    registered.append("tiny_coco_set")
    plain = ["TEST.SCORE_REPORT", "none"]
    register_coco_instances("tiny_coco_set", {}, str(path), str(root))
    cfg = load_config(CONFIG, ["MODEL.DEFCN.NUM_CLASSES", "3", *plain, "OUTPUT_DIR", str(tmp_path)])
    assert len(load_records(cfg, ["tiny_coco_set"], False)) == 4
    assert type(build_evaluator(cfg, "tiny_coco_set")) is LimitedCOCOEvaluator
    assert perfect(build_evaluator(cfg, "tiny_coco_set"), "tiny_coco_set")["AP"] > 90
