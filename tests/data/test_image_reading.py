"""Images of every kind, as training, evaluation, ``Predictor`` and both demos read them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT, make_cfg
from PIL import Image, features

from defcn_d2.data.mapper import CheckedMapper
from defcn_d2.data.readers.image_sizes import image_sizes
from defcn_d2.engine.predictor import read_rgb

spec = importlib.util.spec_from_file_location("onnx_demo", ROOT / "demo" / "onnx_demo.py")
assert spec is not None and spec.loader is not None
onnx_demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(onnx_demo)

SIDE = 256
RAMP = np.arange(SIDE**2, dtype=np.uint16).reshape(SIDE, SIDE)


def mapped(path: Path, is_train: bool) -> np.ndarray:
    with Image.open(path) as image:
        short = min(image.size)  # it is not resized
    opts = ["INPUT.MIN_SIZE_TRAIN", (short,), "INPUT.MIN_SIZE_TEST", short]
    cfg = make_cfg("shapes/POTO.yaml", *opts, "INPUT.RANDOM_FLIP", "none")
    assert cfg.INPUT.FORMAT == "BGR"
    record = {"file_name": str(path), "image_id": 0, "annotations": []}
    return CheckedMapper.from_config(cfg, is_train)(record)["image"].numpy().transpose(1, 2, 0)


READERS: dict[str, Callable[[Path], np.ndarray]] = {
    "training": lambda path: mapped(path, True)[:, :, ::-1],
    "evaluation": lambda path: mapped(path, False)[:, :, ::-1],
    "Predictor": read_rgb,
    "ONNX": lambda path: onnx_demo.read_image(str(path))[:, :, ::-1],
}


def write(path: Path, kind: str) -> Path:
    """The ramp 0..65535 in a file of 16 bits."""
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes())
    elif kind == "colour":
        assert cv2.imwrite(str(path), np.stack([RAMP] * 3, axis=-1))
    else:
        Image.fromarray(RAMP.astype(">u2") if kind == "I;16B" else RAMP).save(path)
    return path


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "name, kind",
    [
        ("a.png", "I;16"),
        ("a.tif", "I;16"),
        ("a.tif", "I;16B"),
        ("a.pgm", "I"),
        ("a.png", "colour"),
        ("a.tif", "colour"),
    ],
)
def test_sixteen_bits_are_read_as_eight(tmp_path, reader, name, kind):
    path = write(tmp_path / name, kind)
    if kind != "colour":
        assert Image.open(path).mode == kind
    pixels = READERS[reader](path)
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.uint8
    values, counts = np.unique(pixels, return_counts=True)
    assert values.tolist() == list(range(256)) and set(counts) == {3 * 256}
    assert pixels.mean() == 127.5 and (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()


def test_twelve_bits(tmp_path):
    """A TIFF by hand: little-endian, one strip of 4 pixels of 12 bits in 6 bytes."""
    entries = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1)]
    entries.append((279, 6))
    strip = bytes.fromhex("000 400 800 fff".replace(" ", ""))
    fields = b"".join(
        np.array([tag, 3], "<u2").tobytes() + np.array([1, value], "<u4").tobytes()
        for tag, value in entries
    )
    count = np.array([len(entries)], "<u2").tobytes()
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0\x0e\0\0\0" + strip + count + fields + bytes(4))
    assert Image.open(path).mode == "I;16"
    assert read_rgb(path)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("reader", ["training", "evaluation", "Predictor"])
@pytest.mark.parametrize("kind, name", [(np.float32, "floats"), (np.int32, "integers")])
def test_an_unknown_range_is_told(tmp_path, reader, kind, name):
    path = tmp_path / "a.tif"
    Image.fromarray((RAMP / 65535).astype(kind)).save(path)
    mode = Image.open(path).mode
    with pytest.raises(Exception, match=f"a.tif.*mode '{mode}', {name} of 32.*save it with 8 or"):
        READERS[reader](path)


def test_an_unknown_range_is_told_by_the_onnx_demo(tmp_path):
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(onnx_demo.Mistake, match="a.tif' has pixels of float32.*8 or 16 bits"):
        READERS["ONNX"](path)
    Image.fromarray((RAMP / 65535).astype(np.float32)).save(path)
    with pytest.raises(onnx_demo.Mistake, match="a.tif' has pixels of float32.*8 or 16 bits"):
        READERS["ONNX"](path)


STORED = {  # the turn of an upright image that a camera which writes this orientation has made
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
FORMATS = {
    "jpg": {"quality": 100, "subsampling": 0},
    "mpo": {"quality": 100, "subsampling": 0},
    "png": {},
    "tif": {},
    "deflate.tif": {"compression": "tiff_adobe_deflate"},
    "webp": {"lossless": True},
    "avif": {"quality": 100},
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", FORMATS)
def test_images_are_read_upright(tmp_path, suffix, orientation):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("Pillow without AVIF")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32], pixels[:24, 32:], pixels[24:, :32] = (250, 20, 20), (20, 250, 20), 90
    stored = Image.fromarray(pixels)
    if orientation in STORED:
        stored = stored.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **FORMATS[suffix])
    assert image_sizes(tmp_path, [path.name], tmp_path / "x.json") == {path.name: (64, 48)}
    readers = dict(READERS)
    if suffix == "avif":
        del readers["ONNX"]  # OpenCV does not turn these
    for name, reader in readers.items():
        found = reader(path)
        assert found.shape == pixels.shape, name
        assert np.abs(found.astype(int) - pixels).mean() < 3, name
