"""One training step of a detector, timed by its parts."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from defcn_d2.modeling.meta_arch import DeFCN

PHASES = ("forward", "matching", "losses", "backward")


class TrainingStep:
    """Forward and backward pass of a detector for one batch; gradients are freed in between.

    Each call returns the seconds of its parts. What a part calls that belongs to another counts
    there: ``matching`` is no part of ``losses``, neither of them of ``forward``.
    """

    def __init__(self, model: nn.Module, inputs: list[dict]):
        """
        Args:
            model: a ``DeFCN``, or a dense detector of Detectron2; in training mode afterwards.
            inputs: with ground truth, on the device of the model.
        """
        self.model: Any = model.train()
        self.inputs = inputs
        self._cuda = inputs[0]["image"].is_cuda
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self._phases: list[str] = []
        if isinstance(model, DeFCN):
            parts = [(model, "losses", "losses")]
            matching = [criterion for criterion in model.criteria if hasattr(criterion, "match")]
            parts += [(criterion, "match", "matching") for criterion in matching]
        else:
            parts = [(model, "label_anchors", "matching"), (model, "losses", "losses")]
        for owner, method, phase in parts:
            setattr(owner, method, self._in_phase(phase, getattr(owner, method)))
        self._forward = self._in_phase("forward", model)
        self._backward = self._in_phase("backward", _backward)

    def __call__(self) -> dict[str, float]:
        """Seconds of every part, in the order of ``PHASES``."""
        self._marks.clear()
        losses = self._forward(self.inputs)
        self._backward(losses)
        if self._cuda:
            torch.cuda.synchronize()
        seconds = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:]):
            if phase:
                seconds[phase] += _elapsed(start, end)
        del losses
        self.model.zero_grad(set_to_none=True)
        return seconds

    def losses_and_gradients(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses by name and, of all parameters that are trained, gradients by name."""
        losses = self.model(self.inputs)
        _backward(losses)
        gradients = {
            name: parameter.grad
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None
        }
        self.model.zero_grad(set_to_none=True)
        return {name: loss.detach() for name, loss in losses.items()}, gradients

    def _in_phase(self, phase: str, call: Callable) -> Callable:
        @functools.wraps(call)
        def timed(*args: object, **kwargs: object) -> object:
            self._phases.append(phase)
            self._mark()
            result = call(*args, **kwargs)
            self._phases.pop()
            self._mark()
            return result

        return timed

    def _mark(self) -> None:
        """From now on time counts for the innermost part, "" outside of all."""
        now: float | torch.cuda.Event
        if self._cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter()
        self._marks.append((self._phases[-1] if self._phases else "", now))


def _backward(losses: dict[str, Tensor]) -> None:
    torch.stack(list(losses.values())).sum().backward()


def _elapsed(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    return start.elapsed_time(end) * 1e-3  # type: ignore[union-attr,arg-type]
