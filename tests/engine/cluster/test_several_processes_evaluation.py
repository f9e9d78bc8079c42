"""Evaluators over two and three processes give what they give in one: results and files."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from coco_files import CLASSES, HEIGHT, WIDTH, make_content, write_set
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.evaluation import inference_on_dataset
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils import comm
from PIL import Image
from process_groups import in_group

from defcn_d2.config.load import load_config
from defcn_d2.data import register_shapes, register_shapes_crowd
from defcn_d2.engine import Trainer

# Of three processes one has no image of two; nor of four, by Detectron2 v0.5.
NUMBERS_OF_IMAGES = (2, 4, 9)


def write_own_set(folder: Path, number: int) -> None:
    """Images of sub-folders, the fourth of them empty, IDs with gaps, and a crowd."""
    parts = [make_content(f"{i}/", 100 * i + 1) for i in range(math.ceil(number / 4))]
    content = parts[0]
    content["images"] = [image for part in parts for image in part["images"]][:number]
    ids = {image["id"] for image in content["images"]}
    labels = [label for part in parts for label in part["annotations"]]
    content["annotations"] = [label for label in labels if label["image_id"] in ids]
    for i, label in enumerate(content["annotations"]):
        label["id"] = i + 1
    write_set(folder, content)


def write_voc_set(folder: Path, number: int) -> None:
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for i in range(number):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "JPEGImages" / f"{i}.jpg")
        objects = "".join(
            f"<object><name>{CLASSES[(i + j) % 3]}</name><pose/><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{3 + 9 * j}</xmin><ymin>{5 + i}</ymin>"
            f"<xmax>{30 + 9 * j}</xmax><ymax>40</ymax></bndbox></object>"
            for j in range(1 + i % 3)
        )
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = f"<annotation>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{i}.xml").write_text(text)
    names = "\n".join(str(i) for i in range(number))
    (folder / "ImageSets" / "Main" / "test.txt").write_text(names)


def write_sets(folder: Path) -> None:
    for number in NUMBERS_OF_IMAGES:
        write_own_set(folder / f"own-{number}", number)
        write_voc_set(folder / f"voc-{number}", number)


def configs(folder: Path) -> dict[str, list[str]]:
    """Every evaluation and its keys; registers what ``write_sets`` has written, once a process."""
    found = {}
    for number in NUMBERS_OF_IMAGES:
        names = {kind: f"{kind}-{number}" for kind in ("shapes", "crowd", "voc", "own")}
        root = {kind: folder / name for kind, name in names.items()}
        if names["shapes"] not in DatasetCatalog.list():
            register_shapes(names["shapes"], root["shapes"], "val", number)
            register_shapes_crowd(names["crowd"], root["crowd"], "val", number)
            register_pascal_voc(names["voc"], str(root["voc"]), "test", 2012, CLASSES)
            MetadataCatalog.get(names["voc"]).evaluator_type = "pascal_voc"
        tested = {kind: ["DATASETS.TEST", f"('{name}',)"] for kind, name in names.items()}
        own = "DATASETS.REGISTER.VAL"
        found |= {
            f"COCO, {number}": tested["shapes"],
            f"COCO with NMS beside, {number}": [*tested["shapes"], "TEST.WITH_NMS", "True"],
            f"CrowdHuman, {number}": [*tested["crowd"], "MODEL.DEFCN.NUM_CLASSES", "1"],
            f"VOC, {number}": [*tested["voc"], "MODEL.DEFCN.NUM_CLASSES", "3"],
            f"own data, {number}": [
                *(f"{own}.ANNOTATIONS", str(root["own"] / "annotations.json")),
                *(f"{own}.IMAGES", str(root["own"] / "images")),
            ],
        }
    return found


class Guesses:
    """A model that finds the ground truth almost, with scores of which many are the same."""

    def __init__(self, records: list[dict[str, Any]], num_classes: int):
        self.num_classes = num_classes
        self.labels = {record["image_id"]: record["annotations"] for record in records}

    def __call__(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detections, and half of them as those that NMS has left."""
        outputs = []
        for item in inputs:
            found = self._guess(item)
            outputs.append({"instances": found, "instances_nms": found[: len(found) // 2 + 1]})
        return outputs

    def _guess(self, item: dict[str, Any]) -> Instances:
        generator = np.random.default_rng(zlib.crc32(str(item["image_id"]).encode()))
        boxes, classes = [[1.0, 1.0, 9.0, 9.0]], [0]
        for label in self.labels[item["image_id"]]:
            box = BoxMode.convert(label["bbox"], label["bbox_mode"], BoxMode.XYXY_ABS)
            for _ in range(3):
                boxes.append((box + generator.normal(0, 3, 4)).tolist())
                classes.append(int(generator.integers(self.num_classes)))
                boxes.append((box + generator.normal(0, 1, 4)).tolist())
                classes.append(label["category_id"])
        scores = generator.integers(1, 10, len(boxes)) / 10
        order = np.argsort(-scores, kind="stable")
        return Instances(
            (item["height"], item["width"]),
            pred_boxes=Boxes(torch.tensor(boxes)[order]),
            scores=torch.tensor(scores, dtype=torch.float32)[order],
            pred_classes=torch.tensor(classes)[order],
        )


class Evaluation(NamedTuple):
    """Results, files of ``OUTPUT_DIR`` and the number of images of one process."""

    results: dict[str, Any]
    written: dict[str, Any]
    images: int


def evaluate(cfg: CfgNode) -> Evaluation:
    """In this group, whose processes share the images."""
    (name,) = cfg.DATASETS.TEST
    loader = Trainer.build_test_loader(cfg, name)
    evaluator = Trainer.build_evaluator(cfg, name)
    num_classes = len(MetadataCatalog.get(name).thing_classes)
    results = inference_on_dataset(
        Guesses(DatasetCatalog.get(name), num_classes), loader, evaluator
    )
    comm.synchronize()  # the others are done before the first has written its files
    output = Path(cfg.OUTPUT_DIR)
    written = {
        str(path.relative_to(output)): json.loads(path.read_text())
        for path in sorted(output.rglob("*.json"))
    }
    return Evaluation(dict(results or {}), written, len(loader))


def evaluate_all(folder: Path) -> dict[str, Evaluation]:
    """All of ``configs``."""
    output = folder / f"output-{comm.get_world_size()}"
    common = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "INPUT.MIN_SIZE_TEST", "64"]
    return {
        kind: evaluate(
            load_config("shapes/POTO", [*common, *opts, "OUTPUT_DIR", f"{output}/{kind}"])
        )
        for kind, opts in configs(folder).items()
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Evaluation]]]:
    """By number of processes: what each of them found."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_sets(folder)
    return {number: in_group(number, evaluate_all, folder, folder) for number in (1, 2, 3)}


KINDS = [
    f"{kind}, {number}"
    for number in NUMBERS_OF_IMAGES
    for kind in ("COCO", "COCO with NMS beside", "CrowdHuman", "VOC", "own data")
]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_that_of_one_process(found, kind: str, number: int) -> None:
    """Bit for bit: the first process evaluates the same detections in the same order."""
    (expected,) = (results[kind] for results in found[1])
    first, *others = (results[kind] for results in found[number])
    assert {"bbox"} <= expected.results.keys() and expected.results["bbox"]["AP50"] > 1
    np.testing.assert_equal(first.results, expected.results)  # to which NaN equals NaN
    assert not any(other.results for other in others)
    assert first.written == expected.written
    assert first.written or kind.startswith("VOC")
    assert first.images + sum(other.images for other in others) == expected.images


def test_one_of_the_processes_has_no_image(found) -> None:
    assert [results["COCO, 2"].images for results in found[3]] == [1, 1, 0]
