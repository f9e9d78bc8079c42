"""Data sets that a config names by their files: ``DATASETS.REGISTER``."""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import log_first_n

from ..errors import DatasetError
from ..extra_boxes import extra_box_names
from .coco import CocoData, read_coco
from .coco_checks import check_sizes
from .formats import default_images

# The keys below DATASETS.REGISTER, and those of Detectron2 whose value they give.
SPLITS = {"TRAIN": "TRAIN", "VAL": "TEST"}


@dataclass(frozen=True)
class OwnData:
    """Annotations and the folder of their images, as absolute paths.

    ``classes`` are the names that it must have, in the order of its category ids, and
    ``category_ids`` these, empty where they are not known yet; ``extra_boxes`` are the names of
    ``DATASETS.EXTRA_BOXES``.
    """

    annotations: str
    image_root: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    extra_boxes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The same for the same files, so that several sets can be registered in a process."""
        files = zlib.crc32(f"{self.annotations}\n{self.image_root}".encode())
        return f"{Path(self.annotations).stem}-{files:08x}"

    def read(self) -> CocoData:
        """The checked content; ``DatasetError`` where it is of no use."""
        data = read_coco(self.annotations, self.image_root, self.extra_boxes, self.classes)
        names = tuple(data.categories.values())
        if names != self.classes:
            raise DatasetError(
                f"{self.annotations} has the {len(names)} classes {_list(names)}, but "
                f"DATASETS.REGISTER.CLASSES has {len(self.classes)}: {_list(self.classes)}. Give a "
                'file of the same classes; or set CLASSES "[]", which takes those of the file '
                "and needs a model that is trained with them"
            )
        return data

    def load(self) -> list[dict[str, Any]]:
        """The records in Detectron2's standard format; what is odd about them is logged, once."""
        data = self.read()
        for warning in data.warnings:
            log_first_n(logging.WARNING, f"{data.path}: {warning}", key="message")
        _set_category_ids(self.name, data.categories)
        return data.records()


_registered: dict[str, OwnData] = {}


def own_data(name: str) -> OwnData | None:
    """The data that ``register_datasets`` has registered under this name; None for any other."""
    return _registered.get(name)


def register_datasets(cfg: CfgNode) -> None:
    """Register what ``DATASETS.REGISTER`` names; nothing happens where it names nothing.

    ``cfg`` is changed in place: ``DATASETS.TRAIN`` and ``DATASETS.TEST`` become these data sets
    (none, where only the other is given), its numbers of classes and ``DATASETS.REGISTER``'s
    ``CLASSES`` and ``CATEGORY_IDS`` those of the file, and the paths absolute. A config that has
    been through this, such as the config.yaml of a training, gives the same again, without
    reading a file.

    Raises:
        DatasetError: a half of a pair is missing; ``CATEGORY_IDS`` are not one for each class,
            ascending; or the classes are to be read from a file in which the check of
            ``read_coco`` has found a fatal mistake.
    """
    node = cfg.DATASETS.REGISTER
    given = [split for split in SPLITS if _complete(node[split], split)]
    if not given:
        return
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        raise DatasetError(
            "DATASETS.REGISTER is for boxes alone, but MODEL.MASK_ON or MODEL.KEYPOINT_ON is True; "
            "set them False"
        )
    _complete_classes(cfg, given[0])
    for group in (cfg.MODEL.DEFCN, cfg.MODEL.RETINANET, cfg.MODEL.ROI_HEADS):
        group.NUM_CLASSES = len(node.CLASSES)
    for split, key in SPLITS.items():
        cfg.DATASETS[key] = (_register(_own_data(cfg, split)),) if split in given else ()


def check_datasets(cfg: CfgNode, splits: Iterable[str]) -> None:
    """Check the data sets of ``DATASETS.REGISTER``, whose files are read as a whole.

    Args:
        cfg: after ``register_datasets``.
        splits: "TRAIN", "VAL"; what is not given is passed over.

    Raises:
        DatasetError: see ``read_coco``; or their categories differ; or objects to train with lack
            extra boxes that ``DATASETS.EXTRA_BOXES`` asks for.
    """
    node = cfg.DATASETS.REGISTER
    given = [split for split in splits if node[split].ANNOTATIONS]
    data = {split: _read(cfg, split) for split in given}
    if len(data) == 2:
        _check_same_categories(data["TRAIN"], data["VAL"])
    for split in given:
        _own_data(cfg, split).read()
    if "TRAIN" in data and data["TRAIN"].lacking:
        lacking = ". ".join(data["TRAIN"].lacking)
        raise DatasetError(f"DATASETS.REGISTER.TRAIN: {data['TRAIN'].path}: {lacking}")


def check_image_sizes(cfg: CfgNode, splits: Iterable[str]) -> None:
    """Compare the sizes in files of ``DATASETS.REGISTER`` with the images; see ``check_sizes``.

    Nothing happens where ``DATALOADER.CHECK_SIZES`` is False, or where ``DATALOADER.ON_ERROR``
    "skip" leaves out images of another size. The arguments are those of ``check_datasets``.
    """
    if not cfg.DATALOADER.CHECK_SIZES or cfg.DATALOADER.ON_ERROR == "skip":
        return
    for split in splits:
        if cfg.DATASETS.REGISTER[split].ANNOTATIONS:
            data = _read(cfg, split)
            check_sizes(data.path, data.image_root, data.images)


def _complete(pair: CfgNode, split: str) -> bool:
    """Checks that a split has both paths or none, and makes them absolute.

    The folder of images may be left to a format that says where it is.
    """
    where = f"DATASETS.REGISTER.{split}"
    if pair.ANNOTATIONS and not pair.IMAGES:
        try:
            path = Path(os.path.abspath(os.path.expanduser(pair.ANNOTATIONS)))
            pair.IMAGES = default_images(path, split.lower())
        except DatasetError as error:
            raise DatasetError(f"{where}: {error}, {where}.IMAGES") from error
    for one, other in (("ANNOTATIONS", "IMAGES"), ("IMAGES", "ANNOTATIONS")):
        if pair[one] and not pair[other]:
            raise DatasetError(f"{where}.{one} is {pair[one]!r}: give {where}.{other}, too")
        if pair[one]:
            pair[one] = os.path.abspath(os.path.expanduser(pair[one]))
    return bool(pair.ANNOTATIONS)


def _complete_classes(cfg: CfgNode, split: str) -> None:
    """Set the classes and their ids, where they are not given, to those of the file."""
    node = cfg.DATASETS.REGISTER
    if not node.CLASSES:
        categories = _read(cfg, split).categories
        node.CLASSES, node.CATEGORY_IDS = list(categories.values()), list(categories)
    elif not node.CATEGORY_IDS:
        with contextlib.suppress(DatasetError):  # not here, or of no use: drawing needs no ids
            categories = _read(cfg, split).categories
            if list(categories.values()) == list(node.CLASSES):
                node.CATEGORY_IDS = list(categories)
    ids = list(node.CATEGORY_IDS)
    whole = all(isinstance(id, int) for id in ids)
    if ids and not (whole and len(ids) == len(node.CLASSES) and ids == sorted(set(ids))):
        raise DatasetError(
            f"DATASETS.REGISTER.CATEGORY_IDS is {ids}, but must be an ascending whole number for "
            f"each of the {len(node.CLASSES)} CLASSES; correct it, or set it to []"
        )


def _own_data(cfg: CfgNode, split: str) -> OwnData:
    node = cfg.DATASETS.REGISTER
    pair, names = node[split], extra_box_names(cfg)
    classes, category_ids = tuple(node.CLASSES), tuple(node.CATEGORY_IDS)
    return OwnData(pair.ANNOTATIONS, pair.IMAGES, classes, category_ids, names)


def _read(cfg: CfgNode, split: str) -> CocoData:
    pair = cfg.DATASETS.REGISTER[split]
    try:
        classes = cfg.DATASETS.REGISTER.CLASSES
        return read_coco(pair.ANNOTATIONS, pair.IMAGES, extra_box_names(cfg), classes)
    except DatasetError as error:
        raise DatasetError(f"DATASETS.REGISTER.{split}: {error}") from error


def _register(data: OwnData) -> str:
    """Register a data set, once, and return its name."""
    if _registered.get(data.name) == data:
        return data.name
    if data.name in _registered:  # with other classes, as the file has changed; or extra boxes
        DatasetCatalog.remove(data.name)
        MetadataCatalog.remove(data.name)
    DatasetCatalog.register(data.name, data.load)
    MetadataCatalog.get(data.name).set(
        json_file=data.annotations,
        image_root=data.image_root,
        thing_classes=list(data.classes),
        evaluator_type="coco",
    )
    if data.category_ids:
        _set_category_ids(data.name, data.category_ids)
    _registered[data.name] = data
    return data.name


def _set_category_ids(name: str, category_ids: Iterable[int]) -> None:
    metadata = MetadataCatalog.get(name)
    # what is there already cannot be set to another value
    metadata.__dict__.pop("thing_dataset_id_to_contiguous_id", None)
    metadata.thing_dataset_id_to_contiguous_id = {
        category: label for label, category in enumerate(category_ids)
    }


def _check_same_categories(train: CocoData, val: CocoData) -> None:
    """A category with another id would be another class to the model, or another name."""
    ids = [id for data in (train, val) for id in data.categories]
    ids = [id for id in dict.fromkeys(ids) if train.categories.get(id) != val.categories.get(id)]
    if ids:
        differences = [
            f"id {id} is {_name(train, id)} and {_name(val, id)}" for id in sorted(ids)[:3]
        ]
        more = ", ..." if len(ids) > len(differences) else ""
        raise DatasetError(
            f"DATASETS.REGISTER: the categories of {train.path} and {val.path} differ, "
            f"{', '.join(differences)}{more}; give both files the same categories"
        )


def _name(data: CocoData, category: int) -> str:
    return repr(data.categories[category]) if category in data.categories else "absent"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
