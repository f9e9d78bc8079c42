"""Losses that weigh the locations inside a box by where they are and what they predict."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ...config.rules import check_argument, numbers, value_of
from ...structures import LossSum, Predictions, Priors
from ..box_ops import pairwise_iou
from ..loss.functional import focal_negative, giou_loss
from ..matcher.pairs import Pairs, center_pairs
from .build import CRITERION_REGISTRY
from .normalization import SummedCriterion

# What keeps divisions and differences from 0, and the least logarithm of a bag's confidence.
EPS, LEAST_LOG = 1e-12, -100.0
# Factor of the confidence in the exponent of a location's weight.
CONFIDENCE_FACTOR = 3.0


@CRITERION_REGISTRY.register()
class AutoAssign(SummedCriterion):
    """Bags of locations instead of an assignment (AutoAssign, arXiv 2007.03496).

    Every location strictly inside a box, on all levels, is positive and negative to some degree.
    Its confidence P is the score of the ground truth's class times exp(-reg_weight * GIoU loss);
    its centre prior G is a Gaussian of its distance in strides from the box's centre, which is
    learned for every class. The quality branch, if any, has no loss of its own.

    Ground truths without a location inside count nowhere. Where boxes of one class share a
    location, the largest of what they take from its negative weight is taken.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        pos_weight: float = 0.25,
        neg_weight: float = 0.75,
        norm_weight: float = 0.75,
        reg_weight: float = 5.0,
        fused: bool = True,
        suffix: str = "",
        **arguments: Any,
    ):
        """
        Args:
            num_classes: K.
            pos_weight, neg_weight, norm_weight: factors of the losses of the bags, of the negative
                weights and of the centre priors; a loss of weight 0 is left out.
            reg_weight: factor of the GIoU loss in the exponent of a location's confidence.
            fused: the quality branch is folded into the class logits, except where it is
                centerness.
            suffix: appended to the names of the losses.
        """
        super().__init__(**arguments)
        check_argument("pos_weight", pos_weight, numbers("(0, inf)"))
        check_argument("neg_weight", neg_weight, numbers("(0, inf)"))
        check_argument("norm_weight", norm_weight, numbers("[0, inf)"))
        check_argument("reg_weight", reg_weight, numbers("(0, inf)"))
        self.pos_weight = pos_weight
        self.neg_weight = neg_weight
        self.norm_weight = norm_weight
        self.reg_weight = reg_weight
        self.fused = fused
        self.suffix = suffix
        #: Centre priors of the classes, (K, 2) xy in strides.
        self.center_mean = nn.Parameter(torch.zeros(num_classes, 2))
        self.center_std = nn.Parameter(torch.ones(num_classes, 2))

    def loss_sums(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, LossSum]:
        """
        Args:
            gt_instances: per image ``gt_boxes`` and ``gt_classes``; may be empty.

        Returns:
            ``loss_pos`` over the ground truths, ``loss_neg`` over the sum of all centre priors and
            ``loss_norm`` over the images.
        """
        pairs = center_pairs(priors, gt_instances, radius=0, unlimited=True)
        use_fused = self.fused and not predictions.centerness
        logits = predictions.fused() if use_fused else predictions.cls_logits.float()  # (N, R, K)
        center_prior = self.center_prior(priors, pairs)  # (P,)

        # Sums over images and ground truths; those without a location inside are in none of them.
        images, gts = len(gt_instances), sum(pairs.num_gts)
        is_first = (pairs.gt_idxs.diff(prepend=pairs.gt_idxs.new_full((1,), -1)) > 0).double()
        reached = _sums(is_first, pairs.images, images)  # (N,) ground truths
        prior_sums = _sums(center_prior, pairs.images, images)  # (N,)
        count = prior_sums.detach().sum()
        self.metrics = {
            f"num_foreground{self.suffix}": count / images,
            f"num_unmatched_gt{self.suffix}": (gts - reached.sum()) / images,
        }

        confidence = self._confidence(logits, predictions.boxes, pairs)  # (P,)
        bags = bag_confidences(confidence, center_prior, pairs.gt_idxs, gts)  # (G,)
        loss_pos = -(bags.clamp(min=math.exp(LEAST_LOG)).log()[pairs.gt_idxs] * is_first).sum()
        sums = {"loss_pos": LossSum(self.pos_weight * loss_pos, reached.sum())}

        boxes = predictions.boxes.detach()
        entries, shares = background_shares(boxes, pairs, gt_instances, logits.shape[2])
        loss_neg = _negative_loss(logits, entries, shares)
        sums["loss_neg"] = LossSum(self.neg_weight * loss_neg, count)

        if self.norm_weight:  # the wider the priors, the smaller
            loss_norm = (reached / prior_sums.clamp(min=EPS)).sum()
            sums["loss_norm"] = LossSum(self.norm_weight * loss_norm, count.new_full((), images))
        return {name + self.suffix: loss for name, loss in sums.items()}

    def center_prior(self, priors: Priors, pairs: Pairs) -> Tensor:
        """(P,) float64 in [0, 1]: the Gaussian of each pair's class at its location."""
        gt_centers = (pairs.gt_boxes[:, :2] + pairs.gt_boxes[:, 2:]).double() / 2
        offsets = priors.centers[pairs.locations].double() - gt_centers
        offsets = offsets / priors.strides[pairs.locations, None]  # (P, 2)
        mean, std = self.center_mean[pairs.gt_classes], self.center_std[pairs.gt_classes]
        return (((offsets - mean) / std).square().sum(dim=1) / -2).exp()

    def _confidence(self, logits: Tensor, boxes: Tensor, pairs: Pairs) -> Tensor:
        """(P,) float64 in [0, 1]."""
        overlap_loss = pairs.overlap(giou_loss, boxes).double()
        return pairs.of_classes(logits).double().sigmoid() * (-self.reg_weight * overlap_loss).exp()

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        own = CRITERION_REGISTRY.values_of(value_of(cfg, key))
        name, branch = value_of(cfg, key).NAME, cfg.MODEL.DEFCN.QUALITY_BRANCH
        is_main = key == "MODEL.DEFCN.CRITERION"
        if is_main and (branch == "centerness" or branch != "none" and not own["fused"]):
            yield (
                f"MODEL.DEFCN.QUALITY_BRANCH {branch!r} would not be learned by {name} with FUSED "
                f"{own['fused']}; set it to 'objectness' with {key}.{name}.FUSED True, or to 'none'"
            )


def bag_confidences(
    confidence: Tensor, center_prior: Tensor, gt_idxs: Tensor, number: int
) -> Tensor:
    """Means of the confidences of each ground truth's locations, weighted by exp(3 P) G.

    Args:
        confidence, center_prior, gt_idxs: (P,), of every pair.
        number: of ground truths.

    Returns:
        (number,) in [0, 1]; 0 for a ground truth without a location.
    """
    weights = (CONFIDENCE_FACTOR * confidence).exp() * center_prior
    totals = _sums(weights, gt_idxs, number).clamp(min=EPS)
    return _sums(weights * confidence, gt_idxs, number) / totals


def background_shares(
    boxes: Tensor, pairs: Pairs, gt_instances: list[Instances], num_classes: int
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Shares by which locations are no background for the classes of the boxes around them.

    They go by f = 1 / (1 - u), u being the highest IoU of a location's predicted box with any
    ground truth of its image: from 0 at a ground truth's location of the least f to 1 at that of
    the largest; 1 at all of them where f is the same.

    Args:
        boxes: (N, R, 4) xyxy, predicted, without gradient.

    Returns:
        U different entries of class logits, indices (U,) of images, locations and classes; and
        their shares, (U,) float64 in [0, 1]: the largest of several pairs' at an entry.
    """
    best = boxes.new_zeros(boxes.shape[:2])  # (N, R)
    for image, gt in enumerate(gt_instances):
        if len(gt):
            best[image] = pairwise_iou(gt.gt_boxes.tensor, boxes[image]).amax(dim=0)
    values = 1 / (1 - pairs.of_locations(best).double()).clamp(min=EPS)  # (P,)
    limits = values.new_zeros(sum(pairs.num_gts))  # (G,)
    low = limits.scatter_reduce(0, pairs.gt_idxs, values, "amin", include_self=False)
    high = limits.scatter_reduce(0, pairs.gt_idxs, values, "amax", include_self=False)
    low, high = low[pairs.gt_idxs], high[pairs.gt_idxs]  # (P,)
    shares = (values - low + EPS) / (high - low + EPS)

    shape = (*boxes.shape[:2], num_classes)
    places = (pairs.images * shape[1] + pairs.locations) * num_classes + pairs.gt_classes
    entries, inverse = places.unique(return_inverse=True)  # (U,) and (P,)
    largest = shares.new_zeros(len(entries)).scatter_reduce(0, inverse, shares, "amax")
    return torch.unravel_index(entries, shape), largest


def _negative_loss(logits: Tensor, entries: tuple[Tensor, ...], shares: Tensor) -> Tensor:
    """Sum of q^2 (-log(1 - q)) over all logits (N, R, K), q = p (1 - share) at the U entries.

    Without the cancellation of 1 - q:  1 - p (1 - n) = (1 + n e^z) / (1 + e^z)  of a logit z.
    """
    own = logits[entries].double()  # (U,)
    probability = own.sigmoid() * (1 - shares)
    entropy = F.softplus(own) - F.softplus(own + shares.log())
    background = focal_negative(logits, alpha=0, gamma=2)
    background[entries] = (probability.square() * entropy).to(background.dtype)
    return background.sum()


def _sums(values: Tensor, groups: Tensor, number: int) -> Tensor:
    """(P,) values and indices of groups to the sum of each group, (number,)."""
    return values.new_zeros(number).index_add(0, groups, values)
