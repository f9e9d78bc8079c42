"""Figures for the log cost a step no wait for the device."""

import traceback
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from helpers import tiny_cfg
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transfers import Transfers

from defcn_d2.engine.hooks import EmptyBoxes, set_progress
from defcn_d2.engine.step import StepTrainer, on_host

#: Operators that wait for a GPU, by their result or its size.
WAITING = ("_local_scalar_dense", "nonzero", "unique", "masked_select")


class Waits(TorchDispatchMode):
    """Counts the operators of ``WAITING`` by the line of the package that called them."""

    def __init__(self):
        super().__init__()
        self.lines = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in WAITING):
            calls = [x for x in traceback.extract_stack() if "/defcn_d2/" in x.filename]
            self.lines[calls[-1].line.partition("  #")[0]] += 1
        return func(*args, **(kwargs or {}))


def batch(*numbers: int) -> list[dict]:
    """An image a number, with so many ground truths."""
    inputs = []
    for number in numbers:
        corners = torch.rand(number, 2) * 60
        gt = Instances((128, 128))
        gt.gt_boxes = Boxes(torch.cat([corners, corners + 20 + 40 * torch.rand(number, 2)], 1))
        gt.gt_classes = torch.zeros(number, dtype=torch.int64)
        inputs.append({"image": torch.rand(3, 128, 128) * 255, "instances": gt})
    return inputs


@pytest.fixture
def model() -> torch.nn.Module:
    return build_model(tiny_cfg("MODEL.DEFCN.AUX.ENABLED", True)).train()


def test_no_figure_waits(model):
    inputs = batch(3, 0, 1, 7)
    with Waits() as waits:
        model(inputs)
    # what the method needs: the foreground of both criteria, and the pairs on a CPU; what checks
    # need: one look at the batch, and the sizes of the images, which are on the host
    needed = {
        "images, locations = torch.nonzero(gt_idxs >= 0, as_tuple=True)": 2,
        "kept = allowed.nonzero().squeeze(1)": 1,
        "if good.all():": 1,
        "return ImageList.from_tensors(images, self.backbone.size_divisibility)": 2,
    }
    assert {line: n for line, n in waits.lines.items() if n > needed.get(line, 0)} == {}


def test_losses_and_figures_are_one_transfer():
    with FakeTensorMode(), Transfers() as transfers:
        losses = {name: torch.empty((), device="cuda") for name in "abc"}
        figures = {name: torch.empty((), device="cuda", dtype=torch.float64) for name in "de"}
        on_host(losses, figures)
    assert transfers.count == 1


def test_values_are_kept_to_the_last_digit():
    losses = {"a": torch.tensor(0.1), "b": torch.tensor(1 / 3, dtype=torch.float64)}
    (found, nothing) = on_host(losses, {})
    assert {name: x.item() for name, x in found.items()} == {
        name: x.item() for name, x in losses.items()
    }
    assert nothing == {}
    assert on_host({}, {}) == [{}, {}]


def test_a_step_logs_the_figures_of_all_its_images(model):
    batches = [batch(3, 0), batch(1, 7)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    expected = []
    for inputs in batches:
        model(inputs)
        expected.append({name: x.item() for name, x in model.figures.items()})
    assert expected[0].keys() == {
        f"num_{figure}{suffix}"
        for figure in ("foreground", "empty_boxes", "unmatched_gt")
        for suffix in ("", "_aux")
    }
    with EventStorage() as storage:
        StepTrainer(model, batches, optimizer, micro_batches=2).run_step()
    for name in expected[0]:
        value, _ = storage.latest()[name]
        assert value == pytest.approx((expected[0][name] + expected[1][name]) / 2), name


def test_progress_reaches_criteria_and_their_parts(model):
    model.criteria[0].matcher.progress = 0.0  # one that depends on it
    set_progress(model, 0.25)
    assert [criterion.progress for criterion in model.criteria] == [0.25, 0.25]
    assert model.criteria[0].matcher.progress == 0.25
    assert not hasattr(model.criteria[1].matcher, "progress")
    assert not any("progress" in name for name in model.state_dict())
    set_progress(torch.nn.Linear(1, 1), 0.5)  # without criteria


def test_boxes_that_never_get_a_size_are_reported_once(caplog):
    hook = EmptyBoxes(steps=3)
    hook.trainer = SimpleNamespace()
    steps = [(2.0, 2.0), (2.0, 2.0), (2.0, 1.5), (0.0, 0.0), *[(2.0, 2.0)] * 5]
    with EventStorage() as hook.trainer.storage:
        for number, (foreground, empty) in enumerate(steps):
            hook.trainer.storage.put_scalars(num_foreground=foreground, num_empty_boxes=empty)
            hook.after_step()
            said = [record.getMessage() for record in caplog.records]
            assert len(said) == (number >= 6), number
    assert "set MODEL.DEFCN.BOX_BIAS 4.0" in said[0]
