"""The entries of COCO files: what is understood, what is reported, what is left out."""

import json

import pytest
from coco_files import make_content

from defcn_d2.data.errors import DatasetError
from defcn_d2.data.readers.coco_entries import parse, read_boxes, read_categories, read_images
from defcn_d2.data.readers.findings import Findings


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not JSON, or is cut off"),
        (json.dumps(make_content())[:200], r"is not JSON, or is cut off \(.*line 1 column"),
        (b"\xff\xd8\xff\xe0", "is not JSON, or is cut off"),
        ("[1, 2]", "not in COCO's format .*expected a JSON object, got \\[1, 2\\]"),
        ("[" * 100_000, "not in COCO's format|not JSON"),
        ('{"images": [], "annotation": []}', "'annotations' is missing .its keys: images, annota"),
        ('{"images": {}, "annotations": []}', "'images' must be a list, got {}"),
    ],
)
def test_no_coco_file(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=f"^{path} .*{message}") as caught:
        parse(path)
    assert "\n" not in str(caught.value)


def test_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(DatasetError, match=f"cannot read {tmp_path}: Is a directory"):
        parse(tmp_path)


def read(content):
    """Categories, images, boxes; and the sentences about them, fatal and other ones."""
    findings = Findings()
    categories = read_categories(content["categories"], findings)
    images = read_images(content["images"], findings)
    boxes = read_boxes(content["annotations"], images, categories, findings)
    return categories, images, boxes, findings.sentences(True), findings.sentences(False)


def test_all_is_understood():
    categories, images, boxes, fatal, odd = read(make_content())
    assert list(categories.items()) == [(3, "cat"), (7, "dog"), (20, "bird")]
    assert [(x.id, x.file_name, x.size) for x in images] == [
        (1, "empty.png", (64, 48)),
        (11, "deep/b.png", (64, 48)),
        (21, "deep/c.png", (64, 48)),
        (31, "a.png", (64, 48)),
    ]
    assert [x.crowd for x in boxes] == [False, False, False, True, False]
    assert boxes[0] == (100, 31, 3, [4, 6, 20, 30], 300.0, False, {})
    assert fatal == odd == []


FOUR = "annotations whose 'bbox' is not four finite numbers"
NAME = "images whose 'file_name' is no path below the folder of images"
BAD = "entries that cannot be understood: 1, first"
DAMAGE = [  # list, index, what changes there (None: removed), sentence
    ("categories", 1, {"id": None}, f"{BAD} categories[1]: 'id' is missing (its keys: name)"),
    ("categories", 1, {"id": "3"}, "categories[1]: 'id' must be a whole number, got '3'"),
    ("categories", 1, {"name": None}, "categories[1]: 'name' is missing"),
    ("categories", 1, {"name": 5}, "categories[1]: 'name' must be a string, got 5"),
    ("categories", 1, {"id": 7}, "ids that several categories have: 1, first 7"),
    ("images", 2, {"id": None}, "images[2]: 'id' is missing"),
    ("images", 2, {"id": True}, "images[2]: 'id' must be a whole number or a string, got True"),
    ("images", 2, {"id": "x"}, f"{BAD} image id 'x' among whole numbers; correct them"),
    ("images", 2, {"id": 31}, "ids that several images have: 1, first 31; give each image an id"),
    ("images", 2, {"file_name": None}, "images[2]: 'file_name' is missing (its keys: id, width,"),
    ("images", 2, {"file_name": ""}, f"{NAME}: 1, first images[2] (''); write it relative to"),
    ("images", 2, {"file_name": "../x.png"}, f"{NAME}: 1, first images[2] ('../x.png'); write"),
    ("images", 2, {"id": 2**63}, "images[2]: 'id' must have no more than 64 bits, got 9223372036"),
    ("images", 2, {"width": 10**7}, "images[2]: no image has width 10000000 and height 48"),
    (
        "categories",
        1,
        {"name": "\ud800"},
        "'name' has a character that no file can hold, '\\ud800'",
    ),
    ("images", 2, {"width": None}, "images[2]: 'width' is missing"),
    ("images", 2, {"height": 48.5}, "images[2]: 'height' must be a whole number, got 48.5"),
    ("images", 2, {"height": 0}, "images[2]: no image has width 64 and height 0"),
    ("annotations", 1, {"id": None}, "annotations[1]: 'id' is missing"),
    ("annotations", 1, {"image_id": None}, "annotations[1]: 'image_id' is missing"),
    ("annotations", 1, {"category_id": None}, "annotations[1]: 'category_id' is missing"),
    ("annotations", 1, {"category_id": 7.5}, "'category_id' must be a whole number, got 7.5"),
    ("annotations", 1, {"iscrowd": 2}, "annotations[1]: 'iscrowd' must be 0 or 1, got 2"),
    ("annotations", 1, {"ignore": "no"}, "annotations[1]: 'ignore' must be 0 or 1, got 'no'"),
    ("annotations", 1, {"bbox": None}, f"{FOUR}, x, y, width and height in pixels: 1, first annot"),
    ("annotations", 1, {"bbox": []}, "first annotation 101 ([]); correct or remove them"),
    ("annotations", 1, {"bbox": [1, 2, 3]}, "annotation 101 ([1, 2, 3])"),
    ("annotations", 1, {"bbox": [1, 2, 3, float("nan")]}, "annotation 101 ([1, 2, 3, nan])"),
    ("annotations", 1, {"bbox": [1, 2, float("inf"), 4]}, "annotation 101 ([1, 2, inf, 4])"),
    ("annotations", 1, {"bbox": [1, 2, "3", 4]}, "annotation 101 ([1, 2, '3', 4])"),
    ("annotations", 1, {"bbox": "1 2 3 4"}, "annotation 101 ('1 2 3 4')"),
    (
        "annotations",
        1,
        {"category_id": 0},
        "annotations whose 'category_id' is not among the categories: 1, first annotation 101 (0)",
    ),
    (
        "annotations",
        1,
        {"image_id": "31"},
        'of another type than the ids of the images, as "1" for 1: 1, first annotation 101 (',
    ),
]


@pytest.mark.parametrize("name, index, change, sentence", DAMAGE)
def test_fatal_mistakes(name, index, change, sentence):
    content = make_content()
    for key, value in change.items():
        content[name][index].pop(key, None)
        if value is not None:
            content[name][index][key] = value
    *_, fatal, _ = read(content)
    assert sentence in ". ".join(fatal)


@pytest.mark.parametrize("name", ["categories", "images", "annotations"])
def test_entries_that_are_no_objects(name):
    content = make_content()
    content[name].insert(0, [1])
    *_, fatal, _ = read(content)
    assert fatal == [f"{BAD} {name}[0]: expected a JSON object, got [1]; correct them"]


def test_what_is_odd_but_makes_sense():
    content = make_content()
    content["categories"][0]["name"] = "dog"
    content["images"][3]["file_name"] = "a.png"
    content["annotations"][1]["id"] = 100
    content["annotations"][2]["image_id"] = 99
    _, _, boxes, fatal, odd = read(content)
    assert fatal == [] and len(boxes) == 4
    assert [sentence.partition(";")[0] for sentence in odd] == [
        "names that several categories have: 1, first 'dog'",
        "files that several images name: 1, first 'a.png'",
        "ids that several annotations have: 1, first 100",
        "annotations whose 'image_id' is not among the images: 1, first annotation 102 (99)",
    ]


def test_ids_of_images_are_strings_and_those_of_some_annotations_are_not():
    content = make_content()
    for entry in content["images"]:
        entry["id"] = str(entry["id"])
    for entry in content["annotations"][1:]:
        entry["image_id"] = str(entry["image_id"])
    *_, (sentence,), odd = read(content)
    assert "of another type than the ids of the images" in sentence and odd == []
    assert "1, first annotation 100 (31)" in sentence


@pytest.mark.parametrize("area", [-1, "9", True, float("nan"), float("inf"), [9], 10**400])
def test_areas_that_are_none(area):
    content = make_content()
    content["annotations"][1]["area"] = area
    *_, boxes, fatal, odd = read(content)
    assert fatal == [] and boxes[1].area is None and boxes[0].area == 300
    (sentence,) = odd
    assert sentence.startswith("annotations whose 'area' is not a positive number: 1, first annot")
    assert "annotation 101 (" in sentence and "that of their box is taken" in sentence


def test_areas_of_large_objects():
    content = make_content()
    content["annotations"][1]["area"] = 12_000_000  # 4000 x 3000 pixels
    *_, boxes, fatal, odd = read(content)
    assert fatal == odd == [] and boxes[1].area == 12_000_000


def test_values_that_files_leave_out_or_fill_with_nothing():
    content = make_content()
    for index, change in enumerate([{}, {"area": 0}, {"area": None}, {"ignore": 1}]):
        entry = content["annotations"][index]
        del entry["area"], entry["iscrowd"]
        entry.update(change)
    for image in content["images"]:
        image["id"] = str(image["id"])
    for entry in content["annotations"]:
        entry["image_id"] = str(entry["image_id"])
    del content["images"][0]["width"], content["images"][0]["height"]
    _, images, boxes, fatal, odd = read(content)
    assert fatal == odd == []
    assert [x.area for x in boxes[:4]] == [None] * 4
    assert [x.crowd for x in boxes[:4]] == [False, False, False, True]
    assert [(x.id, x.size) for x in images][-1] == ("31", None)


def test_a_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(make_content()).encode())
    assert parse(path) == {key: x for key, x in make_content().items() if key != "info"}


def test_whole_numbers_with_a_point():
    """As programs write them that know no other numbers; all of them, and no halves."""
    content = make_content()
    for entry in [*content["images"], *content["categories"], *content["annotations"]]:
        numbers = {key: float(x) for key, x in entry.items() if isinstance(x, int)}
        entry.update(numbers)
    assert read(content) == read(make_content())
    kinds = {type(x.id) for x in read(content)[1]} | set(map(type, read(content)[0]))
    assert kinds == {int}
    content["images"][0]["width"] = 64.5
    (sentence,) = read(content)[3]
    assert "images[0]: 'width' must be a whole number, got 64.5" in sentence
