"""Boxes of objects by name: ``gt_boxes``, and ``gt_<name>_boxes`` for ``DATASETS.EXTRA_BOXES``."""

from detectron2.structures import Boxes, Instances


def annotation_key(name: str) -> str:
    """Key of an annotation for the extra box ``name``: "visible_bbox" for "visible"."""
    return f"{name}_bbox"


def field_name(name: str) -> str:
    """Field of ``Instances`` for the extra box ``name``: "gt_visible_boxes" for "visible"."""
    return f"gt_{name}_boxes"


def is_box_field(field: str) -> bool:
    """Reports if a field of ground truth holds boxes, ``gt_boxes`` included."""
    return field.startswith("gt_") and field.endswith("_boxes")


def box_fields(gt: Instances) -> dict[str, Boxes]:
    """The boxes of a ground truth by field, ``gt_boxes`` first."""
    names = sorted(filter(is_box_field, gt.get_fields()), key=lambda name: name != "gt_boxes")
    return {name: gt.get(name) for name in names}
