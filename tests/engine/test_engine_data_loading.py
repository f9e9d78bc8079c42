"""Batches by seed and number, whatever the workers; broken images named, replaced, counted."""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.build import build_detection_train_loader
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from defcn_d2 import add_defcn_config
from defcn_d2.data.mapper import SKIPPED, BlankWhereBroken, CheckedMapper, ImageError
from defcn_d2.data.mixing import MIXED_WITH
from defcn_d2.engine import data_loading
from defcn_d2.engine.data_loading import (
    EvaluationLoader,
    LoaderError,
    TrainingLoader,
    build_sampler,
    grouped_by_orientation,
)
from defcn_d2.engine.reporting import describe

SIZES = [(40, 30), (30, 40), (32, 32), (48, 20), (20, 44), (36, 30), (30, 31)]


@pytest.fixture
def records(tmp_path):
    found = []
    for i, (width, height) in enumerate(SIZES):
        file = tmp_path / f"{i}.png"
        Image.fromarray(np.full((height, width, 3), i, np.uint8)).save(file)
        box = {"bbox": [1, 2, 9, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 2}
        found.append(
            {
                "file_name": str(file),
                "image_id": i,
                "width": width,
                "height": height,
                "annotations": [box],
            }
        )
    return found


def config(**keys):
    cfg = get_cfg()
    add_defcn_config(cfg)
    cfg.SEED = 3
    cfg.INPUT.MIN_SIZE_TRAIN = (32, 40, 48)
    cfg.INPUT.MAX_SIZE_TRAIN = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    for key, value in keys.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    return cfg


def loader(records, **keys):
    cfg = config(**keys)
    return TrainingLoader(cfg, records, CheckedMapper.from_config(cfg, True), 2)


def take(loader, number):
    iterator = iter(loader)
    batches = list(itertools.islice(iterator, number))
    iterator.close()
    return [[(x["image_id"], tuple(x["image"].shape)) for x in batch] for batch in batches], batches


@pytest.mark.parametrize(
    "grouping, sampler",
    [
        (True, "TrainingSampler"),
        (False, "TrainingSampler"),
        (True, "RepeatFactorTrainingSampler"),
    ],
)
def test_batches_do_not_depend_on_workers_nor_on_interruptions(records, grouping, sampler):
    keys = {
        "DATALOADER__ASPECT_RATIO_GROUPING": grouping,
        "DATALOADER__SAMPLER_TRAIN": sampler,
        "DATALOADER__REPEAT_THRESHOLD": 0.9,
    }
    names, batches = take(loader(records, **keys), 12)
    assert len({shape for batch in names for _, shape in batch}) > len(SIZES)  # augmented
    again, others = take(loader(records, **keys, DATALOADER__NUM_WORKERS=2), 12)
    assert again == names
    resumed = loader(records, **keys)
    resumed.start = 5
    later, rest = take(resumed, 7)
    assert later == names[5:]
    for one, other in zip(batches[5:], rest):
        for x, y in zip(one, other):
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
    another = loader(records, **keys)
    another.seed = 4
    assert take(another, 12)[0] != names
    if grouping:
        wide = [[SIZES[i][0] > SIZES[i][1] for i, _ in batch] for batch in names]
        assert all(len(set(batch)) == 1 for batch in wide) and len({x[0] for x in wide}) == 2


def test_order_is_that_of_detectron2(records, monkeypatch):
    """Same sampler, same grouping: only the augmentation is drawn otherwise."""
    cfg = config()
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    sampler = build_sampler(cfg, records, lambda x: x, 11)
    cfg.SOLVER.IMS_PER_BATCH = 2
    theirs = build_detection_train_loader(
        records,
        mapper=DatasetMapper(cfg, True),
        sampler=build_sampler(cfg, records, lambda x: x, 11),
        total_batch_size=2,
        aspect_ratio_grouping=True,
    )
    expected = [[x["image_id"] for x in batch] for batch in itertools.islice(iter(theirs), 9)]
    ours = loader(records)
    ours.seed = 11
    assert [[i for i, _ in batch] for batch in take(ours, 9)[0]] == expected
    epoch = list(itertools.islice(iter(sampler), len(SIZES)))
    assert sorted(epoch) == list(range(len(SIZES)))


def test_each_process_has_its_share(records, monkeypatch):
    cfg = config(DATALOADER__ASPECT_RATIO_GROUPING=False)
    draws = {}
    monkeypatch.setattr(data_loading.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(data_loading.comm, "shared_random_seed", lambda: 1)
    for rank in range(2):
        monkeypatch.setattr(data_loading.comm, "get_rank", partial(int, rank))
        part = TrainingLoader(cfg, records, CheckedMapper.from_config(cfg, True), 2)
        draws[rank] = list(itertools.islice(part._batches(), 6))
    positions = sorted(position for batches in draws.values() for [(position, _)] in batches)
    assert positions == list(range(12))
    stream = dict(draw for batches in draws.values() for [draw] in batches)
    assert sorted(stream[i] for i in range(len(SIZES))) == list(range(len(SIZES)))


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_groups(is_wide, size):
    draws = [(place, index) for place, index in enumerate(range(len(is_wide)))]
    batches = list(grouped_by_orientation(draws, is_wide, size))
    for batch in batches:
        assert len(batch) == size and len({is_wide[i] for _, i in batch}) == 1
    ends = [batch[-1][0] for batch in batches]
    assert ends == sorted(ends)
    for kind in (True, False):  # in order, and all but an unfinished batch
        taken = [draw for batch in batches for draw in batch if is_wide[draw[1]] == kind]
        mine = [draw for draw in draws if is_wide[draw[1]] == kind]
        assert taken == mine[: len(mine) // size * size]


@pytest.mark.parametrize("name", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_samplers_have_the_seed_of_the_run(records, name):
    cfg = config(DATALOADER__SAMPLER_TRAIN=name, DATALOADER__REPEAT_THRESHOLD=0.9)
    np.random.seed(1)
    first = list(itertools.islice(iter(build_sampler(cfg, records, None, 5)), 30))
    np.random.seed(2)
    again = list(itertools.islice(iter(build_sampler(cfg, records, None, 5)), 30))
    other = list(itertools.islice(iter(build_sampler(cfg, records, None, 6)), 30))
    assert first == again != other


def test_rare_classes_are_repeated(records):
    """Class 1 alone is in one image of seven: with the threshold 4 / 7 it comes twice as often."""
    for i, record in enumerate(records):
        record["annotations"][0]["category_id"] = int(i == 3)
    cfg = config(
        DATALOADER__SAMPLER_TRAIN="RepeatFactorTrainingSampler",
        DATALOADER__REPEAT_THRESHOLD=4 / 7,
    )
    drawn = list(itertools.islice(iter(build_sampler(cfg, records, None, 5)), 80))
    assert drawn.count(3) == 20 and all(drawn.count(i) == 10 for i in (0, 1, 2, 4, 5, 6))


def damage(record, how):
    path = record["file_name"]
    if how == "truncated":
        content = open(path, "rb").read()
        open(path, "wb").write(content[: len(content) // 2])
    elif how == "no image":
        open(path, "wb").write(b"hello")
    elif how == "gone":
        os.remove(path)
    elif how == "box":
        record["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    elif how == "short box":
        record["annotations"][0]["bbox"] = [1, 2]
    elif how == "no box":
        del record["annotations"][0]["bbox"]
    elif how == "class":
        record["annotations"][0]["category_id"] = -1
    elif how == "size":
        record["height"] = 99
    return record


DAMAGES = ["truncated", "no image", "gone", "box", "short box", "no box", "class", "size"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_loaded_is_named(records, how, workers):
    broken = [damage(records[0], how), *records[1:]]
    with pytest.raises(ImageError) as info:
        take(loader(broken, DATALOADER__NUM_WORKERS=workers), 8)
    sentence = describe(info.value)
    assert sentence.startswith(f"image {broken[0]['file_name']!r} cannot be loaded: ")
    assert sentence.endswith("; correct or remove it, or set DATALOADER.ON_ERROR skip")
    assert "\n" not in sentence


def test_a_bomb_is_not_decoded(records):
    with pytest.raises(ImageError, match="INPUT.MAX_PIXELS"):
        take(loader(records, INPUT__MAX_PIXELS=100), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_skipped_and_counted(records, workers, caplog):
    broken = [damage(records[0], "truncated"), *records[1:]]
    keys = {"DATALOADER__ON_ERROR": "skip", "DATALOADER__NUM_WORKERS": workers}
    expected = 2 * len(SIZES) - 2  # of two epochs, and a batch less, as there are two groups
    part = loader(broken, **keys)
    with caplog.at_level(logging.WARNING):
        names, batches = take(part, expected // 2)
    assert all(image != 0 for batch in names for image, _ in batch)
    assert not any(SKIPPED in x for batch in batches for x in batch)
    assert 1 <= part.skipped <= 4
    told = [x for x in caplog.records if x.module == "data_loading"]
    assert len(told) == 1 and broken[0]["file_name"] in told[0].getMessage()
    again = loader(broken, **keys)
    assert take(again, expected // 2)[0] == names  # what takes their place is no accident


def test_not_all_are_skipped(records):
    broken = [damage(record, "no image") for record in records]
    with pytest.raises(ImageError, match="10 images in a row cannot be loaded; the last: image"):
        take(loader(broken, DATALOADER__ON_ERROR="skip"), 1)


def test_a_mapper_may_want_another_image(records):
    def some(record):
        return record if record["image_id"] > 2 else None

    names = [x["image_id"] for b in itertools.islice(_plain(records, some), 8) for x in b]
    assert min(names) == 3
    with pytest.raises(ImageError, match="10 images in a row cannot be loaded$"):
        next(_plain(records, lambda record: None))


def _plain(records, mapper):
    return iter(TrainingLoader(config(), records, mapper, 2))


def test_a_worker_that_dies_is_told_with_its_images(records):
    """As when the system kills it for want of memory."""
    main = os.getpid()

    def dying(record):
        if record["image_id"] == 4 and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return record

    batches = iter(TrainingLoader(config(DATALOADER__NUM_WORKERS=1), records, dying, 2))
    with pytest.raises(LoaderError) as info:
        list(itertools.islice(batches, 9))
    sentence = describe(info.value)
    assert re.search(r"gone \(DataLoader worker \(pid\S* \d+\) .*\), with these images", sentence)
    assert repr(records[4]["file_name"]) in sentence and "--resume" in sentence


def test_other_errors_of_a_loader_stay(records):
    def broken(record):
        raise RuntimeError("a bug of the mapper")

    with pytest.raises(RuntimeError, match="a bug of the mapper"):
        next(_plain(records, broken))


def test_memory_is_no_matter_of_an_image(records):
    def full(record):
        raise MemoryError

    with pytest.raises(MemoryError):
        CheckedMapper(full)(records[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluations_stop_or_take_a_black_image(records, workers, caplog):
    broken = [damage(records[0], "no image"), *records[1:]]
    cfg = config()
    mapper = CheckedMapper.from_config(cfg, False)
    with pytest.raises(ImageError):
        list(EvaluationLoader(broken, mapper, workers))
    blank = BlankWhereBroken(mapper, 3)
    with caplog.at_level(logging.WARNING):
        batches = list(EvaluationLoader(broken, blank, workers))
    assert [x["image_id"] for [x] in batches] == list(range(len(SIZES)))
    [black] = batches[0]
    assert black["image"].shape[0] == 3 and not black["image"].any()
    assert (black["width"], black["height"]) == SIZES[0] and "annotations" not in black
    told = [x.getMessage() for x in caplog.records if x.module == "data_loading"]
    assert broken[0]["file_name"] in told[0] and told[1].startswith("1 images")


MIXED = {
    f"INPUT__{name}__{key}": value
    for name in ("MOSAIC", "MIXUP", "COPY_PASTE")
    for key, value in (("PROB", 0.5), ("START", 0.25), ("STOP", 0.75))
}
MIXED |= {"SOLVER__MAX_ITER": 12, "INPUT__COPY_PASTE__MIN_AREA": 1.0}


def assert_equal(batches, others):
    for one, other in zip(batches, others, strict=True):
        for x, y in zip(one, other, strict=True):
            assert x["file_name"] == y["file_name"] and x.get(MIXED_WITH) == y.get(MIXED_WITH)
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
            assert torch.equal(x["instances"].gt_classes, y["instances"].gt_classes)


def test_mixed_images_do_not_depend_on_workers_nor_on_interruptions(records):
    _, batches = take(loader(records, **MIXED), 12)
    kinds = {len(x.get(MIXED_WITH, ())) for batch in batches for x in batch}
    assert 0 in kinds and len(kinds) > 2
    assert_equal(take(loader(records, **MIXED, DATALOADER__NUM_WORKERS=2), 12)[1], batches)
    resumed = loader(records, **MIXED)
    resumed.start = 5
    assert_equal(take(resumed, 7)[1], batches[5:])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_mixing_starts_and_stops_by_step(records, accumulate):
    """Before and after, the stream is that of a training without it; sizes are throughout."""
    keys = {"SOLVER__ACCUMULATE": accumulate, "SOLVER__MAX_ITER": 12 // accumulate}
    names, batches = take(loader(records, **{**MIXED, **keys}), 12)
    plain_names, plain = take(loader(records), 12)
    assert names == plain_names
    start, stop = (4, 10) if accumulate == 2 else (3, 9)  # of 6 steps the second to the fifth
    assert_equal(batches[:start] + batches[stop:], plain[:start] + plain[stop:])
    mixed = [any(MIXED_WITH in x for x in batch) for batch in batches]
    assert sum(mixed) >= 4 and not any(mixed[:start] + mixed[stop:])


def test_processes_share_one_stream_of_mixed_images(records, monkeypatch):
    keys = {**MIXED, "DATALOADER__ASPECT_RATIO_GROUPING": False}
    _, whole = take(loader(records, **keys), 12)
    monkeypatch.setattr(data_loading.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(data_loading.comm, "shared_random_seed", lambda: 1)
    shares = []
    for rank in range(2):
        monkeypatch.setattr(data_loading.comm, "get_rank", partial(int, rank))
        shares.append(take(loader(records, **keys), 12)[1])
    assert_equal([a + b for a, b in zip(*shares)], whole)


def test_broken_partners_are_skipped_and_counted(records, caplog):
    broken = [damage(records[0], "truncated"), *records[1:]]
    keys = {**MIXED, "INPUT__MOSAIC__PROB": 1.0, "INPUT__MOSAIC__START": 0.0}
    with pytest.raises(ImageError, match="0.png"):
        take(loader(broken, **keys), 8)
    part = loader(broken, **keys, DATALOADER__ON_ERROR="skip")
    _, batches = take(part, 8)
    assert part.skipped > 4  # more often than it is drawn by itself
    assert not any(SKIPPED in x for batch in batches for x in batch)
    assert broken[0]["file_name"] in caplog.text
