"""COCO files as a whole: what Detectron2 and pycocotools get of them, and what nobody gets."""

import contextlib
import copy
import io
import json
import os

import numpy as np
import pytest
from coco_files import CLASSES, HEIGHT, WIDTH, make_content, write_set
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from defcn_d2.data.errors import DatasetError
from defcn_d2.data.readers.coco import read_coco


def test_records_are_detectron2s(tmp_path):
    files = write_set(tmp_path)
    data = read_coco(*files)
    assert data.warnings == [] and list(data.categories.values()) == CLASSES
    expected = load_coco_json(*map(str, files), "coco_as_detectron2_has_it")
    assert data.records() == expected
    assert MetadataCatalog.get("coco_as_detectron2_has_it").thing_classes == CLASSES
    assert [len(record["annotations"]) for record in expected] == [0, 2, 1, 2]
    assert all(os.path.isfile(record["file_name"]) for record in data.records())


def test_ground_truth_is_pycocotools(tmp_path):
    files = write_set(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO(str(files[0])).dataset
    found = read_coco(*files).ground_truth()
    for name, keys in (
        ("images", ("id", "file_name", "width", "height")),
        ("categories", ("id", "name")),
        ("annotations", ("image_id", "category_id", "bbox", "area", "iscrowd")),
    ):
        assert sorted(tuple(entry[key] for key in keys) for entry in found[name]) == sorted(
            tuple(entry[key] for key in keys) for entry in expected[name]
        )
    assert [entry["id"] for entry in found["annotations"]] == [1, 2, 3, 4, 5]


def test_what_is_left_out(tmp_path):
    content = make_content()
    content["annotations"] += [
        {"id": 1, "image_id": 31, "category_id": 3, "bbox": [5, 5, 0, 9]},
        {"id": 2, "image_id": 31, "category_id": 3, "bbox": [500, 5, 9, 9], "area": 81},
        {"id": 3, "image_id": 32, "category_id": 3, "bbox": [5, 5, 9, 9]},
        {"id": 4, "image_id": 31, "category_id": 3, "bbox": [60, 5, 90, 9], "ignore": 1},
    ]
    data = read_coco(*write_set(tmp_path, content))
    kept = data.records()[3]["annotations"]
    assert [x["bbox"] for x in kept] == [[4, 6, 20, 30], [30.5, 10.25, 24, 20], [60, 5, 90, 9]]
    assert [x["iscrowd"] for x in kept] == [0, 0, 1]
    assert data.ground_truth()["annotations"][-1]["area"] == 90 * 9  # not told, the box's
    unknown, empty, outside = data.warnings
    assert "not among the images: 1, first annotation 3 (32)" in unknown
    assert "boxes without area in their image: 2, first annotation 1 ([5, 5, 0, 9] in" in empty
    assert "outside their image: 1, first annotation 4 ([60, 5, 90, 9] in an image of 64" in outside


def with_visible_boxes():
    """A box without area is among the annotations, and the crowd has no visible box."""
    content = make_content()
    for number, entry in enumerate(content["annotations"]):
        if not entry["iscrowd"]:
            entry["visible_bbox"] = [number, 1, 2.5, 3]
    content["annotations"][1]["bbox"] = [5, 5, 0, 9]
    return content


def test_extra_boxes(tmp_path):
    files = write_set(tmp_path, with_visible_boxes())
    data = read_coco(*files, ["visible"])
    assert data.lacking == []
    kept = [x for record in data.records() for x in record["annotations"]]
    assert [(x["bbox"], x.get("visible_bbox")) for x in kept] == [
        ([2, 2, 40, 40], [2, 1, 2.5, 3]),
        ([0, 0, 60, 44], None),
        ([10, 12, 16, 14], [4, 1, 2.5, 3]),
        ([4, 6, 20, 30], [0, 1, 2.5, 3]),
    ]
    data = read_coco(*files)  # not asked for
    assert not any("visible_bbox" in x for r in data.records() for x in r["annotations"])


def test_extra_boxes_that_objects_lack(tmp_path):
    content = with_visible_boxes()
    del content["annotations"][2]["visible_bbox"]
    data = read_coco(*write_set(tmp_path, content), ["visible", "head"])
    assert data.lacking == [
        "annotations without 'visible_bbox', which DATASETS.EXTRA_BOXES asks for: 1, first "
        "annotation 102; add it to them, or leave 'visible' out there",
        "annotations without 'head_bbox', which DATASETS.EXTRA_BOXES asks for: 4, first "
        "annotation 102, annotation 104, annotation 100, ...; add it to them, or leave 'head' out "
        "there",
    ]


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, float("nan"), 4], None, "1 2 3 4"])
def test_extra_boxes_that_are_none(tmp_path, box):
    content = with_visible_boxes()
    content["annotations"][2]["visible_bbox"] = box
    content["annotations"][4]["bbox"] = []
    path, root = write_set(tmp_path, content)
    with pytest.raises(DatasetError) as caught:
        read_coco(path, root, ["visible"])
    assert str(caught.value) == (
        f"{path}: annotations whose 'visible_bbox' is not four finite numbers, x, y, width and "
        f"height in pixels: 1, first annotation 102 ({box!r}); correct or remove them. annotations "
        "whose 'bbox' is not four finite numbers, x, y, width and height in pixels: 1, first "
        "annotation 104 ([]); correct or remove them"
    )


def test_all_mistakes_at_once(tmp_path):
    content = make_content()
    content["annotations"][0]["category_id"] = 4
    content["annotations"][1]["bbox"] = []
    path, root = write_set(tmp_path, content)
    (root / "a.png").unlink()
    with pytest.raises(DatasetError) as caught:
        read_coco(path, root)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for part in ("annotation 100 (4)", "annotation 101 ([])", f"'{root}/a.png'"):
        assert part in message


def test_nothing_to_learn(tmp_path):
    content = make_content()
    for entry in content["annotations"]:
        entry["image_id"] += 1000
    files = write_set(tmp_path, content)
    with pytest.raises(DatasetError, match="has no boxes that are of use. .* 5, first annotation"):
        read_coco(*files)
    for name in ("annotations", "images"):
        content[name] = []
    files[0].write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="has no boxes that are of use"):
        read_coco(*files)


def test_no_file(tmp_path):
    with pytest.raises(DatasetError, match=f"cannot read {tmp_path}/no.json: No such file"):
        read_coco(tmp_path / "no.json", tmp_path)


def test_images_and_annotations_exported_again_at_another_size(tmp_path):
    content = make_content()
    for image in content["images"]:
        del image["width"], image["height"]
    path, images = write_set(tmp_path, content)
    first = read_coco(path, images)
    for image in content["images"]:
        Image.new("RGB", (10 * WIDTH, 10 * HEIGHT)).save(images / image["file_name"])
    for entry in content["annotations"]:
        entry["bbox"] = [10 * x for x in entry["bbox"]]
    path.write_text(json.dumps(content))
    again = read_coco(path, images)
    assert (again.sizes == 10 * first.sizes).all() and len(first.boxes) == len(again.boxes)
    assert again.warnings == first.warnings


def test_sizes_come_from_the_images_where_the_file_is_silent(tmp_path):
    content = make_content()
    for image in content["images"][1:]:
        del image["width"], image["height"]
    files = write_set(tmp_path, content)
    Image.new("L", (WIDTH * 2, HEIGHT)).save(files[1] / "empty.png")
    sizes = read_coco(*files).sizes.tolist()
    assert sizes == [[WIDTH * 2, HEIGHT]] + [[WIDTH, HEIGHT]] * 3


def test_a_changed_file_is_read_again(tmp_path):
    content = make_content()
    files = write_set(tmp_path, content)
    assert read_coco(*files) is read_coco(*map(str, files))
    content["categories"][1]["name"] = "tiger"
    files[0].write_text(json.dumps(content))
    assert list(read_coco(*files).categories.values()) == ["tiger", "dog", "bird"]


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40) | st.sampled_from([10**12, -(10**400)]),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-5, 90) | st.floats(), max_size=5),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("whole"))


@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_is_told_or_harmless(whole, data):
    """A value put anywhere: either the data can be used with it, or one sentence says why not."""
    content, root = make_content(), whole[1]
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(["images", "annotations", "categories"]))
        entry = data.draw(st.sampled_from(content[name]))
        if isinstance(entry, dict):
            keys = [*sorted(entry), "ignore"]
            entry[data.draw(st.sampled_from(keys))] = copy.deepcopy(data.draw(VALUES))
    whole[0].write_text(json.dumps(content))
    read_coco.__globals__["_read"].cache_clear()
    try:
        found = read_coco(whole[0], root)
    except DatasetError as error:
        assert str(root.parent) in str(error) and "\n" not in str(error)
        return
    boxes = [x["bbox"] for record in found.records() for x in record["annotations"]]
    assert len(boxes) >= 1 and np.isfinite(boxes).all() and (np.array(boxes)[:, 2:] > 0).all()
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = found.ground_truth()
        api.createIndex()
    assert len(api.anns) == len(boxes)
