"""Put the results of ``make demo`` into README.md: its table and a small picture.

Usage: python tools/study/update_readme.py [output/demo]
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from demo_results import table

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- demo-results:begin -->", "<!-- demo-results:end -->"
PICTURE = Path("docs") / "images" / "detections.jpg"
PICTURE_WIDTH = 1000  # pixels
PICTURE_BYTES = 150_000  # at most: it is part of the repository


def results(summary: dict) -> str:
    """The text between the markers."""
    where = f"{summary['cores']} CPU cores" if summary["device"] == "cpu" else "a GPU"
    versions = summary["versions"]
    return (
        f"{table(summary)}\n\n"
        f"after {summary['iterations']} iterations of {summary['batch']} images, "
        f"{summary['training_seconds'] / 60:.1f} minutes of training on {where} "
        f"({sum(summary['seconds'].values()) / 60:.1f} minutes with the drawing of the data, the "
        f"evaluations and the pictures; PyTorch {versions['torch'].partition('+')[0]}, Detectron2 "
        f"{versions['detectron2']}). Written by `python tools/study/update_readme.py`."
    )


def replace_between(
    text: str, new: str, markers: tuple[str, str] = (BEGIN, END), file: str = "README.md"
) -> str:
    """``text``, which is that of ``file``, with ``new`` between the two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    begin, end = markers
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"{file} needs the lines {begin} and {end}, once each, in this order")
    return text[: text.index(begin) + len(begin)] + f"\n{new}\n" + text[text.index(end) :]


def small_picture(grid: np.ndarray) -> bytes:
    """The upper half of the grid's rows as a JPEG, of the quality that the limit allows."""
    half = grid[: grid.shape[0] // 2]
    scale = PICTURE_WIDTH / half.shape[1]
    small = cv2.resize(half, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    for quality in range(90, 0, -5):
        encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if len(encoded) <= PICTURE_BYTES:
            break
    return encoded


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """The command, for the README of ``root``; returns the exit status."""
    output = Path(arguments[0]) if arguments else root / "output" / "demo"
    grid = cv2.imread(str(output / "detections.jpg"))
    if grid is None or not (output / "summary.json").exists():
        print(f"error: {output} holds no finished demo; run `make demo` first", file=sys.stderr)
        return 1
    summary = json.loads((output / "summary.json").read_text())
    readme = root / "README.md"
    try:
        text = replace_between(readme.read_text(), results(summary))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, content in ((readme, text.encode()), (root / PICTURE, small_picture(grid))):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".part")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        print(f"{path}: {len(content)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
