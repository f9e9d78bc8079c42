"""``train_net.py`` on 16 images: train, kill, resume, evaluate, with and without NMS."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_crowd, tiny_sets

from defcn_d2.config.load import load_config
from defcn_d2.engine import main, run
from defcn_d2.engine.trainer import Trainer
from defcn_d2.utils.errors import UserError


@pytest.fixture(autouse=True, scope="module")
def _data():
    tiny_sets()


def train(folder: Path, *arguments: str) -> int:
    """``train_net.py`` in this process; options come before KEY VALUE pairs."""
    flags = [x for x in arguments if x.startswith("--")]
    opts = [x for x in arguments if not x.startswith("--")]
    command = [*flags, "--config-file", CONFIG, *TINY_MODEL, *TINY_SETS, "OUTPUT_DIR", str(folder)]
    return run([*command, *opts])


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_train_resume_evaluate(tmp_path):
    assert train(tmp_path, "SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "1") == 0
    expected = {"config.yaml", "log.txt", "metrics.json", "model_final.pth", "last_checkpoint"}
    assert expected <= set(os.listdir(tmp_path))
    first = metrics(tmp_path)
    # all evaluations; the last is counted as one step later
    assert [x["iteration"] for x in first if "bbox/AP" in x] == [0, 1, 3]
    assert not any("nms_gap" in x for x in first)

    again = ("SOLVER.MAX_ITER", "4", "TEST.WITH_NMS", "True", "SOLVER.ACCUMULATE", "2")
    assert train(tmp_path, "--resume", *again) == 0
    last = metrics(tmp_path)[-1]
    assert last["iteration"] == 4
    assert last["nms_gap"] == last["bbox_nms/AP"] - last["bbox/AP"]
    assert {"total_loss", "loss_cls"} <= set(metrics(tmp_path)[-2])
    for part in ("without_nms", "with_nms"):
        assert (tmp_path / "inference" / part / "coco_instances_results.json").stat().st_size > 2
    # time adds up, evaluations left out
    seconds = [x["train_seconds"] for x in metrics(tmp_path) if "train_seconds" in x]
    assert len(seconds) == 4 and 0 < seconds[0] and seconds == sorted(set(seconds))
    assert {"images_per_second", "data_share"} <= set(metrics(tmp_path)[-2])
    # the optimizer went on from the third step
    checkpoint = torch.load(tmp_path / "model_final.pth")
    state = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    assert {int(x["step"]) for x in state.values()} == {4}

    # all done: a third start evaluates again, with the same results
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", "4", "TEST.WITH_NMS", "True") == 0
    again = metrics(tmp_path)[-1]
    assert (again["iteration"], again["bbox/AP"]) == (4, last["bbox/AP"])


def test_a_detector_of_other_classes_is_a_start(tmp_path):
    tiny_crowd()
    assert train(tmp_path / "seven", "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()") == 0
    sets = ["DATASETS.TRAIN", "('tiny_crowd_train',)", "DATASETS.TEST", "()"]
    start = ["MODEL.WEIGHTS", str(tmp_path / "seven" / "model_final.pth"), "SOLVER.MAX_ITER", "1"]
    assert train(tmp_path / "one", *sets, *start, "MODEL.DEFCN.NUM_CLASSES", "1") == 0
    line = "NUM_CLASSES 1: head.cls_score.weight, head.cls_score.bias start anew, all else comes"
    assert line in (tmp_path / "one" / "log.txt").read_text()


def test_what_a_resumed_run_cannot_change_is_named(tmp_path, capsys):
    few = ("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    assert train(tmp_path, *few) == 0
    config, log = ((tmp_path / name).read_bytes() for name in ("config.yaml", "log.txt"))
    rate = load_config(CONFIG).SOLVER.BASE_LR
    for key, value, was in (
        ("SOLVER.BASE_LR", "1e-5", f"is 1e-05, but was {rate}"),
        ("SOLVER.WEIGHT_DECAY", "0.5", "is 0.5, but was "),
        ("SOLVER.OPTIMIZER", "SGD", "is 'SGD', but was 'AdamW'"),
    ):
        capsys.readouterr()
        assert train(tmp_path, "--resume", *few, key, value) == 1
        assert f"{key} {was}" in capsys.readouterr().err
    # what was used
    assert (tmp_path / "config.yaml").read_bytes() == config
    assert (tmp_path / "log.txt").read_bytes() == log
    # what can change
    clip = [
        "SOLVER.CLIP_GRADIENTS.ENABLED",
        "True",
        "SOLVER.GAMMA",
        "0.5",
        "SOLVER.MOMENTUM",
        "0.1",
    ]
    assert train(tmp_path, "--resume", *few, "SOLVER.MAX_ITER", "2", *clip) == 0
    assert "GAMMA: 0.5" in (tmp_path / "config.yaml").read_text()


def test_a_trainer_of_another_program_is_checked_too(tmp_path):
    few = ("SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()")
    assert train(tmp_path, *few) == 0
    opts = [*TINY_MODEL, *TINY_SETS, *few, "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", "1e-5"]
    with pytest.raises(UserError, match="SOLVER.BASE_LR is 1e-05, but was"):
        Trainer(load_config(CONFIG, opts)).resume_or_load()


def test_eval_only_gives_what_training_gave(tmp_path):
    assert train(tmp_path, "TEST.WITH_NMS", "True") == 0
    expected = metrics(tmp_path)[-1]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    common = ["--eval-only", "--config-file", CONFIG, *TINY_MODEL, *TINY_SETS]
    parser = default_argument_parser()
    plain = main(parser.parse_args([*common, *weights, "OUTPUT_DIR", str(tmp_path / "other")]))
    assert plain["bbox"]["AP"] == pytest.approx(expected["bbox/AP"])
    assert "nms_gap" not in plain
    both = ["--resume", *common, "OUTPUT_DIR", str(tmp_path), "TEST.WITH_NMS", "True"]
    results = main(parser.parse_args(both))
    assert results["bbox"]["AP"] == plain["bbox"]["AP"]
    assert results["nms_gap"] == pytest.approx(expected["nms_gap"])


@pytest.mark.parametrize("name", ["POTO.yaml", "POTO-3DMF.yaml"])
def test_other_variants_train(tmp_path, name):
    folder = ROOT / "configs" / "shapes"
    opts = [*TINY_MODEL, *TINY_SETS, "SOLVER.MAX_ITER", "1", "SOLVER.OPTIMIZER", "SGD"]
    assert run(["--config-file", str(folder / name), *opts, "OUTPUT_DIR", str(tmp_path)]) == 0


def test_mistake_is_told_in_one_line(tmp_path, capsys):
    assert train(tmp_path, "MODEL.DEFCN.NUM_CLASSES", "80") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: MODEL.DEFCN.NUM_CLASSES is 80") and error.count("\n") == 1
    assert os.listdir(tmp_path) == []


def command(folder: Path, *opts: str) -> tuple[list[str], dict[str, str]]:
    """``train_net.py`` as a program, on the tiny sets under the names of the large ones."""
    arguments = ["--config-file", CONFIG, "--resume", *TINY_MODEL, "OUTPUT_DIR", str(folder), *opts]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(tiny_sets()),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return [sys.executable, str(ROOT / "train_net.py"), *arguments], environment


def test_program_is_killed_and_goes_on(tmp_path):
    many = ("SOLVER.MAX_ITER", "100000", "SOLVER.CHECKPOINT_PERIOD", "3")
    arguments, environment = command(tmp_path, *many)
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=output)
        deadline = time.monotonic() + 120
        while not (tmp_path / "last_checkpoint").exists() and process.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "output.txt").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    last = (tmp_path / "last_checkpoint").read_text()
    done = int(last.removeprefix("model_").removesuffix(".pth")) + 1
    assert train(tmp_path, "--resume", "SOLVER.MAX_ITER", str(done + 2)) == 0
    assert f"Starting training from iteration {done}" in (tmp_path / "log.txt").read_text()
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == done + 1


def test_program_without_a_config_that_exists(tmp_path):
    arguments, environment = command(tmp_path)
    arguments[3] = str(ROOT / "configs" / "shapes" / "POTO-3DFM.yaml")
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: configuration file")
    assert result.stdout == ""
