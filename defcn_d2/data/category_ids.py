"""Category ids of the data that a model was trained on, which its results are written with."""

from detectron2.data import DatasetCatalog, Metadata

from .errors import DatasetError

# Their readers number the classes from 0 and keep no mapping: an id is one more.
_FROM_1 = ("crowdhuman", "lvis")


def category_ids(metadata: Metadata) -> dict[int, int]:
    """The model's numbers of classes to the ids of the data set; empty where it has none.

    Sets that know their categories only when they are loaded are loaded.

    Raises:
        DatasetError: the ids stand in files that are not on this machine.
    """
    key = "thing_dataset_id_to_contiguous_id"
    if metadata.get(key) is None and metadata.get("evaluator_type") in _FROM_1:
        return {number: number + 1 for number in range(len(metadata.get("thing_classes") or []))}
    if metadata.get(key) is None and metadata.name in DatasetCatalog.list():
        try:
            DatasetCatalog.get(metadata.name)
        except (OSError, DatasetError) as error:
            raise DatasetError(
                f"the category ids of the data set {metadata.name!r} are not known: {error}; put "
                "its files there, or give DATASETS.REGISTER.CATEGORY_IDS, the ids in the order of "
                "its CLASSES"
            ) from error
    return {number: category for category, number in (metadata.get(key) or {}).items()}
