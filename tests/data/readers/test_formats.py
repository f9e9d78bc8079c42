"""YOLO's and Pascal VOC's files become what COCO's would be, and their mistakes have a place."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from coco_files import CLASSES, HEIGHT, WIDTH, make_content, write_set
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import write_voc, write_yolo
from PIL import Image
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.data import DatasetError
from defcn_d2.data.readers import image_sizes
from defcn_d2.data.readers.coco import read_coco
from defcn_d2.data.readers.own_data import check_datasets, check_image_sizes
from defcn_d2.engine.evaluators import build_evaluator
from defcn_d2.utils.errors import UserError


def objects(data):
    """Class and box of all objects, by the name of the image."""
    return {
        Path(record["file_name"]).name: [
            (x["category_id"], tuple(x["bbox"])) for x in record["annotations"]
        ]
        for record in data.records()
    }


def without_crowds():
    content = make_content()
    content["annotations"] = [x for x in content["annotations"] if not x["iscrowd"]]
    return content


@pytest.fixture
def yolo(tmp_path):
    write_yolo(tmp_path, "val", without_crowds())
    return write_yolo(tmp_path, "train", without_crowds())


@pytest.fixture
def voc(tmp_path):
    return write_voc(tmp_path, "train", without_crowds())


def labels_of(yaml):
    return yaml.parent / "labels" / "train" / "a.txt"


def read_yolo(yaml):
    return read_coco(yaml, yaml.parent / "images" / "train")


def read_voc(listed, classes=()):
    return read_coco(listed, listed.parents[2] / "JPEGImages", (), classes)


SIDES = st.tuples(st.integers(0, WIDTH - 2), st.integers(0, HEIGHT - 2)).flatmap(
    lambda p: st.tuples(st.integers(2, WIDTH - p[0]), st.integers(2, HEIGHT - p[1])).map(
        lambda s: [*p, *s]
    )
)


@given(
    st.lists(st.tuples(st.sampled_from([31, 11, 21]), st.sampled_from([3, 7]), SIDES), min_size=1)
)
@settings(max_examples=10, deadline=None)
def test_the_same_boxes_by_all_formats(tmp_path_factory, boxes):
    folder, content = tmp_path_factory.mktemp("round"), make_content()
    content["annotations"] = [
        {"id": i, "image_id": image, "category_id": category, "bbox": box}
        for i, (image, category, box) in enumerate(boxes)
    ]
    expected = objects(read_coco(*write_set(folder / "coco", content)))
    yolo = objects(read_yolo(write_yolo(folder / "yolo", "train", content)))
    voc = objects(read_voc(write_voc(folder / "voc", "train", content), CLASSES))
    assert voc == expected and yolo.keys() == expected.keys()
    for name, found in yolo.items():
        assert [x[0] for x in found] == [x[0] for x in expected[name]]
        for (_, box), (_, right) in zip(found, expected[name]):
            assert box == pytest.approx(right, abs=1e-3)


def config(*keys):
    keys = [x if i % 2 else f"DATASETS.REGISTER.{x}" for i, x in enumerate(keys)]
    return load_config(CONFIG, keys)


def test_yolo_by_its_yaml_alone(yolo, tmp_path):
    cfg = config("TRAIN.ANNOTATIONS", str(yolo), "VAL.ANNOTATIONS", str(yolo))
    node = cfg.DATASETS.REGISTER
    assert node.TRAIN.IMAGES == str(tmp_path / "images" / "train")
    assert node.VAL.IMAGES == str(tmp_path / "images" / "val")
    assert node.CLASSES == CLASSES and node.CATEGORY_IDS == [0, 1, 2]
    assert cfg.MODEL.DEFCN.NUM_CLASSES == 3 and cfg.DATASETS.TRAIN != cfg.DATASETS.TEST
    check_datasets(cfg, ["TRAIN", "VAL"])
    check_image_sizes(cfg, ["TRAIN", "VAL"])
    truth = build_evaluator(cfg, cfg.DATASETS.TEST[0])._evaluators[0]._coco_api
    assert sorted(x["file_name"] for x in truth.imgs.values()) == [
        *("a.png", "deep/b.png", "deep/c.png", "empty.png")
    ]
    assert len(truth.anns) == 4 and {x["category_id"] for x in truth.anns.values()} == {0, 1}
    written = tmp_path / "written.yaml"
    written.write_text(cfg.dump())
    yolo.unlink()  # is not needed to know the classes
    assert load_config(str(written)).DATASETS == cfg.DATASETS


def test_voc_takes_the_classes_of_the_training(tmp_path):
    train = write_voc(tmp_path, "train", without_crowds())
    content = without_crowds()
    content["images"] = [{**content["images"][0], "file_name": "z.png"}]
    content["annotations"] = [x for x in content["annotations"] if x["category_id"] == 7][:1]
    val = write_voc(tmp_path, "val", content)
    cfg = config("TRAIN.ANNOTATIONS", str(train), "VAL.ANNOTATIONS", str(val))
    node = cfg.DATASETS.REGISTER
    assert node.CLASSES == ["cat", "dog"] and node.CATEGORY_IDS == [1, 2]
    assert node.VAL.IMAGES == str(tmp_path / "JPEGImages")
    check_datasets(cfg, ["TRAIN", "VAL"])  # there is no cat in VAL
    xml = tmp_path / "Annotations" / "z.xml"
    xml.write_text(xml.read_text().replace("dog", "zebra"))
    with pytest.raises(DatasetError) as caught:
        check_datasets(cfg, ["TRAIN", "VAL"])
    assert str(caught.value).startswith(
        f"DATASETS.REGISTER.VAL: {val}: objects of classes that the training data, "
        "DATASETS.REGISTER.CLASSES, do not have: 1, first z.xml, object 1 ('zebra'); "
    )


def test_a_folder_of_xml(voc, tmp_path):
    """All of it; without an image of its name, that of ``filename``; sizes of the images."""
    xml = tmp_path / "Annotations" / "a.xml"
    text = xml.read_text().replace("<width>64<", "<width>0<").replace(">a.png<", ">b.png<")
    xml.with_name("other.xml").write_text(text)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages" / "b.png")
    data = read_coco(tmp_path / "Annotations", tmp_path / "JPEGImages")
    assert data.categories == {1: "cat", 2: "dog"}
    assert [x.file_name for x in data.images] == [
        *("a.png", "deep/b.png", "deep/c.png", "empty.png", "b.png")
    ]
    assert data.sizes.tolist() == [[WIDTH, HEIGHT]] * 5
    assert objects(read_voc(voc))["a.png"] == [(0, (4, 6, 20, 30)), (1, (30.5, 10.25, 24, 20))]


def test_changed_labels_are_read_again(yolo, voc):
    assert len(read_yolo(yolo).boxes) == len(read_voc(voc).boxes) == 4
    labels_of(yolo).write_text("1 0.5 0.5 0.25 0.25\n")
    (voc.parents[2] / "Annotations" / "a.xml").write_text("<annotation></annotation>")
    assert objects(read_yolo(yolo))["a.png"] == [(1, (24, 18, 16, 12))]
    assert objects(read_voc(voc))["a.png"] == []


def test_splits_of_a_yaml_remember_their_own_sizes(yolo, monkeypatch):
    def read_all():
        for split in ("train", "val"):
            image_sizes.image_sizes(yolo.parent / "images" / split, ["a.png"], yolo)

    read_all()
    monkeypatch.setattr(image_sizes.Image, "open", None)  # fails where it is called
    read_all()


@pytest.mark.parametrize(
    "line, reason",
    [
        ("0 0.5 0.5 0.5", "3 numbers after the class are neither a box nor a polygon"),
        ("0 0.5 0.5 0.5 0.5 0.9", "5 numbers after the class are neither"),
        ("0 0.5 0.5 0.5 0.5 0.9 0.9 0.9", "7 numbers after the class are neither"),
        ("0 32 24 10 10", "'0 32 24 10 10' has numbers that are no fractions"),
        ("0 0.5 nan 0.5 0.5", "has numbers that are no fractions"),
        ("0 0.5 0.5 -0.5 0.5", "has numbers that are no fractions"),
        ("3 0.5 0.5 0.5 0.5", "the class 3 is not among the 3 of the yaml"),
        ("-1 0.5 0.5 0.5 0.5", "the class -1 is not among"),
        ("0.5 0.5 0.5 0.5 0.5", "the class 0.5 is not among"),
        ("cat 0.5 0.5 0.5 0.5", "'cat 0.5 0.5 0.5 0.5' are not numbers alone"),
        ("0,0.5,0.5,0.5,0.5", "are not numbers alone"),
    ],
)
def test_bad_lines_are_named(yolo, line, reason):
    labels_of(yolo).write_text(f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    with pytest.raises(DatasetError) as caught:
        read_yolo(yolo)
    message = f"{yolo}: lines of labels that cannot be understood: 1, first labels/train/a.txt:3 ("
    assert str(caught.value).startswith(message) and reason in str(caught.value)


@pytest.mark.parametrize(
    "line, box",
    [
        ("1.0 0.5 0.5 0.25 0.5", [24, 12, 16, 24]),
        ("1 0.25 0.5 0.5 0.25 0.75 0.75", [16, 12, 32, 24]),  # a triangle
        ("1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75", [16, 12, 32, 24]),
        ("1 1.0000001 0.5 0.5 1", [48, 0, 32, 48]),  # reaches beyond the image
    ],
)
def test_boxes_and_polygons(yolo, line, box):
    labels_of(yolo).write_text(f"\ufeff{line}\r\n")
    ((label, found),) = objects(read_yolo(yolo))["a.png"]
    assert label == 1 and found == pytest.approx(box, abs=1e-4)


def test_keypoints_are_left_out(yolo):
    yolo.write_text(yolo.read_text() + "kpt_shape: [1, 2]\n")
    labels_of(yolo).write_text("1 0.5 0.5 0.25 0.5 0.1 0.2\n")
    (yolo.parent / "labels" / "train" / "empty.txt").write_text("1 0.5 0.5 0.25 0.5 99 99\n")
    found = objects(read_yolo(yolo))
    assert found["a.png"] == found["empty.png"] == [(1, (24, 12, 16, 24))]


def test_images_and_labels_without_the_other_are_told(yolo):
    labels_of(yolo).rename(labels_of(yolo).with_name("b.txt"))
    labels_of(yolo).with_name("classes.txt").write_text("cat\n")
    warnings = read_yolo(yolo).warnings
    other = labels_of(yolo).with_name("b.txt")
    assert warnings == [
        "images without a file of labels: 1, first 'a.png'; they count as images without objects",
        f"files of labels whose image is not there: 1, first '{other}'; they are left out",
    ]
    for file in (yolo.parent / "labels").rglob("*.txt"):
        file.unlink()
    with pytest.raises(DatasetError) as caught:
        read_yolo(yolo)
    assert str(caught.value) == (
        f"{yolo}: none of the 4 images in '{yolo.parent}/images/train' has a file of labels, such "
        f"as '{yolo.parent}/labels/train/a.txt'; put them there, or correct the folder of images"
    )


def test_labels_beside_the_images(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("L", (10, 20)).save(tmp_path / "mine" / "a.PNG")
    (tmp_path / "mine" / "a.txt").write_text("0 0.5 0.5 1 1")
    (tmp_path / "data.yml").write_text("names: {0: 7, 5: b}")
    data = read_coco(tmp_path / "data.yml", tmp_path / "mine")
    assert data.categories == {0: "7", 5: "b"} and data.boxes.tolist() == [[0, 0, 10, 20]]
    assert data.warnings == []


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("a: [", "is not YAML (while parsing"),
        ("names: !!python/object/apply:os.getcwd []", "is not YAML (could not determine a constr"),
        ("- a", "is no data.yaml of YOLO's format"),
        ("nc: 3", "has no 'names' of classes"),
        ("names: [a, b]\nnc: 3", "has 2 'names', but 'nc' is 3"),
        ("names: {a: 0}", "the keys of 'names' must be the numbers"),
        ("names: [cat, yes, dog]", "categories[1]: 'name' must be a string, got True"),
    ],
)
def test_bad_yaml(yolo, text, sentence):
    yolo.write_text(text)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(yolo))}.*{re.escape(sentence)}"):
        read_yolo(yolo)


def test_folders_of_a_yaml(yolo, tmp_path):
    """Relative to ``path``, to the file, or, as some writers have it, with a ".." too much."""
    for text in (
        f"path: {tmp_path}\ntrain: images/train",
        "path: images\ntrain: train",
        "path: /nowhere\ntrain: ./images/train",
        "train: ../images/train",
    ):
        yolo.write_text(f"{text}\nnames: [cat, dog, bird]\n")
        cfg = config("TRAIN.ANNOTATIONS", str(yolo))
        assert cfg.DATASETS.REGISTER.TRAIN.IMAGES == str(tmp_path / "images" / "train")
    with pytest.raises(UserError) as caught:
        config("TRAIN.ANNOTATIONS", str(yolo), "VAL.ANNOTATIONS", str(yolo))
    assert str(caught.value) == (
        f"DATASETS.REGISTER.VAL: {yolo}: 'val' is None, and no folder of that name is there; "
        "correct it, or give the folder of images, DATASETS.REGISTER.VAL.IMAGES"
    )


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>4</ymax></bndbox>"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("<annotation>", "files that are not VOC's xml: 1, first a.xml (no element found"),
        ("<html></html>", "first a.xml (its root is <html>"),
        ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', "(it has a DOCTYPE)"),
        (f"<object>{BOX}</object>", "first a.xml, object 1 (it has no <name>)"),
        ("<object><name>cat</name></object>", "(cat: its corners are 'nothing, nothing, noth"),
        (f"<object><name>cat</name>{BOX}</object>".format("x"), "are '1, 2, x, 4')"),
        (f"<object><name>cat</name>{BOX}</object>".format("inf"), "are '1, 2, inf, 4')"),
        (f"<object><name>cat</name>{BOX}</object>".format(0), "(cat: its corners 1, 2, 0, 4 end"),
    ],
)
def test_bad_xml(voc, text, sentence):
    whole = text if "annotation" in text or "html" in text else f"<annotation>{text}</annotation>"
    (voc.parents[2] / "Annotations" / "a.xml").write_text(whole)
    with pytest.raises(DatasetError, match=re.escape(sentence)) as caught:
        read_voc(voc)
    assert str(caught.value).startswith(f"{voc}: ")


def test_bad_lists(voc, tmp_path):
    voc.write_text("a\nmissing -1\n")
    with pytest.raises(DatasetError, match="xml: 1, first missing.xml .*No such file"):
        read_voc(voc)
    voc.write_text("../a\n")
    with pytest.raises(DatasetError, match="the name '../a' is no path below"):
        read_voc(voc)
    voc.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match="train.txt is no list of names"):
        read_voc(voc)
    with pytest.raises(DatasetError, match="names no xml files of VOC's format; of COCO's give"):
        read_coco(tmp_path / "ImageSets", tmp_path / "JPEGImages")
    (tmp_path / "JPEGImages").rename(tmp_path / "photos")
    with pytest.raises(UserError, match="no folder '.*JPEGImages'; give .*TRAIN.IMAGES"):
        config("TRAIN.ANNOTATIONS", str(voc))


def test_images_cannot_lead_out_of_their_folder(voc, tmp_path):
    xml = tmp_path / "Annotations" / "a.xml"
    xml.rename(xml.with_name("b.xml"))
    text = xml.with_name("b.xml").read_text()
    xml.with_name("b.xml").write_text(text.replace(">a.png<", ">../secret.png<"))
    with pytest.raises(DatasetError, match="no path below the folder of images: 1"):
        read_coco(tmp_path / "Annotations", tmp_path / "JPEGImages")


def test_a_folder_of_images_that_is_not_there(yolo):
    with pytest.raises(DatasetError, match="folder of images '.*/nowhere' cannot be read"):
        read_coco(yolo, yolo.parent / "nowhere")
    json_file = yolo.with_name("a.json")
    json_file.write_text(json.dumps(make_content()))
    with pytest.raises(UserError, match="TRAIN.ANNOTATIONS is .*a.json': give .*TRAIN.IMAGES, too"):
        config("TRAIN.ANNOTATIONS", str(json_file))


def test_images_of_another_size_are_found(voc):
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(voc.parents[2] / "JPEGImages" / "a.png")
    with pytest.raises(DatasetError, match=r"first 'a.png' \(6 x 5, not 64 x 48\)"):
        check_image_sizes(config("TRAIN.ANNOTATIONS", str(voc)), ["TRAIN"])
