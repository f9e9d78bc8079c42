"""The detectors that ``tools/trust/fuzz.py`` tries, and what has to be true of each batch."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import Tensor

from defcn_d2 import add_defcn_config
from defcn_d2.modeling.batch_checks import BatchError
from defcn_d2.modeling.criterion import build_criteria
from defcn_d2.modeling.criterion.dense import DenseCriterion
from defcn_d2.modeling.head.build import quality_branch_key
from defcn_d2.modeling.matcher.anchor import Anchor
from defcn_d2.modeling.matcher.foreground_loss import ForegroundLoss
from defcn_d2.modeling.matcher.onenet import OneNet
from defcn_d2.modeling.matcher.poto import POTO
from defcn_d2.modeling.meta_arch import DeFCN
from defcn_d2.structures import IGNORE, Assignment, Predictions, Priors
from fuzzing.batches import (
    MAX_CLASSES,
    Recipe,
    is_refused,
    make_inputs,
    make_predictions,
    make_priors,
)
from fuzzing.faults import IMAGE_FAULTS
from fuzzing.values import NOT_FINITE

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
ONE_TO_ONE = (POTO, ForegroundLoss, Anchor, OneNet)
# A narrow network without batch norm, which a single image of one cell would stop.
SMALL = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.DEFCN.NUM_CLASSES", 3),
    *("MODEL.BACKBONE.NAME", "build_defcn_narrow_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.NORM", "FrozenBN"),
    *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.DEFCN.NUM_CONVS", 1, "MODEL.DEFCN.CHANNELS_LAST", False),
]


class Violation(Exception):
    """A batch was neither refused nor learnt as it should have been."""


class TooSlow(Exception):
    """Raised by a timer; no part of a judgement."""


def variant_configs() -> dict[str, CfgNode]:
    """Config by name: one for every matcher and criterion that a file of ``configs`` asks for.

    Besides, those with a Hungarian matcher that keeps ground truths without a location.
    """
    found: dict[str, CfgNode] = {}
    seen = set()
    for path in sorted(CONFIGS.rglob("*.yaml"), key=lambda path: (len(path.parts), len(path.name))):
        if path.name.startswith("Base-"):
            continue
        cfg = get_cfg()
        add_defcn_config(cfg)
        cfg.merge_from_file(str(path), allow_unsafe=False)
        cfg.merge_from_list(SMALL)
        node = cfg.MODEL.DEFCN
        parts = (node.MATCHER, node.CRITERION, node.LOSS, node.AUX)
        key = str([*parts, node.PRIORS, node.QUALITY_BRANCH])
        if key not in seen:
            seen.add(key)
            found[str(path.relative_to(CONFIGS).with_suffix(""))] = cfg
    for name in ("POTO", "ForegroundLoss"):
        cfg = found[name].clone()
        cfg.MODEL.DEFCN.MATCHER[name].KEEP_UNREACHABLE = True
        found[f"{name}, unreachable kept"] = cfg
    return found


def one_of_each(configs: dict[str, CfgNode]) -> dict[str, CfgNode]:
    """The first config of every set of components, whatever their keys.

    Besides, those with a Hungarian matcher that keeps ground truths without a location.
    """
    found: dict[tuple, str] = {}
    for name, cfg in configs.items():
        node = cfg.MODEL.DEFCN
        parts = [node.MATCHER, node.CRITERION, node.LOSS, node.HEAD]
        if node.AUX.ENABLED:
            parts += [node.AUX.MATCHER, node.AUX.CRITERION, node.AUX.LOSS]
        keeps = node.MATCHER.get(node.MATCHER.NAME, {}).get("KEEP_UNREACHABLE", False)
        names = tuple(part.NAME for part in parts)
        found.setdefault((*names, node.PRIORS, node.QUALITY_BRANCH, keeps), name)
    return {name: configs[name] for name in found.values()}


class Detector:
    """A model of a variant, which remembers how it matched."""

    def __init__(self, cfg: CfgNode):
        torch.manual_seed(0)
        self.model: DeFCN = build_model(cfg)
        wide = cfg.clone()  # some criteria have parameters of each class that may be predicted
        wide.MODEL.DEFCN.NUM_CLASSES = MAX_CLASSES
        self.model.criteria = build_criteria(wide)
        self.anchors = cfg.MODEL.DEFCN.PRIORS == "anchors"
        #: Quality branch of each set of predictions that a criterion takes, and of "main".
        self.branches = {
            name: _quality_branch(cfg, name)
            for name in ["main", *(criterion.predictions for criterion in self.model.criteria)]
        }
        gives_box_logits = getattr(self.model.head, "gives_box_logits", False)
        self.reg_max: int | None = self.model.head.reg_max if gives_box_logits else None
        self.criteria = [c for c in self.model.criteria if isinstance(c, DenseCriterion)]
        self.matched: dict[DenseCriterion, list[Assignment]] = {}
        for criterion in self.criteria:
            self._remember(criterion)

    def _remember(self, criterion: DenseCriterion) -> None:
        match = criterion.match

        def remembered(*args: object) -> list[Assignment]:
            self.matched[criterion] = match(*args)  # type: ignore[arg-type]
            return self.matched[criterion]

        criterion.match = remembered  # type: ignore[method-assign,assignment]

    def try_batch(self, recipe: Recipe) -> str:
        """Train on the batch once.

        Returns:
            "refused", with an error that names the image; "learnt", with finite losses and
            gradients; or "reported": predictions are not finite, and no loss is a number.

        Raises:
            Violation: it was none of them, or not the right one, or an assignment is not valid.
        """
        self.matched.clear()
        inputs = make_inputs(recipe)
        refused = is_refused(recipe)
        try:
            if recipe.images:
                losses, leaves = self._losses_of_network(inputs)
            else:
                losses, leaves = self._losses_of_predictions(recipe, inputs)
        except BatchError as error:
            if not refused:
                raise Violation(f"refused for no reason: {error}") from error
            if not re.match(r"image \d of the batch|the batch is empty", str(error)):
                raise Violation(f"the error names no image: {error}") from error
            return "refused"
        if refused:
            raise Violation("learnt what should have been refused")
        for criterion, assignments in self.matched.items():
            _check_assignments(criterion, assignments, inputs)
        if recipe.predictions in NOT_FINITE:
            numbers = [name for name, loss in losses.items() if not math.isnan(loss.item())]
            if numbers:
                raise Violation(f"predictions are not finite, but {numbers} are numbers")
            return "reported"
        _check_losses(losses)
        sum(losses.values()).backward()  # type: ignore[union-attr]
        _check_gradients(leaves)
        return "learnt"

    def try_inference(self, recipe: Recipe) -> str:
        """Detect on the images of the batch: "refused" or "detected"; raises ``Violation``."""
        inputs = make_inputs(recipe)
        refused = recipe.fault in IMAGE_FAULTS and len(inputs) > 0
        self.model.eval()
        try:
            results = self.model(inputs)
        except BatchError as error:
            if not refused:
                raise Violation(f"refused for no reason: {error}") from error
            return "refused"
        finally:
            self.model.train()
        if len(results) != len(inputs) or refused:
            raise Violation(f"{len(results)} results of {len(inputs)} images, {recipe.fault!r}")
        for result in results:
            found = result["instances"]
            if not (found.pred_boxes.tensor.isfinite().all() and found.scores.isfinite().all()):
                raise Violation("a detection is not finite")
        return "detected"

    def _losses_of_network(self, inputs: list[dict]) -> tuple[dict[str, Tensor], list[Tensor]]:
        self.model.zero_grad(set_to_none=True)
        losses = self.model.train()(inputs)
        return losses, [p for p in self.model.parameters() if p.requires_grad]

    def _losses_of_predictions(
        self, recipe: Recipe, inputs: list[dict]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        priors: Priors = make_priors(recipe.sizes, self.anchors)
        sets = {
            name: replace(
                make_predictions(recipe, priors, branch != "none", self.reg_max),
                centerness=branch == "centerness",
            )
            for name, branch in self.branches.items()
        }
        losses = self.model.losses(priors, sets, inputs)
        return losses, [leaf for name in sets for leaf in self._learnt(name, sets[name])]

    def _learnt(self, name: str, predictions: Predictions) -> list[Tensor]:
        """The tensors of a set that some criterion learns: boxes are left out by those of scores,
        and distributions of their sides by those of boxes.

        The head that gives the set has detached its boxes then, or they learn by another set.
        """
        takers = [criterion for criterion in self.model.criteria if criterion.predictions == name]
        fields = {**vars(predictions), **predictions.extra}
        if not any(criterion.reg_weight or criterion.l1_weight for criterion in takers):
            del fields["boxes"]
        if not any(getattr(criterion, "dfl_weight", 0) for criterion in takers):
            fields.pop("box_logits", None)
        return [x for x in fields.values() if takers and isinstance(x, Tensor)]


def _quality_branch(cfg: CfgNode, predictions: str) -> str:
    """Of a set of predictions: "none", "filter" or "centerness"."""
    key = quality_branch_key(cfg, predictions)
    return functools.reduce(getattr, key.split("."), cfg) if key else "none"


def _check_losses(losses: dict[str, Tensor]) -> None:
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(math.isfinite(value) and value > -1e-6 for value in values.values()):
        raise Violation(f"losses {values}")


def _check_gradients(leaves: list[Tensor]) -> None:
    for leaf in leaves:
        if leaf.grad is None or not leaf.grad.isfinite().all():
            found = "no gradient" if leaf.grad is None else "a gradient that is not finite"
            raise Violation(f"{found} of the leaf {tuple(leaf.shape)}")


def _check_assignments(
    criterion: DenseCriterion, assignments: list[Assignment], inputs: list[dict]
) -> None:
    """Every location at most one ground truth that exists; one to one where that is promised."""
    name = type(criterion.matcher).__name__
    if len(assignments) != len(inputs):
        raise Violation(f"{name}: {len(assignments)} assignments of {len(inputs)} images")
    for assignment, x in zip(assignments, inputs):
        count = len(x["instances"])
        gt_idxs = assignment.gt_idxs
        if gt_idxs.dtype != torch.int64 or gt_idxs.dim() != 1:
            raise Violation(f"{name}: indices {tuple(gt_idxs.shape)} of {gt_idxs.dtype}")
        if gt_idxs.min() < IGNORE or gt_idxs.max() >= count:
            raise Violation(f"{name}: indices {gt_idxs.unique().tolist()} of {count}")
        foreground = gt_idxs[gt_idxs >= 0]
        if isinstance(criterion.matcher, ONE_TO_ONE):
            if len(foreground.unique()) != len(foreground):
                raise Violation(f"{name}: a ground truth has several locations")
            if getattr(criterion.matcher, "keep_unreachable", False):
                if len(foreground) != min(count, len(gt_idxs)):
                    raise Violation(f"{name}: {len(foreground)} of {count} are matched")
        quality = assignment.quality
        if quality is not None:
            quality = quality[gt_idxs >= 0]
            if not ((quality >= 0) & (quality <= 1)).all():
                raise Violation(f"{name}: a quality outside of [0, 1]")
