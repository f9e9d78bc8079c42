"""Detections drawn on image files."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances
from tqdm import tqdm

from ..engine.predictor import read_rgb
from ..utils.errors import UserError
from ..utils.printable import printable
from .coco_results import Results, image_ids
from .overlay import draw_detections
from .window import Window

# Short side of a drawing, in pixels, below which its letters are too large for it.
_SHORT_SIDE = 400


def run_on_images(
    files: Sequence[str],
    targets: Sequence[Path] | None,
    detect: Callable[[np.ndarray], Instances],
    names: Sequence[str],
    window: Window | None,
    results: Results | None = None,
    max_pixels: int = 0,
) -> int:
    """Detect on each image, and draw.

    Args:
        files: those that cannot be read are reported and left out.
        targets: a file for the drawing of each, or None.
        detect: (H, W, 3) uint8 RGB to detections.
        names: of the classes.
        window: where drawings are shown, a key apart; or None.
        results: takes all detections; or None.
        max_pixels: a larger image cannot be read; 0: any can.

    Returns:
        the exit status: 1 if an image could not be read.
    """
    failed = 0
    ids = image_ids(files)
    quiet = len(files) < 2 or window is not None
    for number, file in enumerate(tqdm(files, unit="image", disable=quiet)):
        try:
            image = read_rgb(file, max_pixels)
        except UserError as error:
            tqdm.write(printable(f"skipped: {error}"), file=sys.stderr)
            failed += 1
            continue
        found = detect(image)
        target = targets[number] if targets else None
        see = f", see {target}" if target else ""
        tqdm.write(printable(f"{file}: {len(found)} objects{see}"))
        if results is not None:
            results.add(ids[number], file, found)
        if target is None and window is None:
            continue
        scale = max(1.0, _SHORT_SIDE / min(image.shape[:2]))
        pixels = draw_detections(image, found, names, scale)
        if target is not None and not cv2.imwrite(str(target), pixels):
            raise UserError(f"cannot write {str(target)!r}: give another --output")
        if window is not None and not window.show(pixels, wait=True):
            break
    if failed:
        print(f"error: {failed} of {len(files)} images could not be read", file=sys.stderr)
    return 1 if failed else 0
