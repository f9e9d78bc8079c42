"""The built-in crowd: labels against what is painted, and how much NMS would lose of it."""

import json
import uuid

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from defcn_d2.data import register_shapes_crowd
from defcn_d2.data.builtin import SHAPES_CROWD
from defcn_d2.data.readers.odgt import read_odgt
from defcn_d2.data.synthetic import crowd as shapes_crowd
from defcn_d2.data.synthetic.figures import Canvas
from defcn_d2.data.synthetic.generation import GeneratedSet
from defcn_d2.evaluation.crowdhuman_metrics import clip, nms_ceiling

IMAGES = 60


@pytest.fixture(scope="module")
def painted():
    """Images with their records and the figures that were painted, from back to front."""
    figures = []
    paint = Canvas.paint

    def recorded(self, rng, figure, *args, **kwargs):
        paint(self, rng, figure, *args, **kwargs)
        figures.append((figure, kwargs.get("owned", True)))

    result = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "paint", recorded)
        for index in range(IMAGES):
            figures.clear()
            image, record = shapes_crowd.draw("val", 0, index)
            result.append((image, record, list(figures)))
    return result


def ignored(label):
    return label["tag"] != "person" or bool(label["extra"].get("ignore", 0))


def test_full_and_visible_boxes_are_what_is_painted(painted):
    for image, record, figures in painted:
        height, width = image.shape[:2]
        people = [figure for figure, owned in figures if owned]
        labels = [label for label in record["gtboxes"] if not ignored(label)]
        seen = np.full((height, width), -1)
        for number, figure in enumerate(people):
            part = figure.clipped(width, height)
            h, w = part.coverage.shape
            seen[part.y : part.y + h, part.x : part.x + w][part.coverage >= 128] = number
        for number, (label, figure) in enumerate(zip(labels, people, strict=True)):
            rows, columns = np.nonzero(figure.coverage >= 128)
            left, top = figure.x + columns.min(), figure.y + rows.min()
            assert label["fbox"] == (left, top, np.ptp(columns) + 1, np.ptp(rows) + 1)
            ys, xs = np.nonzero(seen == number)
            assert label["vbox"] == (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1)
            share = len(xs) / len(rows)
            assert share >= shapes_crowd.MIN_VISIBLE
            assert label["extra"]["occ"] == int(share < 0.95)


def test_heads_are_at_the_top_of_their_figures(painted):
    for _, record, _ in painted:
        for label in record["gtboxes"]:
            if label["tag"] == "mask":
                continue
            x, y, w, h = label["fbox"]
            hx, hy, hw, hh = label["hbox"]
            assert x <= hx and hx + hw <= x + w and hy == y
            assert 0.15 < hh / h < 0.35 and 0.6 < hw / hh < 1.7


def test_ignore_regions(painted):
    """Throngs and reflections: in some images, over something painted, and owned by nobody."""
    labels = [label for _, record, _ in painted for label in record["gtboxes"] if ignored(label)]
    tags = [label["tag"] for label in labels]
    assert 0.15 * IMAGES < tags.count("mask") < 0.6 * IMAGES
    assert 0.15 * IMAGES < tags.count("person") < 0.6 * IMAGES
    assert all(label["extra"]["ignore"] == 1 for label in labels)
    for _, record, figures in painted:
        regions = [label["fbox"] for label in record["gtboxes"] if ignored(label)]
        for figure, owned in figures:
            if not owned:
                x, y, w, h = figure.box
                assert any(
                    rx - 1 <= x and ry - 1 <= y and x + w <= rx + rw + 1 and y + h <= ry + rh + 1
                    for rx, ry, rw, rh in regions
                ), "something that is to be ignored lies outside the ignore regions"


def test_ranges(painted):
    people = [
        [label for label in record["gtboxes"] if not ignored(label)] for _, record, _ in painted
    ]
    counts = [len(labels) for labels in people]
    assert min(counts) >= 1 and max(counts) >= 15
    heights = [label["fbox"][3] for labels in people for label in labels]
    assert max(heights) > 5 * min(heights)
    outside = [
        label["fbox"][0] < 0
        or label["fbox"][1] < 0
        or label["fbox"][0] + label["fbox"][2] > record["width"]
        or label["fbox"][1] + label["fbox"][3] > record["height"]
        for (_, record, _), labels in zip(painted, people, strict=True)
        for label in labels
    ]
    assert 0.02 < np.mean(outside) < 0.5, "some full boxes reach outside the image"


@pytest.mark.parametrize("split", ["train", "val"])
def test_nms_would_lose_one_in_ten(split):
    positives = []
    for index in range(100):
        record = shapes_crowd.draw(split, 0, index)[1]
        boxes = np.array([x["fbox"] for x in record["gtboxes"] if not ignored(x)], float)
        boxes[:, 2:] += boxes[:, :2]
        positives.append(clip(boxes, (record["width"], record["height"])))
    assert 0.87 <= nms_ceiling(positives) <= 0.93


def test_images_depend_on_split_seed_and_index():
    image, record = shapes_crowd.draw("train", 0, 0)
    again, same = shapes_crowd.draw("train", 0, 0)
    assert np.array_equal(image, again) and record == same
    for other in (("val", 0, 0), ("train", 1, 0), ("train", 0, 1)):
        assert shapes_crowd.draw(*other)[1] != record


def test_registration(tmp_path):
    name = f"crowd_test_{uuid.uuid4().hex}"
    register_shapes_crowd(name, tmp_path, "val", num_images=5, seed=2)
    meta = MetadataCatalog.get(name)
    assert meta.evaluator_type == "crowdhuman" and meta.thing_classes == ["person"]
    assert not (tmp_path / "shapes_crowd").exists(), "nothing is drawn before it is asked for"
    dicts = DatasetCatalog.get(name)
    lines = [json.loads(line) for line in open(meta.odgt_file)]
    assert [line["ID"] for line in lines] == [item["image_id"] for item in dicts]
    for index, (item, line) in enumerate(zip(dicts, lines, strict=True)):
        image = cv2.imread(item["file_name"])
        assert image is not None and image.shape == (item["height"], item["width"], 3)
        drawn, record = shapes_crowd.draw("val", 2, index)
        assert np.abs(image.astype(int) - drawn).mean() < 5
        for annotation, box, label in zip(
            item["annotations"], line["gtboxes"], record["gtboxes"], strict=True
        ):
            assert annotation["bbox"] == box["fbox"] == list(label["fbox"])
            assert annotation["iscrowd"] == ignored(label)
            assert annotation["visible_bbox"] == box["vbox"]
            assert set(box) == {"tag", "fbox", "vbox", "hbox", "extra", "head_attr"}


def test_the_default_sets_are_registered():
    for split, count in (("train", 2000), ("val", 300)):
        assert MetadataCatalog.get(f"shapes_crowd_{split}").evaluator_type == "crowdhuman"
        assert SHAPES_CROWD.counts[split] == count


def test_its_annotation_file_can_be_read(tmp_path):
    crowd = GeneratedSet(SHAPES_CROWD, tmp_path, "train", 3)
    images = read_odgt(crowd.ensure())
    assert [image.id for image in images] == ["000000", "000001", "000002"]
    assert all((crowd.images / image.file_name).is_file() for image in images)
