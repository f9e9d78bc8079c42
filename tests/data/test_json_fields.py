"""Hostile JSON: deep, large, ambiguous; through every reader of annotations and results."""

import json
from pathlib import Path

import pytest
from coco_files import make_content, write_set
from hypothesis import given
from hypothesis import strategies as st

from defcn_d2.data import DatasetError
from defcn_d2.data.json_fields import parse_json, short_repr
from defcn_d2.data.readers.coco import read_coco
from defcn_d2.data.readers.odgt import read_odgt
from defcn_d2.evaluation.results import read_results

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(VALUES)
def test_as_the_standard_library(value):
    text = json.dumps(value)
    assert parse_json(text) == parse_json(text.encode()) == json.loads(text)


def test_a_key_that_stands_twice():
    text = '{"a": [{"id": 1, "name": "x", "id": 2}]}'
    assert json.loads(text)["a"] == [{"id": 2, "name": "x"}]
    with pytest.raises(ValueError, match=r"the key 'id' stands twice in an object \(beside 'name"):
        parse_json(text)


@pytest.mark.parametrize("depth", [1_000, 100_000])
@pytest.mark.parametrize("pair", ["[]", ('{"a":', "}")])
def test_depth(depth, pair):
    text = pair[0] * depth + "0" + pair[1] * depth
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)


def test_what_is_too_deep_to_be_shown():
    value = []
    for _ in range(100_000):
        value = [value]
    assert short_repr(value) == "a list of great depth"
    while value:  # piece by piece: all at once is deep as well
        value = value[0]


def read_as_coco(text: str, folder: Path) -> object:
    path, root = write_set(folder)
    path.write_text(text)
    return read_coco(path, root)


def read_as_odgt(text: str, folder: Path) -> object:
    path = folder / "a.odgt"
    path.write_text(text)
    return read_odgt(path)


def read_as_results(text: str, folder: Path) -> object:
    path = folder / "results.json"
    path.write_text(text)
    return read_results(path, [1])


COCO, LINE, RESULT = (
    make_content(),
    {"ID": "x", "gtboxes": [{"tag": "person", "fbox": [1, 2, 3, 4], "extra": {"ignore": 0}}]},
    [{"image_id": 1, "category_id": 0, "bbox": [1, 2, 3, 4], "score": 0.5}],
)
READERS = {
    "coco": (read_as_coco, COCO),
    "odgt": (read_as_odgt, LINE),
    "results": (read_as_results, RESULT),
}
HOSTILE = {  # a number of the file becomes this
    "nan": "NaN",
    "infinity": "-Infinity",
    "float beyond all": "1e999",
    "many digits": "9" * 100_000,
    "digits that are still read": "9" * 4_000,
    "deep": "[" * 100_000,
    "as deep as is read": "[" * 400 + "]" * 400,
    "cut": "",
    "other": "true",
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_numbers(kind, hostile, tmp_path):
    read, content = READERS[kind]
    text = json.dumps(content).replace("[1, 2, 3, 4]", "[1, 2, 3, @]", 1)
    text = text.replace("[4, 6, 20, 30]", "[4, 6, 20, @]", 1)
    assert text.count("@") == 1
    assert read(text.replace("@", "4"), tmp_path)
    with pytest.raises(DatasetError) as error:
        read(text.replace("@", HOSTILE[hostile]), tmp_path)
    message = str(error.value)
    assert str(tmp_path) in message and "\n" not in message and len(message) < 1000


@pytest.mark.parametrize("kind", READERS)
def test_text_that_no_file_can_hold(kind, tmp_path):
    """Half a character in a name, which could be neither found nor printed."""
    read, content = READERS[kind]
    text = json.dumps(content).replace('"a.png"', r'"\ud800"').replace('"x"', r'"\ud800"')
    text = text.replace('"image_id": 1,', r'"image_id": "\ud800",')
    with pytest.raises(DatasetError) as error:
        read(text, tmp_path)
    str(error.value).encode()


@pytest.mark.parametrize("kind", ["coco", "odgt"])
def test_no_half_of_a_file_is_forgotten(kind, tmp_path):
    read, content = READERS[kind]
    key = "annotations" if kind == "coco" else "gtboxes"
    text = json.dumps(content)[:-1] + f', "{key}": []}}'
    with pytest.raises(DatasetError, match=f"the key '{key}' stands twice"):
        read(text, tmp_path)


def test_other_files_with_a_byte_order_mark_and_points(tmp_path):
    line = {"ID": "a", "width": 8.0, "height": 9.0, "gtboxes": []}
    (tmp_path / "a.odgt").write_text("\ufeff" + json.dumps(line), encoding="utf-8")
    assert read_odgt(tmp_path / "a.odgt")[0].size == (8, 9)
    entry = {"image_id": 7.0, "category_id": 1.0, "bbox": [0, 0, 2, 2], "score": 1}
    (tmp_path / "r.json").write_text("\ufeff" + json.dumps([entry]), encoding="utf-8")
    assert list(read_results(tmp_path / "r.json", [7])) == ["7"]
