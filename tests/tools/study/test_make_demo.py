"""``make demo`` on 16 images, its figures, and what it puts into the README."""

import io
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

sys.path.insert(0, str(ROOT / "tools" / "study"))
import demo_results
import make_demo
import update_readme
from make_demo import Clock

import defcn_d2.engine

OPTS = [*TINY_MODEL, *TINY_SETS, "SOLVER.MAX_ITER", "3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished demo, with what it printed in ``printed.txt``."""
    tiny_sets()
    folder = tmp_path_factory.mktemp("demo")
    printed = io.StringIO()  # never closed: loggers keep it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(tiny_sets()))
        patch.setattr(sys, "stdout", printed)
        assert demo(folder) == 0
    (folder / "printed.txt").write_text(printed.getvalue())
    return folder


def demo(folder: Path, *opts: str) -> int:
    return make_demo.main(["--config-file", CONFIG, "--output", str(folder), *OPTS, *opts])


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tiny_sets()))  # which the demo may set


@pytest.fixture
def no_training(monkeypatch):
    def fail(command):
        pytest.fail("it trains again")

    monkeypatch.setattr(defcn_d2.engine, "run", fail)


def test_everything_is_there(finished):
    for name in demo_results.FILES:
        assert (finished / name).exists(), name
    assert not list(finished.glob("model_0*.pth")) and not list(finished.glob("*.part"))
    for name in ("curves.png", "detections.jpg"):
        assert min(cv2.imread(str(finished / name)).shape[:2]) > 400
    printed = (finished / "printed.txt").read_text()
    without, suppressed = (printed.rindex(f"tiny_val, {name}:") for name in make_demo.EVALUATIONS)
    summaries = printed[without:suppressed], printed[suppressed:]
    summary = json.loads((finished / "summary.json").read_text())
    for text, task in zip(summaries, ("bbox", "bbox_nms"), strict=True):
        assert text.count("Average Precision") == 6 and text.count("Average Recall") == 6
        ap = summary["scores"][f"{task}/AP"] / 100
        assert f"| area=   all | maxDets=100 ] = {ap:.3f}" in text
    assert "| gap (AP with NMS - without) |" in printed
    assert set(summary["seconds"]) == {"data", "training and evaluation", "pictures"}
    assert 0 < summary["training_seconds"] < summary["seconds"]["training and evaluation"]


def test_second_demo_shows_the_results_again(finished, no_training, capsys):
    assert demo(finished) == 0
    printed = capsys.readouterr().out
    assert "| gap (AP with NMS - without) |" in printed
    assert f"to start afresh: rm -r {finished}" in printed


def test_what_is_missing_is_made_again(finished, no_training, capsys):
    before = (finished / "summary.json").read_text()
    (finished / "curves.png").unlink()
    assert demo(finished) == 0
    assert (finished / "curves.png").exists()
    after = json.loads((finished / "summary.json").read_text())
    assert after["scores"] == json.loads(before)["scores"]
    assert after["seconds"]["pictures"] > json.loads(before)["seconds"]["pictures"]


def test_another_configuration_is_refused(finished, no_training, capsys):
    assert demo(finished, "SOLVER.BASE_LR", "0.5") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {finished} holds a run of another configuration")
    assert f"rm -r {finished}" in error


def test_mistake_is_told_in_one_line(tmp_path, capsys):
    assert make_demo.main(["--config-file", "no.yaml", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: configuration file 'no.yaml'")


def test_failed_training_ends_the_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(defcn_d2.engine, "run", lambda command: 7)
    assert demo(tmp_path) == 7
    assert "run this again to go on" in capsys.readouterr().err
    assert not (tmp_path / "summary.json").exists()


def test_clock_adds_up_and_outlives_a_kill(tmp_path):
    path = tmp_path / "times.json"
    path.write_text('{"a": 100.0}')
    clock = Clock(path, period=0.01)
    with clock.step("a"):
        deadline = time.monotonic() + 30
        while json.loads(path.read_text())["a"] == 100.0:  # as a kill would leave it
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert 100 < clock.seconds["a"] < 131
    with pytest.raises(RuntimeError), clock.step("b"):
        raise RuntimeError
    assert json.loads(path.read_text()) == clock.seconds
    assert list(clock.seconds) == ["a", "b"]


def test_metrics_of_a_killed_run(tmp_path):
    path = tmp_path / "metrics.json"
    assert demo_results.read_metrics(path) == []
    rows = [
        {"iteration": 1, "loss": 1.0, "train_seconds": 5.0},
        {"iteration": 3, "loss": 9.0, "nms_gap": 0.5},
        {"iteration": 2, "loss": 2.0},
        {"iteration": 3, "loss": 3.0, "train_seconds": 8.0},
    ]
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n".join([*lines[:2], lines[2][:9], *lines[2:]]) + "\n" + lines[0][:-3])
    read = demo_results.read_metrics(path)
    assert [row["iteration"] for row in read] == [1, 2, 3]
    assert read[-1] == {"iteration": 3, "loss": 3.0, "nms_gap": 0.5, "train_seconds": 8.0}
    assert demo_results.last_evaluation(read, 3) == read[-1]
    assert demo_results.last_evaluation(read, 4) is None
    assert demo_results.training_seconds(read) == 8.0
    assert demo_results.training_seconds([]) == 0.0


def test_model_that_finds_nothing(finished, tmp_path, capsys):
    (tmp_path / "coco_instances_results.json").write_text("[]")
    demo_results.print_coco_summary("never read", tmp_path)
    assert "found nothing" in capsys.readouterr().out


class TestReadme:
    @pytest.fixture
    def root(self, tmp_path) -> Path:
        text = f"before\n{update_readme.BEGIN}\nold\n{update_readme.END}\nafter\n"
        (tmp_path / "README.md").write_text(text)
        return tmp_path

    def test_table_and_picture(self, root, finished):
        assert update_readme.main([str(finished)], root) == 0
        text = (root / "README.md").read_text()
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
        assert "| gap (AP with NMS - without) |" in text and "3 iterations of 4 images" in text
        picture = root / update_readme.PICTURE
        assert picture.stat().st_size <= update_readme.PICTURE_BYTES
        assert cv2.imread(str(picture)).shape[1] == update_readme.PICTURE_WIDTH
        assert update_readme.main([str(finished)], root) == 0  # again: the same
        assert (root / "README.md").read_text() == text

    def test_no_demo(self, root, capsys):
        assert update_readme.main([], root) == 1
        assert "run `make demo` first" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text",
        ["", update_readme.BEGIN, update_readme.END + update_readme.BEGIN, update_readme.BEGIN * 2],
    )
    def test_no_markers(self, root, finished, capsys, text):
        (root / "README.md").write_text(text)
        assert update_readme.main([str(finished)], root) == 1
        assert update_readme.BEGIN in capsys.readouterr().err
        assert (root / "README.md").read_text() == text

    def test_picture_is_small_whatever_it_shows(self):
        noise = np.random.default_rng(0).integers(256, size=(1800, 1800, 3), dtype=np.uint8)
        assert len(update_readme.small_picture(noise)) <= update_readme.PICTURE_BYTES
