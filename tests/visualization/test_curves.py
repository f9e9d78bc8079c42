"""``defcn_d2.visualization.curves``: which panels there are, and what is drawn in them."""

import json
from pathlib import Path

import pytest

from defcn_d2.utils.errors import UserError
from defcn_d2.visualization.curves import draw_curves, load_runs

LOSS = {"total_loss": 1.0}


def panels(runs: dict) -> dict:
    return {axes.get_title(): axes for axes in draw_curves(runs).axes if axes.get_title()}


def test_a_run_that_lacks_a_quantity_is_left_out_of_its_panel() -> None:
    rows = [{"iteration": i, "lr": 0.1, "loss_cls": 2.0} for i in range(3)]
    with_loss = [{**row, "loss_box": 3.0 + row["iteration"]} for row in rows]
    found = panels({"plain": rows, "more": with_loss})
    assert list(found) == ["Training loss box", "Training loss cls", "Learning rate"]
    (line,) = found["Training loss box"].lines
    assert list(line.get_ydata()) == [3.0, 4.0, 5.0]
    assert line.get_color() == found["Training loss cls"].lines[1].get_color()
    assert len(found["Learning rate"].lines) == 2


def test_the_time_of_a_training_is_in_minutes() -> None:
    rows = [{"iteration": i, "train_seconds": 90.0 * (i + 1)} for i in range(2)]
    axes = panels({"a": rows})["Time spent on training"]
    assert list(axes.lines[0].get_ydata()) == [1.5, 3.0]
    assert axes.get_ylabel() == "minutes"


def test_figures_of_crowds_have_panels_by_their_own_names() -> None:
    rows = [{"iteration": 0, **LOSS}, {"iteration": 9, **LOSS, "bbox/MR": 60.0}]
    found = panels({"a": rows})
    assert list(found) == ["Total training loss", "bbox/MR, at iteration 9"]


def test_runs_of_different_lengths_end_at_different_iterations() -> None:
    runs = {name: [{"iteration": last, "bbox/AP": 1.0}] for name, last in (("a", 9), ("b", 19))}
    assert list(panels(runs)) == ["AP without NMS, at the end of each run"]


def test_a_long_curve_has_no_markers() -> None:
    runs = {str(n): [{"iteration": i, **LOSS} for i in range(n)] for n in (14, 15)}
    short, long = panels(runs)["Total training loss"].lines
    assert short.get_marker() == "o" and long.get_marker() in ("", "None")


def test_metrics_without_anything_to_draw() -> None:
    with pytest.raises(UserError, match="the runs' metrics hold no loss and no score"):
        draw_curves({"a": [{"iteration": 0, "data_time": 0.1}]})


def test_files_of_one_folder_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    files = [tmp_path / "old.json", tmp_path / "new.json"]
    for path in files:
        path.write_text(json.dumps({"iteration": 0, **LOSS}))
    assert list(load_runs(files)) == [str(path) for path in files]


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="metrics.json' cannot be read: .*utf-8"):
        load_runs([path])
