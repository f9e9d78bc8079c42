"""A step of several micro batches has the gradient of one large batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from exact_models import make_model
from helpers import random_inputs
from process_groups import in_group
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from defcn_d2.engine.step import StepTrainer
from defcn_d2.modeling.compilation import Compilation, is_compiled

COUNTS = (4, 0, 0, 2, 1, 3)  # ground truths of the images


def inputs(counts: tuple[int, ...] = COUNTS) -> list[dict]:
    return random_inputs([(64, 64)] * len(counts), counts, 3)


class Still(torch.optim.SGD):
    """Leaves the gradients to be looked at."""

    def step(self, closure=None):
        self.steps = getattr(self, "steps", 0) + 1


def step(
    model: nn.Module, images: list[dict], micro_batches: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients by parameter and the losses in the log, of a step of these images."""
    size = len(images) // micro_batches
    loader = [images[i * size : (i + 1) * size] for i in range(micro_batches)]
    optimizer = Still(model.parameters(), lr=0.1)
    trainer = StepTrainer(model, loader, optimizer, micro_batches)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # of the step before
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
    assert optimizer.steps == 1
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    losses = {name: x for name, (x, _) in storage.latest().items() if "loss" in name}
    return gradients, losses


def assert_same(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    (gradients, losses), (expected_gradients, expected_losses) = found, expected
    assert losses.keys() == expected_losses.keys() and "total_loss" in losses
    for name, loss in expected_losses.items():
        assert losses[name] == pytest.approx(loss, rel=1e-5), name
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name
        )


@pytest.mark.parametrize(
    "name, groups",
    [("POTO", 1), ("POTO-3DMF-Aux", 2), ("FCOS", 2), ("OneNet", 1)],
)
def test_micro_batches_are_one_batch(name, groups, monkeypatch):
    passes = []
    backward = StepTrainer.backward

    def counting(self, loss, retain_graph=False):
        passes.append(retain_graph)
        backward(self, loss, retain_graph)

    model = make_model(name)
    expected = step(model, inputs(), 1)
    monkeypatch.setattr(StepTrainer, "backward", counting)
    assert_same(step(model, inputs(), 3), expected)
    assert len(passes) == 2 * groups + 1  # the last micro batch needs one
    assert_same(step(model, inputs(), 6), expected)


def test_no_ground_truth_at_all():
    """Counts of 0 are 1, once and not in each micro batch."""
    model = make_model("POTO-3DMF-Aux")
    assert_same(step(model, inputs((0, 0)), 2), step(model, inputs((0, 0)), 1))


def test_the_model_divides_as_before_after_a_step():
    model = make_model("POTO")
    before = model.normalizer
    step(model, inputs(), 2)
    assert model.normalizer is before
    with pytest.raises(StopIteration):
        trainer = StepTrainer(model, [inputs()], Still(model.parameters(), lr=0.1), 2)
        trainer.run_step()
    assert model.normalizer is before


class Mean(nn.Module):
    """A model whose losses are means of its own, with a parameter that one loss does not reach."""

    def __init__(self, as_dict: bool):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.unused = nn.Parameter(torch.zeros(1))
        self.as_dict = as_dict

    def forward(self, data: Tensor) -> dict[str, Tensor] | Tensor:
        loss = self.linear(data).square().mean()
        return {"loss_a": loss, "loss_b": loss.sin()} if self.as_dict else loss


@pytest.mark.parametrize("as_dict", [True, False])
def test_other_models_average_their_micro_batches(as_dict):
    model = Mean(as_dict)
    data = torch.randn(4, 2)
    trainer = StepTrainer(model, [data[:2], data[2:]], Still(model.parameters(), lr=0.1), 2)
    with EventStorage() as storage:
        trainer.iter = 0
        trainer.run_step()
    logged = storage.latest()["total_loss"][0]
    parts = [model(data[:2]), model(data[2:])]
    if as_dict:
        parts = [part["loss_a"] + part["loss_b"] for part in parts]
    loss = (parts[0] + parts[1]) / 2
    expected = torch.autograd.grad(loss, list(model.linear.parameters()))
    torch.testing.assert_close(model.linear.weight.grad, expected[0])
    torch.testing.assert_close(model.linear.bias.grad, expected[1])
    assert model.unused.grad is None
    assert logged == pytest.approx(loss.item())


def step_of_a_member() -> tuple[tuple[dict, dict], list[int]]:
    """``step`` with every second image, and the sizes of what is reduced in it."""
    sent = []
    all_reduce = torch.distributed.all_reduce

    def counting(tensor: Tensor, *args: object, **kwargs: object) -> object:
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counting
    model = DistributedDataParallel(make_model("POTO-3DMF-Aux"))
    return step(model, inputs()[comm.get_rank() :: 2], 3), sent


def test_two_processes_with_micro_batches_are_one_batch(tmp_path: Path):
    results = in_group(2, step_of_a_member, tmp_path)
    gradients, losses = step(make_model("POTO-3DMF-Aux"), inputs(), 1)
    for (found, logged), sent in results:
        found = {name.removeprefix("module."): gradient for name, gradient in found.items()}
        assert_same((found, logged or losses), (gradients, losses))
        assert sent == [3]  # the counts, once a step
    assert results[0][0][1]  # the main process has logged


def test_a_compiled_model_accumulates() -> None:
    """Its graph is walked through once for the losses and once for the auxiliary one."""
    compiled = make_model("POTO-3DMF-Aux")
    compiled.compilation = Compilation([compiled.backbone, compiled.head], "aot_eager")
    expected = step(make_model("POTO-3DMF-Aux"), inputs(COUNTS[:2]), 2)
    with torch._functorch.config.patch(donated_buffer=True):  # put back afterwards
        assert_same(step(compiled, inputs(COUNTS[:2]), 2), expected)
    assert is_compiled(compiled.backbone)
