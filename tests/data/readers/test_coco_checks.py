"""Boxes that lie oddly in their images, and boxes that are none; images that are not there."""

from pathlib import Path

import numpy as np
import pytest
from coco_files import make_content, write_set
from hypothesis import given
from hypothesis import strategies as st

from defcn_d2.data.errors import DatasetError
from defcn_d2.data.readers.coco_checks import check_unit, find_missing, useful_boxes
from defcn_d2.data.readers.coco_entries import CocoBox, read_images
from defcn_d2.data.readers.findings import Findings

sides = st.integers(-30, 60)


@given(st.lists(st.tuples(sides, sides, sides, sides), min_size=1, max_size=8))
def test_useful_boxes_by_counting_pixels(rows):
    """In an image of 12 x 9; the boxes' corners are whole pixels, so that pixels can be counted."""
    width, height = 12, 9
    entries = [CocoBox(number, 0, 0, list(row), None, False, {}) for number, row in enumerate(rows)]
    findings = Findings()
    found = useful_boxes(
        np.array(rows, float), np.array([[width, height]] * len(rows)), entries, findings
    )
    expected, outside = [], []
    for number, (x, y, w, h) in enumerate(rows):
        pixels = [(i, j) for i in range(x, x + w) for j in range(y, y + h)]
        inside = sum(0 <= i < width and 0 <= j < height for i, j in pixels)
        expected.append(inside > 0)
        if 0 < inside < len(pixels) / 2:
            outside.append(f"annotation {number} ({[x, y, w, h]} in an image of 12 x 9)")
    assert found.tolist() == expected
    assert findings.sentences(fatal=True) == []
    text = " ".join(findings.sentences(fatal=False))
    assert ("boxes without area in their image: " in text) == (not all(expected))
    assert ("more than half lies outside their image: " in text) == bool(outside)
    assert all(example in text for example in outside[:3])


def check(boxes, size=(100, 80)):
    check_unit(Path("x.json"), np.array(boxes, float), np.array([size] * len(boxes)))


def test_pixels_pass():
    generator = np.random.default_rng(0)
    for scale in (1.0, 0.05):  # large objects, and tiny ones
        corners = generator.uniform(0, 1, (200, 2)) * [100, 80]
        boxes = np.hstack(
            [corners, generator.uniform(0, 1, (200, 2)) * scale * ([100, 80] - corners)]
        )
        check(boxes)
    check([[0, 0, 1, 1], [5, 5, 1, 1]])
    check([[0, 0, 0, 0]])  # told as a box without area


def test_figures_that_fill_their_images_pass():
    """Their sides are longer than the distance to the corner, as in corners."""
    check([[5, 4, 94, 75]] * 20)


def test_fractions():
    with pytest.raises(DatasetError, match="x.json: no box reaches further than 1 pixel"):
        check([[0.1, 0.2, 0.3, 0.8], [0.5, 0.5, 0.5, 0.1]])


def test_corners():
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 1, (50, 2, 2)) * [100, 80]
    boxes = np.hstack([corners.min(axis=1), corners.max(axis=1)])
    with pytest.raises(DatasetError, match="x.json: .* corners x1, y1, x2, y2"):
        check(boxes)
    check(boxes[:5])  # too few to tell


def test_missing_images(tmp_path):
    _, root = write_set(tmp_path)
    findings = Findings()
    images = read_images(make_content()["images"], findings)
    find_missing(images, root, findings)
    assert findings.sentences(fatal=True) == []
    (root / "deep" / "b.png").unlink()
    (root / "a.png").unlink()
    find_missing(images, root, findings)
    (sentence,) = findings.sentences(fatal=True)
    first = f"images that are not there: 2, first '{root}/deep/b.png', '{root}/a.png'; put them"
    assert sentence.startswith(first)
    find_missing([images[0]._replace(file_name="none/x.png")], root, findings)
    assert f"3, first '{root}/deep/b.png', '{root}/a.png', '{root}/none/x.png'" in " ".join(
        findings.sentences(fatal=True)
    )
    with pytest.raises(DatasetError, match=f"the folder of images '{root}/none' cannot be read"):
        find_missing(images, root / "none", findings)


def test_backslashes_get_a_hint(tmp_path):
    _, root = write_set(tmp_path)
    content = make_content()
    content["images"][1]["file_name"] = "deep\\b.png"
    findings = Findings()
    find_missing(read_images(content["images"], findings), root, findings)
    (sentence,) = findings.sentences(fatal=True)
    assert "whose names have backslashes: 1, first" in sentence
    assert sentence.endswith("write '/', which all systems take")
