"""``make study``: its plan, its runs, and the report made of their figures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import study
import study_report
import study_runs
from study_runs import Run, Settings
from tiny_data import TINY_MODEL, tiny_sets

from defcn_d2.engine import load_config

MACHINE = {"device": "some CPU", "jobs": 2, "threads": 1, "torch": "2.15.0", "detectron2": "0.6"}
SETTINGS = Settings(iterations=5, batch=2, network="narrow")


def write_figures(output: Path, run: Run, **figures: float) -> None:
    names = ("AP", "AP50", "recall", "mMR", "JI", "nms_ceiling", "duplicates_0.3")
    values = {prefix + name: 50.0 for name in names for prefix in ("", "nms_")}
    folder = run.folder(output)
    folder.mkdir(parents=True)
    values |= {"training_seconds": 60.0, "bfloat16": float(run.seed == 0), **figures}
    (folder / "figures.json").write_text(json.dumps(values))


def test_plan_goes_seed_by_seed() -> None:
    runs = study_runs.plan(2)
    number = len(study_runs.VARIANTS["shapes"]) + len(study_runs.VARIANTS["shapes_crowd"])
    assert len(runs) == 2 * number and len(set(runs)) == len(runs)
    assert [run.seed for run in runs] == [0] * number + [1] * number
    for run in runs:
        name, _ = study_runs.DERIVED.get(run.variant, (run.variant, ()))
        assert (study_runs.ROOT / "configs" / run.data / f"{name}.yaml").exists()
    only = study_runs.plan(2, ["shapes_crowd", "shapes/FCOS"])
    assert {run.name for run in only} == {
        run.name
        for run in runs
        if run.data == "shapes_crowd" or run.name.startswith("shapes/FCOS/")
    }


@pytest.mark.parametrize("name", study_runs.DERIVED)
def test_derived_variants_are_configs_with_a_few_keys(name: str, tmp_path: Path) -> None:
    (run,) = study_runs.plan(1, [f"shapes/{name}"])
    command = run.command(tmp_path, Settings(5, 16, "narrow"))
    base, keys = study_runs.DERIVED[name]
    cfg = load_config(command[3], command[5:])
    assert command[3].endswith(f"configs/shapes/{base}.yaml")
    for key, value in zip(keys[::2], keys[1::2], strict=True):
        node: Any = cfg
        for part in key.split("."):
            node = node[part]
        assert str(node) == value


@pytest.mark.parametrize("fast", [True, False])
def test_precision_is_that_of_the_processor(
    fast: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defcn_d2.engine.cpu.has_bfloat16", lambda: fast)
    (run,) = study_runs.plan(1, ["shapes/POTO"])
    narrow, full = (run.command(tmp_path, Settings(5, 16, name)) for name in study_runs.NETWORKS)
    assert ("bfloat16" in narrow) == fast and "bfloat16" not in full


def test_blood_cells_have_the_small_configs(tmp_path: Path) -> None:
    (run, *others) = study_runs.plan(1, ["bccd/Peak"], "cells")
    assert not others and run.name == "bccd/Peak/seed0"
    command = run.command(tmp_path, Settings(5, 16, "narrow"))
    assert str(study_runs.ROOT / "configs" / "shapes" / "Peak.yaml") in command
    pairs = dict(zip(command[5::2], command[6::2], strict=True))
    assert pairs["DATASETS.REGISTER.VAL.ANNOTATIONS"] == "cells/val.json"
    assert pairs["SOLVER.IMS_PER_BATCH"] == "8"
    load_config(
        command[3], [x for pair in pairs.items() for x in pair if "REGISTER" not in pair[0]]
    )
    with pytest.raises(ValueError, match="'bccd/Peak' is no part of the study"):
        study_runs.plan(1, ["bccd/Peak"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "shapes/FOCS"], "'shapes/FOCS' is no part of the study; one of"),
        (["--seeds", "0"], "--seeds 0 is too small"),
        (["--jobs", "-1"], "--jobs -1 is too small"),
        (["--network", "resnet51"], "resnet51"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        study.main(arguments)
    assert message in capsys.readouterr().err


def test_a_folder_holds_one_study(tmp_path: Path) -> None:
    run = Run("shapes", "POTO", 0)
    study_runs.claim(run, tmp_path, SETTINGS)
    study_runs.claim(run, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="begun with other settings.*--output"):
        study_runs.claim(run, tmp_path, Settings(6, 2, "narrow"))


def test_tiny_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One variant is trained; done again, nothing is trained; one that cannot be is reported."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_sets()))
    truth = tiny_sets() / "shapes" / "val" / "annotations.json"
    monkeypatch.setattr(study, "annotations_of", lambda *data: truth)
    arguments = ["--quick", "--only", "shapes/POTO", "--iterations", "3", "--batch", "2"]
    arguments += ["--output", str(tmp_path / "out"), "--docs", str(tmp_path / "docs")]
    images = ["DATASETS.TRAIN", "('shapes_val',)"]  # as few as the tiny sets have
    assert study.main([*arguments, "--", *TINY_MODEL, *images]) == 0
    folder = tmp_path / "out" / "shapes" / "POTO" / "seed0"
    figures = json.loads((folder / "figures.json").read_text())
    assert {"AP", "nms_AP", "recall", "nms_recall", "duplicates_0.3"} <= set(figures)
    assert figures["training_seconds"] > 0 and not list(folder.glob("model_0*.pth"))
    report = (tmp_path / "docs" / "study.md").read_text()
    assert "| POTO |" in report and "3 iterations of 2 images" in report

    monkeypatch.setattr(study, "start", lambda *args: pytest.fail("it trains again"))
    assert study.main([*arguments, "--", *TINY_MODEL, *images]) == 0
    monkeypatch.undo()

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_sets()))
    monkeypatch.setattr(study, "annotations_of", lambda *data: truth)
    arguments[2] = "shapes/FCOS"
    assert study.main([*arguments, "--", "MODEL.DEFCN.MATCHER.NAME", "poot"]) == 1
    errors = capsys.readouterr().err
    assert "error: shapes/FCOS/seed0 has failed: " in errors and "poot" in errors
    assert "status 1" in errors and "holds no finished run" in errors


def test_report(tmp_path: Path) -> None:
    output, docs = tmp_path / "out", tmp_path / "docs"
    runs = study_runs.plan(2, bccd="cells")
    for run in runs:
        low = run.variant in ("Anchor", "Center", "POTO")
        drop = 9.0 if run.variant == "FCOS" else 0.25
        ap = (40.0 if low else 44.0) + 2 * run.seed
        write_figures(output, run, AP=ap - drop, nms_AP=ap, recall=95.0, nms_ceiling=90.0)
    path = study_report.write_report(runs, output, docs, SETTINGS, MACHINE)
    text = path.read_text()
    assert "| FCOS | 36.0 ± 1.4 | 45.0 ± 1.4 | 9.0 ± 0.0 |" in text
    assert f"; {len(runs) // 2} of {len(runs)} runs in bfloat16, the others in float32. " in text
    assert "2 seeds" in text and "some CPU, 2 at a time with 1 thread each" in text
    assert f"{len(runs) / 60:.1f} hours" in text
    assert "## Photographs of blood cells" in text and text.count("| FCOS | 36.0 ± 1.4 |") == 2
    assert "leaves 90.0 % of it" in text
    rows = [line for line in text.splitlines() if line.endswith(("| yes |", "| **no** |"))]
    verdicts = {row.split(" | ")[0].strip("| "): "yes" in row.split(" | ")[2] for row in rows}
    assert verdicts["POTO is within 0.5 AP of itself with NMS (gap)"]
    assert verdicts["FCOS loses 5 AP or more without NMS (gap)"]
    assert not verdicts["POTO is better than Anchor (difference of AP)"]  # equal
    assert verdicts["POTO-3DMF is better than POTO (difference of AP)"]
    assert verdicts["crowd: POTO finds more than the NMS ceiling (difference of recall)"]
    assert not verdicts[
        "Peak without NMS is at least FCOS with NMS (difference of AP)"
    ]  # 43.75, 45
    assert verdicts["Peak is within -0.5 and 0.3 AP of itself with NMS (gap)"]
    assert not verdicts["Peak leaves fewer than 0.05 duplicates per object"]
    assert verdicts["crowd: Peak's recall is above the NMS ceiling (difference)"]
    for name in ("study_shapes.png", "study_crowd.png"):
        assert min(cv2.imread(str(docs / "images" / name)).shape[:2]) > 400


def test_a_study_goes_on_elsewhere(tmp_path: Path) -> None:
    """By study.json, if that is of the same settings."""
    here, there, docs = tmp_path / "here", tmp_path / "there", tmp_path / "docs"
    docs.mkdir()
    arguments = ["--only", "shapes/POTO", "--seeds", "2", "--docs", str(docs), "--output"]
    args = study.parse_arguments([*arguments, str(here)])
    write_figures(here, args.runs[0], AP=20.0)
    (here / "machine.json").write_text(json.dumps(MACHINE))
    study.keep_figures(args, SETTINGS)
    args = study.parse_arguments([*arguments, str(there)])
    study.take_up_figures(args, Settings(6, 2, "narrow"))
    assert not there.exists()
    study.take_up_figures(args, SETTINGS)
    first, second = (run.figures(there) for run in args.runs)
    assert first == args.runs[0].figures(here) and second is None
    assert json.loads((there / "machine.json").read_text()) == MACHINE
    study_runs.claim(args.runs[0], there, SETTINGS)
    with pytest.raises(ValueError, match="begun with other settings"):
        study_runs.claim(args.runs[0], there, Settings(6, 2, "narrow"))


def test_figures_of_other_runs_stay(tmp_path: Path) -> None:
    """Of other parts and seeds in study.json, and of blood cells without their images."""
    docs, output = tmp_path / "docs", tmp_path / "out"
    docs.mkdir()
    arguments = ["--docs", str(docs), "--output", str(output), "--seeds"]
    args = study.parse_arguments([*arguments, "2", "--bccd", "cells"])
    names = ["shapes_crowd/POTO/seed0", "bccd/FCOS/seed0", "shapes/POTO/seed1"]
    for run in args.runs:
        if run.name in names:
            write_figures(output, run, AP=20.0)
    (output / "machine.json").write_text(json.dumps(MACHINE))
    study.keep_figures(args, SETTINGS)
    shutil.rmtree(output)
    args = study.parse_arguments([*arguments, "1"])
    study.take_up_figures(args, SETTINGS)
    assert study.report(args, SETTINGS) == 0
    assert "## Photographs of blood cells" in (docs / "study.md").read_text()
    assert list(json.loads((docs / "study.json").read_text())["figures"]) == names
    study.keep_figures(args, Settings(6, 2, "narrow"))  # another study
    assert list(json.loads((docs / "study.json").read_text())["figures"]) == names[:2]


def test_report_keeps_what_others_wrote(tmp_path: Path) -> None:
    run = Run("shapes", "FCOS", 0)
    write_figures(tmp_path, run, AP=20.0, nms_AP=22.0)
    path = study_report.write_report([run], tmp_path, tmp_path, SETTINGS, MACHINE)
    before = path.read_text()
    assert "| FCOS loses 5 AP or more without NMS (gap) | 2.00 | **no** |" in before
    assert "crowd" not in before and "±  " not in before
    path.write_text(before + "\nWhat it means.\n")
    study_report.write_report([run], tmp_path, tmp_path, SETTINGS, MACHINE)
    assert path.read_text() == before + "\nWhat it means.\n"
    path.write_text("no markers")
    with pytest.raises(ValueError, match=r"study\.md needs the lines <!-- study:begin -->"):
        study_report.write_report([run], tmp_path, tmp_path, SETTINGS, MACHINE)


def test_differences_are_seed_by_seed() -> None:
    figures = {"a": {"AP": [3.0, 5.0]}, "b": {"AP": [1.0, 9.0, 7.0]}}
    assert study_report.difference(figures, ("a", "AP"), ("b", "AP")) == [2.0, -4.0]
    assert study_report.difference(figures, ("a", "AP"), ("c", "AP")) is None


def test_report_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = study.parse_arguments(["--output", str(tmp_path)])
    assert study.report(arguments, SETTINGS) == 1
    assert "holds no finished run" in capsys.readouterr().err


def test_name_of_the_processor(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert study.cpu_name(tmp_path / "cpuinfo") == "Some CPU @ 2 GHz"
    assert study.cpu_name(tmp_path / "missing")
