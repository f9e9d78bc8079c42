"""The optimizer that ``SOLVER.OPTIMIZER`` names."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .errors import UserError

OPTIMIZERS = ("SGD", "AdamW")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """
    "SGD" is Detectron2's, with ``SOLVER.MOMENTUM`` and ``SOLVER.NESTEROV``; "AdamW" has torch's
    default betas. Both take from ``SOLVER``: ``BASE_LR``, ``WEIGHT_DECAY``, ``WEIGHT_DECAY_NORM``,
    ``WEIGHT_DECAY_BIAS``, ``BIAS_LR_FACTOR``, ``CLIP_GRADIENTS``.

    Raises:
        UserError: another name.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        return build_sgd(cfg, model)
    if name != "AdamW":
        raise UserError(f"SOLVER.OPTIMIZER {name!r} is unknown; one of: {', '.join(OPTIMIZERS)}")
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
