"""CrowdHuman's files: what is read, what is refused, sizes and their cache, registration."""

import json
import os
import uuid
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.build import filter_images_with_only_crowd_annotations
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from defcn_d2.data import DatasetError, builtin, load_crowdhuman, register_crowdhuman
from defcn_d2.data.readers import image_sizes
from defcn_d2.data.readers.odgt import AnnotationError, read_odgt


def person(box, **extra):
    return {"tag": "person", "fbox": box, "vbox": box, "hbox": [0, 0, 1, 1], "extra": extra}


LINES = [
    {
        "ID": "273271,1a0d6000b9e1f5b7",
        "gtboxes": [
            person([10, 20, 30, 40], box_id=0, occ=1),
            person([-5, -8, 30.5, 90]),
            {"tag": "person", "fbox": [1, 1, 5, 5]},
            {"tag": "mask", "fbox": [50, 0, 20, 20], "extra": {"ignore": 1}},
            {"tag": "mask", "fbox": [50, 0, 20, 20], "extra": {"box_id": 3}},
            person([0, 0, 9, 9], ignore=1),
            person([0, 0, 0, 9], ignore=0),
        ],
    },
    {"ID": "b", "gtboxes": [{"tag": "mask", "fbox": [0, 0, 5, 5]}]},
    {"ID": "folder/c", "gtboxes": []},
]
SIZES = {"273271,1a0d6000b9e1f5b7": (80, 60), "b": (31, 17), "folder/c": (40, 50)}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def crowd(tmp_path, monkeypatch):
    """An annotation file, its images, and a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = tmp_path / "Images"
    for image_id, size in SIZES.items():
        path = images / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return write(tmp_path / "annotation_val.odgt", LINES), images


def test_what_is_read(crowd):
    first, second, third = read_odgt(crowd[0])
    assert first.id == "273271,1a0d6000b9e1f5b7" and first.size is None
    assert first.boxes.tolist() == [box["fbox"] for box in LINES[0]["gtboxes"]]
    assert first.ignored.tolist() == [False, False, False, True, True, True, False]
    assert second.ignored.tolist() == [True]
    assert third.boxes.shape == (0, 4) and third.ignored.shape == (0,)
    assert third.file_name == "folder/c.jpg"


def test_dataset_dicts(crowd):
    odgt, images = crowd
    dicts = load_crowdhuman(odgt, images)
    assert [d["image_id"] for d in dicts] == list(SIZES)
    for item in dicts:
        assert (item["width"], item["height"]) == SIZES[item["image_id"]]
        assert item["file_name"] == str(images / f"{item['image_id']}.jpg")
    assert [a["bbox"] for a in dicts[0]["annotations"]][1] == [-5, -8, 30.5, 90]
    assert [a["iscrowd"] for a in dicts[0]["annotations"]] == [0, 0, 0, 1, 1, 1, 0]
    assert {a["category_id"] for item in dicts for a in item["annotations"]} == {0}
    seen = [a.get("visible_bbox") for a in dicts[0]["annotations"]]
    assert seen == [
        [10, 20, 30, 40],
        [-5, -8, 30.5, 90],
        None,
        None,
        None,
        [0, 0, 9, 9],
        [0, 0, 0, 9],
    ]


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, -3, 4], [1, 2, float("nan"), 4], "x", None])
def test_a_visible_box_that_is_none_is_left_out(tmp_path, box):
    """Most trainings need none."""
    line = {"ID": "x", "width": 9, "height": 7, "gtboxes": [{**person([1, 1, 5, 5]), "vbox": box}]}
    (item,) = load_crowdhuman(write(tmp_path / "a.odgt", [line]), tmp_path)
    assert item["annotations"][0]["bbox"] == [1, 1, 5, 5]
    assert "visible_bbox" not in item["annotations"][0]


def test_the_mapper_keeps_ignore_regions_out_and_clips(crowd):
    item = load_crowdhuman(*crowd)[0]
    mapper = DatasetMapper(is_train=True, augmentations=[T.NoOpTransform()], image_format="BGR")
    instances = mapper(item)["instances"]
    expected = [[10, 20, 40, 60], [0, 0, 25.5, 60], [1, 1, 6, 6]]  # the empty box is dropped
    assert instances.gt_boxes.tensor.tolist() == expected
    assert instances.gt_classes.tolist() == [0, 0, 0]


def test_images_of_ignore_regions_only_go_where_the_config_says_so(crowd):
    kept = filter_images_with_only_crowd_annotations(load_crowdhuman(*crowd))
    assert [item["image_id"] for item in kept] == ["273271,1a0d6000b9e1f5b7"]


# ----- sizes ------------------------------------------------------------------------------------


def no_image_is_opened(monkeypatch):
    def refuse(path):
        raise AssertionError(f"{path} should not be opened")

    monkeypatch.setattr(image_sizes.Image, "open", refuse)


def test_sizes_in_the_lines_need_no_images(tmp_path, monkeypatch):
    no_image_is_opened(monkeypatch)
    odgt = write(tmp_path / "a.odgt", [{"ID": "x", "width": 9, "height": 7, "gtboxes": []}])
    (item,) = load_crowdhuman(odgt, tmp_path / "nowhere")
    assert (item["width"], item["height"]) == (9, 7)
    assert list(tmp_path.iterdir()) == [odgt]


def test_sizes_are_read_once(crowd, monkeypatch):
    first = load_crowdhuman(*crowd)
    no_image_is_opened(monkeypatch)
    assert load_crowdhuman(*crowd) == first


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"root": 1}', b'{"images": {"b": 3}}'])
def test_a_damaged_cache_is_made_anew(crowd, content):
    first = load_crowdhuman(*crowd)
    cache = crowd[0].with_name("annotation_val.odgt.sizes.json")
    good = cache.read_bytes()
    cache.write_bytes(content)
    assert load_crowdhuman(*crowd) == first
    assert cache.read_bytes() == good


def test_an_image_of_another_size_is_read_again(crowd):
    """It alone: the others are remembered. One that is gone has the size that it had."""
    odgt, images = crowd
    first = load_crowdhuman(*crowd)
    known = odgt.with_name("annotation_val.odgt.sizes.json").read_text()
    Image.new("RGB", (62, 34)).save(images / "b.jpg")
    (images / "folder" / "c.jpg").unlink()
    again = load_crowdhuman(*crowd)
    assert [(x["width"], x["height"]) for x in again] == [(80, 60), (62, 34), (40, 50)]
    assert odgt.with_name("annotation_val.odgt.sizes.json").read_text() != known
    assert [x["annotations"] for x in again] == [x["annotations"] for x in first]
    # as quick as it may be, with as many bytes
    path = images / "b.jpg"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"\x00\x22\x00\x3e", b"\x00\x23\x00\x3d"))
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
    assert load_crowdhuman(*crowd)[1]["width"] == 61


def test_a_cache_of_other_images_does_not_count(crowd, tmp_path):
    load_crowdhuman(*crowd)
    other = tmp_path / "other" / "folder"
    other.mkdir(parents=True)
    for image_id in SIZES:
        Image.new("L", (3, 4)).save(tmp_path / "other" / f"{image_id}.jpg")
    dicts = load_crowdhuman(crowd[0], tmp_path / "other")
    assert {(d["width"], d["height"]) for d in dicts} == {(3, 4)}


def test_where_the_folder_is_read_only_the_cache_goes_to_the_users_folder(
    crowd, tmp_path, monkeypatch
):
    write_file = image_sizes.write_atomically

    def read_only(path, content):
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        write_file(path, content)

    monkeypatch.setattr(image_sizes, "write_atomically", read_only)
    first = load_crowdhuman(*crowd)
    assert len(list((tmp_path / "cache" / "defcn_d2").iterdir())) == 1
    no_image_is_opened(monkeypatch)
    assert load_crowdhuman(*crowd) == first


def test_where_no_folder_can_be_written_there_is_no_cache(crowd, tmp_path, monkeypatch, caplog):
    def read_only(path, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(image_sizes, "write_atomically", read_only)
    with caplog.at_level("INFO", image_sizes.__name__):
        first = load_crowdhuman(*crowd)
    assert len(first) == len(SIZES)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all(text.endswith(": Permission denied") for text in told)
    assert load_crowdhuman(*crowd) == first


def test_an_image_turned_by_exif_has_the_size_that_detectron2_loads(crowd):
    odgt, images = crowd
    picture = Image.new("RGB", (31, 17))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(images / "b.jpg", exif=exif)
    item = load_crowdhuman(odgt, images)[1]
    assert (item["width"], item["height"]) == (17, 31)
    DatasetMapper(is_train=False, augmentations=[], image_format="BGR")(item)  # checks the size


def test_missing_and_damaged_images_are_counted_and_named(crowd):
    odgt, images = crowd
    (images / "b.jpg").unlink()
    (images / "folder/c.jpg").write_bytes(b"nothing")
    with pytest.raises(DatasetError) as error:
        load_crowdhuman(odgt, images)
    text = str(error.value)
    assert text.startswith(f"2 of the 3 images that {odgt} names cannot be read in {images}: ")
    assert "b.jpg (missing)" in text and "folder/c.jpg (cannot identify" in text


def test_only_the_first_missing_images_are_named(tmp_path):
    odgt = write(tmp_path / "a.odgt", [{"ID": f"{i}", "gtboxes": []} for i in range(9)])
    with pytest.raises(DatasetError, match=r"9 of the 9 images .* 4\.jpg \(missing\), \.\.\.\. "):
        load_crowdhuman(odgt, tmp_path)


# ----- what is refused --------------------------------------------------------------------------

BAD_LINES = [
    ("{", "not a JSON object"),
    ("\xff", "not a JSON object"),
    ("[" * 100_000, "not a JSON object"),
    ("3", "expected a JSON object, got 3"),
    ('{"gtboxes": []}', "'ID' is missing"),
    ('{"ID": 3, "gtboxes": []}', "'ID' must be a string, got 3"),
    ('{"ID": "x"}', "'gtboxes' is missing"),
    ('{"ID": "x", "gtboxes": {}}', "'gtboxes' must be a list, got {}"),
    ('{"ID": "x", "gtboxes": [[]]}', r"gtboxes\[0\]: expected a JSON object, got \[\]"),
    ('{"ID": "x", "gtboxes": [{"fbox": [1, 1, 1, 1]}]}', r"gtboxes\[0\]: 'tag' is missing"),
    ('{"ID": "x", "gtboxes": [{"tag": "person"}]}', r"gtboxes\[0\]: 'fbox' is missing"),
    ('{"ID": "x", "gtboxes": [{"tag": "mask", "fbox": [1, 2, 3]}]}', r"fbox must be .*\[1, 2, 3\]"),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, -3, 4]}]}', "fbox must be"),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, NaN, 3, 4]}]}', "fbox must be"),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, 3, 1e999]}]}', "fbox must be"),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, 3, 1' + "0" * 400 + "]}]}", "fbox must"),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, 3, true]}]}', "fbox must be"),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, 3, "4"]}]}', "fbox must be"),
    (
        '{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, 3, 4], "extra": {"ignore": "1"}}]}',
        "extra.ignore must be a number, got '1'",
    ),
    ('{"ID": "x", "gtboxes": [{"tag": "a", "fbox": [1, 2, 3, 4], "extra": 1}]}', "an object"),
    ('{"ID": "x", "gtboxes": [], "width": 3}', "'height' is missing"),
    ('{"ID": "x", "gtboxes": [], "width": 3.5, "height": 2}', "a whole number, got 3.5"),
    ('{"ID": "x", "gtboxes": [], "width": 0, "height": 2}', "no image has width 0 and height 2"),
    ('{"ID": "b", "gtboxes": []}', "ID 'b' stands in line 2 already"),
    ('{"ID": "../x", "gtboxes": []}', "ID '../x' is no path below the folder of images"),
    ('{"ID": "a/../../x", "gtboxes": []}', "is no path below"),
    ('{"ID": "/etc/x", "gtboxes": []}', "is no path below"),
    ('{"ID": "", "gtboxes": []}', "is no path below"),
    ('{"ID": "a\\u0000b", "gtboxes": []}', "is no path below"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path, line, message):
    odgt = write(tmp_path / "bad.odgt", LINES)
    odgt.write_bytes(odgt.read_bytes() + b"\n" + line.encode("latin-1") + b"\n")  # line 4 is blank
    with pytest.raises(AnnotationError, match=f"bad.odgt, line 5: .*{message}"):
        load_crowdhuman(odgt, tmp_path)


def test_long_values_are_cut_in_messages(tmp_path):
    odgt = write(tmp_path / "bad.odgt", [{"ID": "x", "gtboxes": "y" * 5000}])
    with pytest.raises(AnnotationError) as error:
        read_odgt(odgt)
    assert len(str(error.value)) < 200 + len(str(odgt))


def test_empty_and_missing_files(tmp_path):
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(AnnotationError, match="empty holds no images"):
        read_odgt(tmp_path / "empty")
    with pytest.raises(DatasetError, match="cannot read .*absent: No such file"):
        load_crowdhuman(tmp_path / "absent", tmp_path)


@given(st.data())
def test_damage_gives_an_annotation_error_or_a_sound_reading(tmp_path_factory, data):
    """Cut or with a byte changed, a file is refused by line, or read as something consistent."""
    content = "".join(json.dumps(line) + "\n" for line in LINES).encode()
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255))
    damaged = data.draw(
        st.sampled_from([content[:place], content[:place] + bytes([byte]) + content[place + 1 :]])
    )
    path = tmp_path_factory.getbasetemp() / "damaged.odgt"
    path.write_bytes(damaged)
    try:
        images = read_odgt(path)
    except AnnotationError as error:
        assert str(error).startswith(str(path))
        return
    for image in images:
        assert image.boxes.shape == (len(image.ignored), 4) and np.isfinite(image.boxes).all()
        assert ".." not in Path(image.file_name).parts


# ----- registration -----------------------------------------------------------------------------


def test_crowdhuman_is_registered_below_the_folder_of_data_sets(tmp_path):
    for split in ("train", "val"):
        meta = MetadataCatalog.get(f"crowdhuman_{split}")
        assert meta.odgt_file.endswith(f"crowdhuman/annotation_{split}.odgt")
        assert meta.image_root.endswith("crowdhuman/Images")
        assert meta.evaluator_type == "crowdhuman" and meta.thing_classes == ["person"]


def test_without_crowdhuman_the_error_tells_where_to_put_it(tmp_path):
    odgt = tmp_path / "crowdhuman" / "annotation_val.odgt"
    with pytest.raises(
        DatasetError, match=r"annotation_val.odgt does not exist.*\$DETECTRON2_DATA"
    ):
        builtin._demand_crowdhuman(odgt)
    odgt.parent.mkdir()
    odgt.write_text("")
    builtin._demand_crowdhuman(odgt)


def test_registering_a_set(crowd):
    name = f"crowdhuman_test_{uuid.uuid4().hex}"
    calls = []
    register_crowdhuman(name, str(crowd[0]), str(crowd[1]), prepare=lambda: calls.append(1))
    assert not calls
    assert DatasetCatalog.get(name) == load_crowdhuman(*crowd)
    assert calls == [1]
    name = f"crowdhuman_test_{uuid.uuid4().hex}"
    register_crowdhuman(name, *crowd)  # with nothing to prepare
    assert DatasetCatalog.get(name) == load_crowdhuman(*crowd)
