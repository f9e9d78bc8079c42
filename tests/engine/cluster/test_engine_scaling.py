"""A config for one number of workers on another: Detectron2's scaling, and that of our own keys."""

import pytest
from detectron2.engine import DefaultTrainer
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.engine.trainer import Trainer
from defcn_d2.utils.errors import UserError

REFERENCE = [
    *("SOLVER.IMS_PER_BATCH", "16", "SOLVER.BASE_LR", "0.1", "SOLVER.REFERENCE_WORLD_SIZE", "8"),
    *("SOLVER.MAX_ITER", "5000", "SOLVER.STEPS", "(4000,)", "SOLVER.CHECKPOINT_PERIOD", "1000"),
    *("MODEL.EMA.DECAY", "0.99", "MODEL.EMA.WARMUP", "2000", "SOLVER.ACCUMULATE", "2"),
]


@pytest.mark.parametrize("workers", [1, 2, 16])
def test_all_keys_are_scaled(workers):
    cfg = load_config(CONFIG, REFERENCE)
    scaled = Trainer.auto_scale_workers(cfg, workers)
    theirs = DefaultTrainer.auto_scale_workers(cfg, workers)
    assert scaled.SOLVER == theirs.SOLVER and scaled.TEST == theirs.TEST
    assert scaled.SOLVER.IMS_PER_BATCH == 2 * workers
    assert scaled.SOLVER.BASE_LR == pytest.approx(0.1 * workers / 8)
    assert scaled.SOLVER.MAX_ITER == 5000 * 8 // workers
    assert scaled.SOLVER.ACCUMULATE == 2
    assert scaled.MODEL.EMA.WARMUP == 2000 * 8 // workers
    # the average spans as many images as before
    assert scaled.MODEL.EMA.DECAY ** (8 / workers) == pytest.approx(0.99)
    assert scaled.is_frozen()
    assert cfg.MODEL.EMA.DECAY == 0.99  # as it was
    assert Trainer.auto_scale_workers(scaled, workers) is scaled  # once
    cfg.defrost()
    assert not Trainer.auto_scale_workers(cfg, workers).is_frozen()


@pytest.mark.parametrize("opts", [[], ["SOLVER.REFERENCE_WORLD_SIZE", "4"]])
def test_nothing_to_scale(opts):
    cfg = load_config(CONFIG, opts)
    assert Trainer.auto_scale_workers(cfg, 4) is cfg


def test_reference_that_does_not_divide_the_batch():
    cfg = load_config(CONFIG, [*REFERENCE, "SOLVER.REFERENCE_WORLD_SIZE", "3"])
    with pytest.raises(
        UserError, match="SIZE is 3, but must be 0 or divide SOLVER.IMS_PER_BATCH, 16"
    ):
        Trainer.auto_scale_workers(cfg, 8)
