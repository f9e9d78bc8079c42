"""A detector that was trained with NMS, by the command made to do without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import ROOT
from tiny_data import TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.engine import load_config, run
from defcn_d2.engine.nms_free import run as make

OPTS = [*TINY_MODEL, *TINY_SETS, "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny_sets()
    folder = tmp_path_factory.mktemp("trained")
    config = str(ROOT / "configs/shapes/FCOS.yaml")
    assert run(["--config-file", config, *OPTS, "SOLVER.MAX_ITER", "2",
                "OUTPUT_DIR", str(folder)]) == 0  # fmt: skip
    return folder


def arguments(trained: Path, output: Path, *more: str) -> list[str]:
    files = ["--config-file", str(trained / "config.yaml")]
    return [*files, "--weights", str(trained / "model_final.pth"), "--output", str(output), *more]


def test_without_training(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert make(arguments(trained, tmp_path)) == 0
    assert (
        f"defcn-train --config-file {tmp_path}/config.yaml --eval-only" in capsys.readouterr().out
    )
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert cfg.MODEL.DEFCN.NMS_TYPE == "none"
    assert cfg.MODEL.DEFCN.QUALITY_BRANCH == "centerness"  # of the trained detector
    assert run(["--config-file", str(tmp_path / "config.yaml"), "--eval-only"]) == 0


def test_with_a_selector(trained: Path, tmp_path: Path) -> None:
    assert make(arguments(trained, tmp_path, "--iterations", "2", "TEST.EVAL_PERIOD", "1")) == 0
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.TEST.EVAL_PERIOD) == (2, 0, 0)
    assert run(["--config-file", str(tmp_path / "config.yaml")]) == 0
    before = torch.load(trained / "model_final.pth", weights_only=False)["model"]
    after = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    kept = [name for name in before if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(after[name], before[name]) for name in kept)
    own = set(after) - set(before)
    assert own and all(name.startswith("head.select") for name in own)


def test_mistakes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert make(arguments(trained, trained)) == 1
    assert "is an input itself" in capsys.readouterr().err
    assert make(arguments(trained, tmp_path, "--iterations", "-1")) == 1
    assert "--iterations -1 is too small" in capsys.readouterr().err
    anchors = ["MODEL.DEFCN.PRIORS", "anchors", "MODEL.DEFCN.BOX_BIAS", "0.0"]
    anchors += ["MODEL.DEFCN.MATCHER.NAME", "Anchor", "MODEL.DEFCN.QUALITY_BRANCH", "none"]
    anchors += [
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[[32, 40], [64, 80], [96, 99], [128, 133], [256, 300]]",
    ]
    assert make(arguments(trained, tmp_path, *anchors)) == 1
    assert "peaks are found on grids of one prior a location" in capsys.readouterr().err
    assert not (tmp_path / "config.yaml").exists()
