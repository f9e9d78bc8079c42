"""YOLO's and Pascal VOC's files, for tools/trust/fuzz_files.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from defcn_d2.data.readers import coco
from fuzzing.file_readers import HEIGHT, WIDTH, Kind, Wrong, judge_boxes


class LabelFiles(Kind):
    """Annotations that become COCO's content; an error may name the file below their folder."""

    annotations: str
    images: str

    def write(self) -> None:
        (self.folder / self.images).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (WIDTH, HEIGHT)).save(self.folder / self.images / name)

    def read(self) -> Any:
        coco._read.cache_clear()
        return coco.read_coco(self.folder / self.annotations, self.folder / self.images)

    def names(self, message: str, name: str) -> bool:
        return "\n" not in message and len(message) < 2000 and Path(name).name in message

    def judge(self, found: Any) -> str:
        boxes = [x["bbox"] for record in found.records() for x in record["annotations"]]
        judge_boxes(boxes)
        if len(boxes) != self.written() and not found.warnings:
            raise Wrong(f"{self.written()} objects, of which {len(boxes)} were read")
        same = found.records() == self.expected.records()
        same &= found.categories == self.expected.categories
        return "told" if found.warnings else "the same" if same else "other"

    def written(self) -> int:
        """The number of objects in the files, as they are."""
        raise NotImplementedError


class YoloFiles(LabelFiles):
    name = "YOLO's data.yaml and labels"
    annotations, images = "data.yaml", "images/train"
    damaged = ("data.yaml", "labels/train/a.txt")

    def write(self) -> None:
        super().write()
        (self.folder / "labels" / "train").mkdir(parents=True)
        text = "path: .\ntrain: images/train\nnc: 3\nnames:\n  0: cat\n  1: dog\n  2: bird\n"
        (self.folder / self.annotations).write_text(text)
        polygon = "2 0.25 0.25 0.75 0.25 0.5 0.75\n"
        (self.folder / self.damaged[1]).write_text(f"0 0.5 0.5 0.25 0.125\n{polygon}")
        (self.folder / "labels" / "train" / "b.txt").write_text("1 0.5 0.5 0.25 0.25\n")

    def written(self) -> int:
        texts = ((self.folder / f"labels/train/{x}.txt").read_text("utf-8-sig") for x in "ab")
        return sum(bool(line.strip()) for text in texts for line in text.splitlines())


class VocFiles(LabelFiles):
    name = "Pascal VOC xml"
    annotations, images = "Annotations", "JPEGImages"
    damaged = ("Annotations/a.xml",)

    def write(self) -> None:
        super().write()
        (self.folder / self.annotations).mkdir()
        for name, objects in (("a", ("cat", "dog")), ("b", ("dog",))):
            text = f"<annotation><filename>{name}.png</filename><size><width>{WIDTH}</width>"
            text += f"<height>{HEIGHT}</height><depth>3</depth></size>\n"
            for label in objects:
                corners = "<xmin>5</xmin><ymin>7</ymin><xmax>24.5</xmax><ymax>36</ymax>"
                text += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>\n"
            (self.folder / self.annotations / f"{name}.xml").write_text(f"{text}</annotation>\n")

    def written(self) -> int:
        texts = ((self.folder / self.annotations / f"{x}.xml").read_bytes() for x in "ab")
        return sum(text.count(b"<object>") for text in texts)


LABELS: tuple[type[Kind], ...] = (YoloFiles, VocFiles)
