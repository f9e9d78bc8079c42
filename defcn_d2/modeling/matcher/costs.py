"""Scores and costs of pairs of ground truth and location, the terms that matchers add up.

Each is written once, for the pairs that it is asked for: ``Pairs``, a list of P over a batch, or
``AllPairs``, (M, R) of one image. There is never an (M, R, K) tensor. A prediction that is NaN or
infinite gives a value that is not finite itself, and loses to all that are.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ...config.components import own_node
from ...config.rules import value_of
from ...structures import Predictions, Priors, fuse_logits
from ..box_ops import box_area, iou
from ..loss.functional import focal_negative, focal_positive
from .pairs import AllPairs, Pairs
from .registry import MATCHER_REGISTRY


def class_probability(
    predictions: Predictions, pairs: Pairs | AllPairs, fused: bool = True
) -> Tensor:
    """Predicted score of each pair's class.

    Args:
        predictions: of what the pairs are of, a batch or an image.
        fused: multiply by the probability of the quality branch, where there is one.

    Returns:
        (P,) or (M, R) float32 in [0, 1].
    """
    probability = _nan_for_infinity(pairs.of_classes(predictions.cls_logits)).sigmoid_()
    if fused and predictions.quality_logits is not None:
        quality = pairs.of_locations(predictions.quality_logits)
        probability *= _nan_for_infinity(quality).sigmoid_()
    return probability


def prediction_quality(
    predictions: Predictions, pairs: Pairs | AllPairs, alpha: float, fused: bool = True
) -> Tensor:
    """The quality p^(1 - a) * iou^a of each pair (arXiv 2012.03544, eq. 3).

    Args:
        predictions, fused: as of ``class_probability``.
        alpha: weight a of the IoU, in [0, 1].

    Returns:
        (P,) or (M, R) float32 in [0, 1].
    """
    probability = class_probability(predictions, pairs, fused)
    overlap = pairs.overlap(iou, _nan_for_infinity(predictions.boxes))
    return probability.pow_(1 - alpha) * overlap.pow_(alpha)


def nearness(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Minus the Euclidean distance in pixels of every location from the centre of every box.

    Args:
        gt_boxes: (M, 4) xyxy.

    Returns:
        (M, R), at most 0.
    """
    x, y = priors.centers.unbind(dim=1)  # (R,)
    gt_x, gt_y = ((gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2)[:, :, None].unbind(dim=1)  # (M, 1)
    return ((x - gt_x).square_() + (y - gt_y).square_()).sqrt_().neg_()


def smallness(priors: Priors, gt_boxes: Tensor) -> Tensor:
    """Minus the area of every box, the same at all locations: a view (M, R), at most 0."""
    return -box_area(gt_boxes)[:, None].expand(-1, len(priors))


def focal_cost(
    predictions: Predictions, pairs: Pairs | AllPairs, alpha: float, gamma: float
) -> Tensor:
    """Focal loss over all classes of each pair's location, were it to learn the pair's class.

    Args:
        predictions: as of ``class_probability``; the quality branch is folded in.
        alpha, gamma: of the focal loss (arXiv 1708.02002, eq. 5).

    Returns:
        (P,) or (M, R) float32, non-negative.
    """
    background = pairs.map_locations(
        lambda some: focal_negative(_fused(some), alpha, gamma).sum(dim=-1), predictions
    )
    own = _nan_for_infinity(pairs.of_classes(predictions.cls_logits))
    if predictions.quality_logits is not None:
        quality = _nan_for_infinity(pairs.of_locations(predictions.quality_logits))
        own = fuse_logits(own, quality)
    # The one-hot target differs from background in a single class.
    return background + (focal_positive(own, alpha, gamma) - focal_negative(own, alpha, gamma))


def focal_problems(cfg: CfgNode, key: str) -> Iterator[str]:
    """Sentences for the factors of a matcher's focal cost that are not those of the class loss.

    Args:
        key: of the node of matchers, which names one with FOCAL_ALPHA and FOCAL_GAMMA; beside it
            stands the loss.
    """
    place = key.removesuffix(".MATCHER")
    node, loss = value_of(cfg, key), value_of(cfg, place).LOSS
    own, name = MATCHER_REGISTRY.values_of(node), node.NAME
    for factor in ("ALPHA", "GAMMA"):
        here, there = own.get(f"focal_{factor.lower()}"), own_node(loss).get(factor)
        if None not in (here, there) and here != there:
            yield (
                f"{key}.{name}.FOCAL_{factor} is {here}, but {name} matches by the loss itself, "
                f"whose {place}.LOSS.{loss.NAME}.{factor} is {there}; give both the same value"
            )


def focal_difference_cost(probability: Tensor, alpha: float, gamma: float) -> Tensor:
    """Change of the focal loss as a location turns foreground (arXiv 2012.05780, eq. 2).

    Args:
        probability: (M, R) in [0, 1], of each ground truth's class.

    Returns:
        (M, R), negative where the class is likely already.
    """
    foreground = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    background = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return foreground - background


def l1_cost(gt_boxes: Tensor, boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Sum of the absolute differences of the four coordinates, in sizes of the image.

    Args:
        gt_boxes: (M, 4) xyxy in pixels.
        boxes: (R, 4) xyxy in pixels.
        image_size: (height, width) of the input without padding.

    Returns:
        (M, R), non-negative.
    """
    height, width = image_size
    scale = gt_boxes.new_tensor([width, height, width, height])
    return torch.cdist(gt_boxes / scale, boxes.float() / scale, p=1)


def _fused(predictions: Predictions) -> Tensor:
    """``predictions.fused()``, NaN where one of the two logits is infinite."""
    quality = predictions.quality_logits
    return replace(
        predictions,
        cls_logits=_nan_for_infinity(predictions.cls_logits),
        quality_logits=None if quality is None else _nan_for_infinity(quality),
    ).fused()


def _nan_for_infinity(x: Tensor) -> Tensor:
    """A copy in float32: the infinite logit of a probability of 1 must not win."""
    return x.float().nan_to_num(torch.nan, torch.nan, torch.nan)
