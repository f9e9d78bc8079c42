"""``tools/visualize.py``: every command on a tiny model and data, and bad input reported."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_files import write_set
from demo_runs import tiny_weights
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from helpers import ROOT
from html_page import Page
from PIL import Image
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets

from defcn_d2.config.load import load_config
from defcn_d2.data.readers import own_data
from defcn_d2.engine import Trainer
from defcn_d2.evaluation.judged import BACKGROUND, DUPLICATE, load_judged
from defcn_d2.utils.errors import UserError
from defcn_d2.visualization import example
from defcn_d2.visualization.curves import draw_curves, load_runs
from defcn_d2.visualization.training_images import _tile
from defcn_d2.visualization.visualize_command import parse_arguments, run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
OPTS = [*TINY_MODEL, *TINY_SETS]


@pytest.fixture(scope="module")
def weights() -> str:
    tiny_sets()
    return tiny_weights()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detections on tiny_val: every object twice, except each image's first; and background."""
    tiny_sets()
    categories = {v: k for k, v in _metadata("tiny_val").items()}
    entries = []
    for record in DatasetCatalog.get("tiny_val"):
        entries.append(_entry(record, 1, [0, 0, 5, 5], 0.35))
        for annotation in record["annotations"][1:]:
            x1, y1, x2, y2 = BoxMode.convert(
                annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS
            )
            for score in (0.9, 0.4):
                category = categories[annotation["category_id"]]
                entries.append(_entry(record, category, [x1, y1, x2 - x1, y2 - y1], score))
    path = tmp_path_factory.mktemp("results") / "found.json"
    path.write_text(json.dumps(entries))
    return path


def _metadata(name: str) -> dict[int, int]:
    DatasetCatalog.get(name)
    return MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id


def _entry(record: dict, category: int, box: list[float], score: float) -> dict:
    return {"image_id": record["image_id"], "category_id": category, "bbox": box, "score": score}


def visualize(folder: Path, *arguments: object) -> int:
    return run([*map(str, arguments), "--output", str(folder)])


def model_arguments(weights: str) -> list[str]:
    return ["--config-file", CONFIG, "--weights", weights, "--image", "1"]


@pytest.mark.parametrize(
    "command, options, number",
    [
        ("assignment", ["--matchers", "POTO", "POTOAux", "FCOS", "Anchor"], 1),
        ("scores", [], 2),
    ],
)
def test_pictures_of_a_model(weights, tmp_path, command, options, number):
    folder = tmp_path / "out"
    arguments = [command, *model_arguments(weights), *options, "--output", str(folder)]
    assert run([*arguments, "--opts", *OPTS]) == 0
    page = Page(folder / f"{command}.html")
    assert len(page.pictures) == number
    pictures = [f"{command}.png", *(f"{command}_{i + 1}.png" for i in range(1, number))]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*pictures, f"{command}.html"])
    for name, embedded in zip(pictures, page.pictures):
        assert Image.open(folder / name).size == embedded.size
        assert np.asarray(embedded.convert("L")).std() > 10


def test_detections_beside_the_ground_truth(weights: str, tmp_path: Path) -> None:
    model = ["--config-file", CONFIG, "--weights", weights, "--output", str(tmp_path)]
    options = ["--count", "3", "--confidence", "0.002"]
    assert run(["detections", *model, *options, *OPTS]) == 0
    (drawn,) = tmp_path.glob("detections*.png")
    # two rows of two pairs
    assert np.asarray(Image.open(drawn)).shape[1] > 4 * 440
    assert "Detections on tiny_val" in (tmp_path / "detections.html").read_text()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--count", "0"], "--count is 0: give 1 or more"),
        (["--confidence", "1.5"], "the confidence is 1.5: give 0 to 1"),
        (["--confidence", "best"], "there is no thresholds.json beside the weights"),
    ],
)
def test_detections_that_cannot_be_drawn(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture, options: list, sentence: str
) -> None:
    model = ["--config-file", CONFIG, "--weights", weights, "--output", str(tmp_path)]
    assert run(["detections", *model, *options, *OPTS]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", ["duplicates", "errors", "precision"])
def test_pictures_of_an_evaluation(results, tmp_path, command):
    assert visualize(tmp_path, command, "--dataset", "tiny_val", "--results", results) == 0
    assert np.asarray(Image.open(tmp_path / f"{command}.png").convert("L")).std() > 10
    page = Page(tmp_path / f"{command}.html")
    if command != "errors":
        assert len(page.pictures) == {"duplicates": 4, "precision": 2}[command]
        return
    judged, _ = load_judged("tiny_val", results)
    missed = sum(int((~one.gt_found).sum()) for one in judged)
    false = sum(int(np.isin(one.kinds, (DUPLICATE, BACKGROUND)).sum()) for one in judged)
    assert missed >= 10 and false > 16
    assert len(page.pictures) == min(false, 60) + min(missed, 60)
    assert f" of {false}" in "".join(page.text) and f" of {missed}" in "".join(page.text)


@pytest.mark.parametrize("command", ["duplicates", "errors"])
@pytest.mark.parametrize("by_config", [True, False], ids=["config.yaml", "keys"])
def test_pictures_of_own_data(tmp_path, command, by_config):
    """One of five objects is found, by an id that is none of the model's numbers."""
    annotations, images = write_set(tmp_path)
    keys = ["DATASETS.REGISTER.VAL.ANNOTATIONS", str(annotations)]
    keys += ["DATASETS.REGISTER.VAL.IMAGES", str(images)]
    results = tmp_path / "found.json"
    results.write_text(json.dumps([_entry({"image_id": 31}, 7, [30.5, 10.25, 24, 20], 0.9)]))
    where = keys
    if by_config:
        (tmp_path / "config.yaml").write_text(load_config(CONFIG, keys).dump())
        where = ["--config-file", tmp_path / "config.yaml"]
    _forget_own_data()
    out = ["--output", tmp_path / "out", "--results", results]
    assert run([*map(str, [command, *out, *where])]) == 0
    text = " ".join(Page(tmp_path / "out" / f"{command}.html").text)
    if command == "errors":
        assert "of 0" in text and "of 3" in text  # false positives, missed objects without crowds
        assert "cat" in text and "dog" in text
    else:
        assert "4 images" in text


def _forget_own_data() -> None:
    """As another process starts."""
    for name in list(own_data._registered):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        del own_data._registered[name]


@pytest.mark.parametrize(
    "opts, sentence",
    [
        ([], "there is no data set: give --dataset NAME or, for own data, the run's config.yaml"),
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty: give --dataset NAME, or DATASETS.REG"),
    ],
)
def test_no_data_set(tmp_path, capsys, opts, sentence):
    assert run(["errors", "--output", str(tmp_path), "--results", "none.json", *opts]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; the page is parsed all the same")
def test_the_page_in_a_browser(results, tmp_path):
    """Its pictures are there, and the choice of a class hides the others."""
    assert visualize(tmp_path, "errors", "--dataset", "tiny_val", "--results", results) == 0
    path = tmp_path / "errors.html"
    number = len(Page(path).pictures)
    probe = """<script>
      window.addEventListener('load', () => {
        const all = [...document.images].filter(i => i.naturalWidth > 0).length;
        const select = document.querySelector('select[name=class]');
        select.value = select.options[1].value;
        select.dispatchEvent(new Event('change'));
        const shown = [...document.querySelectorAll('.error:not([hidden])')];
        const right = shown.every(e => e.dataset.class === select.value);
        document.title = `${all} ${shown.length > 0} ${shown.length < all} ${right}`;
      });</script></body>"""
    path.write_text(path.read_text().replace("</body>", probe))
    assert CHROMIUM is not None
    result = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        + [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert f"<title>{number} true true true</title>" in result.stdout, result.stderr[-1000:]


def test_images_of_a_training(tmp_path, capsys):
    """Those that the loader gives from an iteration on; mixed ones say so."""
    tiny_sets()
    keys = ["INPUT.MOSAIC.PROB", "1.0", "INPUT.MOSAIC.START", "0.5", "INPUT.MOSAIC.STOP", "1.0"]
    model = ["--config-file", CONFIG, "--opts", *OPTS, *keys]
    for iteration in ("0", "2"):
        folder = tmp_path / iteration
        options = ["--iteration", iteration, "--count", "5", "--output", str(folder)]
        assert run(["training", *options, *model]) == 0
        assert len(Page(folder / "training.html").pictures) == 1
    plain, mosaics = (np.asarray(Image.open(tmp_path / x / "training.png")) for x in "02")
    assert plain.shape == mosaics.shape and not np.array_equal(plain, mosaics)
    loader = Trainer.build_train_loader(load_config(CONFIG, [*OPTS, *keys]))
    loader.start = 2
    first = next(iter(loader))[0]
    tile = _tile(first, "BGR", [str(i) for i in range(7)])
    assert len(first["mixed_with"]) == 3
    assert np.array_equal(mosaics[30:90, :60], tile[30:90, :60])  # where no name of a class is
    assert run(["training", "--iteration", "4", "--output", str(tmp_path / "out"), *model]) == 1
    assert "--iteration is 4: give 0 to 3" in capsys.readouterr().err


def test_curves_of_runs(tmp_path):
    for name, factor in (("a", 1), ("b", 2)):
        rows = [{"iteration": i, "total_loss": factor / (i + 1), "lr": 0.1} for i in range(20)]
        rows.append({"iteration": 20, "bbox/AP": 30.0 * factor, "nms_gap": 0.5})
        folder = tmp_path / name / "seed0"
        folder.mkdir(parents=True)
        lines = "\n".join(map(json.dumps, rows))
        (folder / "metrics.json").write_text(lines + '\n{"iteration": 21, "tot')
    folders = [tmp_path / name / "seed0" for name in "ab"]
    assert visualize(tmp_path / "out", "curves", *folders) == 0
    assert len(Page(tmp_path / "out" / "curves.html").pictures) == 1
    runs = load_runs(folders)
    assert list(runs) == ["a/seed0", "b/seed0"] and len(runs["a/seed0"]) == 21
    figure = draw_curves(runs)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == [
        *("Total training loss", "Learning rate"),
        "AP without NMS, at iteration 20",
        "NMS gap: AP with NMS - AP without, at iteration 20",
    ]
    first, second = panels["Total training loss"].lines
    assert np.allclose(np.array(second.get_ydata()), 2 * np.array(first.get_ydata()))
    assert list(first.get_xdata()) == list(range(1, 21))
    heights = [bar.get_height() for bar in panels["AP without NMS, at iteration 20"].patches]
    assert heights == [30, 60]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["duplicates", "--dataset", "tiny_vall"],
            "--dataset: there is no data set 'tiny_vall'; did",
        ),
        (["errors", "--dataset", "tiny_val"], "cannot read .*none.json"),
        (["duplicates", "--dataset", "tiny_val", "--score", "2"], "--score is 2.0: give 0 to 1"),
        (["errors", "--dataset", "tiny_val", "--count", "0"], "--count is 0: give 1 or more"),
    ],
)
def test_mistakes_of_an_evaluation(tmp_path, capsys, arguments, sentence):
    tiny_sets()
    assert visualize(tmp_path / "out", *arguments, "--results", tmp_path / "none.json") == 1
    assert re.search(f"^error: .*{sentence}", capsys.readouterr().err, re.MULTILINE)


def test_categories_of_another_set(tmp_path, capsys):
    tiny_sets()
    record = DatasetCatalog.get("tiny_val")[0]
    path = tmp_path / "found.json"
    path.write_text(json.dumps([_entry(record, 99, [0, 0, 5, 5], 0.5)]))
    assert visualize(tmp_path, "errors", "--dataset", "tiny_val", "--results", path) == 1
    assert "category_id 99 is none of the data set 'tiny_val'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"--image": "16"}, "--image 16: the data set has 16 images, from 0"),
        ({"--image": "x.jpg"}, "--image 'x.jpg' is not in the data set"),
        ({"--weights": "no.pth"}, "no.pth"),
        ({"--config-file": "shapes/POTTO"}, "did you mean 'shapes/POTO'"),
        ({"--dataset": "nothing"}, "--dataset: there is no data set 'nothing'"),
    ],
)
def test_mistakes_of_a_model(weights, tmp_path, capsys, changes, sentence):
    options = {"--config-file": CONFIG, "--weights": weights, **changes}
    arguments = [text for pair in options.items() for text in pair]
    assert run(["scores", *arguments, "--output", str(tmp_path), "--opts", *OPTS]) == 1
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, sentence",
    [(None, "does not exist: give folders of runs"), ("nonsense\n", "holds no metrics")],
)
def test_mistakes_of_curves(tmp_path, capsys, content, sentence):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert visualize(tmp_path / "out", "curves", tmp_path) == 1
    assert sentence in capsys.readouterr().err
    with pytest.raises(UserError, match="a run is given twice"):
        load_runs([tmp_path, tmp_path])


def test_an_output_that_cannot_be(tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "metrics.json").write_text('{"iteration": 0, "lr": 1}\n')
    assert visualize(tmp_path / "file" / "out", "curves", tmp_path) == 1
    assert "cannot be written to" in capsys.readouterr().err


def test_program(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "visualize.py"), "curves", "nothing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: 'nothing' does not exist")


def test_commands_of_the_docs_are_understood():
    text = (ROOT / "docs" / "pictures.md").read_text()
    model = ["--config-file", "c.yaml", "--weights", "w.pth"]
    commands = []
    for line in re.findall(r"^python tools/visualize.py (.*)$", text, re.MULTILINE):
        words = [word for word in line.split() if word != "$MODEL"]
        commands.append(words[0])
        parse_arguments([*words, *(model if "$MODEL" in line else [])])
    assert commands == [
        *("assignment", "scores", "duplicates", "errors", "precision", "training", "curves")
    ]


@pytest.mark.parametrize("command", ["duplicates", "errors", "precision"])
def test_nothing_was_found(tmp_path, command):
    tiny_sets()
    path = tmp_path / "found.json"
    path.write_text("[]")
    assert visualize(tmp_path, command, "--dataset", "tiny_val", "--results", path) == 0
    assert Page(tmp_path / f"{command}.html").pictures


def test_inputs_are_not_overwritten(weights, results, tmp_path, capsys, monkeypatch):
    """Results, metrics and pictures of the data set, in the folder and by the name of an output."""
    pictures = [record["file_name"] for record in DatasetCatalog.get("tiny_val")]
    shutil.copy(results, tmp_path / "errors.png")
    (tmp_path / "curves.html").write_text("{}")
    os.symlink(pictures[0], tmp_path / "scores.png")
    os.symlink(pictures[0], tmp_path / "duplicates_2.png")
    monkeypatch.setattr(example, "Predictor", lambda cfg: pytest.fail("a model is loaded"))
    before = {path: path.read_bytes() for path in [*tmp_path.iterdir(), Path(pictures[0])]}
    commands = [
        ["errors", "--dataset", "tiny_val", "--results", tmp_path / "errors.png"],
        ["duplicates", "--dataset", "tiny_val", "--results", results],
        ["curves", tmp_path / "curves.html"],
        ["scores", *model_arguments(weights), "--opts", *OPTS],
    ]
    for command in commands:
        arguments = [str(x) for x in command]
        assert run([arguments[0], "--output", str(tmp_path), *arguments[1:]]) == 1
        assert "is an input itself" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
