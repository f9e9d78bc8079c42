"""The table of detectors before and after they are made to do without NMS."""

import json
from pathlib import Path
from typing import Any

import conversions
import pytest

PAGE = f"# Page\n\n{conversions.BEGIN}\nold\n{conversions.END}\n\nend\n"


def finished_run(study: Path, name: str, seed: int, **figures: float) -> Path:
    folder = study / "shapes" / name / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "figures.json").write_text(json.dumps(figures))
    (folder / "model_final.pth").write_bytes(b"weights")
    return folder


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that were converted; each gives the same figures."""
    folders: list[Path] = []

    def run_variant(name: str, args: Any) -> dict[str, float]:
        assert name == "comparison" and args.iterations == 0
        assert args.weights.read_bytes() == b"weights"
        folders.append(args.base)
        return {"AP": 57.0, "nms_AP": 57.5, "duplicates_0.3": 0.02, "recall": 91.0}

    monkeypatch.setattr(conversions, "run_variant", run_variant)
    return folders


def command(tmp_path: Path) -> str:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    options = ["--output", str(tmp_path / "out"), "--annotations", "x", "--page", str(page)]
    conversions.main([str(tmp_path / "study"), *options])
    return page.read_text()


def test_table_of_what_the_study_has(converted: list[Path], tmp_path: Path) -> None:
    study = tmp_path / "study"
    runs = [finished_run(study, "GFL", seed, AP=27.0 + seed, nms_AP=60.0) for seed in (0, 1)]
    runs.append(finished_run(study, "TAL", 0, AP=31.0, nms_AP=58.0))
    finished_run(study, "POTO", 0, AP=45.0, nms_AP=48.0)  # needs no conversion
    (finished_run(study, "ATSS", 0, AP=1.0, nms_AP=2.0) / "model_final.pth").unlink()
    (finished_run(study, "FCOS", 0) / "figures.json").unlink()
    page = command(tmp_path)
    assert converted == runs
    assert page.startswith("# Page\n") and page.endswith("\n\nend\n") and "old" not in page
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == [
        "| GFL (2 seeds) | 60.0 ± 0.0 | 27.5 ± 0.7 | 57.0 ± 0.0 | 0.5 ± 0.0 | 0.020 ± 0.000 "
        "| 91.0 ± 0.0 |",
        "| TAL (1 seed) | 58.0 | 31.0 | 57.0 | 0.5 | 0.020 | 91.0 |",
    ]


def test_a_study_without_such_a_run_is_an_error(converted: list[Path], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no finished run of FCOS, ATSS"):
        command(tmp_path)
