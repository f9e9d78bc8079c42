"""CrowdHuman's measures against hand-computed cases and a slow transcription of the rules."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from defcn_d2.evaluation import crowdhuman_metrics as metrics
from defcn_d2.evaluation.crowdhuman_metrics import Curve, Sample

SIZE = (100, 80)


def sample(positives=(), ignored=(), detections=(), size=SIZE):
    """Boxes as x1, y1, x2, y2; detections with a score behind."""
    gts = [*positives, *ignored]
    flags = [False] * len(positives) + [True] * len(ignored)
    return Sample.build(gts, flags, [d[:4] for d in detections], [d[4] for d in detections], size)


# ----- the rules, written out in loops over plain numbers --------------------------------------


def slow_clip(box, size):
    (x1, y1, x2, y2), (w, h) = box, size
    return (
        min(max(x1, 0), w - 1),
        min(max(y1, 0), h - 1),
        min(max(x2, 0), w),
        min(max(y2, 0), h),
    )


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def inter(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    return w * h if w > 0 and h > 0 else 0


def iou(a, b):
    return inter(a, b) / (area(a) + area(b) - inter(a, b) + 1e-6)


def in_region(box, regions):
    return any(inter(box, region) / (area(box) + 1e-6) > 0.5 for region in regions)


def slow_match(positives, ignored, detections):
    """[(score, "tp" | "fp" | "duplicate")] by descending score, without the discarded."""
    result, matched = [], set()
    for *box, score in sorted(detections, key=lambda d: -d[4]):
        best = None
        for i, gt in enumerate(positives):
            if i in matched or iou(box, gt) <= 0.5:
                continue
            if best is None or iou(box, gt) > iou(box, positives[best]):
                best = i
        if best is not None:
            matched.add(best)
            result.append((score, "tp"))
        elif in_region(box, ignored):
            pass
        elif any(iou(box, positives[i]) > 0.5 for i in matched):
            result.append((score, "duplicate"))
        else:
            result.append((score, "fp"))
    return result


def slow_figures(images):
    pooled = [outcome for image in images for outcome in slow_match(*image)]
    pooled = sorted(pooled, key=lambda outcome: -outcome[0])
    total = sum(len(positives) for positives, _, _ in images)
    tp = fp = 0
    recalls, precisions, fppis = [], [], []
    for _, kind in pooled:
        tp, fp = tp + (kind == "tp"), fp + (kind != "tp")
        recalls.append(tp / total)
        precisions.append(tp / (tp + fp))
        fppis.append(fp / len(images))
    ap = 0.0
    for i in range(1, len(pooled)):
        ap += (recalls[i] - recalls[i - 1]) * (precisions[i] + precisions[i - 1]) / 2
    misses = []
    for reference in (0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.000):
        miss = 1.0
        for i in range(len(pooled)):
            miss = 1 - recalls[i]
            if fppis[i] >= reference:
                break
        misses.append(max(miss, 1e-10))
    return {
        "AP50": 100 * ap,
        "mMR": 100 * math.exp(sum(map(math.log, misses)) / len(misses)),
        "recall": 100 * tp / total,
        "JI": 100 * max(slow_jaccard(images, t / 10) for t in range(10)),
        **{
            f"duplicates_{t}": sum(k == "duplicate" and s > t for s, k in pooled) / total
            for t in (0.05, 0.3, 0.5)
        },
    }


def slow_jaccard(images, threshold):
    ratios = []
    for positives, ignored, detections in images:
        boxes = [d[:4] for d in detections if d[4] > threshold]
        weights = np.zeros((len(boxes), len(positives)))
        for i, j in itertools.product(range(len(boxes)), range(len(positives))):
            weights[i, j] = iou(boxes[i], positives[j]) * (iou(boxes[i], positives[j]) > 0.5)
        pairs = [(i, j) for i, j in np.transpose(linear_sum_assignment(-weights)) if weights[i, j]]
        k, n, m = len(pairs), len(boxes), len(positives)
        for i, box in enumerate(boxes):
            n -= i not in {p[0] for p in pairs} and in_region(box, ignored)
        for j, gt in enumerate(positives):
            m -= j not in {p[1] for p in pairs} and in_region(gt, ignored)
        if m or n:
            ratios.append(k / (m + n - k + 1e-6))
    return sum(ratios) / len(ratios) if ratios else 0.0


def slow_nms(detections, thresh=0.6):
    kept: list[tuple] = []
    for *box, score in sorted(detections, key=lambda d: -d[4]):
        for other in kept:
            shared = inter(box, other)
            if shared and shared / (area(box) + area(other) - shared) > thresh:
                break
        else:
            kept.append((*box, score))
    return kept


# ----- against the slow transcription -----------------------------------------------------------

# A coarse grid makes exact overlaps, equal scores and boxes beyond the image common.
coordinate = st.integers(-3, 12).map(lambda v: v * 10.0)
side = st.integers(0, 6).map(lambda v: v * 10.0)
boxes = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), coordinate, coordinate, side, side)
scores = st.sampled_from([0.0, 0.04, 0.1, 0.3, 0.35, 0.6, 0.9, 0.95])
jitter = st.tuples(*[st.integers(-2, 2)] * 4)


@st.composite
def images(draw):
    positives = draw(st.lists(boxes, max_size=5))
    ignored = draw(st.lists(boxes, max_size=2))
    detections = [(*draw(boxes), draw(scores)) for _ in range(draw(st.integers(0, 3)))]
    for gt in draw(st.lists(st.sampled_from(positives + ignored), max_size=6)) if positives else ():
        moved = np.add(gt, draw(jitter)).tolist()
        if moved[2] >= moved[0] and moved[3] >= moved[1]:
            detections.append((*moved, draw(scores)))
    return positives, ignored, detections


@given(st.lists(images(), min_size=1, max_size=4))
def test_all_figures_equal_the_transcription(raw):
    samples = [sample(*image) for image in raw]
    clipped = [
        (
            [slow_clip(b, SIZE) for b in positives],
            [slow_clip(b, SIZE) for b in ignored],
            [(*slow_clip(d[:4], SIZE), d[4]) for d in detections],
        )
        for positives, ignored, detections in raw
    ]
    total = sum(len(image[0]) for image in clipped)
    if total == 0:
        with pytest.raises(ValueError, match=f"the {len(raw)} images have no ground truth"):
            metrics.evaluate(samples)
        return
    expected = slow_figures(clipped)
    suppressed = [
        (p, i, [(*slow_clip(d[:4], SIZE), d[4]) for d in slow_nms(image[2])])
        for (p, i, _), image in zip(clipped, raw, strict=True)
    ]
    expected["nms_gap"] = slow_figures(suppressed)["AP50"] - expected["AP50"]
    kept = sum(len(slow_nms([(*b, -i) for i, b in enumerate(p)])) for p, _, _ in clipped)
    expected["nms_ceiling"] = 100 * kept / total
    assert metrics.evaluate(samples) == pytest.approx(expected, abs=1e-9)


@given(st.lists(boxes, max_size=6), st.lists(boxes, max_size=4))
def test_pairwise_iou_and_absorbed(first, second):
    a, b = (np.array(x, float).reshape(-1, 4) for x in (first, second))
    ious = metrics.pairwise_iou(a, b)
    assert ious.shape == (len(a), len(b))
    for i, j in itertools.product(range(len(a)), range(len(b))):
        assert ious[i, j] == pytest.approx(iou(first[i], second[j]))
    assert metrics.absorbed(a, b).tolist() == [in_region(box, second) for box in first]


@given(st.lists(boxes, max_size=8))
def test_clip(raw):
    clipped = metrics.clip(raw, SIZE)
    assert clipped.tolist() == [list(slow_clip(box, SIZE)) for box in raw]


# ----- computed by hand -------------------------------------------------------------------------

A, B, C = (0, 0, 20, 20), (40, 0, 60, 20), (0, 40, 20, 60)


def moved(box, dx):
    return (box[0] + dx, box[1], box[2] + dx, box[3])


def test_perfect_detections():
    figures = metrics.evaluate([sample([A, B], [], [(*A, 0.9), (*B, 0.8)])])
    # recall goes 1/2, 1; the area up to the first detection does not count
    assert figures["AP50"] == pytest.approx(50)
    assert figures["recall"] == 100
    assert figures["mMR"] == pytest.approx(100 * 1e-10)
    assert figures["JI"] == pytest.approx(100, abs=1e-3)
    assert figures["nms_gap"] == 0 and figures["nms_ceiling"] == 100
    assert figures["duplicates_0.05"] == 0


def test_average_precision_is_without_an_envelope():
    # outcomes: TP, FP, TP; recalls 1/2, 1/2, 1; precisions 1, 1/2, 2/3
    curve = Curve.build([sample([A, B], [], [(*A, 0.9), (*C, 0.8), (*B, 0.7)])])
    assert curve.average_precision() == pytest.approx(0.5 * (1 / 2 + 2 / 3) / 2)
    assert curve.fppis.tolist() == [0, 1, 1]


def test_miss_rate_takes_the_first_point_that_reaches_each_reference():
    # two images; TP, FP (fppi 1/2), TP: misses 3/4 before, 3/4 and then 1/2 at fppi 1/2
    one = sample([A, B], [], [(*A, 0.9), (*C, 0.8), (*B, 0.7)])
    curve = Curve.build([one, sample([A, B])])
    # eight references up to 0.3162 are reached at the false positive; 0.5623 and 1 never
    assert curve.log_average_miss_rate() == pytest.approx((0.75**7 * 0.5**2) ** (1 / 9))


def test_an_image_without_anything_counts_in_false_positives_per_image():
    false = sample([A], [], [(*B, 0.9)])
    assert Curve.build([false]).fppis.tolist() == [1]
    assert Curve.build([false, sample()]).fppis.tolist() == [0.5]


def test_no_detections_at_all():
    figures = metrics.evaluate([sample([A]), sample([B], [C])])
    assert (figures["AP50"], figures["recall"], figures["JI"]) == (0, 0, 0)
    assert figures["mMR"] == 100


def test_a_second_detection_of_a_gt_is_a_false_positive_and_a_duplicate():
    detections = [(*A, 0.9), (*moved(A, 1), 0.4), (*moved(A, 2), 0.2), (*C, 0.8)]
    one = sample([A, B], [], detections)
    matches = metrics.match(one)
    assert matches.true.tolist() == [True, False, False, False]
    assert matches.duplicates.tolist() == [False, False, True, True]
    curve = Curve.build([one])
    assert [curve.duplicates_per_gt(t) for t in (0.05, 0.3, 0.4, 0.5)] == [1, 0.5, 0, 0]


def test_the_gap_is_what_nms_would_gain():
    detections = [(*A, 0.9), (*moved(A, 1), 0.8), (*B, 0.7)]
    figures = metrics.evaluate([sample([A, B], [], detections)])
    assert figures["AP50"] == pytest.approx(100 * 0.5 * (1 / 2 + 2 / 3) / 2)
    assert figures["nms_gap"] == pytest.approx(50 - figures["AP50"])


def test_ignore_regions_absorb_any_number():
    region = (0, 0, 50, 50)
    inside = [(5, 5, 15, 15, 0.9), (10, 10, 30, 30, 0.8), (20, 20, 40, 40, 0.7)]
    half_out = (40, 0, 60, 20, 0.6)  # exactly half of it lies inside: not absorbed
    matches = metrics.match(sample([(70, 0, 90, 20)], [region], [*inside, half_out]))
    assert matches.false.tolist() == [False, False, False, True]
    assert not matches.true.any()


def test_a_match_comes_before_an_ignore_region():
    matches = metrics.match(sample([A], [(0, 0, 50, 50)], [(*A, 0.9), (*A, 0.8)]))
    assert matches.true.tolist() == [True, False]
    assert not matches.false.any(), "the second is absorbed, hence no duplicate either"


def test_iou_must_be_strictly_above_half():
    third = (0, 0, 20, 10)  # IoU with A is 200 / 400
    assert not metrics.match(sample([A], [], [(*third, 0.9)])).true.any()
    assert metrics.match(sample([A], [], [(0, 0, 20, 10.001, 0.9)])).true.all()


def test_each_detection_takes_its_best_free_gt():
    near, far = moved(A, 1), moved(A, 4)
    matches = metrics.match(sample([far, near], [], [(*A, 0.9), (*A, 0.8)]))
    assert matches.true.tolist() == [True, True]


def test_jaccard_takes_the_best_threshold():
    # at t < 0.3: 1 pair of 2 detections and 1 gt; from 0.3 on: the true one alone
    one = sample([A], [], [(*A, 0.9), (*C, 0.3)])
    assert metrics.jaccard_index([one]) == pytest.approx(1, abs=1e-5)
    assert metrics.jaccard_index([one.above(0.1).above(0.2)]) == pytest.approx(1, abs=1e-5)
    low = sample([A], [], [(*A, 0.3), (*C, 0.9)])
    assert metrics.jaccard_index([low]) == pytest.approx(1 / 2, abs=1e-5)


def test_jaccard_leaves_out_what_ignore_regions_cover():
    region = (0, 0, 50, 50)
    covered_gt, covered_box = (0, 0, 10, 10), (20, 20, 40, 40, 0.5)
    one = sample([covered_gt, (70, 0, 90, 20)], [region], [covered_box, (70, 0, 90, 20, 0.5)])
    assert metrics.jaccard_index([one]) == pytest.approx(1, abs=1e-5)
    empty = sample([covered_gt], [region], [covered_box])
    assert metrics.jaccard_index([one, empty]) == pytest.approx(1, abs=1e-5), "neither m nor n"


def test_jaccard_pairs_by_total_overlap_not_greedily():
    # the high-scoring box fits both, the other one the first gt only
    first, second = A, moved(A, 5)
    one = sample([first, second], [], [(*moved(A, 2), 0.9), (*moved(A, -3), 0.5)])
    assert metrics.jaccard_index([one]) == pytest.approx(1, abs=1e-5)


def test_ceiling_suppresses_the_later_box():
    pair = np.array([A, moved(A, 2), moved(A, 4), B], float)  # IoUs 0.82, 0.67, 0.82
    assert metrics.suppress(pair, 0.6).tolist() == [0, 3]
    assert metrics.suppress(pair, 0.7).tolist() == [0, 2, 3]
    assert metrics.nms_ceiling([pair, np.zeros((0, 4)), pair[:1]]) == pytest.approx(3 / 5)
    assert metrics.nms_ceiling([]) == 1


def test_detections_of_equal_score_keep_their_order():
    one = sample([A], [], [(*C, 0.5), (*A, 0.5), (*B, 0.5)])
    assert one.boxes.tolist() == [list(C), list(A), list(B)]
