"""Files of detections in COCO's results format, read with care and written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.json_fields import is_box, is_number, short_repr
from ..data.readers.odgt import AnnotationError
from ..data.synthetic.generation import DatasetError

Detections = Mapping[str, npt.NDArray[np.float64]]
"""Image ID to (D, 6): x1, y1, x2, y2 in pixels, score, category_id."""

NO_DETECTIONS: npt.NDArray[np.float64] = np.zeros((0, 6))


def read_results(path: Path, image_ids: Iterable[str | int]) -> dict[str, npt.NDArray[np.float64]]:
    """The detections of a file by image, in the file's order; images without any are left out.

    An entry needs ``image_id``, ``bbox`` (x, y, width, height) and ``score``; ``category_id`` is 0
    where it is absent. Image IDs are compared as text.

    Raises AnnotationError, with the number of the entry, for an entry that is wrong or of an image
    that is not among ``image_ids``; DatasetError where the file cannot be read.
    """
    try:
        entries = json.loads(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(entries, list):
        raise AnnotationError(f"{path} is not in COCO's results format: expected a list of objects")
    found: dict[str, list[list[float]]] = {str(image_id): [] for image_id in image_ids}
    for number, entry in enumerate(entries):
        try:
            image_id, row = _row(entry)
            if image_id not in found:
                raise ValueError(f"no image has the ID {short_repr(image_id)}")
        except ValueError as error:
            raise AnnotationError(f"{path}, entry {number}: {error}") from None
        found[image_id].append(row)
    return {image_id: np.array(rows, np.float64) for image_id, rows in found.items() if rows}


def _row(entry: object) -> tuple[str, list[float]]:
    if not isinstance(entry, dict) or not {"image_id", "bbox", "score"} <= entry.keys():
        raise ValueError(
            f"expected an object with image_id, bbox and score, got {short_repr(entry)}"
        )
    box, score, category = entry["bbox"], entry["score"], entry.get("category_id", 0)
    if not (is_box(box) and is_number(score) and is_number(category)):
        raise ValueError(
            "bbox must be x, y, width, height in pixels, score and category_id numbers, got "
            f"{short_repr(box)}, {short_repr(score)} and {short_repr(category)}"
        )
    x, y, width, height = box
    image_id = entry["image_id"]
    if isinstance(image_id, float) and image_id.is_integer():  # 7.0, as some programs write 7
        image_id = int(image_id)
    return str(image_id), [x, y, x + width, y + height, score, category]


def dump_results(detections: Detections) -> bytes:
    """Detections as the content of a file that ``read_results`` reads."""
    results = [
        {
            "image_id": image_id,
            "category_id": int(category),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for image_id, found in detections.items()
        for x1, y1, x2, y2, score, category in found.tolist()
    ]
    return json.dumps(results).encode()
