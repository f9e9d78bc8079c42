"""The parts of the trainer: optimizer, checkpoints, threads, log, evaluators."""

import logging
import os
import sys

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator
from hypothesis import given
from hypothesis import strategies as st
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

from defcn_d2.config.load import load_config
from defcn_d2.engine import build_optimizer, cpu, evaluators
from defcn_d2.engine.logs import setup_logging
from defcn_d2.engine.mixed_precision import build_step_trainer
from defcn_d2.engine.trainer import end_last_line
from defcn_d2.evaluation.crowdhuman import CrowdHumanEvaluator
from defcn_d2.evaluation.nms_gap import NMSGapEvaluator
from defcn_d2.utils.errors import UserError
from defcn_d2.weights.checkpointer import Checkpointer
from defcn_d2.weights.reader import CheckpointError


class Small(nn.Module):
    """One parameter of each kind that an optimizer may treat in its own way."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.norm = nn.GroupNorm(1, 2)
        self.frozen = nn.Linear(1, 1).requires_grad_(False)
        self.tied = self.conv


SOLVER = [
    *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", "0.5", "SOLVER.WEIGHT_DECAY", "0.1"),
    *("SOLVER.WEIGHT_DECAY_NORM", "0.0", "SOLVER.BIAS_LR_FACTOR", "2.0"),
    *("SOLVER.WEIGHT_DECAY_BIAS", "0.2"),
]


def test_adamw_has_the_settings_of_each_kind():
    model = Small()
    optimizer = build_optimizer(load_config(CONFIG, SOLVER), model)
    assert type(optimizer) is torch.optim.AdamW
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found == {
        id(model.conv.weight): (0.5, 0.1),
        id(model.conv.bias): (1.0, 0.2),
        id(model.norm.weight): (0.5, 0.0),
        id(model.norm.bias): (1.0, 0.2),
    }
    assert len(optimizer.param_groups) == 3  # equal settings share a group


def test_adamw_steps_as_torch_does():
    torch.manual_seed(0)
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    opts = ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", "0.1", "SOLVER.WEIGHT_DECAY", "0.3"]
    opts += ["SOLVER.WEIGHT_DECAY_BIAS", "0.3"]  # whose default v0.5 has as a number
    ours = build_optimizer(load_config(CONFIG, opts), model)
    reference = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.3)
    x = torch.randn(4, 3)
    for _ in range(3):
        for net, optimizer in ((model, ours), (twin, reference)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(model.weight, twin.weight) and torch.equal(model.bias, twin.bias)


@pytest.mark.parametrize("name, kind", [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_gradients_are_clipped_where_asked(name, kind):
    model = nn.Linear(1, 1, bias=False)
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.25"]
    optimizer = build_optimizer(load_config(CONFIG, ["SOLVER.OPTIMIZER", name, *clip]), model)
    assert isinstance(optimizer, kind)
    model.weight.grad = torch.full((1, 1), 7.0)
    optimizer.step()
    assert model.weight.grad.item() == 0.25


@pytest.mark.parametrize("name, kind", [("SGD", torch.optim.SGD), ("AdamW", torch.optim.AdamW)])
def test_norms_are_clipped_alone_or_together(name, kind):
    """Gradients 3 and 4: Detectron2's "norm" takes each by itself, "full_model" both as one."""
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0"]
    for clip_type, expected in (("norm", [1, 1]), ("full_model", [0.6, 0.8])):
        model = nn.Linear(1, 1)
        opts = ["SOLVER.OPTIMIZER", name, *clip, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", clip_type]
        cfg = load_config(CONFIG, opts)
        optimizer = build_optimizer(cfg, model)
        assert isinstance(optimizer, kind)
        before = model.weight.item()
        model.weight.grad, model.bias.grad = torch.full((1, 1), 3.0), torch.full((1,), 4.0)
        build_step_trainer(cfg, model, [], optimizer).update()
        found = [model.weight.grad.item(), model.bias.grad.item()]
        assert found == pytest.approx(expected, rel=1e-5)
        assert model.weight.item() != before


def test_unknown_optimizer():
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER 'Adam' is unknown; one of: AdamW, SGD"):
        build_optimizer(load_config(CONFIG, ["SOLVER.OPTIMIZER", "Adam"]), Small())


def test_unreachable_weights_are_named():
    with pytest.raises(
        CheckpointError, match="'http://localhost:1/x.pth' cannot be read or fetched"
    ):
        Checkpointer(nn.Linear(1, 1)).load("http://localhost:1/x.pth")


@pytest.mark.parametrize(
    "quota, cores",
    [("max 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 4)],
)
def test_cores_of_a_container(tmp_path, monkeypatch, quota, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    path = tmp_path / "cpu.max"
    path.write_text(quota + "\n")
    assert cpu.available_cores(path) == cores
    assert cpu.available_cores(tmp_path / "none") == 4


def test_cores_where_the_system_tells_no_affinity(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for count, cores in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert cpu.available_cores(tmp_path / "none") == cores


@given(cores=st.integers(1, 64), workers=st.integers(0, 64))
def test_busy_threads_and_workers_fit_the_cores(cores, workers):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_WAIT_POLICY", raising=False)
        threads = cpu.num_threads(cores, workers)
        assert threads >= 1 and (threads == 1 or threads + workers == cores)
        patch.setenv("OMP_WAIT_POLICY", "passive")
        assert cpu.num_threads(cores, workers) == cores


@pytest.mark.parametrize("given_threads", [None, "1"])
def test_run_on_the_cpu(monkeypatch, given_threads):
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(cpu, "available_cores", lambda: 3)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given_threads:
        monkeypatch.setenv("OMP_NUM_THREADS", given_threads)
    before = load_config(CONFIG, ["DATALOADER.NUM_WORKERS", "8", "MODEL.DEVICE", "cuda"])
    after = cpu.use_cpu(before)
    assert (after.MODEL.DEVICE, after.DATALOADER.NUM_WORKERS) == ("cpu", 3)
    assert (before.MODEL.DEVICE, before.DATALOADER.NUM_WORKERS) == ("cuda", 8)
    assert after.is_frozen()
    assert chosen == ([] if given_threads else [3])


def test_log_is_short_on_the_terminal_and_full_on_disk(tmp_path, capsys, monkeypatch):
    before = {name: logging.getLogger(name).handlers[:] for name in LOGGERS}
    for name in LOGGERS:  # of other tests, whose streams are closed
        logging.getLogger(name).handlers.clear()
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the one that capsys reads
    try:
        setup_logging(str(tmp_path))
        logger = logging.getLogger("detectron2.test")
        logger.info("Running with full config:\nA: 1")
        logger.info("a step")
        logging.getLogger("defcn_d2.test").info("our step of \x1b[2Jclass\r")
        for handler in logging.getLogger("detectron2").handlers:
            handler.flush()
        shown, kept = capsys.readouterr().out, (tmp_path / "log.txt").read_text()
        assert "full config" not in shown and "full config" in kept
        for text in (shown, kept):
            assert "a step" in text and r"our step of \x1b[2Jclass\r" in text
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers[:] = handlers


LOGGERS = ("detectron2", "defcn_d2", "fvcore")


@pytest.mark.parametrize(
    "content, after", [(b"", b""), (b'{"a": 1}\n', b'{"a": 1}\n'), (b'{"a": ', b'{"a": \n')]
)
def test_unfinished_line_is_ended(tmp_path, content, after):
    path = tmp_path / "metrics.json"
    end_last_line(str(path))
    assert not path.exists()
    path.write_bytes(content)
    end_last_line(str(path))
    assert path.read_bytes() == after


@pytest.fixture(scope="module")
def tiny():
    tiny_sets()


def test_evaluators_of_the_types_of_data(tiny, tmp_path):
    plain = ["TEST.SCORE_REPORT", "none", "OUTPUT_DIR", str(tmp_path)]
    cfg = load_config(CONFIG, [*TINY_MODEL, *TINY_SETS, *plain])
    evaluator = evaluators.build_evaluator(cfg, "tiny_val")
    assert isinstance(evaluator, COCOEvaluator)
    assert evaluator._output_dir == str(tmp_path / "inference")
    assert not evaluator._use_fast_impl
    metadata = MetadataCatalog.get("tiny_people")
    metadata.set(evaluator_type="crowdhuman", odgt_file="none.odgt", image_root="none")
    assert isinstance(evaluators.build_evaluator(cfg, "tiny_people"), CrowdHumanEvaluator)
    pascal = evaluators.build_evaluator(cfg, "voc_2007_val")
    assert isinstance(pascal, PascalVOCDetectionEvaluator) and pascal._is_2007


def test_predictions_of_two_sets_and_with_nms_have_own_folders(tiny, monkeypatch):
    made = []

    def make(cfg, name, folder):
        made.append((name, folder))
        return COCOEvaluator(name, ("bbox",))

    monkeypatch.setitem(evaluators.EVALUATORS, "coco", make)
    opts = [*TINY_MODEL, "DATASETS.TEST", "('tiny_val', 'tiny_train')", "OUTPUT_DIR", "out"]
    cfg = load_config(CONFIG, [*opts, "TEST.WITH_NMS", "True"])
    gap, report = evaluators.build_evaluator(cfg, "tiny_val")._evaluators
    assert isinstance(gap, NMSGapEvaluator)
    folder = "out/inference/tiny_val"
    assert made == [("tiny_val", f"{folder}/without_nms"), ("tiny_val", f"{folder}/with_nms")]
    # the scores of what the model gives when it is used, and one file a run
    results = "coco_instances_results.json"
    assert str(report._results) == f"{folder}/without_nms/{results}" and str(report._run) == "out"
    nms = ["TEST.WITH_NMS", "True", "MODEL.DEFCN.NMS_TYPE", "class_wise"]
    for dataset, run in (("tiny_val", "out"), ("tiny_train", "None")):
        _, report = evaluators.build_evaluator(
            load_config(CONFIG, [*opts, *nms]), dataset
        )._evaluators
        assert str(report._results) == f"out/inference/{dataset}/with_nms/{results}"
        assert str(report._run) == run


def test_missing_lvis_package_is_told(monkeypatch):
    def no_package(*args, **kwargs):
        raise ImportError("No module named 'lvis'")

    monkeypatch.setattr(evaluators, "LVISEvaluator", no_package)
    MetadataCatalog.get("tiny_lvis").set(evaluator_type="lvis")
    with pytest.raises(UserError, match="'tiny_lvis': No module named 'lvis'; pip install lvis"):
        evaluators.build_evaluator(load_config(CONFIG), "tiny_lvis")
