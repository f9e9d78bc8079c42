"""Draw the detections of an exported model on images or a video: ``--help``.

Needs onnxruntime, numpy and OpenCV alone; neither PyTorch nor Detectron2 nor this project.
``Detector("model.onnx")(image)`` is all that another program needs.
"""

from __future__ import annotations

import argparse
import colorsys
import glob
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Of an image, or of a frame of a video: a small file can hold one that fills the memory.
MAX_PIXELS = 100_000_000
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # read by the import

try:
    import cv2
    import numpy as np
    import onnxruntime
except ImportError as missing:
    sys.exit(f"error: {missing}; pip install onnxruntime numpy opencv-python")

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
VIDEOS = tuple(".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg".split())
VIDEOS += tuple(".mts .mxf .ogv .ts .vob .webm .wmv".split())
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v"}


class Mistake(Exception):
    """An error that the user can put right, reported in one line."""


class Detections(NamedTuple):
    """Best first: boxes (n, 4) float32, xyxy in pixels; scores (n,) float32; classes (n,) int64."""

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


class Detector:
    """A model of ``tools/export.py --format onnx``.

    Attributes:
        class_names: by class.
        category_ids: of the annotation file that it was trained on, by class.
    """

    def __init__(self, path: str, threshold: float = 0.3, providers: Sequence[str] | None = None):
        """
        Args:
            path: the .onnx file.
            threshold: least score of a detection.
            providers: of onnxruntime; None: all that are installed, the fastest first.

        Raises:
            Mistake: the file is missing, damaged, or of another origin.
        """
        if not os.path.isfile(path):
            raise Mistake(f"model {path!r} does not exist; make it with defcn-export")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=providers or onnxruntime.get_available_providers()
            )
        except Exception as error:  # onnxruntime has a class for every status
            reason = str(error).strip().splitlines()[0]
            raise Mistake(f"model {path!r} cannot be loaded: {reason}") from error
        properties = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in properties or "input_format" not in properties:
            raise Mistake(f"model {path!r} is not of defcn-export: it does not say its classes")
        self.class_names: list[str] = json.loads(properties["class_names"])
        self.category_ids: list[int] = json.loads(properties["category_ids"])
        self.threshold = threshold
        self._channels = json.loads(properties["input_format"])
        self._short, self._long = (json.loads(properties[f"{x}_size"]) for x in ("min", "max"))
        self._resizes_itself = json.loads(properties["resize"]) is not None
        self._nms = json.loads(properties["nms_threshold"])
        self._raw = json.loads(properties.get("kind", '"detections"')) == "raw"
        self._size = json.loads(properties.get("size", "null"))
        self._topk = json.loads(properties["topk"])
        self._mean = json.loads(properties["pixel_mean"])

    def __call__(self, image: np.ndarray) -> Detections:
        """Detect on an image (H, W, 3) uint8, BGR as OpenCV reads it."""
        pixels = image if self._resizes_itself else self._resized(image)
        found = self._run(self._planes(pixels))
        height, width = (a / b for a, b in zip(image.shape, pixels.shape[:2]))
        found = found._replace(boxes=found.boxes * np.array([width, height] * 2, np.float32))
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        keep = (found.scores >= self.threshold) & (sides > 0).all(axis=1)
        found = Detections(*(values[keep] for values in found))
        if self._nms is not None:
            kept = nms(found, self._nms)
            found = Detections(*(values[kept] for values in found))
        return found

    def _run(self, planes: np.ndarray) -> Detections:
        """The model on (C, H, W)."""
        if not self._raw:
            outputs = self.session.run(["boxes", "scores", "classes"], {"images": planes[None]})
            return Detections(*(output[0] for output in outputs))
        _, height, width = planes.shape
        padded = np.empty((len(planes), *self._size), np.float32)
        padded[:] = np.reshape(self._mean, (-1, 1, 1))
        padded[:, :height, :width] = planes
        scores, boxes = self.session.run(["scores", "boxes"], {"images": padded[None]})
        found = best(scores[0], boxes[0], self._topk, self.threshold)
        return found._replace(boxes=found.boxes.clip(0, [width, height] * 2).astype(np.float32))

    def _resized(self, image: np.ndarray) -> np.ndarray:
        """The image with the sides that images have in tests, or where they have to fit."""
        height, width = image.shape[:2]
        scale = self._short / min(height, width) if self._short else 1.0
        scale = min(scale, self._long / max(height, width)) if self._short and self._long else scale
        if self._size:
            scale = min(scale, self._size[0] / height, self._size[1] / width)
        if scale == 1:
            return image
        size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
        filtered = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        return cv2.resize(image, size, interpolation=filtered)

    def _planes(self, image: np.ndarray) -> np.ndarray:
        """(C, H, W) float32 in the model's order of channels."""
        if self._channels == "L":
            image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[:, :, None]
        elif self._channels == "RGB":
            image = image[:, :, ::-1]
        return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32)


def best(scores: np.ndarray, boxes: np.ndarray, k: int, threshold: float) -> Detections:
    """The k best of all locations: what a graph of ``--raw`` leaves to do.

    Args:
        scores: (R, K), of K classes at R locations.
        boxes: (R, 4).
        threshold: least score.
    """
    flat = scores.ravel()
    above = np.flatnonzero(flat >= threshold)
    order = above[np.argsort(-flat[above], kind="stable")[:k]]
    locations, classes = np.divmod(order, scores.shape[1])
    return Detections(boxes[locations], flat[order], classes)


def nms(found: Detections, threshold: float) -> list[int]:
    """Indices of the detections that no better one of their class overlaps by a larger IoU."""
    areas = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(axis=1)
    kept: list[int] = []
    for index, box in enumerate(found.boxes):  # best first
        others = [other for other in kept if found.classes[other] == found.classes[index]]
        corners = found.boxes[others]
        low, high = np.maximum(corners[:, :2], box[:2]), np.minimum(corners[:, 2:], box[2:])
        common = (high - low).clip(min=0).prod(axis=1)
        if not (common > threshold * (areas[others] + areas[index] - common)).any():
            kept.append(index)
    return kept


def draw(image: np.ndarray, found: Detections, names: Sequence[str]) -> np.ndarray:
    """A copy of a BGR image with boxes, names and scores; a class keeps its colour."""
    drawing = image.copy()
    scale = max(min(image.shape[:2]) / 800, 0.4)
    thickness = max(1, round(2 * scale))
    for box, score, number in reversed(list(zip(*found))):  # the best on top
        hue = number * 0.618 % 1
        color = tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue, 0.9, 0.9))
        left, top, right, bottom = (int(round(float(x))) for x in box)
        cv2.rectangle(drawing, (left, top), (right, bottom), color, thickness)
        text = f"{names[number]} {score:.2f}"
        (width, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thickness)
        left = max(0, min(left, image.shape[1] - width))
        top = max(top, height + base)
        cv2.rectangle(drawing, (left, top - height - base), (left + width, top), color, cv2.FILLED)
        origin = (left, top - base // 2)
        ink = (0, 0, 0) if sum(color) > 380 else (255, 255, 255)
        cv2.putText(
            drawing, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, ink, thickness, cv2.LINE_AA
        )
    return drawing


def find_images(names: Sequence[str]) -> list[str]:
    """Files that images, folders and patterns name, in order."""
    files: list[str] = []
    for name in map(os.path.expanduser, names):
        if os.path.isdir(name):
            paths = [os.path.join(name, file) for file in sorted(os.listdir(name))]
            found = [path for path in paths if path.lower().endswith(IMAGES)]
        elif glob.has_magic(name) and not os.path.exists(name):
            found = sorted(filter(os.path.isfile, glob.glob(name, recursive=True)))
        else:
            found = [name] if name else []
        if not found:
            raise Mistake(f"--input {name!r} holds no image ({', '.join(IMAGES)})")
        files += found
    return files


def output_files(images: Sequence[str], output: str) -> list[Path]:
    """``output`` itself for one image, else a file in that folder for each; names stay apart."""
    target = Path(output).expanduser()
    single = len(images) == 1 and target.suffix.lower() in IMAGES and not target.is_dir()
    make_folder(target.parent if single else target)
    if single:
        return [target]
    names = [Path(name).name for name in images]
    return [
        target / (name if names.count(name) == 1 else f"{index}_{name}")
        for index, name in enumerate(names)
    ]


def check_outputs(outputs: Sequence[Path], inputs: Sequence[str], option: str) -> None:
    """Refuse to write onto what is read, by whatever name or link."""
    read = {identity(name): name for name in inputs if os.path.exists(name)}
    for output in filter(Path.exists, outputs):
        if identity(output) in read:
            raise Mistake(
                f"{option}: {str(output)!r} is an input itself ({read[identity(output)]!r}), "
                "which would be lost; give another place"
            )


def identity(path: str | Path) -> tuple[int, int]:
    """Device and number of a file; links to it have the same."""
    state = os.stat(path)
    return state.st_dev, state.st_ino


def image_ids(images: Sequence[str]) -> list[int]:
    """The numbers that the names are, as COCO's; else their places, from 0."""
    stems = [Path(name).stem for name in images]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return numbers if len(set(numbers)) == len(stems) else list(range(len(stems)))


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Mistake(f"cannot make the folder {str(folder)!r} ({error.strerror})") from error


def entries(detector: Detector, found: Detections, image_id: int, name: str) -> list[dict]:
    """Detections in COCO's results format."""
    return [
        {
            "image_id": image_id,
            "file_name": name,
            "category_id": detector.category_ids[number],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
        }
        for (x1, y1, x2, y2), score, number in zip(*found)
    ]


def run_on_images(
    detector: Detector, images: Sequence[str], targets: Sequence[Path], results: list[dict]
) -> int:
    """Detect and draw on files; the exit status is 1 if one could not be read."""
    failed = 0
    for index, (path, image_id) in enumerate(zip(images, image_ids(images))):
        try:
            image = read_image(path)
            reason = f"{path!r} cannot be read as an image"
        except Mistake as mistake:
            image, reason = None, str(mistake)
        if image is None:
            print(f"skipped: {reason}", file=sys.stderr)
            failed += 1
            continue
        found = detector(image)
        print(f"{printable(path)}: {len(found.scores)} objects")
        results += entries(detector, found, image_id, Path(path).name)
        if targets:
            save(targets[index], draw(image, found, detector.class_names))
    if failed:
        print(f"error: {failed} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if failed else 0


def read_image(path: str) -> np.ndarray | None:
    """BGR uint8, of more bits the upper ones; None where OpenCV cannot read it, or is too large.

    Raises:
        Mistake: the range of its pixels is not known.
    """
    try:
        content = np.fromfile(path, np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        any_kind = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if image is None else image
    except (cv2.error, OSError):
        return None
    if any_kind is not None and any_kind.dtype not in (np.uint8, np.uint16):
        raise Mistake(
            f"{path!r} has pixels of {any_kind.dtype}, whose range is not known: save it with 8 or "
            "16 bits"
        )
    if image is None or image.dtype == np.uint8:
        return image
    return np.right_shift(image, 8).astype(np.uint8)


def printable(name: str) -> str:
    """A name without what would move the cursor of a terminal."""
    return name if name.isprintable() else repr(name)


def save(path: Path, image: np.ndarray) -> None:
    try:
        if cv2.imwrite(str(path), image):
            return
    except cv2.error:  # a suffix that it does not know
        pass
    raise Mistake(f"cannot write {str(path)!r}: give another --output, as a folder or out.jpg")


def frames_of(path: str) -> Iterator[tuple[np.ndarray, float]]:
    """The frames of a video, BGR, each with the video's frames a second."""
    if not os.path.isfile(path):
        raise Mistake(f"--input {path!r} does not exist; give a video or images")
    video = cv2.VideoCapture(path)
    rate = video.get(cv2.CAP_PROP_FPS)
    width, height = (int(video.get(cv2.CAP_PROP_FRAME_WIDTH + side)) for side in (0, 1))
    if width * height > MAX_PIXELS:
        raise Mistake(f"--input {path!r} has frames of {width} x {height} pixels; shrink it")
    good, frame = video.read()
    if not good:
        raise Mistake(f"--input {path!r} has no frame that OpenCV can read; convert it, as to .mp4")
    while good:
        yield frame, rate if 0 < rate < 1000 else 25.0
        good, frame = video.read()


def video_file(path: str, output: str) -> Path:
    """``output`` itself, or a file in that folder."""
    target = Path(output).expanduser()
    named = target.suffix.lower() in CODECS and not target.is_dir()
    return target if named else target / f"{Path(path).stem}.mp4"


def run_on_video(detector: Detector, path: str, target: Path | None, results: list[dict]) -> None:
    """Detect and draw on a video; the output appears when all is done."""
    part, writer, count = None, None, 0
    try:
        for count, (frame, rate) in enumerate(frames_of(path), start=1):
            found = detector(frame)
            results += entries(detector, found, count - 1, Path(path).name)
            if target is None:
                continue
            if writer is None:
                make_folder(target.parent)
                part = target.with_name(f"{target.stem}.part{target.suffix}")
                writer = open_writer(part, rate, frame.shape[:2])
            writer.write(draw(frame, found, detector.class_names))
    except BaseException:
        if writer is not None and part is not None:
            writer.release()
            part.unlink(missing_ok=True)
        raise
    if writer is not None and part is not None and target is not None:
        writer.release()
        os.replace(part, target)
    see = f", see {printable(str(target))}" if target else ""
    print(f"{printable(path)}: {count} frames{see}")


def open_writer(path: Path, rate: float, size: tuple[int, int]) -> Any:
    codec = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
    writer = cv2.VideoWriter(str(path), codec, rate, size[::-1])
    if not writer.isOpened():
        raise Mistake(f"OpenCV cannot write {str(path)!r}; give another --output, as out.avi")
    return writer


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Detect with an exported model, without PyTorch.")
    parser.add_argument("--model", required=True, metavar="FILE", help="of defcn-export")
    parser.add_argument(
        "--input", nargs="+", required=True, help="images, folders, patterns; or one video"
    )
    parser.add_argument("--output", help="a file or folder to save drawings to")
    parser.add_argument("--json", metavar="FILE", help="save detections in COCO's results format")
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.3, help="least score [%(default)s]"
    )
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    if not 0 <= args.confidence_threshold <= 1:
        raise Mistake(f"--confidence-threshold is {args.confidence_threshold}: give 0 to 1")
    if not args.output and not args.json:
        raise Mistake("nowhere to put the detections: give --output, --json or both")
    video = args.input[0] if args.input[0].lower().endswith(VIDEOS) else None
    if video and len(args.input) > 1:
        raise Mistake(f"--input: give the video {video!r} alone")
    images = [] if video else find_images(args.input)
    targets: list[Path] = []
    if args.output:
        targets = [video_file(video, args.output)] if video else output_files(images, args.output)
    table = Path(args.json).expanduser() if args.json else None
    inputs = [args.model, *([video] if video else images)]
    check_outputs(targets, inputs, "--output")
    check_outputs([table] if table else [], inputs, "--json")
    if table and table.resolve() in [target.resolve() for target in targets]:
        raise Mistake(f"--json {args.json!r} is a drawing of --output, too: give another")
    detector = Detector(args.model, args.confidence_threshold)
    results: list[dict] = []
    status = 0
    if video:
        run_on_video(detector, video, targets[0] if targets else None, results)
    else:
        status = run_on_images(detector, images, targets, results)
    if table:
        write_json(table, results)
    return status


def write_json(path: Path, results: list[dict]) -> None:
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(json.dumps(results), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise Mistake(f"cannot write --json {str(path)!r} ({error.strerror})") from error
    print(f"{len(results)} detections, see {printable(str(path))}")


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        return run(parse_arguments(arguments))
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
