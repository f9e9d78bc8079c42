"""``demo/demo.py`` on videos and cameras: frames, their order, codecs, broken and ended sources."""

import json
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_runs import demo

from defcn_d2.demo.video import Frames, VideoWriter, open_source
from defcn_d2.utils.errors import UserError


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
def test_video(video, tmp_path, capsys, output):
    assert demo("--video-input", video, "--output", tmp_path / output) == 0
    target = tmp_path / output
    if target.is_dir():
        target = target / "in.mp4"
    frames = frames_of(target)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 5
    assert os.listdir(target.parent).count(f"{target.stem}.part{target.suffix}") == 0
    assert re.search(rf"5 frames in .* s \(.* frames/s\), see {target}", capsys.readouterr().out)


def test_video_in_a_window(video, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda *args: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, image: shown.append(image.shape))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: 27 if len(shown) == 3 else -1)
    assert demo("--video-input", video) == 0
    assert shown == [(48, 64, 3)] * 3


def test_webcam_is_recorded_until_it_is_interrupted(video, tmp_path, monkeypatch):
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
    assert demo("--webcam", "--output", tmp_path / "out") == 0
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


def test_a_video_that_is_cut_off(video, tmp_path, capsys):
    (tmp_path / "cut.avi").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    out = tmp_path / "out.avi"
    assert demo("--video-input", tmp_path / "cut.avi", "--output", out) == 1
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
    frames.report_end()
    assert capsys.readouterr().err == "camera 1 gives no more pictures after 0\n"


def test_a_failure_leaves_no_half_video(video, tmp_path, monkeypatch):
    def fail(self, frame):
        raise UserError("disk full")

    monkeypatch.setattr(VideoWriter, "write", fail)
    assert demo("--video-input", video, "--output", tmp_path / "out" / "x.avi") == 1
    assert os.listdir(tmp_path / "out") == []


def test_json_of_a_video(video, tmp_path):
    target = tmp_path / "found.json"
    out = tmp_path / "out.avi"
    assert demo("--video-input", video, "--output", out, "--json", target) == 0
    entries = json.loads(target.read_text())
    assert [e["image_id"] for e in entries] == [i for i in range(5) for _ in range(5)]
    assert len(frames_of(out)) == 5


def test_json_alone_draws_nothing(video, tmp_path, monkeypatch):
    def draw(*args):
        raise AssertionError("drawn for nobody")

    monkeypatch.setattr("defcn_d2.demo.video.draw_detections", draw)
    assert demo("--video-input", video, "--json", tmp_path / "found.json") == 0
    assert len(json.loads((tmp_path / "found.json").read_text())) == 25
    assert sorted(os.listdir(tmp_path)) == ["found.json", "in.avi"]


def test_a_video_without_a_frame(video, capsys, monkeypatch):
    monkeypatch.setattr(Frames, "__iter__", lambda self: iter(()))
    assert demo("--video-input", video, "--output", video.parent / "out") == 1
    assert "in.avi' holds no frame that OpenCV can read" in capsys.readouterr().err


def test_the_end_of_a_stream_is_told_and_that_of_a_file_is_not(capsys):
    class Source:
        def get(self, what):
            return 0.0  # neither rate nor count

    for name in ("x.avi", "rtsp://host/x"):
        frames = Frames(Source(), name)
        assert frames.expected is None
        frames.report_end()
        assert not frames.cut_short
    assert capsys.readouterr().err == "'rtsp://host/x' gives no more pictures after 0\n"


def test_opencv_whose_log_cannot_be_silenced(tmp_path, monkeypatch):
    monkeypatch.delattr(cv2, "utils", raising=False)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match="text.mp4' cannot be read by OpenCV"):
        open_source(str(tmp_path / "text.mp4"))


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


@pytest.mark.parametrize("option", ["--output", "--json"])
def test_a_video_is_not_overwritten(video, capsys, option):
    content = video.read_bytes()
    assert demo("--video-input", video, option, video) == 1
    assert f"error: {option}: {str(video)!r} is an input itself" in capsys.readouterr().err
    assert video.read_bytes() == content
