"""Small data sets in COCO's format with pictures of their own, and what the doctor says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.data.doctor.__main__ import examine

CLASSES = ("cat", "dog")
#: A class and a box x, y, width, height.
Object = tuple[str, list[float]]
#: By name of the image, which is drawn unless its file is there.
Images = dict[str, list[Object]]
CATS: list[Object] = [("cat", [4 * i, 2, 12, 12]) for i in range(20)]
DOGS: list[Object] = [("dog", [4 * i, 40, 12, 20]) for i in range(20)]
SIZE = (96, 64)


def picture(seed: int, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    """Noise that is coarse, so that it is another one by its outlines as well."""
    pixels = np.random.default_rng(seed).integers(256, size=(6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def write(folder: Path, images: Images, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Path:
    """Writes ``annotations.json`` and the folder images, and returns the folder."""
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(classes, start=1)]
    for number, (name, objects) in enumerate(images.items(), start=1):
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            picture(1000 * seed + number).save(path)
        try:
            width, height = Image.open(path).size
        except OSError:
            width, height = SIZE
        size = {"width": width, "height": height}
        content["images"].append({"id": number, "file_name": name, **size})
        for label, box in objects:
            entry = {"id": len(content["annotations"]), "image_id": number, "bbox": box}
            content["annotations"].append({**entry, "category_id": classes.index(label) + 1})
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def keys(split: str, folder: Path) -> list[str]:
    """Pairs of a command line for ``DATASETS.REGISTER``'s TRAIN or VAL."""
    where = f"DATASETS.REGISTER.{split}"
    files = [f"{where}.ANNOTATIONS", folder / "annotations.json"]
    return [*map(str, files), f"{where}.IMAGES", str(folder / "images")]


def found(*opts: object) -> list[str]:
    """Level and sentence of the findings, without the names of the data sets."""
    cfg = load_config(CONFIG, [*map(str, opts), "MODEL.DEVICE", "cpu"])
    report = examine(cfg)
    titles = {
        x["title"]: x["title"].split(" ")[0].removeprefix("DATASETS.") for x in report["data_sets"]
    }
    texts = ["{level}: {sentence}".format(**finding) for finding in report["findings"]]
    for title, short in titles.items():
        texts = [text.replace(title, short) for text in texts]
    return texts
