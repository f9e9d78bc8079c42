"""``demo/demo.py`` on images, folders and patterns; with good and with broken files."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from demo_runs import demo, picture, tiny_weights
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from helpers import ROOT
from tiny_data import CONFIG, TINY_MODEL

from defcn_d2.config.load import load_config
from defcn_d2.demo import demo_command, run
from defcn_d2.demo.inputs import find_images, output_files
from defcn_d2.demo.overlay import draw_detections
from defcn_d2.demo.window import Window
from defcn_d2.engine import Predictor
from defcn_d2.engine.predictor import metadata_of
from defcn_d2.evaluation.stored_thresholds import write_thresholds
from defcn_d2.utils.errors import UserError
from defcn_d2.visualization.colors import class_color


def test_good_and_broken_files(tmp_path, capsys):
    good = picture(tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "cut.jpg").write_bytes(good.read_bytes()[:500])
    (tmp_path / "in" / "text.png").write_text("no image")
    assert demo("--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    assert os.listdir(tmp_path / "out") == ["good.jpg"]
    output = capsys.readouterr()
    assert "good.jpg: " in output.out
    for name in ("cut.jpg", "text.png"):
        assert f"{name}' cannot be read as an image" in output.err
    assert output.err.splitlines()[-1] == "error: 2 of 3 images could not be read"


def test_drawing_shows_the_detections(tmp_path):
    source = picture(tmp_path / "a.png")
    target = tmp_path / "new" / "b.png"
    assert demo("--input", source, "--output", target) == 0
    plain, drawn = cv2.imread(str(source)), cv2.imread(str(target))
    assert drawn.shape == (400, 600, 3)  # enlarged, for its letters
    enlarged = cv2.resize(plain, (600, 400), interpolation=cv2.INTER_NEAREST)
    assert (drawn != enlarged).any()


def test_threshold_leaves_nothing(tmp_path, capsys):
    source = picture(tmp_path / "a.png", 500, 500)
    arguments = ["--input", source, "--output", tmp_path / "b.png", "--confidence-threshold", "1.0"]
    assert demo(*arguments) == 0
    assert "a.png: 0 objects" in capsys.readouterr().out
    assert np.array_equal(cv2.imread(str(source)), cv2.imread(str(tmp_path / "b.png")))


def test_confidence_of_the_last_evaluation(tmp_path, capsys):
    """That of the best F1 where it is stored, and 0.3 where not; ``best`` asks for it."""
    weights = tmp_path / "model_final.pth"
    weights.write_bytes(Path(tiny_weights()).read_bytes())
    arguments = ["--config-file", CONFIG, "--input", str(picture(tmp_path / "a.png"))]
    arguments += ["--output", str(tmp_path / "b.png")]
    opts = ["--weights", str(weights), "--opts", *TINY_MODEL, "TEST.DETECTIONS_PER_IMAGE", "5"]
    assert run([*arguments, *opts]) == 0
    assert "a.png: 0 objects" in capsys.readouterr().out  # it is sure of nothing
    assert run([*arguments, "--confidence", "best", *opts]) == 1
    assert "--confidence: the confidence is 'best', but there is no" in capsys.readouterr().err
    write_thresholds(tmp_path, {"threshold": 0.001, "f1": 0.25})
    for option in ([], ["--confidence", "best"]):
        assert run([*arguments, *option, *opts]) == 0
        output = capsys.readouterr().out
        assert "confidence 0.001, by which F1 was 0.250" in output and "a.png: 5 obj" in output
    assert run([*arguments, "--confidence", "0.9", *opts]) == 0
    output = capsys.readouterr().out
    assert "by which F1" not in output and "a.png: 0 objects" in output


def test_missing_file(tmp_path, capsys):
    arguments = ["--input", tmp_path / "no.jpg", "--output", tmp_path / "out.jpg"]
    assert demo(*arguments) == 1
    assert "no.jpg' cannot be read" in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder of two pictures, beside it links to it and to the first; no model is loaded."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / "photos" / name)
    os.symlink("photos", tmp_path / "link")
    os.link(tmp_path / "photos" / "a.png", tmp_path / "hard.png")
    monkeypatch.setattr(demo_command, "Predictor", lambda cfg: pytest.fail("a model is loaded"))
    return tmp_path


@pytest.mark.parametrize(
    "arguments, option",
    [
        ("--input photos --output photos", "--output"),
        ("--input photos --output link", "--output"),
        ("--input photos/a.png --output photos", "--output"),
        ("--input photos/a.png --output hard.png", "--output"),
        ("--input hard.png --output ./photos/../photos/a.png", "--output"),
        ("--input photos --json link/b.png", "--json"),
        ("--input photos/a.png --json photos/a.png --output new", "--json"),
        ("--input photos --output new --json new/a.png", "--json"),
        ("--input photos --json c.yaml", "--json"),
        ("--input photos --json model.pth", "--json"),
    ],
)
def test_inputs_are_not_overwritten(photos, monkeypatch, capsys, arguments, option):
    monkeypatch.chdir(photos)
    Path("c.yaml").write_text(f"_BASE_: {CONFIG}\n")
    Path("model.pth").write_bytes(b"weights")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    cfg = ["--config-file", "c.yaml", "--weights", "model.pth"]
    assert run([*cfg, *arguments.split()]) == 1
    assert f"error: {option}" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--input", "nowhere/*.jpg"], "--input 'nowhere/*.jpg' holds no image"),
        (["--input", "."], "--input '.' holds no image"),
        (
            ["--input", "a.jpg", "--confidence-threshold", "2"],
            "--confidence: the confidence is 2.0",
        ),
        (["--video-input", "no.mp4"], "--video-input 'no.mp4' does not exist"),
        (["--video-input", "text.mp4"], "--video-input 'text.mp4' cannot be read by OpenCV"),
        (["--webcam"], "--webcam: there is no camera 0 that"),
        (["--webcam", "70"], "--webcam: there is no camera 70 that"),
        (["--input", "a.jpg", "--json", "."], "--json '.' is a folder"),
        (["--input", "a.jpg", "--json", "text.mp4/x.json"], "--json: cannot make the folder"),
        (["--input", "a.jpg", "--output", "text.mp4"], "--output: cannot make the folder"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    capture = cv2.VideoCapture
    monkeypatch.setattr(  # whether this machine has a camera or not
        cv2,
        "VideoCapture",
        lambda source: capture("nothing" if isinstance(source, int) else source),
    )
    output = [] if "--output" in arguments else ["--output", "out"]
    assert demo(*arguments, *output) == 1
    assert f"error: {sentence}" in capsys.readouterr().err


def test_weights_are_needed(capsys):
    assert run(["--config-file", CONFIG, "--input", "a.jpg", "--output", "b"]) == 1
    assert "error: MODEL.WEIGHTS is empty" in capsys.readouterr().err
    assert run(["--config-file", "no.yaml", "--input", "a.jpg", "--output", "b"]) == 1
    assert "'no.yaml' does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run(["--config-file", CONFIG])
    assert caught.value.code == 2


def test_a_drawing_that_cannot_be_written_is_told(tmp_path, monkeypatch, capsys):
    source = picture(tmp_path / "a.png")
    monkeypatch.setattr(cv2, "imwrite", lambda *args: False)  # as on a full disk
    assert demo("--input", source, "--output", tmp_path / "b.png") == 1
    assert f"error: cannot write '{tmp_path / 'b.png'}'" in capsys.readouterr().err


def test_no_display(tmp_path, monkeypatch, capsys):
    source = picture(tmp_path / "a.png")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert demo("--input", source) == 1
    assert "no display to show drawings on: save them with --output" in capsys.readouterr().err


def test_opencv_without_windows(monkeypatch):
    def refuse(*args):
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(UserError, match="opencv-python-headless.*--output"):
        Window()


def test_window_shows_until_escape(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(shown) == 2 else 32)
    for name in "abc":
        picture(tmp_path / f"{name}.png", 400, 500)
    assert demo("--input", tmp_path / "*.png") == 0
    assert shown == [(400, 500, 3)] * 2


def test_drawings_name_each_class_in_its_colour():
    found = Instances(
        (60, 60), pred_boxes=Boxes(torch.tensor([[5.0, 20, 30, 40], [35, 30, 50, 50]]))
    )
    found.scores, found.pred_classes = torch.tensor([0.9, 0.5]), torch.tensor([1, 30])
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = draw_detections(image, found, ["dot", "line"], scale=4.0)
    assert drawn.shape == (240, 240, 3)
    for number in (1, 30):
        color = class_color(number)
        bgr = [int(color[i : i + 2], 16) for i in (5, 3, 1)]
        assert (drawn == bgr).all(axis=2).sum() > 200
    assert np.array_equal(draw_detections(image, found[:0], [], 1.0), image)


def test_files_to_read(tmp_path):
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    top = [str(tmp_path / "a.PNG"), str(tmp_path / "b.jpg")]
    assert find_images([str(tmp_path)]) == top
    assert find_images([str(tmp_path / "*.jpg")]) == top[1:]
    assert find_images([str(tmp_path / "**" / "*.jpg")]) == [top[1], str(tmp_path / "deep/c.jpg")]
    assert find_images([top[1], str(tmp_path)]) == [top[1], *top]


def test_files_to_write(tmp_path):
    assert output_files(["a.jpg"], str(tmp_path / "x.png")) == [tmp_path / "x.png"]
    assert output_files(["a.jpg"], str(tmp_path)) == [tmp_path / "a.jpg"]
    names = ["p/a.jpg", "q/a.jpg", "a_2.jpg", "photo", "r/a.jpg"]
    made = ["a.jpg", "a_2.jpg", "a_2_2.jpg", "photo.png", "a_3.jpg"]
    assert output_files(names, str(tmp_path / "d")) == [tmp_path / "d" / name for name in made]
    with pytest.raises(UserError, match="cannot make the folder"):
        (tmp_path / "file").touch()
        output_files(["a.jpg", "b.jpg"], str(tmp_path / "file"))


def test_predictor_takes_images_as_training_does(tmp_path):
    """Grey and RGB models get grey and RGB images, resized to the shape for tests."""
    image = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    grey = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[0.0]", "MODEL.PIXEL_STD", "[1.0]"]
    for opts, expected in (([], image[:, :, ::-1]), (["INPUT.FORMAT", "RGB"], image), (grey, None)):
        opts = [*TINY_MODEL, *opts, "INPUT.MIN_SIZE_TEST", "50"]
        weights = str(tmp_path / "grey.pth") if expected is None else tiny_weights()
        if expected is None:
            torch.save(build_model(load_config(CONFIG, opts)).state_dict(), weights)
        cfg = load_config(CONFIG, [*opts, "MODEL.WEIGHTS", weights])
        predictor = Predictor(cfg)
        seen = []
        predictor.model.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args))
        found = predictor.detections(image)
        assert found.image_size == (50, 70)
        (((inputs,),),) = seen
        if expected is None:
            assert inputs["image"].shape == (1, 50, 70)
        else:
            assert np.array_equal(inputs["image"].numpy().transpose(1, 2, 0), expected)


def test_class_names_come_from_the_first_set(tmp_path):
    cfg = load_config(CONFIG)
    assert metadata_of(cfg).thing_classes[:2] == ["ellipse", "ring"]

    def load_late() -> list:
        MetadataCatalog.get("tiny_late").thing_classes = ["dot"]
        return []

    loaders = {"tiny_late": load_late, "tiny_gone": lambda: open(tmp_path / "gone.json").read()}
    for name, expected in (("tiny_late", ["dot"]), ("tiny_gone", None)):
        DatasetCatalog.register(name, loaders[name])
        try:
            metadata = metadata_of(load_config(CONFIG, ["DATASETS.TEST", f"('{name}',)"]))
            assert metadata.name == name and metadata.get("thing_classes") == expected
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    cfg = load_config(CONFIG, ["DATASETS.TEST", "()", "DATASETS.TRAIN", "()"])
    assert metadata_of(cfg).get("thing_classes") is None


def test_program(tmp_path):
    """The script itself, without a display: a mistake is reported in one line."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "demo" / "demo.py"), "--config-file", "no.yaml", "--webcam"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: configuration file 'no.yaml'")


def test_cpu_is_told(tmp_path, monkeypatch, capsys):
    source = picture(tmp_path / "a.png")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, line in (("cuda", "No CUDA device: running on the CPU\n"), ("cpu", "")):
        opts = ["--output", tmp_path / "b.png", "--opts", "MODEL.DEVICE", device]
        tail = [*TINY_MODEL[2:], "MODEL.WEIGHTS", tiny_weights()]
        arguments = ["--config-file", CONFIG, "--input", source, *opts, *tail]
        assert run([*map(str, arguments)]) == 0
        assert capsys.readouterr().out.startswith(f"{line}{source}: ")


@pytest.mark.parametrize("output", ["drawn.png", "found.json"])
def test_weights_of_a_backbone_draw_nothing(output, tmp_path, capsys):
    content = torch.load(tiny_weights())["model"]
    weights = tmp_path / "backbone.pth"
    torch.save({k: v for k, v in content.items() if k.startswith("backbone.")}, weights)
    image, target = picture(tmp_path / "a.png"), tmp_path / output
    option = "--json" if output.endswith("json") else "--output"
    arguments = ["--config-file", CONFIG, "--input", str(image), option, str(target)]
    assert run([*arguments, "--weights", str(weights), *TINY_MODEL]) == 1
    assert f"error: weights '{weights}' give" in capsys.readouterr().err
    assert not target.exists()
