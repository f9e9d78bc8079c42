"""A detector that was trained with NMS, by the command made to do without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import ROOT, make_cfg
from tiny_data import TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.engine import load_config, run
from defcn_d2.engine.nms_free import nms_free_config
from defcn_d2.engine.nms_free import run as make
from defcn_d2.utils.errors import UserError

OPTS = [*TINY_MODEL, *TINY_SETS, "DATALOADER.NUM_WORKERS", "0"]


@pytest.fixture(scope="module", params=["FCOS", "GFL"])
def trained(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    tiny_sets()
    folder = tmp_path_factory.mktemp("trained")
    config = str(ROOT / f"configs/shapes/{request.param}.yaml")
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
    before = load_config(str(trained / "config.yaml")).MODEL.DEFCN
    assert cfg.MODEL.DEFCN.QUALITY_BRANCH == before.QUALITY_BRANCH  # of the trained detector
    assert not cfg.MODEL.DEFCN.HEAD[cfg.MODEL.DEFCN.HEAD.NAME].SELECTOR
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


@pytest.mark.parametrize("iterations", [0, 10])
@pytest.mark.parametrize(
    "name", ["ATSS", "FCOS-wo-centerness", "FCOS-GFL", "TAL", "AutoAssign", "NoisyAnchors-dense"]
)
def test_detectors_with_nms_have_a_form_without(name: str, iterations: int) -> None:
    cfg = make_cfg(f"shapes/{name}.yaml", "MODEL.DEFCN.HEAD.GFLHead.REG_MAX", 9)
    own = nms_free_config(cfg, iterations).MODEL.DEFCN
    assert own.NMS_TYPE == "none" and not own.AUX.ENABLED
    assert own.HEAD.NAME == ("PeakGFLHead" if "GFL" in name else "PeakHead")
    assert own.HEAD.PeakGFLHead.REG_MAX == (9 if "GFL" in name else 16)
    if iterations:
        assert (own.CRITERION.NAME, own.MATCHER.NAME) == ("DenseCriterion", "POTO")


@pytest.mark.parametrize("name", ["Dual-TAL", "DATE", "Peak"])
def test_what_is_without_nms_already_has_no_such_form(name: str) -> None:
    with pytest.raises(UserError, match="of which there is no form without NMS"):
        nms_free_config(make_cfg(f"shapes/{name}.yaml"))


@pytest.mark.parametrize("trained", ["FCOS"], indirect=True)
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
