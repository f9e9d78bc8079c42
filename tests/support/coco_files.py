"""A small data set in COCO's format on disk, as people have them, for tests that damage it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["cat", "dog", "bird"]  # by ascending id; there is no bird
WIDTH, HEIGHT = 64, 48


def make_content(folder: str = "", first_id: int = 1) -> dict[str, Any]:
    """Four images in a sub-folder, the last of them empty; ids with gaps, a crowd, an extra key."""
    names = [f"{folder}{name}.png" for name in ("a", "deep/b", "deep/c", "empty")]
    ids = [first_id + step for step in (30, 10, 20, 0)]
    boxes = [
        (ids[0], 3, [4, 6, 20, 30], 0),
        (ids[0], 7, [30.5, 10.25, 24, 20], 0),
        (ids[1], 7, [2, 2, 40, 40], 0),
        (ids[1], 3, [0, 0, 60, 44], 1),
        (ids[2], 7, [10, 12, 16, 14], 0),
    ]
    return {
        "info": {"year": 2026},
        "images": [
            {"id": id, "file_name": name, "width": WIDTH, "height": HEIGHT, "license": 0}
            for id, name in zip(ids, names, strict=True)
        ],
        "categories": [
            {"id": 20, "name": "bird", "supercategory": "animal"},
            {"id": 3, "name": "cat"},
            {"id": 7, "name": "dog"},
        ],
        "annotations": [
            {
                "id": 100 + number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3] / 2,
                "iscrowd": crowd,
            }
            for number, (image, category, box, crowd) in enumerate(boxes)
        ],
    }


def write_set(folder: Path, content: Any = None, images: bool = True) -> tuple[Path, Path]:
    """Write ``annotations.json`` and the folder ``images`` into ``folder``; returns their paths."""
    content = make_content() if content is None else content
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    if images:
        pixels = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8)
        for name in (image["file_name"] for image in content["images"]):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / name)
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json", root
