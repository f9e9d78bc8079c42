"""The average of the weights: its formula, checkpoints, evaluation, and the run that keeps it."""

import json
import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import default_argument_parser
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.engine import Predictor, main, run
from defcn_d2.engine.ema import WeightsEMA
from defcn_d2.engine.preflight import check
from defcn_d2.engine.trainer import Trainer
from defcn_d2.utils.errors import UserError
from defcn_d2.weights.checkpointer import Checkpointer


class Small(nn.Module):
    """Parameters and buffers of each kind that an average must handle."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1).to(dtype)
        self.norm = nn.BatchNorm2d(2)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.tied = self.conv
        self.register_buffer("constant", torch.ones(1), persistent=False)


def change(model: nn.Module) -> None:
    """Changes of a step: other parameters, other statistics, one more batch."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and not name.startswith("frozen"):
                value.add_(torch.randn(value.shape))
        model.norm.num_batches_tracked += 1


@given(decay=st.floats(0, 0.9999), warmup=st.integers(0, 20), steps=st.integers(1, 12))
def test_average_by_its_formula(decay, warmup, steps):
    model = Small()
    expected = {name: value.double().clone() for name, value in model.state_dict().items()}
    ema = WeightsEMA(model, decay, warmup)
    for step in range(1, steps + 1):
        change(model)
        ema.update()
        d = decay * (1 - 2.718281828459045 ** (-step / warmup)) if warmup else decay
        for name, value in model.state_dict().items():
            expected[name] = d * expected[name] + (1 - d) * value.double()
    for name, value in ema.weights.items():
        assert value.dtype == (torch.float32 if value.is_floating_point() else torch.int64)
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert set(ema.weights) == set(model.state_dict())
    assert ema.weights["norm.num_batches_tracked"] == steps
    assert torch.equal(ema.weights["frozen.weight"], model.frozen.weight)  # to the last bit


def test_narrow_weights_are_averaged_in_float32():
    model = Small(torch.bfloat16)
    ema = WeightsEMA(model, 0.999)
    with torch.no_grad():
        model.conv.weight.fill_(1)
    ema.reset()
    with torch.no_grad():
        model.conv.weight.fill_(2)
    for _ in range(3):
        ema.update()  # steps of 0.001, which bfloat16 rounds away near 1
    torch.testing.assert_close(ema.weights["conv.weight"], torch.full((2, 1, 1, 1), 2 - 0.999**3))
    assert ema.model_weights()["conv.weight"].dtype == torch.bfloat16
    with ema.weights_in_model():
        assert model.conv.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("fails", [False, True])
def test_live_weights_come_back_bit_by_bit(fails):
    model = Small()
    ema = WeightsEMA(model, 0.5)
    change(model)
    ema.update()
    parameters = dict(model.named_parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with ema.weights_in_model():
            for name, value in model.state_dict().items():
                assert torch.equal(value, ema.weights[name])
            assert not torch.equal(model.conv.weight, before["conv.weight"])
            if fails:
                raise RuntimeError("the evaluation fails")
    except RuntimeError:
        assert fails
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # the very tensors that the optimizer and DistributedDataParallel hold
    assert all(parameters[name] is value for name, value in model.named_parameters())


def test_checkpoint_goes_on_exactly(tmp_path):
    model = Small()
    ema = WeightsEMA(model, 0.9, warmup=3)
    for _ in range(2):
        change(model)
        ema.update()
    Checkpointer(model, str(tmp_path), averaged=True, ema=ema).save("model")
    twin = Small()
    other = WeightsEMA(twin, 0.9, warmup=3)
    Checkpointer(twin, str(tmp_path), averaged=True, ema=other).resume_or_load("", resume=True)
    assert other.updates == 2
    for _ in range(2):
        torch.manual_seed(1)
        change(model)
        torch.manual_seed(1)
        change(twin)
        ema.update()
        other.update()
    for name, value in ema.weights.items():
        assert torch.equal(value, other.weights[name])
        assert torch.equal(model.state_dict()[name], twin.state_dict()[name])


class TestFiles:
    """A file with live weights of 1 and an average of 2."""

    @pytest.fixture
    def path(self, tmp_path):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2)
        ema = WeightsEMA(model, 0.5)
        nn.init.constant_(model.weight, 1)
        checkpointer = Checkpointer(model, str(tmp_path), averaged=True, ema=ema)
        checkpointer.save("both")
        checkpointer.export_averaged()
        Checkpointer(model, str(tmp_path)).save("live")
        return tmp_path

    def load(self, path: Path, averaged: bool, resume: bool = False) -> tuple[float, float]:
        """The weight of the model, and of the average that a training would begin with."""
        model = nn.Linear(1, 1, bias=False)
        ema = WeightsEMA(model, 0.5) if averaged else None
        checkpointer = Checkpointer(model, str(path.parent), averaged=averaged, ema=ema)
        (path.parent / "last_checkpoint").write_text(path.name)
        checkpointer.resume_or_load(str(path), resume=resume)
        average = ema.weights["weight"] if ema else torch.full((1, 1), float("nan"))
        return model.weight.item(), average.item()

    def test_resumed(self, path):
        assert self.load(path / "both.pth", averaged=True, resume=True) == (1, 2)

    def test_resumed_without_an_average(self, path, caplog):
        with caplog.at_level(logging.WARNING):
            assert self.load(path / "live.pth", averaged=True, resume=True) == (1, 1)
        assert "holds no averaged weights" in caplog.text

    def test_start_of_another_training(self, path):
        assert self.load(path / "both.pth", averaged=True) == (2, 2)
        assert self.load(path / "live.pth", averaged=True) == (1, 1)

    def test_disabled(self, path, caplog):
        with caplog.at_level(logging.WARNING):
            assert self.load(path / "both.pth", averaged=False)[0] == 1
        assert "MODEL.EMA.ENABLED True uses them" in caplog.text

    def test_evaluated_alone(self, path):
        for name, weight in (("both.pth", 2), ("live.pth", 1)):
            model = nn.Linear(1, 1, bias=False)
            Checkpointer(model, averaged=True).load(str(path / name))
            assert model.weight.item() == weight

    def test_exported_for_any_tool(self, path):
        model = nn.Linear(1, 1, bias=False)
        DetectionCheckpointer(model).load(str(path / "model_ema.pth"))
        assert model.weight.item() == 2
        assert (path / "last_checkpoint").read_text() == "live.pth"  # as before the export


EMA = ["MODEL.EMA.ENABLED", "True", "MODEL.EMA.DECAY", "0.5", "MODEL.EMA.WARMUP", "0"]
COMMAND = ["--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, *EMA]


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (["MODEL.EMA.DECAY", "1.0"], "MODEL.EMA.DECAY is 1.0, but must be at least 0 and below 1"),
        (["MODEL.EMA.WARMUP", "-1"], "MODEL.EMA.WARMUP is -1"),
        (["TEST.PRECISE_BN.ENABLED", "True"], "PRECISE_BN.ENABLED and MODEL.EMA.ENABLED are both"),
    ],
)
def test_wrong_values_are_told(opts, sentence):
    tiny_sets()
    args = default_argument_parser().parse_args([*COMMAND, *opts])
    with pytest.raises(UserError, match=sentence):
        check(load_config(args.config_file, args.opts), args)


def test_a_run_evaluates_its_average(tmp_path, monkeypatch):
    tiny_sets()
    seen = []

    def test(cfg, model, evaluators=None):
        seen.append(model.state_dict()["head.cls_score.bias"].clone())
        return {"bbox": {"AP": float(seen[-1].sum())}}

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", staticmethod(test))
        folder = ["OUTPUT_DIR", str(tmp_path), "SOLVER.CHECKPOINT_PERIOD", "1"]
        assert run([*COMMAND, *folder, "SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1"]) == 0
        assert run(["--resume", *COMMAND, *folder, "SOLVER.MAX_ITER", "3"]) == 0
    name = "head.cls_score.bias"
    steps = [torch.load(tmp_path / f"model_000000{i}.pth") for i in range(3)]
    for i in (1, 2):  # the resumed step as well
        halves = steps[i - 1]["ema"]["weights"][name] / 2 + steps[i]["model"][name] / 2
        torch.testing.assert_close(steps[i]["ema"]["weights"][name], halves)
    assert [torch.equal(x, steps[i]["ema"]["weights"][name]) for i, x in enumerate(seen)] == [1] * 3
    final = torch.load(tmp_path / "model_final.pth")
    assert not torch.equal(final["model"][name], final["ema"]["weights"][name])
    assert final["ema"]["updates"] == 3
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["bbox/AP"] == float(seen[-1].sum())

    # --eval-only and demos take the average, as does the exported file without the key
    weights = str(tmp_path / "model_final.pth")
    parser = default_argument_parser()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "test", staticmethod(test))
        out = ["OUTPUT_DIR", str(tmp_path / "other")]
        main(parser.parse_args(["--eval-only", *COMMAND, *out, "MODEL.WEIGHTS", weights]))
    cfg = load_config(CONFIG, [*TINY_MODEL, *EMA, "MODEL.WEIGHTS", weights])
    demo = Predictor(cfg).model.state_dict()[name]
    plain = ["MODEL.WEIGHTS", str(tmp_path / "model_ema.pth")]
    exported = Predictor(load_config(CONFIG, [*TINY_MODEL, *plain])).model.state_dict()[name]
    for value in (seen[-1], demo, exported):
        assert torch.equal(value, final["ema"]["weights"][name])
