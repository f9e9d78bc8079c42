"""Files of detections: read as written, wrong entries named."""

import json

import numpy as np
import pytest

from defcn_d2.data import DatasetError
from defcn_d2.evaluation.results import dump_results, read_results


def test_what_is_written_is_read(tmp_path):
    rng = np.random.default_rng(0)
    found = {}
    for image_id, count in (("a", 3), ("b", 0), ("c,1", 2)):
        corners = rng.uniform(0, 50, (count, 2))
        columns = [corners, corners + rng.uniform(0, 50, (count, 2)), rng.random((count, 1))]
        found[image_id] = np.hstack([*columns, rng.integers(1, 4, (count, 1))])
    path = tmp_path / "results.json"
    path.write_bytes(dump_results(found))
    read = read_results(path, ["c,1", "a", "b", "d"])
    assert read.keys() == {"a", "c,1"}
    for image_id, rows in read.items():
        np.testing.assert_allclose(rows, found[image_id], rtol=1e-13)


def test_order_numeric_ids_and_absent_categories(tmp_path):
    path = tmp_path / "results.json"
    entries = [{"image_id": 7, "bbox": [1, 2, 3, 4], "score": score} for score in (0.5, 1, 0.7)]
    path.write_text(json.dumps(entries))
    for image_id in (7, "7"):
        rows = read_results(path, [image_id])["7"]
        assert rows.tolist() == [[1, 2, 4, 6, score, 0] for score in (0.5, 1, 0.7)]


GOOD = '{"image_id": "ID", "bbox": [1, 2, 3, 4], "score": 0.5}'
BAD = [
    ("", "is not a JSON file"),
    ("\xff", "is not a JSON file"),
    ("[" * 100_000, "is not a JSON file"),
    (f"[{GOOD}", "is not a JSON file"),
    ("{}", "expected a list of objects"),
    (f"[{GOOD}, 3]", "entry 1: expected an object with image_id, bbox and score, got 3"),
    (f'[{GOOD}, {{"bbox": []}}]', "entry 1: expected an object"),
    (f"[{GOOD.replace('image', 'z')}]", "entry 0: expected an object"),
    (f"[{GOOD.replace('ID', 'z')}]", "entry 0: no image has the ID 'z'"),
    (f"[{GOOD.replace('3', '-3')}]", r"entry 0: bbox must be .*, got \[1, 2, -3, 4\], 0.5 and 0"),
    (f"[{GOOD.replace('3, 4', '3')}]", "entry 0: bbox must be"),
    (f"[{GOOD.replace('0.5', 'NaN')}]", "entry 0: .* numbers, got .* nan and 0"),
    (f"[{GOOD.replace('0.5', 'null')}]", "entry 0: .* numbers, got .* None and 0"),
    (f'[{GOOD[:-1]}, "category_id": "x"}}]', "entry 0: .* numbers, got .* 0.5 and 'x'"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_results_are_named(tmp_path, text, message):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DatasetError, match=message) as error:
        read_results(path, ["ID"])
    assert str(error.value).startswith(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(DatasetError, match="cannot read .*absent: No such file"):
        read_results(tmp_path / "absent", ["a"])
