"""The optimizer that ``SOLVER.OPTIMIZER`` names."""

from collections.abc import Callable

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
    "norm" are Detectron2's, which clips each parameter by itself; "full_model" scales the gradient
    of all parameters together to a norm of ``CLIP_VALUE`` at most.

    Raises:
        ConfigError: a value that ``OPTIMIZER_RULES`` does not allow.
    """
    check_rules(cfg, OPTIMIZER_RULES)
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return _build_without_full_model(cfg, model)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = _build_without_full_model(cfg, model)
    optimizer.__class__ = full_model_clipped(type(optimizer), clip.CLIP_VALUE, clip.NORM_TYPE)
    return optimizer


def full_model_clipped(
    kind: type[torch.optim.Optimizer], max_norm: float, norm_type: float = 2.0
) -> type[torch.optim.Optimizer]:
    """``kind``, whose step first scales all gradients to a common norm of ``max_norm`` at most."""

    class FullModelClipped(kind):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable[[], float] | None = None) -> float | None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return super().step(closure)

    return FullModelClipped


def _build_without_full_model(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
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
