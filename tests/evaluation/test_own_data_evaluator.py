"""COCO's evaluation of data that pycocotools would take wrongly, or not at all."""

import json

import pytest
import torch
from coco_files import make_content, write_set
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.engine import evaluators
from defcn_d2.evaluation.coco_json import OwnDataEvaluator


def register(folder, content=None, *more):
    """Register a set for evaluation; returns the config and the set's name."""
    path, root = write_set(folder, content)
    where = "DATASETS.REGISTER.VAL"
    opts = [f"{where}.ANNOTATIONS", str(path), f"{where}.IMAGES", str(root)]
    cfg = load_config(CONFIG, [*opts, "OUTPUT_DIR", str(folder / "out"), *more])
    return cfg, cfg.DATASETS.TEST[0]


def evaluate(evaluator, name, shift=0.0):
    """Detections that are the ground truth, moved to the right, and a false one in each image."""
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        objects = [x for x in record["annotations"] if not x.get("iscrowd")]
        boxes = [BoxMode.convert(x["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS) for x in objects]
        boxes = torch.tensor([*boxes, [0, 0, 9, 9]], dtype=torch.float32)
        found = Instances(
            (record["height"], record["width"]),
            pred_boxes=Boxes(boxes + torch.tensor([shift, 0, shift, 0])),
            scores=torch.tensor([*[0.9] * len(objects), 0.1]),
            pred_classes=torch.tensor([*[x["category_id"] for x in objects], 0]),
        )
        evaluator.process([record], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_good_files_are_evaluated_as_by_detectron2(tmp_path, shift):
    cfg, name = register(tmp_path, None, "TEST.SCORE_REPORT", "none")
    ours = evaluators.build_evaluator(cfg, name)
    assert isinstance(ours, OwnDataEvaluator)
    theirs = COCOEvaluator(name, ("bbox",), output_dir=str(tmp_path), use_fast_impl=False)
    found = evaluate(ours, name, shift)
    assert found == pytest.approx(evaluate(theirs, name, shift), nan_ok=True)
    assert found["AP"] == pytest.approx(100) if shift == 0 else 0 < found["AP"] < 100


def test_what_pycocotools_does_not_take(tmp_path):
    """Names for ids, a number 0, no area, no iscrowd, a box without area: still all is found."""
    content = make_content()
    for entry in content["images"]:
        entry["id"] = f"image {entry['id']}"
    for number, entry in enumerate(content["annotations"]):
        entry["id"] = number // 2
        entry["image_id"] = f"image {entry['image_id']}"
        del entry["area"]
        if entry.pop("iscrowd"):
            entry["ignore"] = 1
    content["annotations"].append(
        {"id": 9, "image_id": "image 31", "category_id": 3, "bbox": [5, 5, 0, 5]}
    )
    cfg, name = register(tmp_path, content)
    assert evaluate(evaluators.build_evaluator(cfg, name), name)["AP"] == pytest.approx(100)


def crowded(objects):
    """One image with so many small objects of the first of two classes."""
    places = [(20 * (i % 20), 20 * (i // 20)) for i in range(objects)]
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 400, "height": 400}],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, 9, 9]}
            for i, (x, y) in enumerate(places)
        ],
    }


def evaluate_crowd(tmp_path, limit, *more, own=True):
    """The results of 200 perfect detections of 200 objects."""
    limit_opts = ("TEST.DETECTIONS_PER_IMAGE", str(limit), *more)
    cfg, name = register(tmp_path, crowded(200), *limit_opts)
    records = DatasetCatalog.get(name)
    if not own:
        content = crowded(200)
        for entry in content["annotations"]:
            entry |= {"area": 81, "iscrowd": 0}
        (tmp_path / "complete.json").write_text(json.dumps(content))
        name = f"crowd-{tmp_path.name}"
        register_coco_instances(name, {}, str(tmp_path / "complete.json"), str(tmp_path))
        MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {1: 0, 2: 1}
        MetadataCatalog.get(name).thing_classes = ["red", "blue"]
    evaluator = evaluators.build_evaluator(cfg, name)
    evaluator.reset()
    boxes = torch.tensor([x["bbox"] for x in records[0]["annotations"]], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    found = Instances((400, 400), pred_boxes=Boxes(boxes), scores=torch.linspace(1, 0.1, 200))
    found.pred_classes = torch.zeros(200, dtype=torch.int64)
    outputs = {"instances": found, "instances_nms": found}
    evaluator.process(records, [outputs])
    return evaluator.evaluate()


@pytest.mark.parametrize("own", [True, False], ids=["own data", "registered"])
def test_more_than_100_objects_an_image(tmp_path, own, capsys):
    results = evaluate_crowd(tmp_path, 300, own=own)["bbox"]
    figures = [results[name] for name in ("AP", "AP50", "AP75", "APs", "AP-red")]
    assert figures == pytest.approx([100] * 5)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Recall" in line]
    assert [line.partition("maxDets=")[2] for line in lines] == [
        "  1 ] = 0.005",
        " 10 ] = 0.050",
        "300 ] = 1.000",
        "300 ] = 1.000",
        "300 ] = -1.000",
        "300 ] = -1.000",
    ]


def test_the_nms_gap_has_the_limit_too(tmp_path):
    results = evaluate_crowd(tmp_path, 300, "TEST.WITH_NMS", "True")
    assert results["bbox"]["AP"] == results["bbox_nms"]["AP"] == pytest.approx(100)
    assert results["nms_gap"] == 0


@pytest.mark.parametrize("limit", [50, 100])
def test_the_figures_are_cocos_own_up_to_100(tmp_path, limit, capsys):
    results = evaluate_crowd(tmp_path, limit)["bbox"]
    assert results["AP"] == pytest.approx(100 * 51 / 101)  # a half is found
    assert "maxDets=100 ] = 0.500" in capsys.readouterr().out


@pytest.mark.parametrize("missing", [("iscrowd",), ("area",), ("iscrowd", "area"), ()])
@pytest.mark.parametrize("first", [0, 1], ids=["id 0", "id 1"])
def test_sets_registered_with_detectron2_lack_keys(tmp_path, missing, first):
    """All is found, with and without the keys; an object with the id 0, too."""
    content = make_content()
    content["annotations"] = [x for x in content["annotations"] if not x["iscrowd"]]
    for number, entry in enumerate(content["annotations"], start=first):
        entry["id"] = number
        for key in missing:
            del entry[key]
    path, root = write_set(tmp_path, content)
    name = str(tmp_path)
    register_coco_instances(name, {}, str(path), str(root))
    DatasetCatalog.get(name)
    cfg = load_config(CONFIG, ["OUTPUT_DIR", str(tmp_path / "out")])
    found = evaluate(evaluators.build_evaluator(cfg, name), name)
    assert found["AP"] == pytest.approx(100)
