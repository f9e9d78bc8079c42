"""Pascal VOC's format: an xml for each image, in a folder; a list may name those of a split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ..errors import DatasetError
from ..json_fields import LIMIT, short_repr
from .findings import Findings, Kind
from .image_files import image_files
from .paths import check_name

_BAD_FILE = Kind("files that are not VOC's xml", "write them again, or remove them")
_BAD_OBJECT = Kind(
    "objects that cannot be understood",
    "give each a <name>, and a <bndbox> with the numbers <xmin>, <ymin>, <xmax>, <ymax>",
)
_UNKNOWN_NAME = Kind(
    "objects of classes that the training data, DATASETS.REGISTER.CLASSES, do not have",
    "correct their names, or train with examples of them",
)
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def image_folder(path: Path, split: str) -> str:
    """The folder of images that belongs to a folder of xml: JPEGImages beside it.

    Raises:
        DatasetError: it is not there.
    """
    folder = _xml_folder(path).parent / "JPEGImages"
    if not folder.is_dir():
        raise DatasetError(f"{path}: there is no folder {str(folder)!r}; give that of the images")
    return str(folder)


def files(path: Path, image_root: Path) -> list[str]:
    """The files that the content of a set depends on, there or not."""
    return [str(path), *map(str, _xml_files(path)), *image_files(image_root)]


def read(
    path: Path, image_root: Path, findings: Findings, classes: Sequence[str] = ()
) -> dict[str, list[Any]]:
    """The content as of a file in COCO's format; ids of categories count from 1.

    The image of a.xml is a.jpg, or of another format, and else what its ``filename`` says.
    Objects that are ``difficult`` are objects like others.

    Args:
        path: the folder of xml files; or a list of their names, such as ImageSets/Main/train.txt
            beside the folder Annotations.
        classes: names of the classes in their order; none: all names, sorted.

    Raises:
        DatasetError: there are no xml files.
    """
    folder, xml_files = _xml_folder(path), _xml_files(path)
    if not xml_files:
        raise DatasetError(
            f"{path} names no xml files of VOC's format; of COCO's give the .json, of YOLO's the "
            "data.yaml"
        )
    known = {os.path.splitext(name)[0]: name for name in image_files(image_root)}
    images, objects = [], []
    for number, file in enumerate(xml_files, start=1):
        name = file.relative_to(folder).as_posix()
        try:
            image = _parse(file)
        except (OSError, ValueError, ElementTree.ParseError) as error:
            findings.add(_BAD_FILE, f"{name} ({error})")
            continue
        file_name = known.get(name.removesuffix(".xml"), image.file_name)
        images.append({"id": number, "file_name": file_name, **image.size})
        for place, element in enumerate(image.objects, start=1):
            where = f"{name}, object {place}"
            try:
                objects.append((where, number, *_object(element)))
            except ValueError as error:
                findings.add(_BAD_OBJECT, f"{where} ({error})")
    names = list(classes) or sorted({label for _, _, label, _ in objects})
    ids = {name: number for number, name in enumerate(names, start=1)}
    unknown = [x for x in objects if x[2] not in ids]
    findings.add_all(_UNKNOWN_NAME, unknown, lambda x: f"{x[0]} ({short_repr(x[2])})")
    return {
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "images": images,
        "annotations": [
            {"id": where, "image_id": image, "category_id": ids[label], "bbox": box}
            for where, image, label, box in objects
            if label in ids
        ],
    }


class _Image(NamedTuple):
    file_name: str
    size: dict[str, int]  # width and height in pixels; none where they are not known
    objects: list[ElementTree.Element]


class _Plain(ElementTree.TreeBuilder):
    """A tree of a file that defines nothing of its own, which could fill the memory."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("it has a DOCTYPE")


def _parse(file: Path) -> _Image:
    root = ElementTree.parse(file, ElementTree.XMLParser(target=_Plain())).getroot()
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not <annotation>")
    texts = {key: root.findtext(f"size/{key}", "").strip() for key in ("width", "height")}
    # a writer that did not see the image leaves 0 there
    known = all(x.isdecimal() and 0 < float(x) < LIMIT for x in texts.values())
    size = {key: int(x) for key, x in texts.items()} if known else {}
    file_name = root.findtext("filename", "").strip() or f"{file.stem}.jpg"
    return _Image(file_name, size, root.findall("object"))


def _object(element: ElementTree.Element) -> tuple[str, list[float]]:
    """Name of the class, and box x, y, width, height in pixels."""
    name = element.findtext("name", "").strip()
    if not name:
        raise ValueError("it has no <name>")
    texts = [element.findtext(f"bndbox/{corner}", "nothing").strip() for corner in _CORNERS]
    try:
        x1, y1, x2, y2 = map(float, texts)
        if not all(-LIMIT < x < LIMIT for x in (x1, y1, x2, y2)):
            raise ValueError
    except ValueError:
        raise ValueError(f"{name}: its corners are {short_repr(', '.join(texts))}") from None
    if x2 < x1 or y2 < y1:
        raise ValueError(f"{name}: its corners {', '.join(texts)} end before they begin")
    # corners are pixels that belong to the box, and count from 1
    return name, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]


def _xml_folder(path: Path) -> Path:
    """The folder of a list ImageSets/Main/x.txt is Annotations, beside ImageSets."""
    return path if path.is_dir() else path.parent.parent.parent / "Annotations"


def _xml_files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*.xml") if not file.name.startswith("."))
    folder = _xml_folder(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no list of names ({error}); write it again") from error
    # lists of a class have 1, 0 or -1 behind the name: whether it is in the image
    names = [line.split()[0] for line in lines if line.strip()]
    try:
        for name in names:
            check_name(name)
    except ValueError as error:
        raise DatasetError(f"{path}: the name {error}; correct it") from error
    return [folder / f"{name}.xml" for name in names]
