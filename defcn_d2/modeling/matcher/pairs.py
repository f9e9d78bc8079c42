"""One-to-one matching of a whole batch over the pairs that a spatial prior allows.

The central region of a box holds some 20 of 20,000 locations. Those pairs are listed from the grid
of locations, scored, and resolved for all images at once: the dense (M, R) matrix never exists.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from ...structures import BACKGROUND, Assignment, Predictions, Priors
from ..box_ops import pairwise
from .functional import center_region, inside_center
from .solvers import solve

# More pairs than that are not listed: a few hundred MiB.
MAX_PAIRS = 2**22


class TooManyPairs(Exception):
    """``MAX_PAIRS`` do not suffice; see ``many_pairs``."""


@dataclass(frozen=True)
class Pairs:
    """P pairs of ground truth and location, over all images of a batch.

    Attributes:
        gt_idxs: (P,) int64, index into the ground truths of the whole batch; ascending.
        images, locations: (P,) int64; the locations of a ground truth ascend.
        allowed: (P,) bool. Others only fill up: on a GPU, how many pairs are allowed is not known
            until it has computed them.
        gt_boxes, gt_classes: (P, 4) xyxy and (P,) int64, of each pair's ground truth.
        num_gts: ground truths of each image.
        num_locations: R.
    """

    gt_idxs: Tensor
    images: Tensor
    locations: Tensor
    allowed: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    num_gts: list[int]
    num_locations: int

    def of_locations(self, values: Tensor) -> Tensor:
        """(N, R, ...) values of locations to (P, ...)."""
        return values[self.images, self.locations]

    def of_classes(self, values: Tensor) -> Tensor:
        """(N, R, K) values of classes to those of each pair's own class, (P,)."""
        return values[self.images, self.locations, self.gt_classes]

    def map_locations(
        self, function: Callable[[Predictions], Tensor], predictions: Predictions
    ) -> Tensor:
        """(P,) of ``function`` of the predictions (..., R) there, at the fewer of both."""
        where = (self.images, self.locations)
        if len(self.images) < predictions.boxes.shape[:2].numel():
            return function(predictions[where])
        return function(predictions)[where]

    def overlap(self, function: Callable[[Tensor, Tensor], Tensor], boxes: Tensor) -> Tensor:
        """(P,) of ``function``, such as ``iou``, between ground truths and (N, R, 4) boxes."""
        return function(self.gt_boxes, self.of_locations(boxes))


@dataclass(frozen=True)
class AllPairs:
    """All pairs of the M ground truths and R locations of one image.

    The methods are those of ``Pairs``, of an image's values: (R, ...) to what broadcasts to
    (M, R, ...).
    """

    gt_boxes: Tensor
    gt_classes: Tensor

    @classmethod
    def of(cls, gt: Instances) -> "AllPairs":
        return cls(gt.gt_boxes.tensor, gt.gt_classes)

    def of_locations(self, values: Tensor) -> Tensor:
        return values[None]

    def of_classes(self, values: Tensor) -> Tensor:
        return values[:, self.gt_classes].t()

    def map_locations(
        self, function: Callable[[Predictions], Tensor], predictions: Predictions
    ) -> Tensor:
        return function(predictions)[None]

    def overlap(self, function: Callable[[Tensor, Tensor], Tensor], boxes: Tensor) -> Tensor:
        return pairwise(function, self.gt_boxes, boxes)


def center_pairs(
    priors: Priors,
    gt_instances: list[Instances],
    radius: float,
    enlarge_tiny: bool = False,
    unlimited: bool = False,
) -> Pairs:
    """The pairs that ``functional.inside_center`` allows in each image of a batch.

    On a GPU with radius 0 the device is waited for, to learn how many cells the boxes hold.

    Args:
        gt_instances: of each image; may be empty.
        radius, enlarge_tiny: as in ``inside_center``.
        unlimited: list the allowed pairs however many there are, and no others; a GPU is waited
            for.

    Raises:
        TooManyPairs: the regions may hold more than ``MAX_PAIRS`` cells of the grids.
    """
    gt_boxes = torch.cat([gt.gt_boxes.tensor for gt in gt_instances])
    gt_classes = torch.cat([gt.gt_classes for gt in gt_instances])
    num_gts = [len(gt) for gt in gt_instances]
    images = torch.from_numpy(np.repeat(np.arange(len(num_gts)), num_gts))  # (G,)
    images = images.to(gt_boxes.device, non_blocking=True)
    if priors.level_shapes is None:
        inside = inside_center(priors, gt_boxes, radius, enlarge_tiny)
        gt_idxs, locations = inside.nonzero(as_tuple=True)
        allowed = torch.ones_like(gt_idxs, dtype=torch.bool)
    else:
        gt_idxs, locations, allowed = _cells_in_regions(
            priors,
            priors.level_shapes,
            gt_boxes,
            radius,
            math.inf if unlimited else MAX_PAIRS,
            enlarge_tiny,
        )
        if unlimited or allowed.device.type == "cpu":  # a GPU would have to be waited for
            kept = allowed.nonzero().squeeze(1)
            gt_idxs, locations, allowed = gt_idxs[kept], locations[kept], allowed[kept]
    return Pairs(
        gt_idxs=gt_idxs,
        images=images[gt_idxs],
        locations=locations,
        allowed=allowed,
        gt_boxes=gt_boxes[gt_idxs],
        gt_classes=gt_classes[gt_idxs],
        num_gts=num_gts,
        num_locations=len(priors),
    )


def _cells_in_regions(
    priors: Priors,
    level_shapes: list[tuple[int, int]],
    gt_boxes: Tensor,
    radius: float,
    limit: float,
    enlarge_tiny: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ground truth, location and whether it is allowed, (P,) each, from the corners of the regions.

    Args:
        gt_boxes: (G, 4) xyxy.
        limit: on the number of cells, above which ``TooManyPairs`` is raised.
    """
    # Columns, rows and first location of each level, (L, 3).
    device, strides = gt_boxes.device, priors.level_strides
    starts = np.cumsum([0, *priors.level_sizes[:-1]])
    table = [(columns, rows, start) for (rows, columns), start in zip(level_shapes, starts)]
    levels = torch.tensor(table).to(device, non_blocking=True)
    shapes = levels[:, :2]

    # Cell j is centred at (j + 0.5) * stride: the first that may lie in the region, (G, L, 2) xy.
    low, high = center_region(gt_boxes, strides, radius, enlarge_tiny)
    first = (low / strides[:, None] - 0.5).floor().minimum(shapes).long().clamp(min=0)
    if radius:  # the largest region there is, one cell wider as the first is rounded down
        side = math.ceil(2 * radius) + 1
        sides, total = torch.full_like(first, side), first.shape[0] * first.shape[1] * side**2
    else:
        last = (high / strides[:, None] - 0.5).ceil().minimum(shapes - 1).long().clamp(min=-1)
        sides = (last - first + 1).clamp(min=0)
        total = int(sides.prod(dim=2).sum())
    if total > limit:
        raise TooManyPairs

    # One entry a cell: the region that it belongs to, of G * L, and where in that it stands.
    first, sides = first.flatten(0, 1), sides.flatten(0, 1)
    counts = sides.prod(dim=1)
    regions = torch.repeat_interleave(counts, output_size=total)
    cells = torch.arange(len(regions), device=device) - (counts.cumsum(0) - counts)[regions]
    widths = sides[:, 0][regions]
    rows = cells.div(widths, rounding_mode="floor")
    columns = cells - rows * widths + first[:, 0][regions]
    rows = rows + first[:, 1][regions]

    # Ground truth, and location in the image, of each cell; a cell beyond the grid has none.
    gt_idxs = regions.div(len(table), rounding_mode="floor")
    num_columns, num_rows, starts_of = levels[regions - gt_idxs * len(table)].unbind(dim=1)
    on_grid = (columns < num_columns) & (rows < num_rows)
    locations = (starts_of + rows * num_columns + columns).masked_fill(~on_grid, 0)

    # The test of inside_center itself.
    boxes = priors.boxes[locations]  # (P, 4)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = low.flatten(0, 1)[regions], high.flatten(0, 1)[regions]
    allowed = on_grid & ((centers > low) & (centers < high)).all(dim=1)
    return gt_idxs, locations, allowed


def hungarian_pairs(pairs: Pairs, score: Tensor, unmatched: float = -1.0) -> list[Assignment]:
    """In each image, the one-to-one matching of the highest total score over the pairs.

    Everything goes to the host at once; see ``solvers.solve`` for the result.

    Args:
        score: (P,) float; NaN and infinity are never matched.
        unmatched: as in ``solvers.solve``.
    """
    score = score.masked_fill(~pairs.allowed, torch.nan)
    # Indices are exact in float64, float32 scores too.
    host = torch.stack([pairs.gt_idxs.double(), pairs.locations.double(), score.double()])
    gt_idxs, locations, scores = host.cpu().numpy()
    first_gts = np.cumsum([0, *pairs.num_gts])
    bounds = np.searchsorted(gt_idxs, first_gts)
    matched = []  # per image (3, matches): image, location, ground truth
    for image, num_gts in enumerate(pairs.num_gts):
        own = slice(bounds[image], bounds[image + 1])
        gts, priors = solve(
            gt_idxs[own] - first_gts[image],
            locations[own],
            scores[own],
            num_gts,
            pairs.num_locations,
            unmatched,
        )
        matched.append(np.stack([np.full_like(gts, image), priors, gts]))
    result = torch.from_numpy(np.concatenate(matched, axis=1))
    images, priors, gts = result.to(score.device, non_blocking=True)
    shape = (len(pairs.num_gts), pairs.num_locations)
    assigned = torch.full(shape, BACKGROUND, device=score.device)  # (N, R)
    assigned[images, priors] = gts
    return [Assignment(x) for x in assigned]


def argmax_pairs(pairs: Pairs, score: Tensor) -> list[Assignment]:
    """In each image, every ground truth its best location, if it has none better for another.

    Nothing goes to the host.

    Args:
        score: (P,) float; ties go to the first location, and to the first ground truth. NaN and
            infinity are never matched.
    """
    num_images, num_gts = len(pairs.num_gts), sum(pairs.num_gts)
    score = score.masked_fill(~(pairs.allowed & score.isfinite()), -torch.inf)
    chosen = _first_best(score, pairs.gt_idxs, num_gts)  # (G,) indices of pairs, P for none
    # A last entry for the ground truths without a pair: they choose a location beyond the images.
    score = torch.cat([score, score.new_full((1,), -torch.inf)])[chosen]
    places = pairs.images * pairs.num_locations + pairs.locations
    nowhere = num_images * pairs.num_locations
    places = torch.cat([places, places.new_full((1,), nowhere)])[chosen]
    gt_idxs = _first_best(score, places, nowhere + 1)[:-1].view(num_images, -1)  # (N, R)
    first_gts = np.cumsum([0, *pairs.num_gts[:-1]])
    return [
        Assignment(torch.where(idxs < num_gts, idxs - int(first), BACKGROUND))
        for idxs, first in zip(gt_idxs, first_gts)
    ]


def _first_best(score: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Index of the highest score of each group, the first of equal ones.

    Args:
        score: (P,) float; -inf for those that are out of the question.
        groups: (P,) int64.

    Returns:
        (num_groups,) int64; P where a group has none.
    """
    best = score.new_full((num_groups,), -torch.inf).scatter_reduce(0, groups, score, "amax")
    idxs = torch.arange(len(score), device=score.device)
    idxs = idxs.masked_fill((score < best[groups]) | score.isneginf(), len(score))
    none = torch.full_like(best, len(score), dtype=torch.int64)
    return none.scatter_reduce(0, groups, idxs, "amin")
