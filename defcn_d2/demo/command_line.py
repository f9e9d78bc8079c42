"""The command line of ``demo/demo.py``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image
from tqdm import tqdm

from ..engine import Predictor, UserError, load_config, reported
from ..engine.cpu import use_cpu
from ..engine.predictor import metadata_of
from .files import find_images, output_files
from .video import open_source, output_file, run_on_video
from .window import Window

Detect = Callable[[np.ndarray], Instances]

# What Pillow raises for a file that is no image, or half of one.
_UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
# Short side of a drawing, in pixels, below which its letters are too large for it.
_SHORT_SIDE = 400


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw detections on images, a video or a webcam's pictures."
    )
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="the one that was trained"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="images, folders, patterns such as 'dir/*.jpg'")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    parser.add_argument(
        "--output", help="a file or folder to save drawings to; without it a window shows them"
    )
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.3, help="least score drawn [%(default)s]"
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs, at the end"
    )
    return parser.parse_args(arguments)


@reported
def run(arguments: Sequence[str] | None = None) -> int:
    """Detect and draw.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        the exit status: 1 if a file could not be read, or after another mistake.
    """
    args = parse_arguments(arguments)
    cfg = setup(args)
    # what may fail comes before the model is loaded
    images = find_images(args.input) if args.input else []
    source = 0 if args.webcam else args.video_input
    video = None if images else open_source(source)
    window = None if args.output else Window()
    predictor = Predictor(cfg)

    def detect(image: np.ndarray) -> Instances:
        found = predictor(image)
        return found[found.scores >= args.confidence_threshold]

    metadata = metadata_of(cfg)
    if video is not None:
        target = output_file(source, args.output) if args.output else None
        run_on_video(video, detect, metadata, target, window)
        return 0
    targets = output_files(images, args.output) if args.output else [None] * len(images)
    return run_on_images(list(zip(images, targets, strict=True)), detect, metadata, window)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config, with the confidence threshold where a DeFCN has it."""
    cfg = load_config(args.config_file, args.opts)
    if not 0 <= args.confidence_threshold <= 1:
        raise UserError(f"--confidence-threshold is {args.confidence_threshold}: give 0 to 1")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: give a trained model, --opts MODEL.WEIGHTS FILE")
    cfg.defrost()
    cfg.MODEL.DEFCN.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.freeze()
    if not torch.cuda.is_available():
        if cfg.MODEL.DEVICE != "cpu":
            print("No CUDA device: running on the CPU")
        cfg = use_cpu(cfg)
    return cfg


def run_on_images(
    files: Sequence[tuple[str, Path | None]],
    detect: Detect,
    metadata: Metadata,
    window: Window | None,
) -> int:
    """Draw on each image; to its file, or where that is None to the window.

    Returns:
        the exit status: 1 if an image could not be read.
    """
    failed = 0
    for path, target in tqdm(files, unit="image", disable=len(files) < 2 or window is not None):
        try:
            image = read_image(path, "RGB")
        except _UNREADABLE as error:
            tqdm.write(f"skipped: {path!r} cannot be read as an image ({error})", file=sys.stderr)
            failed += 1
            continue
        found = detect(image)
        tqdm.write(f"{path}: {len(found)} objects" + (f", see {target}" if target else ""))
        scale = max(1.0, _SHORT_SIDE / min(image.shape[:2]))
        drawing = Visualizer(image, metadata, scale=scale).draw_instance_predictions(found)
        pixels = np.ascontiguousarray(drawing.get_image()[:, :, ::-1])
        if target is not None:
            if not cv2.imwrite(str(target), pixels):
                raise UserError(f"cannot write {str(target)!r}: give another --output")
        elif window is not None and not window.show(pixels, wait=True):
            break
    if failed:
        print(f"error: {failed} of {len(files)} images could not be read", file=sys.stderr)
    return 1 if failed else 0
