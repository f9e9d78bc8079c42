"""COCO's evaluation of data that pycocotools would take wrongly, or not at all."""

import pytest
import torch
from coco_files import make_content, write_set
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.engine import evaluators
from defcn_d2.evaluation.coco_json import OwnDataEvaluator


def register(folder, content=None):
    """Register a set for evaluation; returns the config and the set's name."""
    path, root = write_set(folder, content)
    where = "DATASETS.REGISTER.VAL"
    opts = [f"{where}.ANNOTATIONS", str(path), f"{where}.IMAGES", str(root)]
    cfg = load_config(CONFIG, [*opts, "OUTPUT_DIR", str(folder / "out")])
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
    cfg, name = register(tmp_path)
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
