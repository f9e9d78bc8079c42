"""``demo/demo.py`` on images, folders, patterns and videos; with good and with broken files."""

import json
import os
import queue
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from helpers import ROOT
from pycocotools.coco import COCO
from tiny_data import CONFIG, TINY_MODEL, TINY_SETS, tiny_sets
from torch import nn

import defcn_d2
from defcn_d2.demo import command_line, parallel, run
from defcn_d2.demo.files import find_images, output_files
from defcn_d2.demo.parallel import Workers, one_by_one
from defcn_d2.demo.results import Results, image_ids
from defcn_d2.demo.video import Frames, VideoWriter, output_file
from defcn_d2.demo.window import Window
from defcn_d2.engine import Predictor, UserError, load_config
from defcn_d2.engine.predictor import metadata_of

FEW = ["TEST.DETECTIONS_PER_IMAGE", "5"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A model that finds something everywhere."""
    torch.manual_seed(0)
    model = build_model(load_config(CONFIG, TINY_MODEL))
    nn.init.constant_(model.head.bbox_pred.bias, 2.0)
    path = str(tmp_path_factory.mktemp("weights") / "model.pth")
    torch.save({"model": model.state_dict()}, path)
    return path


def picture(path: Path, height: int = 60, width: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), pixels)
    return path


def demo(weights: str, *arguments: object) -> int:
    tiny_sets()
    opts = ["--opts", *TINY_MODEL, *TINY_SETS, *FEW, "MODEL.WEIGHTS", weights]
    threshold = ["--confidence-threshold", "0.001"]
    return run(["--config-file", CONFIG, *threshold, *map(str, arguments), *opts])


def test_good_and_broken_files(weights, tmp_path, capsys):
    good = picture(tmp_path / "in" / "good.jpg")
    (tmp_path / "in" / "cut.jpg").write_bytes(good.read_bytes()[:500])
    (tmp_path / "in" / "text.png").write_text("no image")
    assert demo(weights, "--input", tmp_path / "in", "--output", tmp_path / "out") == 1
    assert os.listdir(tmp_path / "out") == ["good.jpg"]
    output = capsys.readouterr()
    assert "good.jpg: " in output.out
    for name in ("cut.jpg", "text.png"):
        assert f"{name}' cannot be read as an image" in output.err
    assert output.err.splitlines()[-1] == "error: 2 of 3 images could not be read"


def test_drawing_shows_the_detections(weights, tmp_path):
    source = picture(tmp_path / "a.png")
    target = tmp_path / "new" / "b.png"
    assert demo(weights, "--input", source, "--output", target) == 0
    plain, drawn = cv2.imread(str(source)), cv2.imread(str(target))
    assert drawn.shape == (400, 600, 3)  # enlarged, for its letters
    enlarged = cv2.resize(plain, (600, 400), interpolation=cv2.INTER_NEAREST)
    assert (drawn != enlarged).any()


def test_threshold_leaves_nothing(weights, tmp_path, capsys):
    source = picture(tmp_path / "a.png", 500, 500)
    arguments = ["--input", source, "--output", tmp_path / "b.png", "--confidence-threshold", "1.0"]
    assert demo(weights, *arguments) == 0
    assert "a.png: 0 objects" in capsys.readouterr().out
    assert np.array_equal(cv2.imread(str(source)), cv2.imread(str(tmp_path / "b.png")))


def test_missing_file(weights, tmp_path, capsys):
    arguments = ["--input", tmp_path / "no.jpg", "--output", tmp_path / "out.jpg"]
    assert demo(weights, *arguments) == 1
    assert "no.jpg' cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--input", "nowhere/*.jpg"], "--input 'nowhere/*.jpg' holds no image"),
        (["--input", "."], "--input '.' holds no image"),
        (["--input", "a.jpg", "--confidence-threshold", "2"], "--confidence-threshold is 2.0"),
        (["--video-input", "no.mp4"], "--video-input 'no.mp4' does not exist"),
        (["--video-input", "text.mp4"], "--video-input 'text.mp4' cannot be read by OpenCV"),
        (["--webcam"], "--webcam: there is no camera 0 that"),
        (["--webcam", "70"], "--webcam: there is no camera 70 that"),
        (["--input", "a.jpg", "--json", "."], "--json '.' is a folder"),
        (["--input", "a.jpg", "--json", "text.mp4/x.json"], "--json: cannot make the folder"),
        (["--input", "a.jpg", "--output", "text.mp4"], "--output: cannot make the folder"),
    ],
)
def test_mistakes(weights, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video")
    capture = cv2.VideoCapture
    monkeypatch.setattr(  # whether this machine has a camera or not
        cv2,
        "VideoCapture",
        lambda source: capture("nothing" if isinstance(source, int) else source),
    )
    output = [] if "--output" in arguments else ["--output", "out"]
    assert demo(weights, *arguments, *output) == 1
    assert f"error: {sentence}" in capsys.readouterr().err


def test_weights_are_needed(capsys):
    assert run(["--config-file", CONFIG, "--input", "a.jpg", "--output", "b"]) == 1
    assert "error: MODEL.WEIGHTS is empty" in capsys.readouterr().err
    assert run(["--config-file", "no.yaml", "--input", "a.jpg", "--output", "b"]) == 1
    assert "'no.yaml' does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        run(["--config-file", CONFIG])
    assert caught.value.code == 2


def test_no_display(weights, tmp_path, monkeypatch, capsys):
    source = picture(tmp_path / "a.png")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert demo(weights, "--input", source) == 1
    assert "no display to show drawings on: save them with --output" in capsys.readouterr().err


def test_opencv_without_windows(monkeypatch):
    def refuse(*args):
        raise cv2.error("The function is not implemented")

    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", refuse)
    with pytest.raises(UserError, match="opencv-python-headless.*--output"):
        Window()


def test_window_shows_until_escape(weights, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(shown) == 2 else 32)
    for name in "abc":
        picture(tmp_path / f"{name}.png", 400, 500)
    assert demo(weights, "--input", tmp_path / "*.png") == 0
    assert shown == [(400, 500, 3)] * 2


@pytest.fixture
def video(tmp_path) -> Path:
    """Five frames of noise."""
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "in.avi", 10.0, (48, 64)) as writer:
        for _ in range(5):
            writer.write(rng.integers(256, size=(48, 64, 3), dtype=np.uint8))
    return tmp_path / "in.avi"


def frames_of(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        good, frame = capture.read()
        if not good:
            return frames
        frames.append(frame)


@pytest.mark.parametrize("output", ["out", "out.mp4", "out.avi", "new/out.mkv", "out.webm"])
def test_video(weights, video, tmp_path, capsys, output):
    assert demo(weights, "--video-input", video, "--output", tmp_path / output) == 0
    target = tmp_path / output
    if target.is_dir():
        target = target / "in.mp4"
    frames = frames_of(target)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    assert os.listdir(target.parent).count(f"{target.stem}.part{target.suffix}") == 0
    assert re.search(rf"5 frames in .* s \(.* frames/s\), see {target}", capsys.readouterr().out)


def test_video_in_a_window(weights, video, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(shown) == 3 else -1)
    assert demo(weights, "--video-input", video) == 0
    assert shown == [(48, 64, 3)] * 3


def test_webcam_is_recorded_until_it_is_interrupted(weights, video, tmp_path, monkeypatch):
    capture = cv2.VideoCapture

    class Camera:
        def __init__(self, source):
            assert source == 0
            self.video, self.read_frames = capture(str(video)), 0

        def read(self):
            self.read_frames += 1
            if self.read_frames == 4:
                raise KeyboardInterrupt
            return self.video.read()

        def get(self, what):
            return 0.0  # cameras tell neither rate nor count

        def isOpened(self):
            return True

        def release(self):
            self.video.release()

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert demo(weights, "--webcam", "--output", tmp_path / "out") == 0
    monkeypatch.undo()
    assert len(frames_of(tmp_path / "out" / "webcam.mp4")) == 3


def test_frames_are_in_order_and_each_has_its_detections(video, tmp_path):
    """Also where the source has a broken frame among good ones, and changes its size."""
    good = [np.full((8, 12, 3), 20 * i, np.uint8) for i in range(3)]
    reads = [good[0], None, good[1], np.full((4, 6, 3), 40, np.uint8), None, None]

    class Source:
        def get(self, what):
            return {cv2.CAP_PROP_FRAME_COUNT: 4.0, cv2.CAP_PROP_FPS: 10.0}[what]

        def read(self):
            frame = reads.pop(0)
            return frame is not None, frame

    frames = Frames(Source(), "x.avi")
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 20, 40]
    assert frames.expected == 4 and frames.rate == 10.0


def test_a_video_that_is_cut_off(weights, video, tmp_path, capsys):
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    out = tmp_path / "out.avi"
    assert demo(weights, "--video-input", tmp_path / "cut.avi", "--output", out) == 1
    assert "of 5 frames of '" in capsys.readouterr().err
    assert 1 <= len(frames_of(out)) < 5


def test_a_camera_that_ends(capsys):
    class Camera:
        def get(self, what):
            return 0.0

        def read(self):
            return False, None

    frames = Frames(Camera(), 1)
    assert list(frames) == []
    frames.tell_end()
    assert capsys.readouterr().err == "camera 1 gives no more pictures after 0\n"


def test_a_failure_leaves_no_half_video(weights, video, tmp_path, monkeypatch):
    def fail(self, frame):
        raise UserError("disk full")

    monkeypatch.setattr(VideoWriter, "write", fail)
    assert demo(weights, "--video-input", video, "--output", tmp_path / "out" / "x.avi") == 1
    assert os.listdir(tmp_path / "out") == []


def test_json_of_images_is_what_coco_reads(weights, tmp_path, capsys):
    """Boxes are x, y, width, height of the image; categories those of the annotation file."""
    for name in ("000000000139.png", "000000000007.png"):
        picture(tmp_path / "in" / name)
    target = tmp_path / "new" / "found.json"
    assert demo(weights, "--input", tmp_path / "in", "--json", target) == 0
    assert os.listdir(tmp_path / "new") == ["found.json"]
    entries = json.loads(target.read_text())
    assert f"{len(entries)} detections, see {target}" in capsys.readouterr().out
    assert [e["image_id"] for e in entries] == [7] * 5 + [139] * 5
    assert {e["file_name"] for e in entries[:5]} == {str(tmp_path / "in" / "000000000007.png")}
    found = defcn_d2.Predictor(CONFIG, weights, opts=[*TINY_MODEL, *FEW])(entries[0]["file_name"])
    categories = metadata_of(load_config(CONFIG, TINY_SETS)).thing_dataset_id_to_contiguous_id
    for i, entry in enumerate(entries[:5]):
        x, y, width, height = entry["bbox"]
        box = found.pred_boxes.tensor[i].tolist()
        assert np.allclose([x, y, x + width, y + height], box, atol=1e-3)
        assert np.isclose(entry["score"], float(found.scores[i]), atol=1e-6)
        assert categories[entry["category_id"]] == int(found.pred_classes[i])
    truth = COCO()
    truth.dataset = {"images": [{"id": 7}, {"id": 139}], "annotations": [], "categories": []}
    truth.createIndex()
    assert len(truth.loadRes(str(target)).anns) == 10


def test_json_of_a_video(weights, video, tmp_path):
    target = tmp_path / "found.json"
    out = tmp_path / "out.avi"
    assert demo(weights, "--video-input", video, "--output", out, "--json", target) == 0
    entries = json.loads(target.read_text())
    assert [e["image_id"] for e in entries] == [i for i in range(5) for _ in range(5)]
    assert len(frames_of(out)) == 5


def test_image_ids():
    assert image_ids(["a/000042.jpg", "b/7.png"]) == [42, 7]
    assert image_ids(["a/1.jpg", "b/1.png"]) == [0, 1]
    assert image_ids(["a/1.jpg", "b/x.png"]) == [0, 1]


def test_categories_without_an_annotation_file(tmp_path):
    found = Instances((4, 4), pred_boxes=Boxes(torch.tensor([[1.0, 0, 3, 2]])))
    found.scores, found.pred_classes = torch.tensor([0.5]), torch.tensor([3])
    results = Results(tmp_path / "x.json", MetadataCatalog.get("__no_data_set"))
    results.add(0, "a.jpg", found)
    results.write()
    (entry,) = json.loads((tmp_path / "x.json").read_text())
    assert entry["category_id"] == 3 and entry["bbox"] == [1, 0, 2, 2]


def test_parallel_on_one_device(weights, tmp_path, capsys):
    source = picture(tmp_path / "a.png")
    assert demo(weights, "--input", source, "--output", tmp_path / "b.png", "--parallel") == 0
    assert "--parallel: there is one device alone (cpu)" in capsys.readouterr().out


def test_parallel_gives_the_same_in_the_same_order(weights):
    cfg = load_config(CONFIG, [*TINY_MODEL, *FEW, "MODEL.WEIGHTS", weights])
    rng = np.random.default_rng(1)
    sizes = [(40, 60), (64, 64), (90, 50)] * 3
    images = [rng.integers(256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    expected = list(one_by_one(Predictor(cfg), enumerate(images)))
    with Workers(cfg, ["cpu", "cpu"]) as workers:
        results = list(workers(enumerate(images)))
        processes = workers._processes
    assert not any(process.is_alive() for process in processes)
    for (tag, image, found), (number, same, alone) in zip(results, expected, strict=True):
        assert tag == number and image is same and found.image_size == alone.image_size
        assert torch.allclose(found.pred_boxes.tensor, alone.pred_boxes.tensor, atol=1e-3)
        assert torch.equal(found.pred_classes, alone.pred_classes)


def test_parallel_tells_why_a_process_failed(monkeypatch):
    """The body of a process, here in this one, and what the first process makes of it."""
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    cfg = load_config(CONFIG, [*TINY_MODEL, "MODEL.WEIGHTS", "/no/such/model.pth"])
    results = queue.Queue()
    parallel._work(cfg, queue.Queue(), results)
    workers = Workers(cfg, ["cpu"])
    workers._results = results
    with pytest.raises(UserError, match="on cpu failed: .*/no/such/model.pth"):
        list(workers([(0, np.zeros((32, 32, 3), np.uint8))]))


def test_parallel_notices_a_process_that_died(weights):
    cfg = load_config(CONFIG, [*TINY_MODEL, "MODEL.WEIGHTS", weights])
    image = np.zeros((32, 32, 3), np.uint8)
    with Workers(cfg, ["cpu"]) as workers:
        workers._processes[0].kill()
        with pytest.raises(UserError, match="has ended \\(exit code -9"):
            list(workers([(0, image)]))


def test_codecs_fall_back(tmp_path, monkeypatch):
    tried = []

    class Closed:
        def __init__(self, path, codec, rate, size):
            tried.append(codec)

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoWriter", Closed)
    monkeypatch.setattr(Closed, "fourcc", lambda *letters: "".join(letters), raising=False)
    with pytest.raises(UserError, match="with any of avc1, mp4v"):
        VideoWriter(tmp_path / "x.mp4", 10.0, (4, 4))
    assert tried == ["avc1", "mp4v"]


def test_input_is_not_overwritten(video):
    with pytest.raises(UserError, match="is the input itself"):
        output_file(str(video), str(video))


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


def test_predictor_takes_images_as_training_does(weights):
    """Grey and RGB models get grey and RGB images, resized to the shape for tests."""
    image = np.random.default_rng(0).integers(256, size=(50, 70, 3), dtype=np.uint8)
    grey = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[0.0]", "MODEL.PIXEL_STD", "[1.0]"]
    for opts, expected in (([], image[:, :, ::-1]), (["INPUT.FORMAT", "RGB"], image), (grey, None)):
        weights_of = [] if expected is None else ["MODEL.WEIGHTS", weights]
        cfg = load_config(CONFIG, [*TINY_MODEL, *opts, *weights_of, "INPUT.MIN_SIZE_TEST", "50"])
        predictor = Predictor(cfg)
        seen = []
        predictor.model.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args))
        found = predictor(image)
        assert found.image_size == (50, 70)
        (((inputs,),),) = seen
        if expected is None:
            assert inputs["image"].shape == (1, 50, 70)
        else:
            assert np.array_equal(inputs["image"].numpy().transpose(1, 2, 0), expected)


def test_class_names_come_from_the_first_set():
    cfg = load_config(CONFIG)
    assert metadata_of(cfg).thing_classes[:2] == ["ellipse", "ring"]
    cfg = load_config(CONFIG, ["DATASETS.TEST", "()", "DATASETS.TRAIN", "()"])
    assert metadata_of(cfg).get("thing_classes") is None


def test_program(tmp_path):
    """The script itself, without a display: a mistake is told in one line."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "demo" / "demo.py"), "--config-file", "no.yaml", "--webcam"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("error: configuration file 'no.yaml'")
    assert "Traceback" not in result.stderr


def test_cpu_is_told(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    opts = ["MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", "x.pth"]
    args = command_line.parse_arguments(
        ["--config-file", CONFIG, "--input", "a.jpg", "--opts", *opts]
    )
    cfg = command_line.setup(args)
    assert cfg.MODEL.DEVICE == "cpu" and cfg.MODEL.DEFCN.SCORE_THRESH_TEST == 0.3
    assert "running on the CPU" in capsys.readouterr().out
