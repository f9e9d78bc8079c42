"""Detections drawn on the frames of a video or a camera."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ..utils.errors import UserError
from ..utils.printable import printable
from .coco_results import Results
from .inputs import make_folder
from .overlay import draw_detections
from .window import Window

# Codecs by the suffix of the file, the first that OpenCV can write is taken. Its wheels on the
# package index cannot write H.264: .mp4 is MPEG-4 then, for players; browsers play .webm.
CODECS = {
    ".mp4": ("avc1", "mp4v"),
    ".webm": ("VP90", "VP80"),
    ".mkv": ("X264", "mp4v", "MJPG"),
    ".avi": ("XVID", "MJPG"),
}
_FRAMES_PER_SECOND = 25.0  # of a source without a rate
_TRIES = 10  # reads in a row that may fail before a source has ended
_CONVERT = "convert it, as to .mp4"


def run_on_video(
    video: cv2.VideoCapture,
    source: str | int,
    detect: Callable[[np.ndarray], Instances],
    names: Sequence[str],
    target: Path | None,
    window: Window | None,
    results: Results | None = None,
) -> int:
    """Detect on every frame, and draw; an interrupt ends it, what is done by then is kept.

    Args:
        video: from ``open_source``.
        source: its name, or the number of the camera.
        detect: (H, W, 3) uint8 RGB to detections.
        names: of the classes.
        target: a file that appears when all is done, or None.
        window: where the frames are shown, or None.
        results: takes all detections, with the frame's number from 0 as the image's; or None.

    Returns:
        the exit status: 1 if a part of the video could not be read.

    Raises:
        UserError: there is no frame to read, or the output cannot be written.
    """
    # Frame by frame, until the source or the user ends it.
    frames = Frames(video, source)
    began = time.monotonic()
    done = 0
    with contextlib.ExitStack() as stack:
        writer: VideoWriter | None = None
        bar = stack.enter_context(tqdm(total=frames.expected, unit="frame"))
        stack.callback(video.release)
        try:
            for number, rgb in enumerate(frames):
                found = detect(rgb)
                if results is not None:
                    results.add(number, str(source), found)
                if target is not None or window is not None:
                    pixels = draw_detections(rgb, found, names)
                if target is not None:
                    if writer is None:
                        writer = stack.enter_context(
                            VideoWriter(target, frames.rate, pixels.shape[:2])
                        )
                    writer.write(pixels)
                done += 1
                bar.update()
                if window is not None and not window.show(pixels, wait=False):
                    break
            else:
                frames.report_end()
        except KeyboardInterrupt:
            print("\ninterrupted")

    # Result, and status.
    if done == 0:
        raise UserError(f"{frames.name} holds no frame that OpenCV can read: {_CONVERT}")
    seconds = time.monotonic() - began
    see = f", see {target}" if target is not None else ""
    print(printable(f"{done} frames in {seconds:.1f} s ({done / seconds:.1f} frames/s){see}"))
    return 1 if frames.cut_short else 0


class Frames:
    """The frames of a video or a camera, (H, W, 3) uint8 in RGB; all of the first one's size.

    Attributes:
        expected: how many there are to be, or None where the source has no count.
        rate: frames a second.
        cut_short: whether frames of a file could not be read.
    """

    def __init__(self, video: cv2.VideoCapture, source: str | int):
        self._video = video
        count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
        self.expected = count if count > 0 and not isinstance(source, int) else None
        rate = video.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate < 1000 else _FRAMES_PER_SECOND
        self.name = f"camera {source}" if isinstance(source, int) else repr(source)
        self.cut_short = False
        self._read = self._broken = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        size: tuple[int, int] | None = None
        failures = 0
        while failures <= _TRIES:
            good, frame = self._video.read()
            if not good:
                if self.expected is not None and self._read + failures >= self.expected:
                    return
                failures += 1
                continue
            self._broken += failures
            failures = 0
            self._read += 1
            size = size or frame.shape[:2]
            if frame.shape[:2] != size:
                frame = cv2.resize(frame, (size[1], size[0]))
            yield np.ascontiguousarray(frame[:, :, ::-1])

    def report_end(self) -> None:
        """Report a source that has ended too early."""
        if self.expected is None:
            if "camera" in self.name or "://" in self.name:
                print(f"{self.name} gives no more pictures after {self._read}", file=sys.stderr)
            return
        missing = self.expected - self._read
        # the number of frames is an estimate in some formats
        if self._broken or missing > max(1, self.expected // 50):
            self.cut_short = True
            print(
                f"error: {self._read} of {self.expected} frames of {self.name} could be read, the "
                f"others are broken: {_CONVERT}, or take the whole file",
                file=sys.stderr,
            )


def open_source(source: str | int, max_pixels: int = 0) -> cv2.VideoCapture:
    """The opened video or camera; ``UserError`` where that is not possible.

    Args:
        max_pixels: a video of larger frames is not possible; 0: any is.
    """
    if isinstance(source, str) and "://" not in source and not os.path.isfile(source):
        raise UserError(f"--video-input {source!r} does not exist; give a video file")
    with _quiet():
        video = cv2.VideoCapture(source)
    if video.isOpened():
        width, height = (int(video.get(cv2.CAP_PROP_FRAME_WIDTH + side)) for side in (0, 1))
        if not 0 < max_pixels < width * height:
            return video
        raise UserError(
            f"--video-input {source!r} has frames of {width} x {height} pixels, more than "
            f"INPUT.MAX_PIXELS, {max_pixels:,}: raise it, or shrink the video"
        )
    if isinstance(source, int):
        raise UserError(
            f"--webcam: there is no camera {source} that OpenCV can open; give --video-input"
        )
    raise UserError(f"--video-input {source!r} cannot be read by OpenCV; {_CONVERT}")


def output_file(source: str | int, output: str) -> Path:
    """The file for a video: ``output``, or if that is a folder, one in it; its folder is made."""
    target = Path(output).expanduser()
    if target.suffix.lower() not in CODECS or target.is_dir():
        name = "webcam" if isinstance(source, int) else Path(source).stem
        target = target / f"{name}.mp4"
    make_folder(target.parent)
    return target


class VideoWriter:
    """A video file by the first codec that works; a context manager.

    The file appears when the block ends, by an interrupt too; after an error there is none.
    """

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
            with _quiet():
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

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.release()
        if kind is None:
            os.replace(self._part, self.path)
        else:
            self._part.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence OpenCV's lines about what it has tried in vain, where that is possible."""
    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    if logging is None:
        yield
        return
    level = logging.getLogLevel()
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        logging.setLogLevel(level)
