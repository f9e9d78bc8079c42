"""``DATASETS.REGISTER``: what a config becomes by it, and what it refuses."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from coco_files import CLASSES, HEIGHT, WIDTH, make_content, write_set
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image
from tiny_data import CONFIG

from defcn_d2.config.load import load_config
from defcn_d2.data import DatasetError
from defcn_d2.data.readers import image_sizes
from defcn_d2.data.readers.own_data import check_datasets, check_image_sizes, own_data
from defcn_d2.engine.datasets import load_records
from defcn_d2.engine.predictor import metadata_of
from defcn_d2.utils.errors import UserError


def pair(split: str, files: tuple[Path, Path]) -> list[str]:
    where = f"DATASETS.REGISTER.{split}"
    return [f"{where}.ANNOTATIONS", str(files[0]), f"{where}.IMAGES", str(files[1])]


@pytest.fixture
def train(tmp_path):
    return write_set(tmp_path / "train")


@pytest.fixture
def val(tmp_path):
    return write_set(tmp_path / "val", make_content(first_id=500))


def test_nothing_given_changes_nothing():
    known = DatasetCatalog.list()
    cfg = load_config(CONFIG)
    assert cfg.DATASETS.TRAIN == ("shapes_train",) and cfg.DATASETS.TEST == ("shapes_val",)
    assert cfg.MODEL.DEFCN.NUM_CLASSES == 7
    assert DatasetCatalog.list() == known
    check_datasets(cfg, ["TRAIN", "VAL"])


def test_both(train, val):
    cfg = load_config(CONFIG, [*pair("TRAIN", train), *pair("VAL", val)])
    (name,), (val_name,) = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    assert name != val_name
    assert cfg.MODEL.DEFCN.NUM_CLASSES == cfg.MODEL.RETINANET.NUM_CLASSES == 3
    assert cfg.DATASETS.REGISTER.CLASSES == metadata_of(cfg).thing_classes == CLASSES
    check_datasets(cfg, ["TRAIN", "VAL"])
    # empty images and those of crowds alone are left out by Detectron2, where asked
    assert [len(load_records(cfg, [name], empty)) for empty in (False, True)] == [4, 3]
    metadata = MetadataCatalog.get(val_name)
    records = load_records(cfg, [val_name], False)
    assert records == load_coco_json(str(val[0]), str(val[1]), val_name)  # sets the same metadata
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 20: 2}
    assert own_data(name).annotations == str(train[0]) and own_data("shapes_val") is None


def test_again_and_beside_others(train, val):
    first = load_config(CONFIG, [*pair("TRAIN", train), *pair("VAL", val)])
    known = DatasetCatalog.list()
    assert (
        load_config(CONFIG, [*pair("TRAIN", train), *pair("VAL", val)]).DATASETS == first.DATASETS
    )
    swapped = load_config(CONFIG, [*pair("TRAIN", val), *pair("VAL", train)])
    assert swapped.DATASETS.TRAIN == first.DATASETS.TEST
    assert DatasetCatalog.list() == known
    for cfg in (first, swapped):
        (record, *_) = load_records(cfg, cfg.DATASETS.TEST, False)
        assert record["file_name"].startswith(cfg.DATASETS.REGISTER.VAL.IMAGES)


def test_a_file_with_new_classes_is_registered_anew(train):
    old = load_config(CONFIG, pair("TRAIN", train)).DATASETS.TRAIN
    content = make_content()
    content["categories"][1]["name"] = "tiger"
    train[0].write_text(json.dumps(content))
    cfg = load_config(CONFIG, pair("TRAIN", train))
    assert old == cfg.DATASETS.TRAIN
    assert MetadataCatalog.get(old[0]).thing_classes == ["tiger", "dog", "bird"]
    assert len(load_records(cfg, cfg.DATASETS.TRAIN, False)) == 4


def test_one_of_both(train):
    cfg = load_config(CONFIG, pair("TRAIN", train))
    assert cfg.DATASETS.TEST == () and len(cfg.DATASETS.TRAIN) == 1
    check_datasets(cfg, ["TRAIN", "VAL"])
    cfg = load_config(CONFIG, pair("VAL", train))
    assert cfg.DATASETS.TRAIN == () and len(cfg.DATASETS.TEST) == 1
    check_datasets(cfg, ["VAL"])


def test_yaml_and_the_current_folder(train, val, tmp_path, monkeypatch):
    """Relative paths are those of the current folder, and absolute in what is written."""
    (tmp_path / "configs").mkdir()
    path = tmp_path / "configs" / "own.yaml"
    path.write_text(
        f"_BASE_: {CONFIG}\nDATASETS:\n  REGISTER:\n"
        '    TRAIN: {ANNOTATIONS: "train/annotations.json", IMAGES: "train/images"}\n'
        '    VAL: {ANNOTATIONS: "~/annotations.json", IMAGES: "~/images/"}\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(val[0].parent))
    cfg = load_config(str(path))
    assert cfg.DATASETS.REGISTER.TRAIN.ANNOTATIONS == str(train[0])
    assert cfg.DATASETS.REGISTER.VAL.IMAGES == str(val[1])
    written = tmp_path / "written.yaml"
    written.write_text(cfg.dump())
    monkeypatch.chdir("/")
    assert load_config(str(written)).DATASETS == cfg.DATASETS


def test_written_config_needs_no_files(train, val, tmp_path):
    """The demo on another machine draws names all the same; --eval-only needs VAL alone."""
    cfg = load_config(CONFIG, [*pair("TRAIN", train), *pair("VAL", val)])
    written = tmp_path / "written.yaml"
    written.write_text(cfg.dump())
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        own_data.__globals__["_registered"].pop(name)  # as in another process
    shutil.rmtree(train[0].parent)
    again = load_config(str(written))
    assert again.DATASETS == cfg.DATASETS and metadata_of(again).thing_classes == CLASSES
    assert again.DATASETS.REGISTER.CATEGORY_IDS == [3, 7, 20]
    assert metadata_of(again).thing_dataset_id_to_contiguous_id == {3: 0, 7: 1, 20: 2}
    check_datasets(again, ["VAL"])
    with pytest.raises(DatasetError, match="REGISTER.TRAIN: cannot read .* No such file"):
        check_datasets(again, ["TRAIN", "VAL"])


@pytest.mark.parametrize(
    "change, difference",
    [
        ({"name": "tiger"}, "id 3 is 'cat' and 'tiger'"),
        ({"id": 4}, "id 3 is 'cat' and absent, id 4 is absent and 'cat'"),
    ],
)
def test_other_categories(train, val, change, difference):
    content = make_content()
    content["categories"][1].update(change)
    content["annotations"] = [x for x in content["annotations"] if x["category_id"] != 3]
    val[0].write_text(json.dumps(content))
    shutil.copytree(train[1], val[1], dirs_exist_ok=True)
    cfg = load_config(CONFIG, [*pair("TRAIN", train), *pair("VAL", val)])
    with pytest.raises(DatasetError) as caught:
        check_datasets(cfg, ["TRAIN", "VAL"])
    message = f"categories of {train[0]} and {val[0]} differ, {difference}; give both files the"
    assert message in str(caught.value)


def test_category_ids_beside_given_classes(train):
    """A file of these classes says them; without one, a config from before them goes on."""
    classes = ["DATASETS.REGISTER.CLASSES", str(CLASSES)]
    cfg = load_config(CONFIG, [*pair("TRAIN", train), *classes])
    assert cfg.DATASETS.REGISTER.CATEGORY_IDS == [3, 7, 20]
    train[0].unlink()
    cfg = load_config(CONFIG, [*pair("TRAIN", train), *classes])
    assert cfg.DATASETS.REGISTER.CATEGORY_IDS == []


@pytest.mark.parametrize("ids", ["[3, 7]", "[3, 20, 7]", "[3, 7, 7]", "[3, 7, '20']"])
def test_category_ids_that_are_wrong(train, ids):
    opts = ["DATASETS.REGISTER.CLASSES", str(CLASSES), "DATASETS.REGISTER.CATEGORY_IDS", ids]
    with pytest.raises(UserError, match="CATEGORY_IDS is .* ascending whole number .* the 3 CLAS"):
        load_config(CONFIG, [*pair("TRAIN", train), *opts])


def test_classes_of_a_trained_model(train, val):
    """Data that are evaluated later must have them, too: the config holds them."""
    names = ["DATASETS.REGISTER.CLASSES", "['cat', 'dog']"]
    cfg = load_config(CONFIG, [*pair("VAL", val), *names])
    assert cfg.MODEL.DEFCN.NUM_CLASSES == 2
    sentence = "has the 3 classes cat, dog, bird, but DATASETS.REGISTER.CLASSES has 2: cat, dog. "
    with pytest.raises(DatasetError, match=sentence):
        check_datasets(cfg, ["VAL"])
    with pytest.raises(DatasetError, match=sentence):
        load_records(cfg, cfg.DATASETS.TEST, False)


@pytest.mark.parametrize(
    "opts, sentence",
    [
        (["TRAIN.ANNOTATIONS", "a.json"], "TRAIN.ANNOTATIONS is 'a.json': give .*TRAIN.IMAGES"),
        (["VAL.IMAGES", "images"], "VAL.IMAGES is 'images': give .*VAL.ANNOTATIONS, too"),
        (["TRAIN.ANNOTATIONS", "no/a.json", "TRAIN.IMAGES", "no"], "TRAIN: cannot read .*/no/a.js"),
        (["TRAIN.IMAGES", "2017"], r"TRAIN.IMAGES is '2017', but must be a str, such as \"'2017'"),
        (["TRAIN.FILE", "x"], "unknown configuration key 'DATASETS.REGISTER.TRAIN.FILE'"),
    ],
)
def test_half_of_it(opts, sentence):
    opts = [f"DATASETS.REGISTER.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(UserError, match=sentence) as caught:
        load_config(CONFIG, opts)
    assert "\n" not in str(caught.value)


def test_extra_boxes_are_needed_to_train_with(train, val):
    asked = ["DATASETS.EXTRA_BOXES", "['visible']"]
    cfg = load_config(CONFIG, [*pair("TRAIN", train), *pair("VAL", val), *asked])
    message = f"DATASETS.REGISTER.TRAIN: {train[0]}: annotations without 'visible_bbox', which"
    with pytest.raises(DatasetError, match=f"^{message}.*: 4, first annotation 102, "):
        check_datasets(cfg, ["TRAIN", "VAL"])
    check_datasets(cfg, ["VAL"])
    content = make_content()
    for entry in content["annotations"]:
        entry["visible_bbox"] = [1, 2, 3, 4]
    train[0].write_text(json.dumps(content))
    check_datasets(cfg, ["TRAIN", "VAL"])
    (record, *_) = load_records(cfg, cfg.DATASETS.TRAIN, True)
    assert record["annotations"][0]["visible_bbox"] == [1, 2, 3, 4]
    load_config(CONFIG, pair("TRAIN", train))  # the same files without: registered anew
    (record, *_) = load_records(cfg, cfg.DATASETS.TRAIN, True)
    assert "visible_bbox" not in record["annotations"][0]


def test_names_of_extra_boxes_are_checked(train):
    with pytest.raises(UserError, match="EXTRA_BOXES has the name 'a b'; give letters"):
        load_config(CONFIG, [*pair("TRAIN", train), "DATASETS.EXTRA_BOXES", "['a b']"])


def test_masks_are_refused(train):
    with pytest.raises(UserError, match="for boxes alone, but MODEL.MASK_ON"):
        load_config(CONFIG, [*pair("TRAIN", train), "MODEL.MASK_ON", "True"])


def test_a_missing_image_later(train):
    cfg = load_config(CONFIG, pair("TRAIN", train))
    (train[1] / "a.png").unlink()
    with pytest.raises(
        UserError, match="1 of 4 images .* the first '.*/a.png'; .*correct DATASETS.R"
    ):
        load_records(cfg, cfg.DATASETS.TRAIN, False)


def test_what_is_odd_is_told_once(train, caplog):
    content = make_content()
    content["annotations"][0]["bbox"] = [5, 5, 0, 0]
    train[0].write_text(json.dumps(content))
    cfg = load_config(CONFIG, pair("TRAIN", train))
    with caplog.at_level(logging.WARNING, "defcn_d2"):
        assert caplog.messages == []
        for _ in range(2):
            load_records(cfg, cfg.DATASETS.TRAIN, False)
    told = [message for message in caplog.messages if "boxes without area" in message]
    assert told == [
        f"{train[0]}: boxes without area in their image: 1, first annotation 100 ([5, 5, 0, 0] in "
        "an image of 64 x 48); they are left out"
    ]


def turned_by_exif(path: Path, orientation: int = 6) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(path, exif=exif)


def check_sizes_of(files: tuple[Path, Path], *opts: str) -> None:
    check_image_sizes(load_config(CONFIG, [*pair("TRAIN", files), *opts]), ["TRAIN", "VAL"])


def test_sizes_that_are_not_those_of_the_images(train):
    check_sizes_of(train)
    turned_by_exif(train[1] / "a.png", orientation=3)  # upside down: the size stays
    check_sizes_of(train)
    turned_by_exif(train[1] / "a.png")
    Image.new("L", (HEIGHT, WIDTH)).save(train[1] / "deep" / "b.png")
    Image.new("L", (WIDTH * 2, HEIGHT * 2)).save(train[1] / "empty.png")
    with pytest.raises(DatasetError) as caught:
        check_sizes_of(train)
    assert str(caught.value) == (
        f"{train[0]}: images of another size than the file says: 1, first 'empty.png' (128 x 96, "
        "not 64 x 48); put the annotated images there, or make width, height and boxes those of "
        "the images. images whose width and height are swapped in the file: 2, first 'deep/b.png' "
        "(48 x 64, not 64 x 48), 'a.png' (48 x 64, not 64 x 48); write them as they are after the "
        "turn of the image's EXIF orientation; where the boxes were drawn without that turn, "
        "remove the orientation from the images"
    )
    check_sizes_of(train, "DATALOADER.CHECK_SIZES", "False")
    check_sizes_of(train, "DATALOADER.ON_ERROR", "skip")


def test_an_image_that_cannot_be_read_is_found_by_its_size(train):
    (train[1] / "a.png").write_bytes(b"no image")
    with pytest.raises(
        DatasetError, match="1 of the 4 images .* cannot be read in .*a.png.*ON_ERROR skip"
    ):
        check_sizes_of(train)


def test_sizes_are_checked_once_and_again_where_an_image_has_changed(train, monkeypatch, capfd):
    opened = []

    def read_header(path, *args):
        opened.append(Path(path).name)
        return real(path, *args)

    real = image_sizes.Image.open
    monkeypatch.setattr(image_sizes.Image, "open", read_header)
    check_sizes_of(train)
    assert sorted(opened) == ["a.png", "b.png", "c.png", "empty.png"]
    assert "4/4" in capfd.readouterr().err  # progress
    opened.clear()
    check_sizes_of(train)
    assert opened == [] and capfd.readouterr().err == ""
    turned_by_exif(train[1] / "a.png")
    with pytest.raises(DatasetError, match="'a.png'"):
        check_sizes_of(train)
    assert opened == ["a.png"]


def test_sizes_beyond_the_limit_of_pillow(train, monkeypatch):
    """That of INPUT.MAX_PIXELS counts, where an image is read as a whole."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    check_sizes_of(train)
    assert Image.MAX_IMAGE_PIXELS == 100
