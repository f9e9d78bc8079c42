"""Losses of detectors that assign at most one ground truth to each prior."""

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ...structures import BACKGROUND, IGNORE, Assignment, Predictions, Priors
from ..loss.functional import focal_loss, giou_loss, l1_loss
from ..matcher import BatchMatcher, Matcher, build_matcher
from .normalization import LossSum, SummedCriterion


class DenseCriterion(SummedCriterion):
    """Focal loss of all priors, GIoU loss of the foreground (arXiv 2012.03544, section 3.1).

    Which prior is foreground, the matcher says. With a centerness branch the box loss is weighted
    by the assignment's quality, which the branch learns as well (arXiv 1904.01355, section 3.2).
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        quality: str = "none",
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        cls_weight: float = 1.0,
        reg_weight: float = 2.0,
        l1_weight: float = 0.0,
        normalizer: str = "foreground",
        suffix: str = "",
    ):
        """
        Args:
            matcher: called once an image.
            quality: what the quality branch of the predictions is for: "none" (not looked at),
                "filter" (folded into the class logits) or "centerness" (a loss of its own).
            focal_alpha, focal_gamma: of the classification loss.
            cls_weight, reg_weight, l1_weight: factors of the losses of the classes, of the boxes'
                GIoU and of their coordinates; a loss of weight 0 is left out.
            normalizer: the losses are divided by the number of "foreground" locations, or of
                ground truths, "gts"; the mean over the workers, at least 1.
            suffix: appended to the names of the losses.
        """
        super().__init__()
        if normalizer not in ("foreground", "gts"):
            raise ValueError(
                f"MODEL.DEFCN.LOSS.NORMALIZER {normalizer!r} is unknown; one of: foreground, gts"
            )
        self.matcher = matcher
        self.quality = quality
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.cls_weight = cls_weight
        self.reg_weight = reg_weight
        self.l1_weight = l1_weight
        self.normalizer = normalizer
        self.suffix = suffix
        #: Figures of the last call, for the event storage of the meta-architecture.
        self.metrics: dict[str, Tensor] = {}

    def loss_sums(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, LossSum]:
        """
        Args:
            gt_instances: per image ``gt_boxes`` and ``gt_classes``; may be empty.

        Returns:
            ``loss_cls``, ``loss_box_reg``, ``loss_centerness`` and ``loss_box_l1`` (those that
            apply), in float32 or float64. Without any ground truth they are finite, and connected
            to all predictions. Their count is the number that ``normalizer`` names, but for the
            box loss weighted by centerness: the sum of the targets (method section 6).
        """
        assignments = self.match(priors, predictions, gt_instances)
        gt_idxs = torch.stack([assignment.gt_idxs for assignment in assignments])
        images, locations = torch.nonzero(gt_idxs >= 0, as_tuple=True)
        gt_idxs_fg = _offset_by_image(gt_idxs[images, locations], images, gt_instances)
        gt_classes = torch.cat([gt.gt_classes for gt in gt_instances])[gt_idxs_fg]
        gt_boxes = torch.cat([gt.gt_boxes.tensor for gt in gt_instances])[gt_idxs_fg]
        number = len(gt_idxs_fg) if self.normalizer == "foreground" else sum(map(len, gt_instances))
        # filled on the device: a copy from the host would wait for it
        count = torch.full((), number, dtype=torch.float64, device=gt_idxs.device)

        sums = {}
        if self.cls_weight:
            loss = self._classification_loss(predictions, gt_idxs, images, locations, gt_classes)
            sums["loss_cls"] = LossSum(loss * self.cls_weight, count)
        boxes = predictions.boxes[images, locations]
        if self.l1_weight:
            image_sizes = gt_boxes.new_tensor([gt.image_size for gt in gt_instances])[images]
            loss = l1_loss(boxes, gt_boxes, image_sizes).sum()
            sums["loss_box_l1"] = LossSum(loss * self.l1_weight, count)
        if self.reg_weight and self.quality == "centerness":
            assert predictions.quality_logits is not None
            centerness = self._centerness(assignments)[images, locations]
            loss = (giou_loss(boxes, gt_boxes) * centerness).sum()
            sums["loss_box_reg"] = LossSum(loss * self.reg_weight, centerness.sum())
            logits = predictions.quality_logits[images, locations].float()
            loss = F.binary_cross_entropy_with_logits(logits, centerness, reduction="sum")
            sums["loss_centerness"] = LossSum(loss, count)
        elif self.reg_weight:
            loss = giou_loss(boxes, gt_boxes).sum()
            sums["loss_box_reg"] = LossSum(loss * self.reg_weight, count)
        self.metrics = self._figures(gt_idxs, gt_instances)
        return {name + self.suffix: loss for name, loss in sums.items()}

    @torch.no_grad()
    def match(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        """The assignment of every image; all background where there is no ground truth."""
        if isinstance(self.matcher, BatchMatcher):
            return self.matcher.match_batch(priors, predictions, gt_instances)
        return [
            self.matcher(priors, predictions[i], gt)
            if len(gt)
            else self._all_background(predictions)
            for i, gt in enumerate(gt_instances)
        ]

    def _all_background(self, predictions: Predictions) -> Assignment:
        boxes = predictions.boxes
        gt_idxs = torch.full((boxes.shape[1],), BACKGROUND, device=boxes.device)
        return Assignment(gt_idxs, quality=torch.zeros_like(gt_idxs, dtype=torch.float32))

    def _centerness(self, assignments: list[Assignment]) -> Tensor:
        """(N, R) targets of the centerness branch."""
        qualities = [a.quality for a in assignments if a.quality is not None]
        if len(qualities) < len(assignments):
            raise ValueError(
                "MODEL.DEFCN.QUALITY_BRANCH 'centerness' needs a matcher that gives a quality, not "
                f"{type(self.matcher).__name__}; set MATCHER.NAME to FCOS or ATSS"
            )
        return torch.stack(qualities)

    def _classification_loss(
        self,
        predictions: Predictions,
        gt_idxs: Tensor,
        images: Tensor,
        locations: Tensor,
        gt_classes: Tensor,
    ) -> Tensor:
        logits = predictions.fused() if self.quality == "filter" else predictions.cls_logits.float()
        foreground = torch.stack([images, locations, gt_classes])
        valid = gt_idxs != IGNORE
        return focal_loss(logits, foreground, self.focal_alpha, self.focal_gamma, valid)

    def _figures(self, gt_idxs: Tensor, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """Means per image: foreground locations, and ground truths that none of them learns."""
        images = len(gt_instances)
        matched = sum(len(torch.unique(idxs[idxs >= 0])) for idxs in gt_idxs)
        unmatched = sum(len(gt) for gt in gt_instances) - matched
        return {
            f"num_foreground{self.suffix}": (gt_idxs >= 0).sum() / images,
            f"num_unmatched_gt{self.suffix}": torch.tensor(unmatched / images),
        }


def build_criteria(cfg: CfgNode) -> nn.ModuleList:
    """The criteria that a config asks for: the main one and, if enabled, the auxiliary one."""
    node = cfg.MODEL.DEFCN
    focal = {"focal_alpha": node.LOSS.FOCAL_ALPHA, "focal_gamma": node.LOSS.FOCAL_GAMMA}
    criteria = [
        DenseCriterion(
            matcher=build_matcher(node.MATCHER),
            quality=node.QUALITY_BRANCH,
            cls_weight=node.LOSS.CLS_WEIGHT,
            reg_weight=node.LOSS.REG_WEIGHT,
            l1_weight=node.LOSS.L1_WEIGHT,
            normalizer=node.LOSS.NORMALIZER,
            **focal,
        )
    ]
    if node.AUX.ENABLED:
        criteria.append(
            DenseCriterion(
                matcher=build_matcher(node.AUX.MATCHER, "MODEL.DEFCN.AUX.MATCHER"),
                cls_weight=node.AUX.WEIGHT,
                reg_weight=0,
                suffix="_aux",
                **focal,
            )
        )
    return nn.ModuleList(criteria)


def _offset_by_image(gt_idxs: Tensor, images: Tensor, gt_instances: list[Instances]) -> Tensor:
    """Indices into the ground truths of the whole batch from indices into those of an image."""
    counts = torch.tensor([0] + [len(gt) for gt in gt_instances[:-1]], device=images.device)
    return gt_idxs + counts.cumsum(0)[images]
