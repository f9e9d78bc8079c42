"""Exponential moving average (EMA) of a model's weights, and how a run keeps and evaluates it."""

import contextlib
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from ..utils.detectron2_compat import averaged_in_place

logger = logging.getLogger(__name__)


class WeightsEMA:
    """The average e of the weights w over the steps of a training: e += (1 - d) (w - e).

    The decay d grows with the number t of updates, d = decay (1 - exp(-t / warmup)), so that an
    average of a few steps does not hold on to the weights before training.

    Averaged are all entries of the model's state dict in floating point, in float32 (float64 stays
    float64): parameters, frozen ones as well, and buffers, which makes BatchNorm's statistics
    those of the same steps as the weights. Integers (``num_batches_tracked``) are copied. Buffers
    outside of the state dict (pixel statistics, anchors) follow from the config and are the
    model's own. With several processes each keeps the average of its own copy of the model, which
    is the same in all except for the statistics of BatchNorm: there process 0's are taken.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: int = 0):
        """
        Args:
            model: bare, not in DistributedDataParallel.
            decay: in [0, 1).
            warmup: updates after which the decay has come to 63 % of ``decay``; 0: at once.
        """
        self.model = model
        self.decay = decay
        self.warmup = warmup
        self.updates = 0
        self.weights: dict[str, Tensor] = {}
        self.reset()

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> "WeightsEMA | None":
        """The average that ``MODEL.EMA`` describes; None unless it is enabled."""
        node = cfg.MODEL.EMA
        return cls(model, node.DECAY, node.WARMUP) if node.ENABLED else None

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew with the weights that the model has."""
        self.updates = 0
        self.weights = {name: _wide(w).clone() for name, w in self.model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's weights, after a step of the optimizer."""
        self.updates += 1
        live = self.model.state_dict()
        averaged = [name for name, value in self.weights.items() if value.is_floating_point()]
        averaged_in_place(
            [self.weights[name] for name in averaged],
            [_wide(live[name]) for name in averaged],
            1 - self.current_decay(),
        )
        for name, value in self.weights.items():
            if not value.is_floating_point():
                value.copy_(live[name])

    def current_decay(self) -> float:
        """The decay of the latest update."""
        if not self.warmup:
            return self.decay
        return self.decay * -math.expm1(-self.updates / self.warmup)

    @contextlib.contextmanager
    def weights_in_model(self) -> Iterator[None]:
        """Within the block the model has the averaged weights, then its own again, bit by bit.

        All processes must enter it together.
        """
        self._take_buffers_of_main_process()
        live = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            self._copy_to_model(self.weights)
            yield
        finally:
            self._copy_to_model(live)

    @torch.no_grad()
    def _copy_to_model(self, weights: dict[str, Tensor]) -> None:
        for name, value in self.model.state_dict().items():
            value.copy_(weights[name])

    def _take_buffers_of_main_process(self) -> None:
        if comm.get_world_size() == 1:
            return
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        for name, value in self.weights.items():
            if name not in parameters:
                torch.distributed.broadcast(value, src=0)

    def model_weights(self) -> dict[str, Tensor]:
        """The averaged weights in the model's own dtypes: what a file of plain weights holds."""
        live = self.model.state_dict()
        return {name: value.to(live[name].dtype) for name, value in self.weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": dict(self.weights)}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, whose live weights the model has already.

        What the file lacks, which the checkpointer lets pass only where it follows from the
        config, is taken from the model.
        """
        self.reset()
        self.updates = state_dict["updates"]
        for name, value in state_dict["weights"].items():
            self.weights[name].copy_(value)


def _wide(value: Tensor) -> Tensor:
    """Floating point narrower than float32 in float32, everything else as it is."""
    narrow = value.is_floating_point() and value.dtype != torch.float64
    return value.float() if narrow else value


class EMAUpdate(HookBase):
    """Updates the average after each step. Must stand before hooks that save or evaluate."""

    def __init__(self, ema: WeightsEMA):
        self.ema = ema

    def before_train(self) -> None:
        values = self.ema.weights.values()
        averaged = sum(value.is_floating_point() for value in values)
        logger.info(
            "EMA of %d weights and statistics; %d integers are copied (decay %g, warm-up %d)",
            averaged,
            len(values) - averaged,
            self.ema.decay,
            self.ema.warmup,
        )

    def after_step(self) -> None:
        self.ema.update()
