"""Names of images in annotation files cannot leave the folder of images."""

import json
import os

import pytest
from coco_files import make_content, write_set
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from defcn_d2.data import DatasetError, load_crowdhuman
from defcn_d2.data.readers.coco import read_coco
from defcn_d2.data.readers.paths import check_name

OUTSIDE = [
    "",
    "/etc/passwd",
    "//host/share/x.png",
    "..",
    "../x.png",
    "a/../../x.png",
    "a/..",
    "C:\\x.png",
    "C:/x.png",
    "c:x.png",
    "\\\\host\\share\\x.png",
    "\\x.png",
    "a\\..\\..\\x.png",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "FILE:x.png",
    "http://host/x.png",
    "https://host/x.png",
    "s3://bucket/x.png",
    "detectron2://x.png",
    "x\0.png",
]
INSIDE = [
    "x.png",
    "a/b/c.jpg",
    "./x.png",
    "..x.png",
    "a..b/x...png",
    "~/x.png",
    "273271,1a0d60",
    "2026-01-01T10:00:00.png",
    "$HOME/x.png",
    "a b/ü.png",
    "http",
    "http/x.png",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside(name):
    with pytest.raises(ValueError, match="is no path below the folder of images"):
        check_name(name)


@pytest.mark.parametrize("name", INSIDE)
def test_inside(name):
    check_name(name)


@given(st.lists(st.sampled_from(["..", ".", "/", "\\", "a", "b:", "//", "~", " "]), max_size=8))
def test_what_passes_stays_below(parts):
    """Whatever is put together: what passes leads to a path below, by the rules of the system."""
    name = "".join(parts)
    try:
        check_name(name)
    except ValueError:
        return
    path = os.path.normpath(os.path.join("/root/images", name))
    assert path == "/root/images" or path.startswith("/root/images/")


@pytest.fixture
def secret(tmp_path):
    """An image beside the folder of images, which is there and can be read."""
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.jpg")
    return tmp_path


@pytest.mark.parametrize("absolute", [False, True])
def test_a_coco_file_cannot_reach_beside_its_folder(absolute, secret):
    content = make_content()
    files = write_set(secret, content)
    name = str(secret / "secret.png") if absolute else "deep/../../secret.png"
    assert (files[1] / name).is_file()
    content["images"][2]["file_name"] = name
    files[0].write_text(json.dumps(content))
    with pytest.raises(DatasetError) as error:
        read_coco(*files)
    message = str(error.value)
    assert message.startswith(
        f"{files[0]}: images whose 'file_name' is no path below the folder of"
    )
    assert f"images[2] ({name!r:.50}" in message and "write it relative to that folder" in message


@pytest.mark.parametrize("absolute", [False, True])
def test_an_odgt_file_cannot_reach_beside_its_folder(absolute, secret):
    name = str(secret / "secret") if absolute else "../secret"
    path = secret / "a.odgt"
    lines = [{"ID": "b", "width": 9, "height": 9, "gtboxes": []}, {"ID": name, "gtboxes": []}]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DatasetError) as error:
        load_crowdhuman(path, secret / "images")
    message = str(error.value)
    assert message.startswith(f"{path}, line 2: ID {name!r} is no path below the folder of images")
    assert "write it relative to that folder" in message


def test_links_within_the_folder_are_the_users_own(secret):
    content = make_content()
    files = write_set(secret, content)
    (files[1] / "link.png").symlink_to(secret / "secret.png")
    content["images"][0]["file_name"] = "link.png"
    files[0].write_text(json.dumps(content))
    assert str(files[1] / "link.png") in [x["file_name"] for x in read_coco(*files).records()]
