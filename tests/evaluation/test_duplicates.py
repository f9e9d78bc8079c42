"""Duplicates and recall of detections on data in COCO's format."""

import json

import pytest

from defcn_d2.evaluation.crowdhuman_metrics import Curve
from defcn_d2.evaluation.duplicates import coco_figures, coco_samples

IMAGES = [{"id": 4, "width": 100, "height": 80}, {"id": 9, "width": 50, "height": 50}]
GTS = [  # image, category, box, iscrowd
    (4, 1, [0, 0, 20, 20], 0),
    (4, 2, [0, 0, 20, 20], 0),
    (4, 1, [50, 0, 40, 40], 1),
    (9, 2, [10, 10, 30, 30], 0),
    (9, 2, [12, 10, 30, 30], 0),  # IoU 0.875 with the one before: NMS would drop it
]
FOUND = [  # image, category, box, score
    (4, 1, [0, 0, 20, 20], 0.9),
    (4, 1, [1, 0, 20, 20], 0.4),  # a duplicate
    (4, 2, [0, 1, 20, 20], 0.2),  # of another class: none
    (4, 1, [55, 5, 9, 9], 0.8),  # absorbed by the crowd
    (4, 2, [55, 5, 9, 9], 0.8),  # the crowd is of another class: false
    (4, 3, [0, 0, 20, 20], 0.7),  # a class without ground truth: false
    (9, 2, [10, 10, 30, 30], 0.6),
]


@pytest.fixture
def files(tmp_path):
    annotations, results = tmp_path / "gt.json", tmp_path / "results.json"
    labels = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd}
        for i, (image, category, box, crowd) in enumerate(GTS)
    ]
    annotations.write_text(json.dumps({"images": IMAGES, "annotations": labels}))
    entries = [
        {"image_id": image, "category_id": category, "bbox": box, "score": score}
        for image, category, box, score in FOUND
    ]
    results.write_text(json.dumps(entries))
    return annotations, results


def test_figures(files):
    assert coco_figures(*files) == {
        "recall": pytest.approx(100 * 3 / 4),
        "nms_ceiling": pytest.approx(100 * 3 / 4),
        "duplicates_0.05": 1 / 4,
        "duplicates_0.3": 1 / 4,
        "duplicates_0.5": 0,
    }


def test_samples_are_images_and_categories(files):
    samples = coco_samples(*files)
    shapes = [(len(s.positives), len(s.ignored), len(s.boxes)) for s in samples]
    assert shapes == [(1, 1, 3), (1, 0, 2), (0, 0, 1), (2, 0, 1)]
    curve = Curve.build(samples)
    assert curve.total == 4
    outcomes = list(zip(curve.scores.tolist(), curve.true.tolist(), strict=True))
    assert outcomes == [
        (0.9, True),
        (0.8, False),
        (0.7, False),
        (0.6, True),
        (0.4, False),
        (0.2, True),
    ]


def test_without_detections(files):
    files[1].write_text("[]")
    assert coco_figures(*files)["recall"] == 0
