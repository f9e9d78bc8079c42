"""The content of a COCO file, written as YOLO's and as Pascal VOC's files, as people have them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image


def write_yolo(folder: Path, split: str, content: dict[str, Any]) -> Path:
    """``data.yaml``, images/``split`` and labels/``split`` below ``folder``; returns the yaml."""
    for path, size, objects in _images(folder / "images" / split, content):
        lines = [
            f"{label} {(x + w / 2) / size[0]:.6f} {(y + h / 2) / size[1]:.6f} "
            f"{w / size[0]:.6f} {h / size[1]:.6f}\n"
            for label, _, (x, y, w, h) in objects
        ]
        file = folder / "labels" / split / path.relative_to(folder / "images" / split)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.with_suffix(".txt").write_text("".join(lines))
    names = [x["name"] for x in sorted(content["categories"], key=lambda x: x["id"])]
    yaml = folder / "data.yaml"
    yaml.write_text(f"train: images/train\nval: images/val\nnc: {len(names)}\nnames: {names}\n")
    return yaml


def write_voc(folder: Path, split: str, content: dict[str, Any]) -> Path:
    """Annotations, JPEGImages and a list of the split below ``folder``; returns the list."""
    names = []
    for path, size, objects in _images(folder / "JPEGImages", content):
        name = path.relative_to(folder / "JPEGImages").with_suffix("")
        names.append(name.as_posix())
        file = (folder / "Annotations" / name).with_suffix(".xml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            f"<annotation><filename>{path.name}</filename>"
            f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
            + "".join(
                f"<object><name>{label}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
                f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
                for _, label, (x, y, w, h) in objects
            )
            + "</annotation>"
        )
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return lists / f"{split}.txt"


def _images(
    root: Path, content: dict[str, Any]
) -> Iterator[tuple[Path, tuple[int, int], list[tuple[int, str, list[float]]]]]:
    """Draws each image; gives its path, size, and number of class, name and box of its objects."""
    categories = sorted(content["categories"], key=lambda x: x["id"])
    labels = {x["id"]: (number, x["name"]) for number, x in enumerate(categories)}
    for image in content["images"]:
        path, size = root / image["file_name"], (image["width"], image["height"])
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.new("RGB", size, (image["id"] % 256, 9, 90)).save(path)
        own = [x for x in content["annotations"] if x["image_id"] == image["id"]]
        yield path, size, [(*labels[x["category_id"]], x["bbox"]) for x in own]
