"""``train_net.py`` on somebody's data by keys on the command line alone, and what follows."""

import json
import re
import shutil

import pytest
import torch
from coco_files import CLASSES, make_content, write_set
from detectron2.data import DatasetCatalog, MetadataCatalog
from label_files import write_voc, write_yolo
from tiny_data import CONFIG, TINY_MODEL

from defcn_d2 import demo
from defcn_d2.data.readers import own_data
from defcn_d2.engine import run
from defcn_d2.engine.predictor import metadata_of

REGISTER = "DATASETS.REGISTER"


def keys(split, files):
    return [f"{REGISTER}.{split}.ANNOTATIONS", files[0], f"{REGISTER}.{split}.IMAGES", files[1]]


def train(folder, *opts):
    few = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", folder / "out"]
    return run(["--config-file", CONFIG, *TINY_MODEL, *map(str, [*few, *opts])])


def forget():
    """As another process starts."""
    for name in list(own_data._registered):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        del own_data._registered[name]


def last_metrics(folder):
    return json.loads((folder / "metrics.json").read_text().splitlines()[-1])


def test_train_then_evaluate_and_draw_elsewhere(tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere").mkdir()
    content = make_content()
    content["annotations"].append(
        {"id": 9, "image_id": 31, "category_id": 3, "bbox": [5, 5, 0, 0], "iscrowd": 0}
    )
    write_set(tmp_path / "train", content)
    write_set(tmp_path / "val", make_content(first_id=500))
    monkeypatch.chdir(tmp_path)
    files = [(f"{split}/annotations.json", f"{split}/images") for split in ("train", "val")]
    assert train(tmp_path, *keys("TRAIN", files[0]), *keys("VAL", files[1])) == 0
    expected = last_metrics(tmp_path / "out")
    assert {f"bbox/AP-{name}" for name in CLASSES} <= set(expected)
    assert "boxes without area in their image: 1" in (tmp_path / "out" / "log.txt").read_text()

    forget()
    shutil.rmtree(tmp_path / "train")  # is not needed any more
    monkeypatch.chdir(tmp_path / "elsewhere")
    config, weights = ("../out/config.yaml", "../out/model_final.pth")
    opts = ["MODEL.WEIGHTS", weights, "OUTPUT_DIR", "again"]
    capsys.readouterr()
    assert run(["--config-file", config, "--eval-only", *opts]) == 0
    results = [tmp_path / x / "inference" for x in ("out", "elsewhere/again")]
    first, second = ((x / "coco_instances_results.json").read_text() for x in results)
    assert first == second
    assert {x["category_id"] for x in json.loads(first)} <= {3, 7, 20}
    assert {x["image_id"] for x in json.loads(first)} <= {500, 510, 520, 530}

    forget()
    image = str(tmp_path / "val" / "images" / "a.png")
    shutil.copy(image, "a.png")
    shutil.rmtree(tmp_path / "val")
    seen = []
    monkeypatch.setattr(
        demo.demo_command, "metadata_of", lambda cfg: seen.append(metadata_of(cfg)) or seen[0]
    )
    arguments = ["--config-file", config, "--input", "a.png", "--output", "drawn.png"]
    threshold = ["--confidence-threshold", "0.001"]
    assert demo.run([*arguments, *threshold, "--opts", "MODEL.WEIGHTS", weights]) == 0
    assert seen[0].thing_classes == CLASSES


@pytest.mark.parametrize("write, ids", [(write_yolo, {0, 1, 2}), (write_voc, {1, 2})])
def test_train_and_evaluate_in_other_formats(tmp_path, write, ids):
    """The folders of images follow from the annotations, those in config.yaml from none."""
    content, annotations = make_content(), f"{REGISTER}.{{}}.ANNOTATIONS"
    files = {"VAL": write(tmp_path, "val", content), "TRAIN": write(tmp_path, "train", content)}
    given = [x for split, file in files.items() for x in (annotations.format(split), file)]
    few = ["SOLVER.MAX_ITER", "1", "MODEL.DEFCN.TOPK_ONLY_TEST", "True"]
    assert train(tmp_path, *given, *few) == 0
    inference = tmp_path / "out" / "inference"
    first = (inference / "coco_instances_results.json").read_text()
    assert {x["category_id"] for x in json.loads(first)} == ids
    assert {x["image_id"] for x in json.loads(first)} == {1, 2, 3, 4}
    forget()
    again = ["--eval-only", "--config-file", str(tmp_path / "out" / "config.yaml"), "--weights"]
    assert run([*again, str(tmp_path / "out" / "model_final.pth")]) == 0
    assert (inference / "coco_instances_results.json").read_text() == first


@pytest.mark.parametrize(
    "given, flags, sentence",
    [
        ("VAL", [], "DATASETS.TRAIN names no data set: .* DATASETS.REGISTER.TRAIN.ANNOTATIONS and"),
        (
            "TRAIN",
            ["--eval-only"],
            "DATASETS.TEST names no data set: .* DATASETS.REGISTER.VAL.ANNO",
        ),
    ],
)
def test_the_other_half_is_needed(tmp_path, capsys, given, flags, sentence):
    files = write_set(tmp_path)
    opts = [*keys(given, files), "OUTPUT_DIR", tmp_path / "out"]
    assert run([*flags, "--config-file", CONFIG, *TINY_MODEL, *map(str, opts)]) == 1
    assert re.search(sentence, capsys.readouterr().err)


def test_training_without_evaluation(tmp_path):
    assert train(tmp_path, *keys("TRAIN", write_set(tmp_path)), "SOLVER.MAX_ITER", "1") == 0
    assert not (tmp_path / "out" / "inference").exists()
    assert (tmp_path / "out" / "model_final.pth").exists()


def last_weights(folder):
    return torch.load(folder / "out" / "model_final.pth", weights_only=False)["model"]


def test_rare_classes_often_and_heavy_and_empty_images_kept(tmp_path):
    """Interrupted and resumed, the training ends with the same weights; its log has the number."""
    content = make_content()
    content["annotations"][4]["iscrowd"] = 1  # alone in its image
    keys_of_data = keys("TRAIN", write_set(tmp_path, content))
    given = [
        *("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        *("DATALOADER.REPEAT_THRESHOLD", "0.9", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", "False"),
        *("MODEL.DEFCN.CRITERION.DenseCriterion.CLASS_WEIGHTS", "[2.0, 0.5, 1.0]"),
        *("SOLVER.DETERMINISTIC", "True", "SOLVER.CHECKPOINT_PERIOD", "2"),
    ]
    assert train(tmp_path / "whole", *keys_of_data, *given, "SOLVER.MAX_ITER", "4") == 0
    log = (tmp_path / "whole" / "out" / "log.txt").read_text()
    assert "2 of 4 images have no objects and are background, as DATALOADER.FILTER_EM" in log
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    (tmp_path / "half" / "out" / "model_final.pth").unlink()
    (tmp_path / "half" / "out" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = ["--resume", "--config-file", CONFIG, *TINY_MODEL]
    folder = ["OUTPUT_DIR", tmp_path / "half" / "out"]
    few = ["SOLVER.MAX_ITER", "4", "SOLVER.IMS_PER_BATCH", "2"]
    assert run([*resumed, *map(str, [*few, *keys_of_data, *given, *folder])]) == 0
    expected, found = last_weights(tmp_path / "whole"), last_weights(tmp_path / "half")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def damaged(content):
    content["annotations"][1]["category_id"] = 99


def cut(content):
    del content["images"]


@pytest.mark.parametrize(
    "damage, sentence",
    [(damaged, "is not among the categories: 1, first annotation 101 (99)"), (cut, "'images' is")],
)
@pytest.mark.parametrize("split", ["TRAIN", "VAL"])
def test_mistakes_end_it_before_it_begins(tmp_path, capsys, damage, sentence, split):
    good, content = write_set(tmp_path / "good"), make_content()
    damage(content)
    bad = write_set(tmp_path / "bad", content, images=False)
    shutil.copytree(good[1], bad[1], dirs_exist_ok=True)
    other = {"TRAIN": "VAL", "VAL": "TRAIN"}[split]
    assert train(tmp_path, *keys(split, bad), *keys(other, good)) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: DATASETS.REGISTER.{split}: {bad[0]}") and sentence in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_another_size(tmp_path, capsys, workers):
    content = make_content()
    for image in content["images"]:
        image["width"] = 65
    files = write_set(tmp_path, content)
    opts = ["DATALOADER.NUM_WORKERS", workers, "DATALOADER.CHECK_SIZES", False]
    assert train(tmp_path, *keys("TRAIN", files), *opts) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: image '{files[1]}") and "cannot be loaded: " in error
    assert "got (64, 48), expect (65, 48)" in error


def test_a_file_that_is_no_image(tmp_path, capsys):
    files = write_set(tmp_path)
    for path in files[1].rglob("*.png"):
        path.write_text("no image")
    opts = ["DATALOADER.NUM_WORKERS", 1, "DATALOADER.CHECK_SIZES", False]
    assert train(tmp_path, *keys("TRAIN", files), *opts) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: image '{files[1]}") and "cannot be loaded: " in error
    assert "is no image, or of a format that Pillow does not know" in error


def test_sizes_are_checked_before_a_training(tmp_path, capsys):
    """Swapped sizes of an image to evaluate with, which would end the run after the training."""
    train_files = write_set(tmp_path / "train")
    content = make_content(first_id=500)
    entry = content["images"][2]
    entry["width"], entry["height"] = entry["height"], entry["width"]
    val_files = write_set(tmp_path / "val", content)
    assert train(tmp_path, *keys("TRAIN", train_files), *keys("VAL", val_files)) == 1
    assert "swapped in the file: 1, first 'deep/c.png' (64 x 48, not" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
