"""Detections handed to supervision and trackers, where these are installed."""

import numpy as np
import pytest
import torch
from demo_runs import tiny_weights
from detectron2.structures import Boxes, Instances
from tiny_data import CONFIG, TINY_MODEL, tiny_sets

from defcn_d2.engine import Predictor

supervision = pytest.importorskip("supervision")


def test_supervision_takes_detections() -> None:
    predictor = Predictor(CONFIG, tiny_weights(), opts=TINY_MODEL, confidence=0.001)
    image = next((tiny_sets() / "shapes" / "val" / "images").glob("*.jpg"))
    found = predictor(image)
    detections = supervision.Detections.from_detectron2({"instances": found})
    assert len(detections) == len(found) > 0
    np.testing.assert_array_equal(detections.xyxy, found.pred_boxes.tensor.numpy())
    np.testing.assert_array_equal(detections.confidence, found.scores.numpy())
    np.testing.assert_array_equal(detections.class_id, found.pred_classes.numpy())


def test_neighbours_that_overlap_stay_two_tracks() -> None:
    trackers = pytest.importorskip("trackers")
    tracker = trackers.ByteTrackTracker()
    for k in range(4):
        found = Instances((100, 100))
        found.pred_boxes = Boxes(
            torch.tensor([[10.0 + k, 10, 50 + k, 60], [20 + k, 12, 60 + k, 60]])
        )
        found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 0])
        detections = supervision.Detections.from_detectron2({"instances": found})
        tracked = tracker.update(detections)
    assert sorted(tracked.tracker_id) == [0, 1]
