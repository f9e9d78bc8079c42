"""Exports are compared with the model on real images before they are written."""

import copy
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.synthetic import shapes
from ..modeling.meta_arch import DeFCN
from ..utils.errors import UserError
from .artifacts import Artifact
from .comparison import (
    FLOAT32,
    TOLERANCES,
    Detections,
    Difference,
    Tolerance,
    difference_above,
    difference_by_rank,
    mutual_difference,
)
from .detector import DeployedDetector, Outputs


class VerificationError(UserError):
    """An export that does not give what the model gives."""


def drawn_images(number: int = 3) -> list[np.ndarray]:
    """Images (H, W, 3) uint8, BGR, of the built-in data."""
    return [shapes.draw("val", 0, index)[0] for index in range(number)]


def make_batches(
    images: Sequence[np.ndarray],
    size: int,
    max_size: int,
    channels: str = "BGR",
    fixed: tuple[int, int] | None = None,
) -> list[Tensor]:
    """Batches of 1, 2 and 3 images, of landscape and portrait format and of a small size.

    Args:
        images: (H, W, 3) uint8, BGR; they are taken in turn.
        size: short side in pixels of the first batch, the size for tests.
        max_size: of the long sides.
        channels: the model's, "BGR", "RGB" or "L".
        fixed: (height, width) of all batches, where there is no choice.

    Returns:
        (N, C, H, W) float32; else no side of the last two divides by 32.
    """
    long_side = min(max_size, size * 4 // 3)
    sizes = [(size, long_side), (long_side * 3 // 4 | 1, size * 3 // 4 | 1), (61, 93)]
    if fixed is not None:
        sizes = [fixed] * 3
    batches, taken = [], 0
    for number, (height, width) in enumerate(sizes, start=1):
        batch = []
        for _ in range(number):
            image = cv2.resize(images[taken % len(images)], (width, height))
            batch.append(_planes(image, channels))
            taken += 1
        batches.append(torch.from_numpy(np.stack(batch)))
    return batches


def _planes(image: np.ndarray, channels: str) -> np.ndarray:
    """BGR (H, W, 3) to the model's (C, H, W) float32."""
    if channels == "L":
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None]
    elif channels == "RGB":
        image = image[:, :, ::-1]
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)


def verify_deployed(
    model: DeFCN, deployed: DeployedDetector, batches: Sequence[Tensor]
) -> Difference:
    """Compare a detector in float32 with ``DeFCN.forward`` in its two ways to choose detections.

    By one top-k, both have to find the same. The other way has limits of its own (candidates a
    level, a threshold): all that it finds, before NMS, has to be there.

    Raises:
        VerificationError: an output differs by more than the tolerance.
    """
    total = Difference()
    for batch in batches:
        with torch.no_grad():
            found = _split(deployed(batch))
        one_topk = _ordinary(model, deployed, batch, topk_only=True)
        by_level = _ordinary(model, deployed, batch, topk_only=False)
        difference = Difference()
        for ours, wanted, candidates in zip(found, one_topk, by_level, strict=True):
            floor = float(ours.scores.min()) + 2 * FLOAT32.scores
            difference += mutual_difference(ours.visible(), wanted, deployed.topk, FLOAT32)
            difference += difference_above(ours.visible(), candidates, floor, FLOAT32)
        _refuse("the detector for deployment and DeFCN.forward", difference, batch, FLOAT32)
        total += difference
    return total


def _ordinary(
    model: DeFCN, deployed: DeployedDetector, batch: Tensor, topk_only: bool
) -> list[Detections]:
    """Detections by ``DeFCN.forward``, without NMS."""
    chooser = copy.copy(model)  # of the same weights
    chooser.topk_only, chooser.nms_thresh = topk_only, None
    chooser.max_detections = deployed.topk
    height, width = batch.shape[2:]
    images = batch
    if deployed.resize is not None:
        images = F.interpolate(batch, deployed.resize, mode="bilinear", align_corners=False)
    inputs = [{"image": image, "height": height, "width": width} for image in images]
    with torch.no_grad():
        return [Detections.from_instances(result["instances"]) for result in chooser(inputs)]


def verify_artifact(
    artifact: Artifact,
    reference: Callable[[Tensor], Outputs],
    batches: Sequence[Tensor],
    tolerance: Tolerance = FLOAT32,
) -> Difference:
    """Compare a file's program with the detector in float32.

    Raises:
        VerificationError: an output differs by more than the tolerance.
    """
    total = Difference()
    for batch in batches:
        with torch.no_grad():
            wanted = reference(batch)
        found = artifact.run(batch)
        difference = Difference()
        shapes_differ = [tuple(x.shape) for x in found] != [tuple(x.shape) for x in wanted]
        if shapes_differ:
            raise VerificationError(
                f"the export gives outputs of shapes {[tuple(x.shape) for x in found]}, and "
                f"PyTorch {[tuple(x.shape) for x in wanted]}, for images {tuple(batch.shape)}"
            )
        for ours, theirs in zip(_split(found), _split(wanted), strict=True):
            difference += difference_by_rank(ours, theirs)
            difference += mutual_difference(ours, theirs, len(theirs), tolerance)
        _refuse("the export and PyTorch", difference, batch, tolerance)
        total += difference
    return total


def tolerance_of(precision: str) -> Tolerance:
    """Tolerance between an export in this precision and PyTorch in float32."""
    return TOLERANCES[precision]


def _split(outputs: Outputs) -> list[Detections]:
    return [Detections(*image) for image in zip(*outputs, strict=True)]


def _refuse(what: str, difference: Difference, batch: Tensor, tolerance: Tolerance) -> None:
    faults = difference.faults(tolerance)
    if faults:
        raise VerificationError(
            f"{what} do not agree on images {tuple(batch.shape)}: {'; '.join(faults)}. "
            "Nothing was written"
        )
