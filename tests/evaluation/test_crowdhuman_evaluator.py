"""The CrowdHuman evaluator and its command: same figures by every way in, clear errors."""

import json
import uuid

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from process_groups import in_group

from defcn_d2.data import DatasetError, register_crowdhuman, register_shapes
from defcn_d2.data.readers.crowdhuman import read_images
from defcn_d2.evaluation import crowdhuman
from defcn_d2.evaluation.crowdhuman import (
    FIGURES_FILE,
    RESULTS_FILE,
    CrowdHumanEvaluator,
    evaluate_detections,
    main,
)
from defcn_d2.evaluation.results import NO_DETECTIONS, dump_results

IMAGES = 6


def ground_truth(path):
    """Six images of persons and ignore regions of several sizes; the last one is empty."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(IMAGES):
        width, height = 90 + 10 * index, 70
        boxes = [
            {
                "tag": "mask" if number == 3 else "person",
                "fbox": [*rng.integers(-5, 60, 2).tolist(), *rng.integers(10, 40, 2).tolist()],
                "extra": {"ignore": int(number == 2)},
            }
            for number in range(0 if index == IMAGES - 1 else 3 + index)
        ]
        lines.append({"ID": f"i,{index}", "width": width, "height": height, "gtboxes": boxes})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def detections(path):
    """Per ID (D, 6): boxes near the ground truth, twice some of them, and a few false ones."""
    rng = np.random.default_rng(1)
    found = {}
    for image in read_images(path, None):
        boxes = np.concatenate([image.boxes, image.boxes[:2], [[5, 5, 20, 30]]])
        boxes = boxes + rng.normal(0, 1.5, boxes.shape)
        boxes[:, 2:] += boxes[:, :2]
        scores = rng.uniform(0.05, 1, len(boxes))
        found[image.id] = np.column_stack([boxes, scores, np.ones(len(boxes))])
    found["i,1"] = found["i,1"][:0]
    return {key: value.astype(np.float32).astype(float) for key, value in found.items()}


def batches(found):
    """The same as inputs and outputs of a model, one image at a time."""
    for index, (image_id, rows) in enumerate(found.items()):
        instances = Instances((70, 90 + 10 * index))
        instances.pred_boxes = Boxes(torch.tensor(rows[:, :4], dtype=torch.float32))
        instances.scores = torch.tensor(rows[:, 4], dtype=torch.float32)
        instances.pred_classes = torch.zeros(len(rows), dtype=torch.int64)
        image = torch.zeros(3, 140, 180 + 20 * index)
        yield [{"image_id": image_id, "image": image}], [{"instances": instances}]


@pytest.fixture
def odgt(tmp_path):
    path = tmp_path / "gt.odgt"
    ground_truth(path)
    return path


@pytest.fixture
def name(odgt):
    name = f"crowd_eval_{uuid.uuid4().hex}"
    register_crowdhuman(name, odgt, odgt.parent)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_evaluator(odgt, name, tmp_path, caplog):
    found = detections(odgt)
    expected = evaluate_detections(read_images(odgt, None), found)
    assert 10 < expected["AP50"] < 90 and expected["duplicates_0.05"] > 0
    evaluator = CrowdHumanEvaluator(name, output_dir=str(tmp_path / "out" / "inference"))
    for inputs, outputs in batches(found):
        evaluator.process(inputs, outputs)
    with caplog.at_level("INFO", crowdhuman.__name__):
        results = evaluator.evaluate()
    assert results == {"bbox": expected}
    for text in ("AP50", "nms_gap", "6 images", "input: short side 140 to 140", "at most 280"):
        assert text in caplog.text, f"{text!r} is not printed"
    written = json.loads((tmp_path / "out/inference" / FIGURES_FILE).read_text())
    assert written == expected
    evaluator.reset()
    assert evaluator.evaluate() == {}, "no detections, as Detectron2's evaluators have it"


def test_without_a_folder_nothing_is_written(odgt, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = detections(odgt)
    before = sorted(tmp_path.iterdir())
    for distributed in (True, False):
        evaluator = CrowdHumanEvaluator(name, distributed=distributed)
        for inputs, outputs in batches(found):
            evaluator.process(inputs, outputs)
        expected = evaluate_detections(read_images(odgt, None), found)
        assert evaluator.evaluate() == {"bbox": expected}
    assert sorted(tmp_path.iterdir()) == before


def test_its_results_file_gives_the_same_figures(odgt, name, tmp_path, capsys):
    evaluator = CrowdHumanEvaluator(name, output_dir=str(tmp_path))
    for inputs, outputs in batches(detections(odgt)):
        evaluator.process(inputs, outputs)
    results = evaluator.evaluate()["bbox"]
    figures = tmp_path / "figures.json"
    assert main([str(odgt), str(tmp_path / RESULTS_FILE), "--output", str(figures)]) == 0
    assert json.loads(figures.read_text()) == pytest.approx(results)
    printed = capsys.readouterr().out
    assert f"{results['mMR']:.3f}" in printed
    assert "protocol: 6 images, 16 persons, 9 ignore regions" in printed
    assert "detections, at most 10 an image, scores from 0.0" in printed


def evaluate_part(path, name, folder):
    """One of two processes; each takes every second image."""
    register_crowdhuman(name, path, path.parent)
    evaluator = CrowdHumanEvaluator(name, output_dir=str(folder / "two"))
    for inputs, outputs in list(batches(detections(path)))[comm.get_rank() :: 2]:
        evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def test_two_processes_give_the_figures_of_one(odgt, tmp_path):
    first, second = in_group(2, evaluate_part, tmp_path, odgt, "two", tmp_path)
    expected = evaluate_detections(read_images(odgt, None), detections(odgt))
    assert first == {"bbox": expected}
    assert second == {}


def test_a_data_set_of_another_format_is_refused(tmp_path):
    register_shapes("eval_shapes", tmp_path, "val", 2)
    with pytest.raises(DatasetError, match="'eval_shapes' is not in CrowdHuman's format"):
        CrowdHumanEvaluator("eval_shapes")


def test_an_image_without_detections_counts_as_misses(odgt):
    images, found = read_images(odgt, None), detections(odgt)
    del found["i,3"]
    figures = evaluate_detections(images, found)
    found["i,3"] = NO_DETECTIONS
    assert evaluate_detections(images, found) == figures


def test_ground_truth_without_persons_is_refused(tmp_path, capsys):
    path = tmp_path / "empty.odgt"
    path.write_text('{"ID": "a", "width": 3, "height": 4, "gtboxes": []}\n')
    (tmp_path / "results.json").write_text("[]")
    assert main([str(path), str(tmp_path / "results.json")]) == 1
    assert "error: nothing to evaluate: the 1 images have no ground" in capsys.readouterr().err


def test_command_with_images_for_sizes(odgt, tmp_path, capsys):
    from PIL import Image

    lines = [json.loads(line) for line in odgt.read_text().splitlines()]
    for line in lines:
        size = line.pop("width"), line.pop("height")
        Image.new("L", size).save(tmp_path / f"{line['ID']}.jpg")
    bare = tmp_path / "bare.odgt"
    bare.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = tmp_path / "results.json"
    results.write_bytes(dump_results(detections(odgt)))
    assert main([str(odgt), str(results)]) == 0
    with_sizes = capsys.readouterr().out
    assert main([str(bare), str(results), "--images", str(tmp_path)]) == 0
    assert capsys.readouterr().out == with_sizes
    assert main([str(bare), str(results)]) == 1
    assert "6 of the 6 lines" in (error := capsys.readouterr().err) and "name the folder" in error


def test_command_keeps_its_inputs(odgt, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_bytes(dump_results(detections(odgt)))
    for path in (odgt, results):
        content = path.read_bytes()
        assert main([str(odgt), str(results), "--output", str(path)]) == 1
        assert f"error: --output: {str(path)!r} is an input itself" in capsys.readouterr().err
        assert path.read_bytes() == content


def test_command_errors(odgt, tmp_path, capsys):
    results = tmp_path / "results.json"
    results.write_text("[]")
    assert main([str(odgt), str(tmp_path / "absent.json")]) == 1
    assert "absent.json: No such file" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.odgt"), str(results)]) == 1
    assert "absent.odgt: No such file" in capsys.readouterr().err
    assert main([str(odgt), str(results), "--output", str(tmp_path / "no/such/folder")]) == 1
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main([str(odgt)])
    assert error.value.code == 2
