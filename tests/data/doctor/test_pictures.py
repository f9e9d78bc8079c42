"""Images that cannot be read, are there twice, or are odd."""

import pytest
from doctor_sets import CATS, DOGS, found, keys, picture, write
from PIL import Image, ImageEnhance

ALL = CATS + DOGS


@pytest.fixture
def folder(tmp_path):
    """Of images to be drawn there before the annotations are written."""
    (tmp_path / "train" / "images").mkdir(parents=True)
    return tmp_path / "train" / "images"


def of_train(folder, *opts):
    names = sorted(path.name for path in folder.iterdir())
    train = write(folder.parent, dict.fromkeys(names, ALL))
    return found(*keys("TRAIN", train), *opts)


def test_the_same_pixels_in_other_files(folder):
    for name in ("a.png", "b.bmp", "c.tiff"):
        picture(1).save(folder / name)
    picture(2).save(folder / "d.png")
    assert of_train(folder) == [
        "warning: TRAIN: images with the very pixels of others in the same data set: 2, first "
        "'b.bmp' (as 'a.png'), 'c.tiff' (as 'a.png'); remove them"
    ]


def test_versions_of_a_picture(folder):
    """Smaller, lossy, brighter: found; another picture is not, nor are pictures without lines."""
    picture(1, (192, 128)).save(folder / "a.png")
    picture(1).save(folder / "b.jpg", quality=70)
    ImageEnhance.Brightness(picture(1, (192, 128))).enhance(0.8).save(folder / "c.png")
    for i in range(2, 40):
        picture(i).save(folder / f"other{i}.png")
    for shade in (10, 20):
        Image.new("RGB", (96, 64), (shade, 9, 9)).save(folder / f"plain{shade}.png")
    assert of_train(folder) == [
        "warning: TRAIN: images that look like others in the same data set: 2, first 'b.jpg' (as "
        "'a.png'), 'c.png' (as 'a.png'); remove them"
    ]


def test_images_in_both_splits(tmp_path):
    train = write(tmp_path / "train", {"a.png": ALL, "b.png": ALL}, 1)
    images = tmp_path / "val" / "images"
    images.mkdir(parents=True)
    Image.open(train / "images" / "a.png").save(images / "x.png")
    Image.open(train / "images" / "b.png").resize((192, 128)).save(images / "y.png")
    val = write(tmp_path / "val", {"x.png": ALL, "y.png": ALL})
    remedy = "remove them; else figures tell how well images are remembered"
    assert found(*keys("TRAIN", train), *keys("VAL", val)) == [
        "error: TEST: images with the very pixels of others in TRAIN: 1, first 'x.png' (as "
        f"'a.png'); {remedy}",
        "warning: TEST: images that look like others in TRAIN: 1, first 'y.png' (as 'b.png'); "
        f"{remedy}",
    ]


def test_files_that_cannot_be_read(folder):
    picture(1).save(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    (folder / "text.png").write_text("no image")
    Image.new("RGB", (200, 200)).save(folder / "wide.png")
    (finding,) = of_train(folder, "INPUT.MAX_PIXELS", 10_000)
    assert finding.startswith("error: TRAIN: images that cannot be read: 3, first 'cut.png' (")
    assert "'text.png' (is no image, or of a format that Pillow does not know)" in finding
    assert "'wide.png' (has 200 x 200 = 40,000 pixels, and the limit is 10,000" in finding
    assert finding.endswith("; mend or remove them")
    (finding,) = of_train(folder, "INPUT.MAX_PIXELS", 10_000, "DATALOADER.ON_ERROR", "skip")
    assert finding.startswith("warning: TRAIN: images that cannot be read: 3")


def test_modes(folder):
    for i, mode in enumerate(("L", "RGBA", "P", "RGB")):
        picture(i, mode=mode).save(folder / f"{i}.png")
    assert of_train(folder) == [
        "warning: TRAIN: images of another mode than RGB, or L of all: 3, first '0.png' (L), "
        "'1.png' (RGBA), '2.png' (P); they are read as RGB, without transparency: save them so, if "
        "that is not meant"
    ]
    for i in (1, 2, 3):
        (folder / f"{i}.png").unlink()
    picture(9, mode="L").save(folder / "9.png")
    assert of_train(folder) == []


def test_sizes(folder):
    picture(1, (30, 40)).save(folder / "a.png")
    picture(2, (200, 39)).save(folder / "b.png")
    findings = of_train(folder, "INPUT.MIN_SIZE_TRAIN", "(600,)", "INPUT.MAX_SIZE_TRAIN", 9000)
    assert [x for x in findings if ": images " in x] == [
        "warning: TRAIN: images with a side below 32 pixels: 1, first 'a.png' (30 x 40); look at "
        "them",
        "warning: TRAIN: images more than 5 times as long as wide: 1, first 'b.png' (200 x 39); "
        "cut them into tiles, as resizing to INPUT.MAX_SIZE makes their objects small",
    ]


def test_sizes_that_annotations_do_not_have(folder):
    picture(1).save(folder / "a.png")
    train = write(folder.parent, {"a.png": ALL})
    picture(1, (100, 70)).save(folder / "a.png")
    assert found(*keys("TRAIN", train)) == [
        "error: TRAIN: images of another size than annotations say: 1, first 'a.png' (100 x 70); "
        "put the annotated images there"
    ]
