"""The detections of an evaluation's JSON, each judged against the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import batched_nms
from detectron2.structures import BoxMode

from ..utils.errors import UserError
from ..utils.printable import printable
from .crowdhuman_metrics import Bools, Floats, Sample, match, pairwise_iou
from .results import NO_DETECTIONS, read_results

# What a detection is; the last lies on a crowd region, which counts for nothing.
TRUE, DUPLICATE, BACKGROUND, IGNORED = range(4)
KINDS = ("true positive", "duplicate", "background", "ignored")
_SIDE = 1 << 20  # no box is cut off at an image's side


@dataclass(frozen=True)
class Judged:
    """An image's ground truth (G) and detections (D), these by descending score.

    Attributes:
        file_name: of the image.
        gt_boxes: (G, 4) xyxy in pixels.
        gt_classes: (G,) int64, the model's numbers.
        gt_crowd: (G,) bool, regions that are no single objects.
        gt_found: (G,) bool, by a true positive.
        boxes, scores, classes: (D, 4), (D,) and (D,).
        kinds: (D,) int64, one of ``TRUE``, ``DUPLICATE``, ``BACKGROUND`` and ``IGNORED``: at IoU
            above 0.5 within the class, best score first (``crowdhuman_metrics.match``).
        gts: (D,) int64, the object that a true positive has found, -1 for the others.
    """

    file_name: str
    gt_boxes: Floats
    gt_classes: np.ndarray
    gt_crowd: Bools
    gt_found: Bools
    boxes: Floats
    scores: Floats
    classes: np.ndarray
    kinds: np.ndarray
    gts: np.ndarray

    def ious(self) -> Floats:
        """(D, G) of each detection with each object, whatever their classes."""
        return pairwise_iou(self.boxes, self.gt_boxes)


def load_judged(dataset: str, results: Path) -> tuple[list[Judged], list[str]]:
    """All images of a data set, judged, and the names of its classes.

    Args:
        dataset: its name; it is registered.
        results: detections in COCO's results format, as an evaluation leaves them.

    Raises:
        UserError, DatasetError, AnnotationError: a file that is missing or of no use.
    """
    try:
        records = DatasetCatalog.get(dataset)
    except FileNotFoundError as error:
        raise UserError(f"data set {dataset!r}: {error.filename!r} does not exist") from error
    found = read_results(results, [record["image_id"] for record in records])
    numbers = MetadataCatalog.get(dataset).get("thing_dataset_id_to_contiguous_id") or {}
    names = [printable(name) for name in MetadataCatalog.get(dataset).get("thing_classes") or ()]
    judged = []
    for record in records:
        annotations = record.get("annotations", ())
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        rows = found.get(str(record["image_id"]), NO_DETECTIONS)
        categories = rows[:, 5].astype(np.int64)
        if numbers and not set(categories.tolist()) <= numbers.keys():
            unknown = min(set(categories.tolist()) - numbers.keys())
            raise UserError(f"{results}: category_id {unknown} is none of the data set {dataset!r}")
        judged.append(
            judge(
                record["file_name"],
                np.array(boxes, np.float64).reshape(-1, 4),
                np.array([a["category_id"] for a in annotations], np.int64),
                np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
                rows[:, :4],
                rows[:, 4],
                np.array([numbers.get(int(c), int(c)) for c in categories], np.int64),
            )
        )
    largest = max((int(c) for one in judged for c in (*one.classes, *one.gt_classes)), default=-1)
    return judged, names + [str(i) for i in range(len(names), largest + 1)]


def judge(
    file_name: str,
    gt_boxes: Floats,
    gt_classes: np.ndarray,
    gt_crowd: Bools,
    boxes: Floats,
    scores: Floats,
    classes: np.ndarray,
) -> Judged:
    """Sort the detections by score, and match them with the objects class by class."""
    order = np.argsort(-scores, kind="stable")
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    kinds = np.full(len(scores), BACKGROUND)
    found_gts = np.full(len(scores), -1)
    gt_found = np.zeros(len(gt_boxes), bool)
    for kind in np.unique(classes):
        own, gts = np.flatnonzero(classes == kind), np.flatnonzero(gt_classes == kind)
        sample = Sample.build(gt_boxes[gts], gt_crowd[gts], boxes[own], scores[own], (_SIDE, _SIDE))
        matches = match(sample)
        kinds[own[~matches.true & ~matches.false]] = IGNORED
        kinds[own[matches.duplicates]] = DUPLICATE
        kinds[own[matches.true]] = TRUE
        found = gts[~gt_crowd[gts]][matches.gts[matches.true]]
        found_gts[own[matches.true]], gt_found[found] = found, True
    truth = gt_boxes, gt_classes, gt_crowd, gt_found
    return Judged(file_name, *truth, boxes, scores, classes, kinds, found_gts)


def suppressed(judged: Sequence[Judged], iou: float) -> list[Judged]:
    """The same with the detections that class-wise NMS leaves, judged anew."""
    results = []
    for one in judged:
        kept = batched_nms(
            torch.from_numpy(one.boxes).float(),
            torch.from_numpy(one.scores).float(),
            torch.from_numpy(one.classes),
            iou,
        ).numpy()
        gts = one.gt_boxes, one.gt_classes, one.gt_crowd
        results.append(
            judge(one.file_name, *gts, one.boxes[kept], one.scores[kept], one.classes[kept])
        )
    return results
