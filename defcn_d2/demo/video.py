"""Detections drawn on the frames of a video or a camera."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from tqdm import tqdm

from ..engine import UserError
from .files import make_folder
from .window import Window

# Codecs by the suffix of the file, the first that OpenCV can write is taken.
CODECS = {
    ".mp4": ("avc1", "mp4v"),
    ".mkv": ("X264", "mp4v", "MJPG"),
    ".avi": ("XVID", "MJPG"),
}
_FRAMES_PER_SECOND = 25.0  # of a source that does not tell


def run_on_video(
    video: cv2.VideoCapture,
    detect: Callable[[np.ndarray], Instances],
    metadata: Metadata,
    target: Path | None,
    window: Window | None,
) -> None:
    """Draw on every frame, to a video file or to a window.

    Args:
        video: from ``open_source``; an interrupt ends it, what is drawn by then is kept.
        detect: from an RGB image (H, W, 3) uint8 to detections.
        target: a file that appears when all is done; None: ``window`` shows the frames.

    Raises:
        UserError: there is no frame to read, or the output cannot be written.
    """
    visualizer = VideoVisualizer(metadata)
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    rate = video.get(cv2.CAP_PROP_FPS)
    rate = rate if 0 < rate < 1000 else _FRAMES_PER_SECOND
    writer: VideoWriter | None = None
    try:
        for frame in tqdm(_frames(video), total=count if count > 0 else None, unit="frame"):
            rgb = np.ascontiguousarray(frame[:, :, ::-1])
            drawing = visualizer.draw_instance_predictions(rgb, detect(rgb)).get_image()
            # matplotlib may round the size
            pixels = cv2.resize(drawing[:, :, ::-1], (frame.shape[1], frame.shape[0]))
            if target is not None:
                writer = writer or VideoWriter(target, rate, pixels.shape[:2])
                writer.write(pixels)
            elif window is not None and not window.show(pixels, wait=False):
                break
    except KeyboardInterrupt:
        print("\ninterrupted")
    finally:
        video.release()
    if writer is not None:
        writer.close()
        print(f"see {target}")
    elif target is not None:
        raise UserError("the video holds no frame that OpenCV can read: convert it, as to .mp4")


def open_source(source: str | int) -> cv2.VideoCapture:
    """The opened video or camera; ``UserError`` where that is not possible."""
    if isinstance(source, str) and "://" not in source and not os.path.isfile(source):
        raise UserError(f"--video-input {source!r} does not exist; give a video file")
    video = cv2.VideoCapture(source)
    if video.isOpened():
        return video
    if isinstance(source, int):
        raise UserError("--webcam: there is no camera that OpenCV can open; give --video-input")
    raise UserError(f"--video-input {source!r} cannot be read by OpenCV; convert it, as to .mp4")


def _frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """The frames (H, W, 3), uint8, BGR."""
    while True:
        good, frame = video.read()
        if not good:
            return
        yield frame


def output_file(source: str | int, output: str) -> Path:
    """The file for a video: ``output``, or if that is a folder, one in it; its folder is made."""
    target = Path(output).expanduser()
    if target.suffix.lower() not in CODECS or target.is_dir():
        name = "webcam" if isinstance(source, int) else Path(source).stem
        target = target / f"{name}.mp4"
    make_folder(target.parent)
    if isinstance(source, str) and os.path.exists(target) and os.path.samefile(source, target):
        raise UserError(f"--output {str(target)!r} is the input itself; give another file")
    return target


class VideoWriter:
    """A video file that appears when it is closed, by the first codec that works."""

    def __init__(self, path: Path, rate: float, size: tuple[int, int]):
        """
        Args:
            path: its suffix is one of ``CODECS``.
            rate: frames a second.
            size: (height, width) of the frames.

        Raises:
            UserError: OpenCV has no codec for it.
        """
        self.path = path
        self._part = path.with_name(f"{path.stem}.part{path.suffix}")
        height, width = size
        codecs = CODECS[path.suffix.lower()]
        for codec in codecs:
            self._writer = cv2.VideoWriter(
                str(self._part), cv2.VideoWriter.fourcc(*codec), rate, (width, height)
            )
            if self._writer.isOpened():
                return
        raise UserError(
            f"OpenCV cannot write {str(path)!r} with any of {', '.join(codecs)}; give an "
            f"--output that ends with another of {', '.join(CODECS)}, in a writable folder"
        )

    def write(self, frame: np.ndarray) -> None:
        """Append a BGR frame."""
        self._writer.write(frame)

    def close(self) -> None:
        self._writer.release()
        os.replace(self._part, self.path)
