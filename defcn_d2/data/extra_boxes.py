"""Extra boxes of objects, by the names of ``DATASETS.EXTRA_BOXES``, through the augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import transform_instance_annotations
from detectron2.structures import Boxes

from ..utils.box_fields import annotation_key, field_name
from .errors import DatasetError

Record = dict[str, Any]


def extra_box_names(cfg: CfgNode) -> tuple[str, ...]:
    """The names of ``DATASETS.EXTRA_BOXES``.

    Raises:
        DatasetError: one cannot be part of the name of a field, or stands twice.
    """
    names = tuple(cfg.DATASETS.EXTRA_BOXES)
    for name in names:
        if not (isinstance(name, str) and name.isidentifier()):
            raise DatasetError(
                f"DATASETS.EXTRA_BOXES has the name {name!r}; give letters, digits and "
                'underscores, such as "visible" for the key visible_bbox of annotations'
            )
    if len(set(names)) < len(names):
        raise DatasetError(f"DATASETS.EXTRA_BOXES is {list(names)}; give each name once")
    return names


class ExtraBoxesMapper:
    """Detectron2's mapper for training, with ``gt_<name>_boxes`` beside ``gt_boxes``.

    Extra boxes take part in all augmentations and are clipped to the image, after which they may
    have no area. An object is kept or dropped by its ``bbox`` alone.
    """

    def __init__(self, mapper: DatasetMapper, names: Sequence[str]):
        """
        Args:
            mapper: whose augmentations are watched from now on.
            names: every annotation that is no crowd has the keys ``<name>_bbox``, in the
                ``bbox_mode`` of its ``bbox``.
        """
        self._mapper = mapper
        self._names = names
        self._augmentations = _Remembered(mapper.augmentations)
        mapper.augmentations = self._augmentations

    def __call__(self, record: Record) -> Record:
        if "annotations" not in record:
            return self._mapper(record)
        # An annotation's place takes the place of its class: so it is known which ones are left.
        annotations = record["annotations"]
        numbered = [{**x, "category_id": number} for number, x in enumerate(annotations)]
        image = self._mapper({**record, "annotations": numbered})
        instances = image["instances"]
        left = [annotations[number] for number in instances.gt_classes.tolist()]
        classes = [int(x["category_id"]) for x in left]
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        for name in self._names:
            boxes = [
                transform_instance_annotations(
                    {"bbox": x[annotation_key(name)], "bbox_mode": x["bbox_mode"]},
                    self._augmentations.transforms,
                    instances.image_size,
                )["bbox"]
                for x in left
            ]
            tensor = torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4))
            instances.set(field_name(name), Boxes(tensor))
        return image


class _Remembered:
    """Augmentations that keep the transforms which they gave last."""

    def __init__(self, augmentations: Any):
        self._augmentations = augmentations
        self.transforms: Any = None

    def __call__(self, inputs: Any) -> Any:
        self.transforms = self._augmentations(inputs)
        return self.transforms
