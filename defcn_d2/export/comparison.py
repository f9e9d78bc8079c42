"""Differences between two lists of detections."""

from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Limits of the difference between two detections of the same thing.

    Attributes:
        scores: absolute.
        boxes: pixels.
        relative: of the longer side of the box, in addition.
        share: of the detections that may be farther apart, or without a counterpart.
    """

    scores: float = 1e-4
    boxes: float = 0.05
    relative: float = 0.0
    share: float = 0.0


_FAR = torch.finfo(torch.float32).max

FLOAT32 = Tolerance()
FLOAT16 = Tolerance(scores=0.01, boxes=0.5, relative=0.01)
INT8 = Tolerance(scores=0.15, boxes=2.0, relative=0.15, share=0.1)
TOLERANCES = {"float32": FLOAT32, "float16": FLOAT16, "int8": INT8}


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first: boxes (k, 4) in pixels, scores (k,), classes (k,)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor

    @classmethod
    def from_instances(cls, instances: Instances) -> "Detections":
        found = instances.to("cpu")
        return cls(found.pred_boxes.tensor, found.scores, found.pred_classes)

    def visible(self) -> "Detections":
        """Detections with a box that is not empty, and a score."""
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        keep = (sides > 0).all(dim=1) & (self.scores > 0)
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Difference:
    """Difference between the detections found and those wanted.

    Attributes:
        compared: detections that were looked for.
        scores: largest difference of scores.
        boxes: largest difference of coordinates in pixels, of those that have a counterpart.
        missing: detections without a counterpart of their class and score.
        too_far: detections whose counterpart's box is beyond the tolerance.
    """

    compared: int = 0
    scores: float = 0.0
    boxes: float = 0.0
    missing: int = 0
    too_far: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.compared + other.compared,
            max(self.scores, other.scores),
            max(self.boxes, other.boxes),
            self.missing + other.missing,
            self.too_far + other.too_far,
        )

    def faults(self, tolerance: Tolerance) -> list[str]:
        """Differences beyond the tolerance, a phrase for each output."""
        faults = []
        if not self.scores <= tolerance.scores:
            faults.append(f"'scores' differ by {self.scores:.3g} (at most {tolerance.scores:g})")
        if self.too_far > tolerance.share * self.compared:
            relative = f" and {tolerance.relative:g} of a side" if tolerance.relative else ""
            faults.append(
                f"'boxes' differ by {self.boxes:.3g} pixels (at most {tolerance.boxes:g}{relative})"
            )
        if self.missing > tolerance.share * self.compared:
            faults.append(
                f"'classes' differ: {self.missing} of {self.compared} detections have no "
                "counterpart of their class and score"
            )
        return faults


def difference_by_rank(found: Detections, wanted: Detections) -> Difference:
    """Scores compared rank by rank: equal detections in another order make no difference."""
    if len(found) != len(wanted):
        return Difference(len(wanted), missing=abs(len(found) - len(wanted)))
    apart = (found.scores - wanted.scores).abs()
    return Difference(scores=_largest(apart))


def difference_above(
    found: Detections, wanted: Detections, floor: float, tolerance: Tolerance
) -> Difference:
    """Look for each wanted detection above a score among those found.

    Its counterpart is the nearest box of the same class and, within the tolerance, score. What has
    a score of 0 is no detection.

    Args:
        floor: detections at or below this score may have been cut off.
    """
    looked_for = wanted.scores > max(floor, 0.0)
    boxes, scores = wanted.boxes[looked_for], wanted.scores[looked_for]
    classes = wanted.classes[looked_for]
    if not len(scores):
        return Difference()
    if not len(found):
        return Difference(len(scores), missing=len(scores))
    alike = (classes[:, None] == found.classes) & (
        (scores[:, None] - found.scores).abs() <= tolerance.scores
    )
    pixels = (boxes[:, None] - found.boxes).abs().amax(dim=2)  # (wanted, found)
    pixels = pixels.nan_to_num(nan=_FAR, posinf=_FAR)  # what is no number is as far as can be
    pixels = pixels.masked_fill(~alike, float("inf")).amin(dim=1)
    there = pixels.isfinite()
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)
    too_far = there & (pixels > tolerance.boxes + tolerance.relative * sides)
    return Difference(
        compared=len(scores),
        boxes=_largest(pixels[there]),
        missing=int((~there).sum()),
        too_far=int(too_far.sum()),
    )


def mutual_difference(a: Detections, b: Detections, topk: int, tolerance: Tolerance) -> Difference:
    """Look for ``a`` in ``b`` and ``b`` in ``a``, except what either's top-k may have cut off."""
    floor = max(_cut_at(a, topk), _cut_at(b, topk)) + 2 * tolerance.scores
    return difference_above(a, b, floor, tolerance) + difference_above(b, a, floor, tolerance)


def _cut_at(detections: Detections, topk: int) -> float:
    return float(detections.scores.min()) if len(detections) >= topk else -1.0


def _largest(values: Tensor) -> float:
    """The largest value, inf where one is no number; 0 of none."""
    if not len(values):
        return 0.0
    return float(torch.nan_to_num(values, nan=float("inf")).max())
