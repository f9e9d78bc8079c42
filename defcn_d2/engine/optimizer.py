"""The optimizer that ``SOLVER.OPTIMIZER`` names."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from ..config.rules import check_rules
from ..config.training_rules import OPTIMIZER_RULES


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """
    "SGD" is Detectron2's, with ``SOLVER.MOMENTUM`` and ``SOLVER.NESTEROV``; "AdamW" has torch's
    default betas. Both take from ``SOLVER``: ``BASE_LR``, ``WEIGHT_DECAY``, ``WEIGHT_DECAY_NORM``,
    ``WEIGHT_DECAY_BIAS``, ``BIAS_LR_FACTOR``, ``CLIP_GRADIENTS``. Of its ``CLIP_TYPE`` "value" and
    "norm" are Detectron2's, which clips each parameter by itself; "full_model" is left to
    ``StepTrainer``, which clips the gradient of all parameters together.

    Raises:
        ConfigError: a value that ``OPTIMIZER_RULES`` does not allow.
    """
    check_rules(cfg, OPTIMIZER_RULES)
    if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE == "full_model":  # unknown to Detectron2
        cfg = cfg.clone()
        cfg.defrost()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(_merged(params), lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def _merged(groups: list[dict]) -> list[dict]:
    """Groups with equal settings as one: v0.5 has one a parameter, which makes every step slow."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        target = merged.setdefault(tuple(sorted(settings.items())), {**settings, "params": []})
        target["params"].extend(group["params"])
    return list(merged.values())
