"""The command: what it prints and writes, and its exit status."""

import json

import pytest
from doctor_sets import CATS, DOGS, keys, write
from label_files import write_voc, write_yolo
from tiny_data import CONFIG, TINY_SETS, tiny_sets

from defcn_d2.data.doctor.__main__ import run


def test_report_and_status(tmp_path, capsys):
    train = write(tmp_path / "train", {"a.png": CATS + DOGS, "b\x1b[2J.png": []}, 1)
    val = write(tmp_path / "val", {"a.png": CATS + DOGS}, 2)
    file = tmp_path / "report.json"
    arguments = ["--config-file", CONFIG, "--json", str(file)]
    assert run([*arguments, *keys("TRAIN", train), *keys("VAL", val)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ", 1)[-1][:30] for line in lines] == [
        "2 images, 40 objects",
        "1 images, 40 objects",
        lines[2].split(": ", 1)[1][:30],
        "0 errors, 1 warnings",
    ]
    assert lines[2].startswith("warning: DATASETS.TRAIN") and r"'b\x1b[2J.png'" in lines[2]
    report = json.loads(file.read_text())
    assert [x["objects_by_class"] for x in report["data_sets"]] == [{"cat": 20, "dog": 20}] * 2
    (finding,) = report["findings"]
    assert (finding["level"], finding["count"]) == ("warning", 1)
    assert finding["examples"] == [repr("b\x1b[2J.png")]
    assert run([*arguments, *keys("TRAIN", train), *keys("VAL", train)]) == 1
    assert "error: DATASETS.TEST" in capsys.readouterr().out


def test_data_that_cannot_be_read(tmp_path, capsys):
    """Its error is one of the findings; what is read is examined all the same."""
    train = write(tmp_path / "train", {"a.png": CATS + DOGS}, 1)
    val = write(tmp_path / "val", {"a.png": CATS}, 2)
    (val / "images" / "a.png").unlink()
    assert run(["--config-file", CONFIG, *keys("TRAIN", train), *keys("VAL", val)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("1 images, 40 objects") and lines[-1] == "1 errors, 0 warnings"
    assert lines[1].startswith("error: DATASETS.REGISTER.VAL: ") and "not there: 1" in lines[1]


def test_warnings_of_the_reader_are_findings(tmp_path, capsys):
    train = write(tmp_path, {"a.png": [*CATS, *DOGS, ("cat", [5, 5, 0, 0])]})
    assert run(["--config-file", CONFIG, *keys("TRAIN", train)]) == 0
    assert ": boxes without area in their image: 1, first" in capsys.readouterr().out


def test_registered_data(capsys):
    tiny_sets()
    assert run(["--config-file", CONFIG, *TINY_SETS]) == 0
    assert "DATASETS.TRAIN 'tiny_train': 16 images" in capsys.readouterr().out
    assert run(["--config-file", CONFIG, *TINY_SETS, "MODEL.DEFCN.NUM_CLASSES", "3"]) == 1
    assert "error: DATASETS.TRAIN: MODEL.DEFCN.NUM_CLASSES is 3" in capsys.readouterr().out
    assert run(["--config-file", CONFIG, "DATASETS.TRAIN", "('nothing',)"]) == 1
    assert "there is no data set 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize("write_files", [write_yolo, write_voc])
def test_other_formats(tmp_path, write_files, capsys):
    content = {
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "images": [{"id": 7, "file_name": "a.png", "width": 96, "height": 64}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": 1 + (label == "dog"), "bbox": box}
            for i, (label, box) in enumerate(CATS + DOGS)
        ],
    }
    file = write_files(tmp_path, "train", content)
    assert run(["--config-file", CONFIG, "DATASETS.REGISTER.TRAIN.ANNOTATIONS", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "0 errors, 0 warnings"


def test_an_input_is_not_overwritten(tmp_path, capsys):
    train = write(tmp_path, {"a.png": CATS + DOGS})
    file = str(train / "annotations.json")
    assert run(["--config-file", CONFIG, "--json", file, *keys("TRAIN", train)]) == 1
    assert "--json: " in capsys.readouterr().err and json.loads(open(file).read())["images"]
