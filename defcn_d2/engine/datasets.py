"""Data sets by name, with checks that would otherwise fail late or say little."""

import logging
from collections.abc import Iterable, Sequence
from json import JSONDecodeError
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from ..data import datasets_root
from ..data.readers.findings import EXAMPLES
from ..data.readers.missing_files import missing_files
from ..data.readers.own_data import own_data
from ..utils.errors import UserError, as_user_error, did_you_mean

logger = logging.getLogger(__name__)

Record = dict[str, Any]


def check_names(names: Iterable[str], key: str) -> None:
    """Raise ``UserError`` for a data set that is not registered; ``key`` is where it is named."""
    known = DatasetCatalog.list()
    for name in names:
        if name not in known:
            raise UserError(f"{key}: there is no data set {name!r}; {did_you_mean(name, known)}")


def load_records(cfg: CfgNode, names: Sequence[str], filter_empty: bool) -> list[Record]:
    """The records of data sets in Detectron2's standard format, checked.

    Args:
        cfg: whose model's number of classes must be that of the data sets.
        names: registered data sets.
        filter_empty: leave out images without annotations.

    Raises:
        UserError: missing or damaged files, no images, classes that differ from the model's.
    """
    label = " + ".join(repr(name) for name in names)
    where = f"data set {label}: {{}}; put it there, or {_remedy(names)}"
    try:
        with (
            as_user_error(JSONDecodeError, f"data set {label}: damaged annotations ({{}})"),
            as_user_error(ImportError, f"data set {label} needs another package: {{}}"),
            # Detectron2 asserts that there are images, and that annotations are consistent
            as_user_error(AssertionError, f"data set {label}: {{}}"),
        ):
            records = get_detection_dataset_dicts(list(names), filter_empty=filter_empty)
    except FileNotFoundError as error:
        problem = f"{error.filename!r} does not exist"
        raise UserError(where.replace("{}", problem)) from error
    for name in names:
        check_classes(cfg, name)
    _check_images(records, where)
    return records


def check_classes(cfg: CfgNode, name: str) -> None:
    """Raise ``UserError`` where a DeFCN and a data set have different numbers of classes.

    A data set whose classes are known only when it is loaded passes before that.
    """
    classes = MetadataCatalog.get(name).get("thing_classes")
    if cfg.MODEL.META_ARCHITECTURE != "DeFCN" or classes is None:
        return
    if len(classes) != cfg.MODEL.DEFCN.NUM_CLASSES:
        shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
        raise UserError(
            f"MODEL.DEFCN.NUM_CLASSES is {cfg.MODEL.DEFCN.NUM_CLASSES}, but the data set {name!r} "
            f"has {len(classes)} classes ({shown}): set MODEL.DEFCN.NUM_CLASSES {len(classes)}"
        )


def log_images_without_objects(records: Sequence[Record]) -> None:
    """Log how many images without objects are kept for a training; Detectron2 logs removed ones."""
    empty = sum(
        all(x.get("iscrowd", 0) for x in record.get("annotations", ())) for record in records
    )
    if empty:
        logger.info(
            "%d of %d images have no objects and are background, as "
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False",
            *(empty, len(records)),
        )


def _remedy(names: Sequence[str]) -> str:
    """The remedy where a data set is not where it is expected."""
    if any(own_data(name) for name in names):
        return "correct DATASETS.REGISTER"
    return (
        f"set $DETECTRON2_DATASETS (now {str(datasets_root())!r}) to the folder that holds the "
        "data sets"
    )


def _check_images(records: Sequence[Record], where: str) -> None:
    """Raise ``UserError`` if images are missing."""
    files = [record["file_name"] for record in records]
    try:
        missing = missing_files(files)
    except OSError as error:
        problem = f"its image folder {error.filename!r} cannot be read ({error.strerror})"
        raise UserError(where.replace("{}", problem)) from error
    if missing:
        first = ", ".join(map(repr, missing[:EXAMPLES])) + (", ..." * (len(missing) > EXAMPLES))
        problem = f"{len(missing)} of {len(files)} images are missing, the first {first}"
        raise UserError(where.replace("{}", problem))
