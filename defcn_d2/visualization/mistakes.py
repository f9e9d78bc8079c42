"""The most confident false positives and the missed objects of an evaluation, as a page."""

import functools
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engine.predictor import read_rgb
from ..evaluation.judged import BACKGROUND, DUPLICATE, Judged
from ..utils.printable import printable
from .boxes import Mark, draw_marks, grid, tile
from .colors import class_color
from .page import array_jpeg, image_tag, page

_SIDE = 300  # pixels of a picture
_CONTEXT = 0.6  # of a box's longer side, shown around it
_OVERLAP = 0.1  # IoU from which a detection is said to be near an object
_STYLE = """
.errors { display: flex; flex-wrap: wrap; gap: 14px }
.error { width: 306px; border: 1px solid #d0d0d0; border-radius: 6px; padding: 6px }
.error p { margin: 4px 2px; overflow-wrap: anywhere; font-size: 13px }
.error[hidden] { display: none }
.chip { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px }
select { font: inherit; margin-right: 1.5em }
"""
_SCRIPT = """
const chosen = () => Object.fromEntries(
  [...document.querySelectorAll('select')].map(s => [s.name, s.value]));
function filter() {
  const want = chosen();
  for (const e of document.querySelectorAll('.error'))
    e.hidden = (want.class && e.dataset.class !== want.class)
            || (want.kind && e.dataset.kind !== want.kind);
  for (const s of document.querySelectorAll('section'))
    s.querySelector('.shown').textContent = s.querySelectorAll('.error:not([hidden])').length;
}
for (const s of document.querySelectorAll('select')) s.addEventListener('change', filter);
"""


@dataclass(frozen=True)
class Error:
    """A false positive, or a missed object.

    Attributes:
        kind: what is wrong, in a few words.
        class_name: of the detection or the object.
        text: more about it, one line.
        file_name: of the image.
        picture: (H, W, 3) uint8 RGB, around the box.
    """

    kind: str
    class_name: str
    text: str
    file_name: str
    picture: np.ndarray


def false_positives(judged: Sequence[Judged], classes: Sequence[str], count: int) -> list[Error]:
    """The ``count`` of highest score, best first."""
    found = [
        (float(one.scores[i]), number, int(i))
        for number, one in enumerate(judged)
        for i in np.flatnonzero((one.kinds == BACKGROUND) | (one.kinds == DUPLICATE))
    ]
    found.sort(key=lambda entry: (-entry[0], entry[1:]))
    errors = []
    for score, number, i in found[:count]:
        one = judged[number]
        kind, near, near_gt = _why_false(one, i, classes)
        name = classes[one.classes[i]]
        mark = Mark(one.boxes[i], f"{name} {score:.2f}", class_color(int(one.classes[i])))
        picture = _around(one, one.boxes[i], near_gt, mark, classes)
        errors.append(Error(kind, name, f"score {score:.2f}; {near}", one.file_name, picture))
    return errors


def _why_false(one: Judged, i: int, classes: Sequence[str]) -> tuple[str, str, int | None]:
    """The kind of a false positive, and its nearest object in words and by number."""
    ious = one.ious()[i] if len(one.gt_boxes) else np.zeros(0)
    if not len(ious) or ious.max() < _OVERLAP:
        return "nothing there", "no object near", None
    best = int(ious.argmax())
    near = f"IoU {ious[best]:.2f} with {classes[one.gt_classes[best]]}"
    if one.kinds[i] == DUPLICATE:
        best = int(np.where(one.gt_classes == one.classes[i], ious, -1).argmax())
        near = f"IoU {ious[best]:.2f} with {classes[one.classes[i]]}, found already"
        return "duplicate", near, best
    if one.gt_classes[best] != one.classes[i]:
        return ("wrong class" if ious[best] > 0.5 else "wrong class and place"), near, best
    return "wrong place", near, best


def missed_objects(judged: Sequence[Judged], classes: Sequence[str], count: int) -> list[Error]:
    """The ``count`` largest objects that no detection has found."""
    found = [
        (float((one.gt_boxes[i, 2:] - one.gt_boxes[i, :2]).prod()), number, int(i))
        for number, one in enumerate(judged)
        for i in np.flatnonzero(~one.gt_found & ~one.gt_crowd)
    ]
    found.sort(key=lambda entry: (-entry[0], entry[1:]))
    errors = []
    for _, number, i in found[:count]:
        one = judged[number]
        name = classes[one.gt_classes[i]]
        width, height = one.gt_boxes[i, 2:] - one.gt_boxes[i, :2]
        kind, near, mark = _why_missed(one, i, classes)
        picture = _around(one, one.gt_boxes[i], i, mark, classes)
        text = f"{width:.0f} x {height:.0f} px; {near}"
        errors.append(Error(kind, name, text, one.file_name, picture))
    return errors


def _why_missed(one: Judged, i: int, classes: Sequence[str]) -> tuple[str, str, Mark | None]:
    """The kind of a miss, the detection that overlaps the object most, and its mark."""
    ious = one.ious()[:, i]
    if not len(ious) or ious.max() < _OVERLAP:
        return "no detection", "no detection near", None
    best = int(ious.argmax())
    label = f"{classes[one.classes[best]]} {one.scores[best]:.2f}"
    near = f"nearest detection: {label}, IoU {ious[best]:.2f}"
    mark = Mark(one.boxes[best], label, class_color(int(one.classes[best])))
    if ious[best] <= 0.5:
        return "wrong place", near, mark
    if one.classes[best] != one.gt_classes[i]:
        return "wrong class", near, mark
    return "taken by another", near, mark


@functools.lru_cache(maxsize=8)
def _image(file_name: str) -> np.ndarray:
    return read_rgb(file_name)


def _around(
    one: Judged, box: np.ndarray, named: int | None, mark: Mark | None, classes: Sequence[str]
) -> np.ndarray:
    """A square part of the image around a box, with the objects (dashed) and a detection.

    Args:
        named: the object that has its name written.
    """
    image = _image(one.file_name)
    height, width = image.shape[:2]
    side = max(32.0, (1 + 2 * _CONTEXT) * float(max(box[2:] - box[:2])))
    x1, y1 = ((box[:2] + box[2:] - side) / 2).tolist()
    left, top = max(0, int(x1)), max(0, int(y1))
    right, bottom = min(width, int(x1 + side) + 1), min(height, int(y1 + side) + 1)
    left, top = min(left, width - 1), min(top, height - 1)
    part = np.ascontiguousarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])
    shift = np.array([left, top, left, top])
    marks = [
        Mark(
            one.gt_boxes[i] - shift,
            classes[one.gt_classes[i]] if i == named else "",
            class_color(int(one.gt_classes[i])),
            dashed=True,
        )
        for i in np.flatnonzero(~one.gt_crowd)
        if (one.gt_boxes[i] < (right, bottom, np.inf, np.inf)).all()
        and (one.gt_boxes[i, 2:] > (left, top)).all()
    ]
    if mark is not None:
        marks.append(Mark(np.asarray(mark.box) - shift, mark.text, mark.color))
    return draw_marks(part, marks, _SIDE / max(part.shape[:2]), size=11)


def errors_page(
    title: str, false: Sequence[Error], missed: Sequence[Error], totals: tuple[int, int]
) -> str:
    """The page, which sorts by class and kind.

    Args:
        totals: how many false positives and missed objects there are at all.
    """
    everything = [*false, *missed]
    selects = "".join(
        _select(label, name, sorted({getattr(error, field) for error in everything}))
        for label, name, field in (("class", "class", "class_name"), ("kind", "kind", "kind"))
    )
    body = f"<p>{selects}</p>\n" + "\n".join(
        _section(heading, errors, total)
        for heading, errors, total in (
            ("False positives, most confident first", false, totals[0]),
            ("Missed objects, largest first", missed, totals[1]),
        )
    )
    note = (
        "Dashed: ground truth. Solid: the false positive, or the detection that overlaps the "
        "missed object most. Colours stand for classes. A match is IoU above 0.5 within a class."
    )
    return page(title, note, body, _STYLE, _SCRIPT)


def _select(label: str, name: str, values: Sequence[str]) -> str:
    options = "".join(
        f'<option value="{html.escape(value)}">{html.escape(value)}</option>' for value in values
    )
    select = f'<select name="{name}"><option value="">all</option>{options}</select>'
    return f"<label>{label} {select}</label>"


def _section(heading: str, errors: Sequence[Error], total: int) -> str:
    cards = "\n".join(_card(error) for error in errors)
    return (
        f"<section><h2>{html.escape(heading)}</h2>\n<p class='note'>shown: "
        f"<span class='shown'>{len(errors)}</span> of {total}</p>\n"
        f'<div class="errors">\n{cards}\n</div></section>'
    )


def _card(error: Error) -> str:
    name = printable(Path(error.file_name).name)
    return (
        f'<div class="error" data-class="{html.escape(error.class_name)}" '
        f'data-kind="{html.escape(error.kind)}">'
        f"{image_tag(array_jpeg(error.picture), f'{error.class_name} in {name}')}"
        f"<p><b>{html.escape(error.class_name)}</b>: {html.escape(error.kind)}</p>"
        f"<p>{html.escape(error.text)}</p><p>{html.escape(name)}</p></div>"
    )


def contact_sheet(false: Sequence[Error], missed: Sequence[Error], count: int = 5) -> np.ndarray:
    """The first of both in two rows, (H, W, 3) uint8 RGB; white where there are none."""
    blank = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    tiles = []
    for what, errors in (("false", false), ("missed", missed)):
        for i in range(count):
            if i >= len(errors):
                tiles.append(tile(blank, [], "" if i else f"{what}: none", side=_SIDE))
                continue
            error = errors[i]
            caption = f"{what} {error.class_name}: {error.kind}"
            tiles.append(tile(error.picture, [], caption, side=_SIDE))
    return grid(tiles, count)
