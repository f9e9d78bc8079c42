"""Every system that is not the release's: in bfloat16, by micro batches, stopped and resumed.

On the built-in crowd, whose people overlap; the study trains them on ``shapes``. What each loss is
worth stands in the tests of the criteria; n processes against one in test_several_processes.py.
"""

import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from tiny_data import TINY_MODEL, tiny_crowd

from defcn_d2.engine import run

SYSTEMS = [
    *("AP-Loss", "AutoAssign", "DATE", "DATE-3DMF", "DR-Loss", "Dual-TAL", "FCOS-GFL", "GFL"),
    *("NoisyAnchors", "NoisyAnchors-dense", "OneToFew", "POTO-AP-Loss", "POTO-AutoAssign"),
    *("POTO-DR-Loss", "POTO-GFL", "POTO-IA-BCE", "POTO-MAL", "Peak", "Peak-GFL", "TAL"),
]
SOLVER = ["SOLVER.ACCUMULATE", "2", "SOLVER.AMP.ENABLED", "True", "SOLVER.CHECKPOINT_PERIOD", "2"]
SOLVER += ["SOLVER.AMP.PRECISION", "bfloat16", "SOLVER.MAX_ITER", "3"]
SETS = ["DATASETS.TRAIN", "('tiny_crowd_train',)", "DATASETS.TEST", "()"]
SETS += ["MODEL.DEFCN.NUM_CLASSES", "1"]


@pytest.fixture(autouse=True, scope="module")
def _data() -> None:
    tiny_crowd()


def train(system: str, folder: Path, *flags: str) -> dict[str, torch.Tensor]:
    """The weights after three steps of four images, in two micro batches."""
    config = str(ROOT / "configs" / "shapes" / f"{system}.yaml")
    arguments = [*flags, "--config-file", config, *TINY_MODEL, *SETS, *SOLVER]
    assert run([*arguments, "OUTPUT_DIR", str(folder)]) == 0
    return torch.load(folder / "model_final.pth")["model"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_resumed_run_of_each_system_is_the_whole_one(system: str, tmp_path: Path) -> None:
    whole = train(system, tmp_path / "whole")
    part = tmp_path / "part"
    part.mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000001.pth", part)
    begun = torch.load(part / "model_0000001.pth")["model"]
    (part / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(system, part, "--resume")
    assert resumed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(resumed[name], value) and value.isfinite().all(), name
    assert any(not torch.equal(begun[name], value) for name, value in whole.items())


def test_the_systems_have_configs_for_the_built_in_data() -> None:
    for system in SYSTEMS:
        assert (ROOT / "configs" / f"{system}.yaml").exists(), system
        assert (ROOT / "configs" / "shapes" / f"{system}.yaml").exists(), system
