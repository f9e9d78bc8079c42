"""Pictures of ``tools/visualize.py``: judged detections, score maps, names, pages."""

import html
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes
from helpers import make_instances, make_priors, random_predictions
from html_page import Page
from PIL import Image
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.evaluation.judged import BACKGROUND, DUPLICATE, IGNORED, TRUE, judge, suppressed
from defcn_d2.utils.errors import UserError
from defcn_d2.visualization import duplicate_pairs as duplicates
from defcn_d2.visualization.assignment import assignments, draw_assignment
from defcn_d2.visualization.boxes import Mark, draw_marks, tile
from defcn_d2.visualization.colors import class_color
from defcn_d2.visualization.curves import draw_curves, read_metrics
from defcn_d2.visualization.duplicate_pairs import draw_statistics
from defcn_d2.visualization.example import Example, find_record
from defcn_d2.visualization.mistakes import Error, errors_page, false_positives, missed_objects
from defcn_d2.visualization.page import array_jpeg, array_png, figure_png, image_tag
from defcn_d2.visualization.scores import draw_object_scores, draw_scores

RANGES = "[[0,6],[6,64],[64,128],[128,256],[256,1e8]]"


@pytest.fixture
def example() -> Example:
    priors = make_priors(64, 96)
    gt = make_instances(64, 96, [[4, 4, 60, 60], [50, 20, 90, 60]], [0, 2])
    pixels = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8)
    predictions = random_predictions(priors, 3, num_images=None)
    names = ["dot", "line", "<b>&"]
    return Example("a.png", pixels, gt, names, [8, 16, 32, 64, 128], priors, predictions)


def test_metrics_after_a_kill(tmp_path):
    path = tmp_path / "metrics.json"
    assert read_metrics(path) == []
    path.write_text(
        '{"iteration": 1, "a": 1}\n{"iteration": 0, "a": 0}\n[1]\n{"iteration": 1, "a": 2}\n'
    )
    assert read_metrics(path) == [{"iteration": 0, "a": 0}, {"iteration": 1, "a": 2}]


def test_assignments_are_those_of_the_matchers(example):
    cfg = load_config(CONFIG)
    one, many, fcos = assignments(cfg, example, ["POTO", "POTOAux", "FCOS"])
    assert sorted(one[one >= 0].tolist()) == [0, 1]
    assert len(many[many >= 0]) > 2
    assert len(fcos[fcos >= 0]) > 2 and len(fcos) == len(example.priors)
    figure = draw_assignment(cfg, example, ["POTO", "FCOS"])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("POTO\n2 positive of 129")
    dots = sum(len(axes.collections[0].get_offsets()) for axes in figure.axes[::2])
    assert dots == 2
    level = int(
        torch.bucketize(
            torch.nonzero(one >= 0)[0, 0], torch.tensor([96, 120, 126, 128]), right=True
        )
    )
    assert any(f"P{3 + level}, stride {8 << level} px: " in title for title in titles)
    with pytest.raises(UserError, match="--matchers POTA: .*unknown.*did you mean 'POTO'"):
        assignments(cfg, example, ["POTA"])
    with pytest.raises(UserError, match="--matchers is empty"):
        assignments(cfg, example, [])


def test_extra_boxes_are_drawn_thinner(example):
    example.gt.gt_head_boxes = Boxes(torch.tensor([[8.0, 4, 20, 14], [60, 20, 70, 28]]))
    axes = draw_assignment(load_config(CONFIG), example, ["POTO"]).axes[0]
    drawn = [
        (patch.get_xy(), patch.get_width(), patch.get_height(), patch.get_edgecolor())
        for patch in axes.patches
    ]
    assert [xy for xy, *_ in drawn] == [(3.5, 3.5), (49.5, 19.5), (7.5, 3.5), (59.5, 19.5)]
    assert drawn[3][1:3] == (10, 8) and drawn[3][3] == drawn[1][3] != drawn[0][3]
    widths = [patch.get_linewidth() for patch in axes.patches]
    assert widths[0] == widths[1] > widths[2] == widths[3]


def test_grids_that_would_hide_the_image_are_left_out(example):
    """An image 400 pixels wide: cells of 8 pixels are too many, those of 16 are drawn."""
    priors = make_priors(64, 400)
    wide = {
        "image": np.zeros((64, 400, 3), np.uint8),
        "gt": make_instances(64, 400, [[1, 1, 9, 9], [100, 2, 120, 22]], [0, 1]),
        "priors": priors,
        "predictions": random_predictions(priors, 3, num_images=None),
    }
    cfg = load_config(CONFIG, ["MODEL.DEFCN.MATCHER.FCOS.SIZE_RANGES", RANGES])
    figure = draw_assignment(cfg, replace(example, **wide), ["FCOS"])
    lines = [len(axes.lines) for axes in figure.axes if "stride" in axes.get_title()]
    assert lines == [0, 400 // 16 + 64 // 16]


def test_score_maps_show_each_location_where_it_is(example):
    figure = draw_scores(example)
    maps = [axes for axes in figure.axes if axes.images][1:]
    scores = example.predictions.cls_logits.sigmoid().amax(dim=1)
    assert len(maps) == 15
    before, quality, after = (np.asarray(maps[i].images[0].get_array()) for i in (0, 1, 2))
    assert before.shape == (8, 12) and maps[0].images[0].get_extent() == [0, 96, 64, 0]
    assert np.allclose(before.ravel(), scores[:96]) and np.allclose(after, before * quality)
    assert np.asarray(maps[12].images[0].get_array()).shape == (1, 1)


def test_centerness_takes_part_as_in_inference(example):
    figure = draw_scores(
        replace(example, predictions=replace(example.predictions, centerness=True))
    )
    maps = [np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.images]
    before, quality, after = maps[1:4]
    assert np.allclose(after, np.sqrt(before * quality))


def test_scores_without_a_quality_branch(example):
    predictions = random_predictions(example.priors, 3, num_images=None, quality=False)
    plain = replace(example, predictions=predictions)
    maps = [axes for axes in draw_scores(plain).axes if axes.images][1:]
    assert len(maps) == 5
    scores = predictions.cls_logits.sigmoid()
    shown = np.asarray(maps[0].images[0].get_array())
    assert np.allclose(shown.ravel(), scores.amax(dim=1)[:96])
    bars = draw_object_scores(plain, 0).axes[-1]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["class score"]
    # the cell around (4, 4) alone
    alone = make_instances(64, 96, [[1, 1, 7, 7]], [1])
    bars = draw_object_scores(replace(plain, gt=alone)).axes[-1]
    (bar,) = bars.containers[0]
    assert np.isclose(bar.get_height(), scores[0, 1]) and "second" not in bars.get_title()


def test_highest_scores_of_an_object(example):
    figure = draw_object_scores(example, 1, count=5)
    bars = figure.axes[-1].containers[0]
    inside = [
        (x - 50) * (90 - x) > 0 and (y - 20) * (60 - y) > 0
        for x, y in example.priors.centers.tolist()
    ]
    scores = example.predictions.cls_logits[:, 2].sigmoid()[torch.tensor(inside)]
    expected = scores.sort(descending=True).values[:5]
    assert np.allclose([bar.get_height() for bar in bars], expected)
    with pytest.raises(UserError, match="--object 2: the image has 2 objects"):
        draw_object_scores(example, 2)
    tiny = make_instances(64, 96, [[1, 1, 2, 2]], [0])
    with pytest.raises(UserError, match="no location lies in it"):
        draw_object_scores(Example(**{**vars(example), "gt": tiny}))


def _judged(**changes):
    values = {
        "file_name": "a.png",
        "gt_boxes": np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 90, 90.0]]),
        "gt_classes": np.array([0, 1, 0]),
        "gt_crowd": np.array([False, False, True]),
        "boxes": np.array(
            [[0, 0, 10, 9], [0, 0, 10, 10], [20, 0, 30, 10], [60, 60, 80, 80], [40, 0, 50, 10.0]]
        ),
        "scores": np.array([0.5, 0.9, 0.8, 0.7, 0.6]),
        "classes": np.array([0, 0, 0, 0, 1]),
    }
    return judge(**{**values, **changes})


def test_detections_are_judged_within_their_class():
    one = _judged()
    assert one.scores.tolist() == [0.9, 0.8, 0.7, 0.6, 0.5]
    assert one.kinds.tolist() == [TRUE, BACKGROUND, IGNORED, BACKGROUND, DUPLICATE]
    assert one.gt_found.tolist() == [True, False, False]
    (kept,) = suppressed([one], 0.6)
    assert kept.kinds.tolist() == [TRUE, BACKGROUND, IGNORED, BACKGROUND]
    empty = _judged(boxes=np.zeros((0, 4)), scores=np.zeros(0), classes=np.zeros(0, np.int64))
    assert len(suppressed([empty], 0.6)[0].scores) == 0 and not empty.gt_found.any()


def test_statistics_are_those_of_the_detections():
    one = _judged()
    figure = draw_statistics([one, one], suppressed([one, one], 0.6), score=0.55)
    left, middle, right = figure.axes
    assert "2 true,\n0 duplicates, 4 background" in left.get_title()
    assert [len(axes.get_legend().get_texts()) for axes in figure.axes] == [3, 3, 4]
    precision = right.lines[0]
    assert list(precision.get_xdata()) == [0.9, 0.9, 0.8, 0.8, 0.6, 0.6, 0.5, 0.5]
    assert np.allclose(precision.get_ydata(), [1, 1, 2 / 3, 1 / 2, 2 / 5, 1 / 3, 2 / 7, 1 / 4])
    assert "0 duplicates" in middle.get_title()


def test_errors_say_what_is_wrong(tmp_path):
    Image.fromarray(np.zeros((100, 120, 3), np.uint8)).save(tmp_path / "a.png")
    one = _judged(file_name=str(tmp_path / "a.png"))
    names = ["dot", "<script>alert(1)</script>"]
    false, missed = false_positives([one], names, 9), missed_objects([one], names, 9)
    assert [error.kind for error in false] == ["wrong class", "nothing there", "duplicate"]
    assert false[0].text == f"score 0.80; IoU 1.00 with {names[1]}"
    assert "IoU 0.90 with dot, found already" in false[2].text
    assert [(error.kind, error.class_name) for error in missed] == [("wrong class", names[1])]
    assert missed[0].text == "10 x 10 px; nearest detection: dot 0.80, IoU 1.00"
    assert len(false_positives([one], names, 1)) == 1
    page = errors_page("a < b", false, missed, (3, 1))
    assert "<script>alert" not in page and "a &lt; b" in page
    (tmp_path / "p.html").write_text(page)
    parsed = Page(tmp_path / "p.html")
    assert len(parsed.pictures) == 4 and parsed.tags.count("script") == 1
    assert names[1] in "".join(parsed.text)  # read back as it was


def test_kinds_of_errors(tmp_path):
    """A detection beside its object; two objects that one detection covers."""
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "a.png")
    beside, covering = [0, 0, 10, 25], [30, 30, 50, 50]
    one = _judged(
        file_name=str(tmp_path / "a.png"),
        gt_boxes=np.array([[0, 0, 10, 10], [30, 30, 50, 50], [30, 30, 50, 46.0]]),
        gt_classes=np.array([0, 1, 1]),
        gt_crowd=np.zeros(3, bool),
        boxes=np.array([beside, covering, [2, 0, 10, 25.0]]),
        scores=np.array([0.9, 0.8, 0.7]),
        classes=np.array([0, 1, 1]),
    )
    false, missed = false_positives([one], ["dot", "line"], 9), missed_objects([one], ["a", "b"], 9)
    assert [error.kind for error in false] == ["wrong place", "wrong class and place"]
    assert false[0].text == "score 0.90; IoU 0.40 with dot"
    assert [error.kind for error in missed] == ["taken by another", "wrong place"]
    assert missed[0].text == "20 x 16 px; nearest detection: b 0.80, IoU 0.80"


def test_many_duplicates_have_no_names(tmp_path, monkeypatch):
    """They would cover the image; the objects' own detections keep theirs."""
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(tmp_path / "a.png")
    drawn = []
    monkeypatch.setattr(
        duplicates, "tile", lambda image, marks, *args, **kwargs: drawn.append(marks)
    )
    for count in (duplicates._MANY, duplicates._MANY + 1):
        one = _judged(
            file_name=str(tmp_path / "a.png"),
            boxes=np.tile([0, 0, 10, 10.0], (count + 1, 1)),
            scores=np.linspace(0.9, 0.5, count + 1),
            classes=np.zeros(count + 1, np.int64),
        )
        duplicates._tile(one, ["dot", "line"], 0.1, "")
    few, many = ([mark for mark in marks if mark.dashed] for marks in drawn)
    assert len(few) == duplicates._MANY and all(mark.text for mark in few)
    assert len(many) == duplicates._MANY + 1 and not any(mark.text for mark in many)
    assert [mark.text for mark in drawn[1] if mark.text] == ["dot 0.90"]


def test_file_names_are_escaped():
    name = '"><img src=x onerror=alert(1)>.png'
    error = Error("duplicate", "dot", "score 0.5", f"/data/{name}", np.zeros((4, 4, 3), np.uint8))
    page = errors_page("t", [error], [], (1, 0))
    assert "<img src=x" not in page and html.escape(name) in page


def test_a_page_without_errors(tmp_path):
    (tmp_path / "p.html").write_text(errors_page("t", [], [], (0, 0)))
    assert Page(tmp_path / "p.html").pictures == []


def test_images_by_place_or_name():
    records = [{"file_name": f"/data/{name}"} for name in ("7.jpg", "1", "x/7.jpg")]
    assert find_record(records, "1") is records[1]
    assert find_record(records, "2") is records[2]
    assert find_record(records, "x/7.jpg") is records[2]
    assert find_record(records, "7.jpg") is records[0]


def test_class_colours_are_stable_and_different():
    assert class_color(0) == "#e6194b" and class_color(500) == class_color(500)
    colors = [class_color(i) for i in range(80)]
    assert len(set(colors)) == 80 and all(re.fullmatch("#[0-9a-f]{6}", c) for c in colors)


def test_names_do_not_cover_each_other():
    """Five boxes at the same place: each name's ground stays in view."""
    image = np.zeros((200, 200, 3), np.uint8)
    colors = [class_color(i) for i in range(5)]
    alone = draw_marks(image, [Mark((50, 50, 90, 90), "name", colors[0])])
    area = (alone == _rgb(colors[0])).all(axis=2).sum()
    drawn = draw_marks(image, [Mark((50, 50, 90, 90), "name", color) for color in colors])
    for color in colors:
        there = (drawn == _rgb(color)).all(axis=2).sum()
        assert there > 0.5 * area


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))


def test_tiles_and_pictures():
    image = np.full((50, 100, 3), 7, np.uint8)
    square = tile(image, [], "a caption that is far too long for its tile " * 3, side=200)
    assert square.shape == (230, 200, 3)
    assert tile(image, [], "", side=200, square=False).shape == (127, 200, 3)
    assert (square[200:] == 255).all() and (square[60, 50] == 7).all()
    dashed = draw_marks(image, [Mark((10, 10, 60, 40), "", "#ff0000", dashed=True)])
    solid = draw_marks(image, [Mark((10, 10, 60, 40), "", "#ff0000")])
    assert 0 < (dashed == (255, 0, 0)).all(2).sum() < (solid == (255, 0, 0)).all(2).sum()
    for content in (array_png(image), array_jpeg(image)):
        assert 'width="100" height="50" alt="&lt;a&gt;"' in image_tag(content, "<a>")
    assert figure_png(draw_curves({"a": [{"iteration": 0, "lr": 1.0}]})).startswith(b"\x89PNG")
