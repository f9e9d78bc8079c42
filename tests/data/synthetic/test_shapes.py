"""The built-in figures: labels against what is painted, ranges as promised, COCO registration."""

import colorsys
import json
import math
import uuid

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given
from hypothesis import strategies as st

from defcn_d2.data import register_shapes
from defcn_d2.data.builtin import SHAPES, SHAPES_CLASSES
from defcn_d2.data.synthetic import shapes
from defcn_d2.data.synthetic.figures import (
    Canvas,
    Stencil,
    distinct_color,
    hue_colors,
    scaled_and_turned,
    stencil,
    tight_box,
)
from defcn_d2.data.synthetic.generation import GeneratedSet

IMAGES = 60


@pytest.fixture(scope="module")
def painted():
    """Images, their records, and for each figure its stencil and the pixels before and after."""
    steps: list[tuple[Stencil, np.ndarray, np.ndarray]] = []
    paint = Canvas.paint

    def recorded(self, rng, figure, color):
        before = self.pixels.copy()
        paint(self, rng, figure, color)
        steps.append((figure, before, self.pixels.copy()))

    result = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "paint", recorded)
        for index in range(IMAGES):
            steps.clear()
            image, record = shapes.draw("val", 0, index)
            result.append((image, record, list(steps)))
    return result


def alone(figure: Stencil, height: int, width: int) -> np.ndarray:
    """The mask (height, width) of a figure without others, pixel by pixel."""
    mask = np.zeros((height, width), bool)
    for row, values in enumerate(figure.coverage):
        for column, value in enumerate(values):
            y, x = figure.y + row, figure.x + column
            if value >= 128 and 0 <= y < height and 0 <= x < width:
                mask[y, x] = True
    return mask


def box(mask):
    found = tight_box(mask)
    assert found is not None
    return found


def test_labels_are_the_extents_of_what_is_seen(painted):
    for image, record, steps in painted[:25]:
        height, width = image.shape[:2]
        assert (record["height"], record["width"]) == (height, width)
        assert len(record["figures"]) == len(steps)
        masks = [alone(figure, height, width) for figure, *_ in steps]
        for i, label in enumerate(record["figures"]):
            seen = masks[i].copy()
            for above in masks[i + 1 :]:
                seen &= ~above
            ys, xs = np.nonzero(seen)
            x, y, w, h = label["bbox"]
            assert (x, y, x + w, y + h) == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert label["area"] == len(xs)


def test_painting_changes_the_pixels_of_the_figure_and_no_others(painted):
    """The boxes hold in the picture itself, not only in the masks."""
    for _, record, steps in painted:
        for figure, before, after in steps:
            changed = np.abs(before.astype(int) - after).max(2)
            covered = np.zeros(changed.shape, np.uint8)
            part = figure.clipped(*changed.shape[::-1])
            h, w = part.coverage.shape
            covered[part.y : part.y + h, part.x : part.x + w] = part.coverage
            assert not changed[covered == 0].any()
            clear = changed[covered == 255] > 12
            assert clear.mean() > 0.95, "a figure can hardly be told from what is under it"
        if steps:  # the last one is on top: its label must be the extents of the change
            x, y, w, h = record["figures"][-1]["bbox"]
            left, top, width, height = box(changed > 25)
            difference = np.subtract((left, top, left + width, top + height), (x, y, x + w, y + h))
            assert np.abs(difference).max() <= 2


def test_nothing_is_hidden_beyond_what_is_promised(painted):
    for _, record, steps in painted:
        for label, (figure, *_) in zip(record["figures"], steps, strict=True):
            assert label["area"] >= shapes.MIN_VISIBLE * figure.inside.sum()


def test_ranges():
    records = [shapes.draw("train", 0, index)[1] for index in range(200)]
    counts = [len(record["figures"]) for record in records]
    assert min(counts) == 0 and max(counts) == shapes.MAX_FIGURES
    figures = [figure for record in records for figure in record["figures"]]
    sizes = [max(figure["bbox"][2:]) for figure in figures]
    assert max(sizes) >= 10 * min(sizes)
    assert np.percentile(sizes, 98) >= 7 * np.percentile(sizes, 2), "extremes must not be rare"
    assert {figure["category"] for figure in figures} == set(range(len(SHAPES_CLASSES)))
    sides = [(record["width"], record["height"]) for record in records]
    assert np.min(sides) >= shapes.SIDES[0] and np.max(sides) <= shapes.SIDES[1]
    assert len(set(sides)) > 100


def test_some_figures_cover_others(painted):
    hidden = [
        label["area"] < 0.9 * figure.clipped(record["width"], record["height"]).inside.sum()
        for _, record, steps in painted
        for label, (figure, *_) in zip(record["figures"], steps, strict=True)
    ]
    assert np.mean(hidden) > 0.05


def test_images_depend_on_split_seed_and_index():
    image, record = shapes.draw("train", 0, 0)
    again, same = shapes.draw("train", 0, 0)
    assert np.array_equal(image, again) and record == same
    for other in (("val", 0, 0), ("train", 1, 0), ("train", 0, 1)):
        assert shapes.draw(*other)[1] != record


def test_classes_have_their_outlines():
    assert tuple(shapes.OUTLINES) == SHAPES_CLASSES
    for outline in shapes.OUTLINES.values():
        radii = np.linalg.norm(np.concatenate(outline), axis=1)
        assert 0.9 < radii.max() < 1.05, "outlines fill the unit circle"


AREAS = {
    "ellipse": math.pi,
    "ring": math.pi * (1 - 0.55**2),
    "rectangle": 2,
    "triangle": 3 / 4 * 3**0.5,
    "cross": 4 * (2 * 0.3) - (2 * 0.3) ** 2,
}


@pytest.mark.parametrize("name", AREAS)
def test_coverage_of_a_figure_is_its_area(name):
    figure = stencil(scaled_and_turned(shapes.OUTLINES[name], 120, 60, 0.4), (70.3, 80.8))
    assert figure.coverage.sum() / 255 == pytest.approx(AREAS[name] * 60 * 30, rel=0.03)
    assert figure.inside.sum() == pytest.approx(AREAS[name] * 60 * 30, rel=0.03)
    x, y, w, h = box(figure.inside)
    assert figure.x + x + w / 2 == pytest.approx(70.3, abs=12 if name == "triangle" else 0.6)


def test_turned_is_scale_then_turn():
    (corner,) = scaled_and_turned([np.array([[1.0, 0.0], [0.0, 1.0]])], 8, 2, math.pi / 2)
    assert corner == pytest.approx(np.array([[0, 4], [-1, 0]]))


@given(st.integers(-9, 12), st.integers(-9, 12), st.integers(1, 8), st.integers(1, 8))
def test_clipped_keeps_what_is_within_the_image(x, y, width, height):
    coverage = np.arange(1, width * height + 1, dtype=np.uint8).reshape(height, width)
    part = Stencil(coverage, coverage, x, y).clipped(7, 5)
    plane = np.zeros((30, 30), int)  # the image begins at (10, 10)
    plane[y + 10 : y + 10 + height, x + 10 : x + 10 + width] = coverage
    image = np.zeros((5, 7), int)
    h, w = part.coverage.shape
    image[part.y : part.y + h, part.x : part.x + w] = part.coverage
    assert np.array_equal(image, plane[10:15, 10:17])
    assert part.coverage.sum() == image.sum()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8)), max_size=6))
def test_tight_box(cells):
    mask = np.zeros((6, 9), bool)
    for row, column in cells:
        mask[row, column] = True
    if not cells:
        assert tight_box(mask) is None
        return
    x, y, w, h = box(mask)
    rows, columns = zip(*cells, strict=True)
    assert (x, y) == (min(columns), min(rows))
    assert (x + w, y + h) == (max(columns) + 1, max(rows) + 1)


def test_color_apart():
    rng = np.random.default_rng(0)
    for _ in range(20):
        others = rng.uniform(0, 255, (2, 3))
        away = np.linalg.norm(others - distinct_color(rng, others, 80), axis=1)
        assert away.min() >= 80
    crowded = np.stack(np.meshgrid(*[np.arange(0, 256, 32)] * 3), -1).reshape(-1, 3)
    assert distinct_color(rng, crowded, 300).shape == (3,), "the best there is, where none is apart"


def hue_of(bgr):
    return 360 * colorsys.rgb_to_hsv(*(float(v) / 255 for v in bgr[::-1]))[0]


@given(st.integers(0, 360), st.integers(1, 60))
def test_hue_colors(hue, spread):
    colors = hue_colors(np.random.default_rng(hue), hue, spread, 10)
    away = [(hue_of(color) - hue + 180) % 360 - 180 for color in colors]
    assert np.abs(away).max() <= spread + 0.1
    assert colors.min() >= 0 and colors.max() <= 255


def test_color_apart_of_a_hue():
    rng = np.random.default_rng(0)
    grey = [[128, 128, 128]]
    colors = [distinct_color(rng, grey, 80, hue=(120, 20)) for _ in range(20)]
    assert all(100 <= hue_of(color) <= 140 for color in colors)
    assert np.linalg.norm(np.subtract(colors, grey), axis=1).min() >= 80


def test_each_class_has_its_hues(painted):
    step = 360 / len(SHAPES_CLASSES)
    away = []
    for _, record, steps in painted:
        for label, (figure, _, after) in zip(record["figures"], steps, strict=True):
            part = figure.clipped(record["width"], record["height"])
            h, w = part.coverage.shape
            window = after[part.y : part.y + h, part.x : part.x + w]
            middle = hue_of(window[part.inside & (part.edge == 0)].mean(0))
            away.append(abs((middle - label["category"] * step + 180) % 360 - 180))
    assert len(away) > 100
    assert np.max(away) < (shapes.HUE_SPREAD + 0.1) * step
    assert np.mean(np.array(away) > step / 2) > 0.02, "the ranges of neighbours overlap"


@pytest.fixture
def registered(tmp_path):
    name = f"shapes_test_{uuid.uuid4().hex}"
    register_shapes(name, tmp_path, "val", num_images=6, seed=3)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_registration(tmp_path, registered):
    meta = MetadataCatalog.get(registered)
    assert meta.evaluator_type == "coco" and meta.thing_classes == list(SHAPES_CLASSES)
    assert not (tmp_path / "shapes").exists(), "nothing is drawn before it is asked for"
    dicts = DatasetCatalog.get(registered)
    assert len(dicts) == 6
    coco = json.loads((tmp_path / "shapes/val/annotations.json").read_text())
    assert meta.json_file == str(tmp_path / "shapes/val/annotations.json")
    labels: dict[int, list[dict]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        labels[annotation["image_id"]].append(annotation)
    assert [a["id"] for a in coco["annotations"]] == list(range(1, len(coco["annotations"]) + 1))
    for item in dicts:
        image = cv2.imread(item["file_name"])
        assert image is not None
        assert image.shape == (item["height"], item["width"], 3)
        drawn, record = shapes.draw("val", 3, item["image_id"])
        assert np.abs(image.astype(int) - drawn).mean() < 4, "another image than the labels tell"
        for annotation, label, figure in zip(
            item["annotations"], labels[item["image_id"]], record["figures"], strict=True
        ):
            assert annotation["bbox"] == label["bbox"] == list(figure["bbox"])
            assert (
                meta.thing_classes[annotation["category_id"]] == SHAPES_CLASSES[figure["category"]]
            )
            assert label["area"] == figure["area"] and label["iscrowd"] == 0


def test_the_default_sets_are_registered():
    for split, count in (("train", 2000), ("val", 300)):
        assert f"shapes_{split}" in DatasetCatalog.list()
        assert MetadataCatalog.get(f"shapes_{split}").image_root.endswith(f"shapes/{split}/images")
        assert SHAPES.counts[split] == count


def test_a_set_without_figures_is_still_a_coco_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "MAX_FIGURES", 0)
    name = f"shapes_test_{uuid.uuid4().hex}"
    register_shapes(name, tmp_path, "train", num_images=2)
    assert [item["annotations"] for item in DatasetCatalog.get(name)] == [[], []]
    assert GeneratedSet(SHAPES, tmp_path, "train").ensure().is_file()
