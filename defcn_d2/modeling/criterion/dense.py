"""Losses of detectors that assign at most one ground truth to each prior."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F

from ...config.rules import check_argument, list_of, numbers, one_of, value_of
from ...structures import (
    BACKGROUND,
    IGNORE,
    Assignment,
    Foreground,
    LossSum,
    Predictions,
    Priors,
)
from ..box_ops import box_area, centerness, iou
from ..head.build import quality_branch_key
from ..loss.class_losses import CLASS_LOSS_REGISTRY, ClassLoss
from ..loss.functional import ciou_loss, delta_loss, giou_loss, l1_loss
from ..matcher import MATCHER_REGISTRY, BatchMatcher, Matcher
from .build import CRITERION_REGISTRY
from .normalization import SummedCriterion

_BOX_LOSSES = {"giou": giou_loss, "ciou": ciou_loss}


@CRITERION_REGISTRY.register(default=["CRITERION"])
class DenseCriterion(SummedCriterion):
    """Class loss of all priors, box loss of the foreground (arXiv 2012.03544, section 3.1).

    The matcher decides which prior is foreground. Where the predictions have centerness, the box
    loss is weighted by the assignment's quality, which the branch learns as well (arXiv
    1904.01355, section 3.2). Subclasses add losses of their own by ``more_sums``.
    """

    class_weights: Tensor | None  # (K,)

    def __init__(
        self,
        *,
        matcher: Matcher,
        class_loss: ClassLoss,
        cls_weight: float = 1.0,
        reg_weight: float = 2.0,
        l1_weight: float = 0.0,
        box_loss: str = "giou",
        beta: float = 0.1,
        delta_weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        box_weights: str = "none",
        normalizer: str = "foreground",
        soft_labels: str = "none",
        weights: str = "class",
        class_weights: Sequence[float] = (),
        fused: bool = True,
        suffix: str = "",
        **arguments: Any,
    ):
        """
        Args:
            matcher: called once an image.
            class_loss: see ``CLASS_LOSS_REGISTRY``.
            cls_weight, reg_weight, l1_weight: factors of the losses of the classes, of the boxes
                and of their coordinates; a loss of weight 0 is left out.
            box_loss: "giou", "ciou", or "deltas": smooth L1 of the boxes as offsets from their
                anchors.
            beta: difference up to which that of "deltas" is quadratic.
            delta_weights: factors of the offsets of x, y, width and height.
            box_weights: factors of the box loss, which is divided by their sum: the assignment's
                "quality", the "centerness" of the location in its ground truth, or the "score" of
                the location's best class; "none": 1, but the quality where the predictions have
                centerness.
            normalizer: the other losses are divided by the number of "foreground" locations, or of
                ground truths, "gts", or by the sum of the assignment's "quality"; the mean over
                the workers, at least 1.
            soft_labels: class labels of the foreground: "none" (1), the assignment's "quality",
                or the "iou" of the predicted box with its ground truth.
            weights: of the assignment are factors of the "class" entry of a foreground location
                alone, or of all losses of a "prior".
            class_weights: factors of the class entries of foreground locations by their class, to
                learn rare classes faster; none: 1.
            fused: the class loss is of logits with the quality branch folded in, except where
                that is centerness.
            suffix: appended to the names of the losses.
        """
        super().__init__(**arguments)
        for name, factor in (
            ("cls_weight", cls_weight),
            ("reg_weight", reg_weight),
            ("l1_weight", l1_weight),
        ):
            check_argument(name, factor, numbers("[0, inf)"))
        check_argument("box_loss", box_loss, one_of(*_BOX_LOSSES, "deltas"))
        check_argument("beta", beta, numbers("[0, inf)"))
        check_argument("delta_weights", delta_weights, _four_factors)
        check_argument("box_weights", box_weights, one_of("none", "quality", "centerness", "score"))
        check_argument("normalizer", normalizer, one_of("foreground", "gts", "quality"))
        check_argument("soft_labels", soft_labels, one_of("none", "quality", "iou"))
        check_argument("weights", weights, one_of("class", "prior"))
        check_argument("class_weights", class_weights, list_of(numbers("(0, inf)"), least=0))
        self.matcher = matcher
        self.class_loss = class_loss
        self.cls_weight = cls_weight
        self.reg_weight = reg_weight
        self.l1_weight = l1_weight
        self.box_loss = box_loss
        self.beta = beta
        self.delta_weights = delta_weights
        self.box_weights = box_weights
        self.normalizer = normalizer
        self.soft_labels = soft_labels
        self.weights = weights
        factors = torch.tensor(class_weights, dtype=torch.float32) if class_weights else None
        self.register_buffer("class_weights", factors, persistent=False)
        self.fused = fused
        self.suffix = suffix

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        for part in (self.matcher, self.class_loss):
            if hasattr(part, "progress"):
                part.progress = progress

    def loss_sums(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> dict[str, LossSum]:
        """
        Args:
            gt_instances: per image ``gt_boxes`` and ``gt_classes``; may be empty.

        Returns:
            ``loss_cls``, ``loss_box_reg``, ``loss_centerness`` and ``loss_box_l1`` (those that
            apply), in float32 or float64, and those of ``more_sums``. Without any ground truth
            they are finite, and connected to all predictions. Their count is the number that
            ``normalizer`` names, except for a box loss with weights: their sum (method section 6).
        """
        assignments = self.match(priors, predictions, gt_instances)
        gt_idxs = torch.stack([assignment.gt_idxs for assignment in assignments])  # (N, R)
        foreground = self._foreground(assignments, gt_idxs, predictions, gt_instances)
        box_weights = self._box_weights(priors, predictions, foreground)
        if box_weights is not None:
            foreground = replace(foreground, box_weights=box_weights, box_count=box_weights.sum())
        sums = {}
        if self.cls_weight:
            sums["loss_cls"] = self._class_sum(predictions, assignments, gt_idxs, foreground)
        sums.update(self._box_sums(priors, predictions, foreground, gt_instances))
        sums.update(self.more_sums(priors, predictions, foreground))
        with torch.no_grad():
            self.metrics = self._figures(foreground, gt_instances)
        return {name + self.suffix: loss for name, loss in sums.items()}

    def more_sums(
        self, priors: Priors, predictions: Predictions, foreground: Foreground
    ) -> dict[str, LossSum]:
        """Further losses of a subclass, by name without the suffix."""
        return {}

    @torch.no_grad()
    def match(
        self, priors: Priors, predictions: Predictions, gt_instances: list[Instances]
    ) -> list[Assignment]:
        """The assignment of every image; all background where there is no ground truth."""
        if isinstance(self.matcher, BatchMatcher):
            return self.matcher.match_batch(priors, predictions, gt_instances)
        return [
            self.matcher(priors, predictions[i], gt) if len(gt) else _all_background(predictions)
            for i, gt in enumerate(gt_instances)
        ]

    def _foreground(
        self,
        assignments: list[Assignment],
        gt_idxs: Tensor,
        predictions: Predictions,
        gt_instances: list[Instances],
    ) -> Foreground:
        images, locations = torch.nonzero(gt_idxs >= 0, as_tuple=True)  # (P,)
        of_batch = _offset_by_image(gt_idxs[images, locations], images, gt_instances)
        number = sum(map(len, gt_instances)) if self.normalizer == "gts" else len(of_batch)
        # filled on the device: a copy from the host would wait for it
        count = torch.full((), number, dtype=torch.float64, device=gt_idxs.device)

        def gathered(values: list[Tensor | None]) -> Tensor | None:
            found = [value for value in values if value is not None]
            return torch.stack(found)[images, locations] if len(found) == len(values) else None

        foreground = Foreground(
            images=images,
            locations=locations,
            gt_idxs=of_batch,
            boxes=predictions.boxes[images, locations],
            gt_boxes=torch.cat([gt.gt_boxes.tensor for gt in gt_instances])[of_batch],
            gt_classes=torch.cat([gt.gt_classes for gt in gt_instances])[of_batch],
            quality=gathered([assignment.quality for assignment in assignments]),
            weights=gathered([assignment.weights for assignment in assignments]),
            count=count,
            box_weights=None,
            box_count=count,
        )
        if self.normalizer != "quality":
            return foreground
        count = self._quality(foreground).sum(dtype=torch.float64)
        return replace(foreground, count=count, box_count=count)

    def _class_sum(
        self,
        predictions: Predictions,
        assignments: list[Assignment],
        gt_idxs: Tensor,
        foreground: Foreground,
    ) -> LossSum:
        use_fused = self.fused and not predictions.centerness
        logits = predictions.fused() if use_fused else predictions.cls_logits.float()  # (N, R, K)
        valid = gt_idxs != IGNORE  # (N, R)
        weights = foreground.weights
        if weights is not None and self.weights == "prior":
            valid = torch.stack([a.weights for a in assignments if a.weights is not None]) * valid
            weights = None
        if self.class_weights is not None:
            factors = self.class_weights[foreground.gt_classes]  # (P,)
            weights = factors if weights is None else weights * factors
        loss = self.class_loss(
            logits, foreground.entries, self._targets(foreground), weights, valid
        )
        if isinstance(loss, LossSum):  # with a count of its own
            return LossSum(loss.total * self.cls_weight, loss.count)
        return LossSum(loss * self.cls_weight, foreground.count)

    def _targets(self, foreground: Foreground) -> Tensor | None:
        """(P,) soft class labels, or None for hard ones."""
        if self.soft_labels == "none":
            return None
        if self.soft_labels == "quality":
            return self._quality(foreground)
        return iou(foreground.boxes.detach(), foreground.gt_boxes).float()

    def _box_sums(
        self,
        priors: Priors,
        predictions: Predictions,
        foreground: Foreground,
        gt_instances: list[Instances],
    ) -> dict[str, LossSum]:
        boxes, gt_boxes, count = foreground.boxes, foreground.gt_boxes, foreground.count  # (P, 4)
        sums = {}
        if self.l1_weight:
            image_sizes = gt_boxes.new_tensor([gt.image_size for gt in gt_instances])  # (N, 2)
            loss = self._total(l1_loss(boxes, gt_boxes, image_sizes[foreground.images]), foreground)
            sums["loss_box_l1"] = LossSum(loss * self.l1_weight, count)
        if self.reg_weight:
            loss = self._box_loss(priors, foreground)  # (P,)
            sums["loss_box_reg"] = self.weighted_box_sum(loss, self.reg_weight, foreground)
        if self.reg_weight and predictions.centerness:
            assert predictions.quality_logits is not None
            logits = predictions.quality_logits[foreground.images, foreground.locations].float()
            target = self._quality(foreground)
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            sums["loss_centerness"] = LossSum(self._total(loss, foreground), count)
        return sums

    def weighted_box_sum(self, loss: Tensor, factor: float, foreground: Foreground) -> LossSum:
        """The sum of a loss (P,) of boxes with its factor, and with ``foreground.box_weights``."""
        if foreground.box_weights is not None:
            loss = loss * foreground.box_weights
        return LossSum(self._total(loss, foreground) * factor, foreground.box_count)

    def _box_loss(self, priors: Priors, foreground: Foreground) -> Tensor:
        """(P,) of every foreground box."""
        boxes, gt_boxes = foreground.boxes, foreground.gt_boxes
        if self.box_loss != "deltas":
            return _BOX_LOSSES[self.box_loss](boxes, gt_boxes)
        anchors = priors.boxes[foreground.locations]
        return delta_loss(boxes, gt_boxes, anchors, self.beta, self.delta_weights)

    def _box_weights(
        self, priors: Priors, predictions: Predictions, foreground: Foreground
    ) -> Tensor | None:
        """(P,) factors of the losses of boxes, or None for 1."""
        if self.box_weights == "score":
            own = predictions[foreground.images, foreground.locations]
            return own.scores().detach().amax(dim=1)
        if self.box_weights == "centerness":
            return centerness(priors.centers[foreground.locations], foreground.gt_boxes)
        if self.box_weights == "quality" or self.reg_weight and predictions.centerness:
            return self._quality(foreground)
        return None

    def _total(self, loss: Tensor, foreground: Foreground) -> Tensor:
        """The sum of a loss (P,), with the weights of whole priors as factors."""
        weights = foreground.weights if self.weights == "prior" else None
        return (loss if weights is None else loss * weights).sum()

    def _quality(self, foreground: Foreground) -> Tensor:
        """(P,) of the assignments, which a config without one does not get past the checks."""
        if foreground.quality is None:
            raise ValueError(
                f"a matcher that gives a quality is needed, not {type(self.matcher).__name__}; "
                "set MATCHER.NAME to one that does"
            )
        return foreground.quality

    def _figures(self, foreground: Foreground, gt_instances: list[Instances]) -> dict[str, Tensor]:
        """Means per image: foreground locations, those of them whose predicted box has no area
        (and no gradient), and ground truths that none learns.

        Computed on the device: nothing here waits for it.
        """
        images, number = len(gt_instances), sum(map(len, gt_instances))
        learned = torch.zeros(number, device=foreground.gt_idxs.device)  # (G,)
        learned.index_fill_(0, foreground.gt_idxs, 1)
        empty = box_area(foreground.boxes) == 0  # (P,)
        return {
            f"num_foreground{self.suffix}": foreground.count.new_full(
                (), len(foreground.gt_idxs) / images
            ),
            f"num_empty_boxes{self.suffix}": empty.sum() / images,
            f"num_unmatched_gt{self.suffix}": (number - learned.sum()) / images,
        }

    @classmethod
    def problems(cls, cfg: CfgNode, key: str) -> Iterator[str]:
        place = key.removesuffix(".CRITERION")  # MODEL.DEFCN, or its AUX
        node = value_of(cfg, place)
        own = CRITERION_REGISTRY.keys_of("DenseCriterion")  # of which a subclass may fix some
        own.update(CRITERION_REGISTRY.values_of(node.CRITERION))
        matcher = MATCHER_REGISTRY.get(node.MATCHER.NAME)
        class_loss = CLASS_LOSS_REGISTRY.get(node.LOSS.NAME)
        name = f"{key}.{node.CRITERION.NAME}"

        # Boxes and classes have to be learned.
        is_main = key == "MODEL.DEFCN.CRITERION"
        if is_main and not own["cls_weight"]:
            yield f"{name}.CLS_WEIGHT is 0, but must be above 0: classes would not be learned"
        if is_main and not own["reg_weight"] and not own["l1_weight"]:
            yield (
                f"{name}.REG_WEIGHT and L1_WEIGHT are both 0, so boxes would not be learned; "
                "set one of them above 0"
            )
        if not (own["cls_weight"] or own["reg_weight"] or own["l1_weight"]):
            yield (
                f"{name}.CLS_WEIGHT, REG_WEIGHT and L1_WEIGHT are all 0, so nothing would be "
                "learned; set one of them above 0, or AUX.ENABLED to False"
            )

        # Soft labels need a class loss that takes them, and their source.
        if own["soft_labels"] != "none" and not getattr(class_loss, "takes_targets", False):
            yield (
                f"{name}.SOFT_LABELS is {own['soft_labels']!r}, but {node.LOSS.NAME} takes hard "
                f"labels alone; set it to 'none', or LOSS.NAME to another class loss"
            )
        gives_quality = getattr(matcher, "gives_quality", False)
        givers = [
            other
            for other in MATCHER_REGISTRY.names()
            if getattr(MATCHER_REGISTRY.get(other), "gives_quality", False)
        ]
        users = [
            f"{name}.{option.upper()}"
            for option in ("soft_labels", "box_weights", "normalizer")
            if own[option] == "quality"
        ]

        number = cfg.MODEL.DEFCN.NUM_CLASSES
        if own["class_weights"] and len(own["class_weights"]) != number:
            yield (
                f"{name}.CLASS_WEIGHTS has {len(own['class_weights'])} factors, but must have one "
                f"for each of the {number} classes"
            )
        if own["box_loss"] == "deltas" and cfg.MODEL.DEFCN.PRIORS != "anchors":
            yield (
                f"{name}.BOX_LOSS 'deltas' is of offsets from anchors, but MODEL.DEFCN.PRIORS is "
                f"{cfg.MODEL.DEFCN.PRIORS!r}; set it to 'anchors', or the loss to 'giou'"
            )

        # Centerness needs a source, and the box loss that it weighs.
        branch = quality_branch_key(cfg, own["predictions"])
        if branch and value_of(cfg, branch) == "centerness":
            users += [branch] if own["reg_weight"] else []
            if is_main and not own["reg_weight"]:
                yield (
                    f"{branch} 'centerness' is learned beside the box loss, but "
                    f"{name}.REG_WEIGHT is 0; set it above 0, or the branch to 'none'"
                )
        for user in () if gives_quality else users:
            yield (
                f"{user} {value_of(cfg, user)!r} needs a matcher that gives a quality, not "
                f"{node.MATCHER.NAME}; set {place}.MATCHER.NAME to one of {', '.join(givers)}"
            )


@CRITERION_REGISTRY.register(default=["AUX.CRITERION"])
class AuxiliaryCriterion(DenseCriterion):
    """Class loss alone, of the plain class logits (arXiv 2012.03544, section 3.4)."""

    def __init__(self, *, reg_weight: float = 0.0, fused: bool = False, **arguments: Any):
        super().__init__(reg_weight=reg_weight, fused=fused, **arguments)


def _four_factors(key: str, value: Any) -> str | None:
    if isinstance(value, (list, tuple)) and len(value) != 4:
        return f"{key} is {value!r}, but must be 4 factors: of x, y, width and height"
    return list_of(numbers("[0, inf)"))(key, value)


def _all_background(predictions: Predictions) -> Assignment:
    """The assignment of an image without ground truth, with all that other images may have."""
    boxes = predictions.boxes
    gt_idxs = torch.full((boxes.shape[1],), BACKGROUND, device=boxes.device)
    zeros = torch.zeros_like(gt_idxs, dtype=torch.float32)
    return Assignment(gt_idxs, quality=zeros, weights=zeros + 1)


def _offset_by_image(gt_idxs: Tensor, images: Tensor, gt_instances: list[Instances]) -> Tensor:
    """Indices into the ground truths of the whole batch from indices into those of an image."""
    firsts = torch.tensor([0] + [len(gt) for gt in gt_instances[:-1]]).cumsum(0)  # (N,)
    return gt_idxs + firsts.to(images.device, non_blocking=True)[images]
