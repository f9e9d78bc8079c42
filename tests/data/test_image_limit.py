"""The limit of pixels: what a small file holds is known before it fills the memory."""

import struct
import tracemalloc
import zlib

import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from defcn_d2.data.image_limit import ImageTooLarge, check_pixels

LIMIT = 100_000_000


@pytest.fixture(autouse=True)
def _pillow_as_it_was(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def write_png(path, width, height):
    """A valid black PNG of one bit a pixel, of whatever size, without holding it in memory."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)  # the filter's number, then the pixels
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    return str(path)


def test_a_bomb_is_refused_by_its_header(tmp_path):
    path = write_png(tmp_path / "bomb.png", 30_000, 30_000)
    assert (tmp_path / "bomb.png").stat().st_size < 200_000  # and 2.7 GB as RGB
    tracemalloc.start()
    with pytest.raises(ImageTooLarge) as error:
        check_pixels(path, LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000
    message = str(error.value)
    assert repr(path) in message and "30000 x 30000 = 900,000,000 pixels" in message
    assert "100,000,000" in message and "INPUT.MAX_PIXELS" in message and "shrink" in message


def test_the_limit_itself_is_allowed(tmp_path):
    path = write_png(tmp_path / "image.png", 20, 30)
    check_pixels(path, 600)
    with pytest.raises(ImageTooLarge):
        check_pixels(path, 599)


def test_no_limit(tmp_path):
    check_pixels(write_png(tmp_path / "bomb.png", 30_000, 30_000), 0)


def test_what_passes_can_be_read(tmp_path, monkeypatch):
    """Pillow's own, lower limit gives way; a higher one stays."""
    path = write_png(tmp_path / "image.png", 40, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        read_image(path, "BGR")
    check_pixels(path, 1200)
    assert read_image(path, "BGR").shape == (30, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    check_pixels(path, 1200)
    assert Image.MAX_IMAGE_PIXELS == 5000


def test_pillow_keeps_its_limit_where_a_file_is_refused(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageTooLarge):
        check_pixels(write_png(tmp_path / "image.png", 40, 30), 10)
    assert Image.MAX_IMAGE_PIXELS == before


@pytest.mark.parametrize(
    "content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(20), b"\xff\xd8\xff\xe0"]
)
def test_what_is_no_image_is_named(content, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match="image.png"):
        check_pixels(str(path), LIMIT)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.png"):
        check_pixels(str(tmp_path / "missing.png"), LIMIT)
