"""A training step of several micro batches, whose gradient is that of the whole batch."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..modeling.criterion import mean_over_workers
from ..utils.detectron2_compat import keep_graph_buffers
from .nonfinite import NonFiniteLoss

Gradients = list[Tensor | None]


class StepTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer``, which may take ``SOLVER.ACCUMULATE`` micro batches a step.

    A loss of a ``DeFCN`` is a sum over images divided by a count, such as the foreground locations
    of all images on all workers; the counts of a step are known only with its last micro batch.
    As gradients are linear in the losses, those of the earlier micro batches are taken of the
    losses over a count that stands in for the true one, and put right before the last backward
    pass, which in DistributedDataParallel is the only one that communicates. Losses that share
    their count (class and box loss, say) share a backward pass; each other count (of the auxiliary
    loss, of the centerness) costs one more in every micro batch but the
    last, and memory for a gradient.

    The gradient is that of one large batch within rounding, the division by at least 1 included,
    except for what the network computes over a batch: BatchNorm's statistics are those of a micro
    batch, and images are padded to the largest of their micro batch. Losses that no count is known
    of, as those of other meta-architectures, are averaged over the micro batches.

    Subclasses that compute in another precision override ``forward``, ``backward`` and ``update``.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        micro_batches: int = 1,
        clip: tuple[float, float] | None = None,
    ):
        """
        Args:
            data_loader: of micro batches.
            micro_batches: of a step.
            clip: largest norm of the gradient of all parameters together, and the norm's order.
        """
        super().__init__(model, data_loader, optimizer)
        self.micro_batches = micro_batches
        self.clip = clip
        if micro_batches > 1:
            # A graph may be walked through once a count; torch.compile would free its buffers.
            keep_graph_buffers()

    def forward(self, data: list[dict]) -> dict[str, Tensor]:
        """The losses of a micro batch."""
        losses = self.model(data)
        return losses if isinstance(losses, dict) else {"total_loss": losses}

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradient of a loss to that of the parameters."""
        loss.backward(retain_graph=retain_graph)

    def update(self) -> None:
        """Change the weights by their gradient."""
        self.clip_gradients()
        self.optimizer.step()

    def clip_gradients(self) -> None:
        """Scale the whole gradient to the largest norm that ``clip`` allows."""
        if self.clip is not None:
            groups = self.optimizer.param_groups
            nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], *self.clip)

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to eval mode"
        self.optimizer.zero_grad()
        parts = StepLosses(self.micro_batches)
        batches = []
        figures: list[dict[str, Tensor]] = []
        data_time = 0.0
        with parts.counted(self.model):
            for i in range(self.micro_batches):
                start = time.perf_counter()
                data = next(self._data_loader_iter)
                data_time += time.perf_counter() - start
                batches.append(data)
                if i < self.micro_batches - 1:
                    with _without_communication(self.model):
                        losses = parts.add(self.forward(data))
                        self._accumulate(losses, parts)
                else:
                    losses = parts.add(self.forward(data))
                    self._put_right(parts)
                    self.backward(_sum(losses.values()))
                figures.append(self._figures())
        losses, means = on_host(parts.losses(), _mean(figures))
        with NonFiniteLoss.raise_unless_finite(losses, batches):
            self._write_metrics(losses, data_time)
            for name, value in means.items():
                get_event_storage().put_scalar(name, value.item())
        self.update()

    def _figures(self) -> dict[str, Tensor]:
        """Figures of the last forward pass for the log, where the model has any."""
        return getattr(_without_wrapper(self.model), "figures", {})

    def _accumulate(self, losses: dict[str, Tensor], parts: "StepLosses") -> None:
        """The gradients of the losses, those of each count apart."""
        parameters = self._parameters()
        for i, names in enumerate(parts.groups):
            for parameter, gradient in zip_longest(parameters, parts.gradients[i]):
                parameter.grad = gradient
            is_last = i == len(parts.groups) - 1
            self.backward(_sum(losses[name] for name in names), retain_graph=not is_last)
            parts.gradients[i] = [parameter.grad for parameter in parameters]

    def _put_right(self, parts: "StepLosses") -> None:
        """Set the parameters' gradient to that of all micro batches except the last."""
        if self.micro_batches == 1:
            return
        for parameter, *gradients in zip(self._parameters(), *parts.gradients):
            scaled = [g.mul_(s) for g, s in zip(gradients, parts.scales) if g is not None]
            parameter.grad = _sum(scaled) if scaled else None

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


class StepLosses:
    """The losses and counts of a step, micro batch by micro batch.

    Attributes:
        groups: names of the losses with the same count.
        gradients: of each group, a tensor or None for each parameter; empty at first.
        scales: of each group, what puts right the gradients of all micro batches but the last;
            known with the last.
    """

    def __init__(self, number: int):
        """
        Args:
            number: of micro batches.
        """
        self.number = number
        self.groups: list[list[str]] = []
        self.gradients: list[Gradients] = []
        self.scales: list[Tensor | float] = []
        self._added = 0
        self._counts: dict[str, Tensor] = {}
        self._stand_ins: dict[str, Tensor] = {}
        self._divisors: dict[str, Tensor] = {}
        self._losses: list[dict[str, Tensor]] = []

    @contextlib.contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """Within the block the losses of the model are divided as this class says."""
        detector: Any = _without_wrapper(model)
        if not hasattr(detector, "normalizer"):
            yield
            return
        before, detector.normalizer = detector.normalizer, self._normalizer
        try:
            yield
        finally:
            detector.normalizer = before

    def _normalizer(self, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Divisors of the losses of a micro batch (see ``evaluate_criteria``)."""
        if not self._added:
            self.groups = _with_same(counts)
            self._stand_ins = {name: c.double().clamp(min=1) for name, c in counts.items()}
            self._counts = counts
        else:
            self._counts = {name: self._counts[name] + count for name, count in counts.items()}
        if self._added < self.number - 1:
            return self._stand_ins
        self._divisors = mean_over_workers(self._counts)
        return self._divisors

    def add(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take the losses of a micro batch; returns those whose gradients add up."""
        counted = self._counts.keys()
        losses = {k: x if k in counted else x / self.number for k, x in losses.items()}
        if not self._added:
            others = [name for name in losses if name not in counted]
            self.groups += [others] if others else []
            self.gradients = [[] for _ in self.groups]
        self._losses.append({name: loss.detach() for name, loss in losses.items()})
        self._added += 1
        if self._added == self.number:
            self.scales = [self._scale(names[0]) for names in self.groups]
        return losses

    def _scale(self, name: str) -> Tensor | float:
        if name not in self._divisors:
            return 1.0
        return self._stand_ins[name] / self._divisors[name]

    def losses(self) -> dict[str, Tensor]:
        """The losses of the whole step."""
        *earlier, last = self._losses
        return {
            name: _sum([loss, *(part[name] * self._scale(name) for part in earlier)])
            for name, loss in last.items()
        }


def _with_same(counts: dict[str, Tensor]) -> list[list[str]]:
    """Names in groups whose counts are one and the same tensor."""
    groups: dict[int, list[str]] = {}
    for name, count in counts.items():
        groups.setdefault(id(count), []).append(name)
    return list(groups.values())


def on_host(*groups: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The same scalars as float64 tensors on the host, by a single transfer.

    The loss has to be read in each step, to find out whether it is finite; what only the log needs
    comes with it.
    """
    scalars = [x.detach().double() for group in groups for x in group.values()]
    values = iter(torch.stack(scalars).cpu().unbind() if scalars else ())
    return [{name: next(values) for name in group} for group in groups]


def _mean(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the micro batches, name by name."""
    return {name: _sum(part[name] for part in parts) / len(parts) for name in parts[0]}


def _without_wrapper(model: nn.Module) -> Any:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    first, *rest = tensors
    return sum(rest, first)


def _without_communication(model: nn.Module) -> contextlib.AbstractContextManager:
    """Keep the gradients within the block those of this process."""
    if isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
