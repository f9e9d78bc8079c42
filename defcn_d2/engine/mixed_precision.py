"""Mixed precision: training steps whose network runs in float16 or bfloat16."""

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from ..utils.errors import UserError
from .step import StepTrainer

PRECISIONS = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class MixedPrecisionTrainer(StepTrainer):
    """Detectron2's ``AMPTrainer`` on any device, in either precision, with micro batches.

    Detectron2 insists on CUDA, and v0.5 on float16. The model's forward runs under autocast; what
    a ``DeFCN`` matches and its losses are in float32 or float64 nevertheless. Weights, gradients
    and the optimizer stay in float32. Evaluations run in float32, as Detectron2's do.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        *,
        micro_batches: int = 1,
        clip: tuple[float, float] | None = None,
        device_type: str,
        dtype: torch.dtype,
    ):
        """
        Args:
            micro_batches, clip: see ``StepTrainer``.
            device_type: "cuda" or "cpu".
            dtype: float16, with a scaler that keeps small gradients from vanishing and skips the
                steps whose gradients overflow; or bfloat16, whose range is float32's: without one.
        """
        super().__init__(model, data_loader, optimizer, micro_batches, clip)
        self.grad_scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)
        self.device_type = device_type
        self.dtype = dtype

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device_type, self.dtype)

    def forward(self, data: list[dict]) -> dict[str, Tensor]:
        with self.autocast():
            return super().forward(data)

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        self.grad_scaler.scale(loss).backward(retain_graph=retain_graph)

    def update(self) -> None:
        if self.clip is not None:
            self.grad_scaler.unscale_(self.optimizer)
        self.clip_gradients()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a checkpoint of any precision: without a scale in it, from the initial."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def build_step_trainer(
    cfg: CfgNode, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer
) -> StepTrainer:
    """The trainer of single steps for ``SOLVER`` and ``MODEL.DEVICE``."""
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    full_model = clipping.ENABLED and clipping.CLIP_TYPE == "full_model"
    clip = (clipping.CLIP_VALUE, clipping.NORM_TYPE) if full_model else None
    if not cfg.SOLVER.AMP.ENABLED:
        return StepTrainer(model, data_loader, optimizer, cfg.SOLVER.ACCUMULATE, clip)
    return MixedPrecisionTrainer(
        model,
        data_loader,
        optimizer,
        micro_batches=cfg.SOLVER.ACCUMULATE,
        clip=clip,
        device_type=torch.device(cfg.MODEL.DEVICE).type,
        dtype=PRECISIONS[cfg.SOLVER.AMP.PRECISION],
    )


def check_precision(cfg: CfgNode, device_type: str) -> None:
    """Raise ``UserError`` where ``SOLVER.AMP`` asks for what a device cannot do.

    Args:
        device_type: where the run takes place, "cuda" or "cpu".
    """
    amp = cfg.SOLVER.AMP
    if amp.PRECISION not in PRECISIONS:
        raise UserError(
            f"SOLVER.AMP.PRECISION {amp.PRECISION!r} is unknown; one of: {', '.join(PRECISIONS)}"
        )
    if not amp.ENABLED:
        return
    if device_type == "cpu" and amp.PRECISION == "float16":
        raise UserError(
            "SOLVER.AMP.PRECISION is 'float16', which needs a CUDA device; set it to 'bfloat16', "
            "or SOLVER.AMP.ENABLED to False"
        )
    if device_type == "cuda" and amp.PRECISION == "bfloat16" and not _gpu_has_bfloat16():
        raise UserError(
            "SOLVER.AMP.PRECISION is 'bfloat16', which this GPU does not have; set it to 'float16'"
        )


def _gpu_has_bfloat16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False)
