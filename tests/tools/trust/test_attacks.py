"""Files that mean harm: each attack works where nothing is done about it, and fails here."""

from __future__ import annotations

import ast
import importlib.util
import io
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from demo_runs import demo, picture, tiny_weights
from detectron2.config import get_cfg
from helpers import ROOT
from html_page import Page
from matplotlib.figure import Figure
from PIL import Image
from tiny_data import CONFIG, TINY_MODEL

from defcn_d2 import add_defcn_config
from defcn_d2.config.load import load_config
from defcn_d2.demo.inputs import find_images, output_files
from defcn_d2.demo.video import VideoWriter, open_source, output_file
from defcn_d2.engine.predictor import Predictor, read_rgb
from defcn_d2.export.export_command import read_images
from defcn_d2.utils.errors import UserError
from defcn_d2.utils.printable import escape_controls, printable, printable_lines
from defcn_d2.visualization.mistakes import Error, errors_page
from defcn_d2.visualization.page import Picture, array_png, figure_png, figure_text, pictures_page

spec = importlib.util.spec_from_file_location("onnx_demo", ROOT / "demo" / "onnx_demo.py")
assert spec is not None and spec.loader is not None
onnx_demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(onnx_demo)


SOURCES = ["defcn_d2", "demo", "tools", "setup.py", "train_net.py"]
# Functions that can run code of what they read, and what makes them safe.
READERS = {
    "eval": "",
    "exec": "",
    "os.system": "",
    "os.popen": "",
    "pickle.load": "",
    "pickle.loads": "",
    "pickle.Unpickler": "",
    "pickle._Unpickler": "",
    "yaml.load": "",
    "yaml.unsafe_load": "",
    "yaml.full_load": "",
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "merge_from_file": "allow_unsafe=False",
    "load_yaml_with_base": "allow_unsafe=False",
}
METHODS = ("merge_from_file", "load_yaml_with_base")  # of any object


def unsafe_calls(source: str) -> list[str]:
    """Calls of ``READERS`` without what makes them safe, and of shells."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        arguments = {f"{x.arg}={ast.unparse(x.value)}" for x in node.keywords}
        method = name.rpartition(".")[2]
        needed = READERS.get(method if method in METHODS else name)
        if needed is not None and needed not in arguments or "shell=True" in arguments:
            found.append(ast.unparse(node))
    return found


def test_no_reader_that_runs_code() -> None:
    files = [file for name in SOURCES for file in (ROOT / name).rglob("*.py")]
    files += [ROOT / name for name in SOURCES if name.endswith(".py")]
    found = {str(file): unsafe_calls(file.read_text()) for file in files}
    assert len(files) > 100 and {file: calls for file, calls in found.items() if calls} == {}
    assert unsafe_calls("torch.load(a, weights_only=False)\ncfg.merge_from_file(b)\nx.eval()") == [
        "torch.load(a, weights_only=False)",
        "cfg.merge_from_file(b)",
    ]
    assert len(unsafe_calls("eval(a)\npickle.loads(b)\nsubprocess.run(c, shell=True)")) == 3


class TestYaml:
    """Configuration files that would run code, or have no end."""

    def attack(self, folder: Path) -> tuple[Path, Path]:
        """A config, and the file that it makes where its code is run."""
        path, made = folder / "attack.yaml", folder / "made"
        path.write_text(f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.mkdir ['{made}']\n")
        return path, made

    def test_detectron2_alone_runs_it(self, tmp_path: Path) -> None:
        path, made = self.attack(tmp_path)
        get_cfg().merge_from_file(str(path))
        assert made.exists()

    @pytest.mark.parametrize("base", ["", "_BASE_: attack.yaml", "_BASE_: [ok.yaml, attack.yaml]"])
    def test_code_is_not_run(self, tmp_path: Path, base: str) -> None:
        path, made = self.attack(tmp_path)
        (tmp_path / "ok.yaml").write_text("VERSION: 2\n")
        if base:
            path = tmp_path / "based.yaml"
            path.write_text(f"{base}\nVERSION: 2\n")
        with pytest.raises(UserError, match="line 2 cannot be read: .*os.mkdir'; tags of Python"):
            load_config(str(path))
        with pytest.raises(UserError, match="tags of Python are not read, as they can run code"):
            Predictor(path, tiny_weights())
        assert not made.exists()

    @pytest.mark.parametrize("tag", ["name:os.system ''", "module:os ''", "object:os.PathLike {}"])
    def test_other_tags(self, tmp_path: Path, tag: str) -> None:
        path = tmp_path / "attack.yaml"
        path.write_text(f"VERSION: 2\nOUTPUT_DIR: !!python/{tag}\n")
        with pytest.raises(UserError, match="tags of Python are not read"):
            load_config(str(path))

    def test_code_is_not_run_on_the_command_line(self, tmp_path: Path) -> None:
        made = tmp_path / "made"
        for value in (
            f"__import__('os').mkdir('{made}')",
            f"!!python/object/apply:os.mkdir ['{made}']",
        ):
            assert load_config(CONFIG, ["OUTPUT_DIR", value]).OUTPUT_DIR == value
        assert not made.exists()

    @pytest.mark.parametrize(
        "content, sentence",
        [
            ("_BASE_: self.yaml\n", "is nested too deeply"),
            ("VERSION: 2\nMODEL: &m\n  DEFCN: *m\n", "is nested too deeply"),
            ("MODEL:\n  PIXEL_MEAN: " + "[" * 3000 + "]" * 3000, "is nested too deeply"),
        ],
    )
    def test_files_without_an_end(self, tmp_path: Path, content: str, sentence: str) -> None:
        path = tmp_path / "self.yaml"
        path.write_text(content)
        with pytest.raises(UserError, match=sentence):
            load_config(str(path))

    def test_aliases_are_read_otherwise(self, tmp_path: Path) -> None:
        path = tmp_path / "fine.yaml"
        path.write_text("MODEL:\n  PIXEL_MEAN: &a [1.0, 2.0, 3.0]\n  PIXEL_STD: *a\nVERSION: 2\n")
        assert load_config(str(path)).MODEL.PIXEL_STD == [1.0, 2.0, 3.0]
        path.write_text("")
        with pytest.raises(UserError):
            load_config(str(path))


def bomb(path: Path, side: int = 40_000) -> Path:
    """A PNG file of some 200 bytes whose header announces side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(10_000))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )
    return path


class TestImages:
    """Small files of enormous images: 1,600 million pixels are 4.8 GB."""

    def test_default_limit(self) -> None:
        cfg = get_cfg()
        add_defcn_config(cfg)
        assert read_rgb.__defaults__ == (cfg.INPUT.MAX_PIXELS,) == (onnx_demo.MAX_PIXELS,)

    def test_reading(self, tmp_path: Path) -> None:
        path = bomb(tmp_path / "bomb.png")
        with pytest.raises(UserError, match="40000 x 40000 .*: raise INPUT.MAX_PIXELS"):
            read_rgb(path)
        with pytest.raises(UserError, match="--images: .*40000 x 40000"):
            read_images(str(path), 100_000_000)

    def test_predictor(self, tmp_path: Path) -> None:
        small = picture(tmp_path / "small.png", 20, 30)
        opts = [*TINY_MODEL, "INPUT.MAX_PIXELS", "599"]
        predict = Predictor(CONFIG, tiny_weights(), device="cpu", opts=opts)
        with pytest.raises(UserError, match="20 = 600 pixels, and the limit is 599"):
            predict(small)
        assert predict(cv2.imread(str(small))).image_size == (20, 30)  # is in memory already

    def test_demo(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        files = bomb(tmp_path / "bomb.png"), picture(tmp_path / "good.png")
        assert demo("--input", *files, "--output", tmp_path / "out") == 1
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.png"]
        assert "40000 x 40000" in capsys.readouterr().err

    def test_demo_without_pytorch(self, tmp_path: Path) -> None:
        """In a process of its own: OpenCV takes its limit when it is imported."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[1]); import onnx_demo;"
            "print([onnx_demo.read_image(path) is None for path in sys.argv[2:]])"
        )
        Image.new("1", (10_001, 10_000)).save(tmp_path / "large.png")  # whole, of 12 kB
        files = tmp_path / "large.png", picture(tmp_path / "good.png")
        command = [sys.executable, "-c", code, str(ROOT / "demo"), *map(str, files)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.stdout.strip() == "[True, False]", result.stderr

    def test_videos(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "video.avi"
        with VideoWriter(path, 10.0, (48, 64)) as writer:
            writer.write(np.zeros((48, 64, 3), np.uint8))
        assert open_source(str(path), 64 * 48).isOpened() and open_source(str(path)).isOpened()
        with pytest.raises(UserError, match="frames of 64 x 48 pixels, more than INPUT.MAX_PIXELS"):
            open_source(str(path), 64 * 48 - 1)
        assert len(list(onnx_demo.frames_of(str(path)))) == 1
        monkeypatch.setattr(onnx_demo, "MAX_PIXELS", 64 * 48 - 1)
        with pytest.raises(onnx_demo.Mistake, match="frames of 64 x 48 pixels"):
            list(onnx_demo.frames_of(str(path)))


HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(1)>",
    "</section></body><iframe src='javascript:alert(1)'>",
    "javascript:alert(1)",
    "&lt;script&gt;",
    "'; alert(1); '",
    "a\x1b[2J\r\nb\x00\u202e",
    "lone \ud800 surrogate",
    "$\\undefined$",
]


class TestNames:
    """Names of files and classes that would be code of a page, a terminal's, or a formula."""

    def pages(self, name: str) -> list[str]:
        picture = np.zeros((8, 8, 3), np.uint8)
        error = Error(name, name, name, f"folder/{name}", picture)
        return [
            errors_page(name, [error], [error], (1, 1)),
            pictures_page(name, name, [Picture(name, name, array_png(picture))]),
        ]

    @pytest.mark.parametrize("name", HOSTILE)
    def test_pages_hold_them_as_text(self, tmp_path: Path, name: str) -> None:
        for plain_page, page in zip(self.pages("plain"), self.pages(name), strict=True):
            found = []
            for number, content in enumerate((plain_page, page)):
                path = tmp_path / f"{number}.html"
                path.write_bytes(content.encode("utf-8", "backslashreplace"))
                found.append(Checked(path))
            assert found[0].tags == found[1].tags
            assert found[0].attributes == found[1].attributes
            assert found[0].scripts == found[1].scripts
            text = "".join(found[1].text)
            plain = name.replace("\r", "\n").replace("\x00", "\ufffd").replace("\ud800", "\\ud800")
            assert plain.splitlines()[0] in text

    @pytest.mark.parametrize("name", HOSTILE)
    def test_terminals_get_no_control_characters(self, name: str) -> None:
        shown = printable(name)
        assert shown.isprintable() and shown.encode()
        assert printable(shown) == shown
        assert shown == name or not name.isprintable()
        assert onnx_demo.printable(name).isprintable()

    @pytest.mark.parametrize("name", HOSTILE)
    def test_logs_get_none_but_lines_and_colours(self, name: str) -> None:
        message = f"\x1b[36mclasses:\n%s\t\x1b[0m{name.splitlines()[0]}"
        record = logging.LogRecord("a", logging.INFO, "a.py", 1, message, (name[:1],), None)
        assert escape_controls(record)
        shown = record.getMessage()
        assert shown.startswith(f"\x1b[36mclasses:\n{name[:1]}\t\x1b[0m")
        assert shown.count("\x1b") == 2 and shown.encode()
        assert printable_lines(shown) == shown

    def test_a_file_of_such_a_name(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        files = picture(tmp_path / "a.png").rename(tmp_path / "a\x1b[2J\nb.png"), tmp_path / "c\x1b"
        assert demo("--input", *files, "--output", tmp_path / "out") == 1
        output = capsys.readouterr()
        assert "a\\x1b[2J\\nb.png: 5 objects" in output.out
        lines = [line for line in output.err.splitlines() if "skipped" in line]
        assert len(lines) == 1 and "c\\x1b" in lines[0]
        assert "\x1b[2J" not in output.out + output.err

    @pytest.mark.parametrize("name", HOSTILE)
    def test_figures_show_them_as_they_are(self, name: str) -> None:
        figure = Figure()
        text = figure.suptitle(figure_text(name))
        assert figure_png(figure).startswith(b"\x89PNG")
        assert text._preprocess_math(text.get_text()) == (printable(name), False)

    def test_without_that_a_name_is_a_formula(self) -> None:
        figure = Figure()
        figure.suptitle("$\\undefined$")
        with pytest.raises(ValueError, match="undefined"):
            figure.savefig(io.BytesIO())


class Checked(Page):
    """A page with the names of all attributes, and all scripts."""

    def __init__(self, path: Path):
        self.attributes: list[list[str]] = []
        self.scripts: list[str] = []
        self._in_script = False
        super().__init__(path)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        super().handle_starttag(tag, attrs)
        self.attributes.append([name for name, _ in attrs])
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


class TestOutputNames:
    """Inputs named so that an output would lie outside the folder for outputs."""

    @pytest.mark.parametrize("module", [output_files, onnx_demo.output_files])
    def test_images(self, tmp_path: Path, module) -> None:
        folder = tmp_path / "deep" / "out"
        names = ["../../etc/a.png", "/etc/b.png", "c/../../d.jpg", "..jpg", "...", "a\\..\\e.png"]
        names += ["~/f.png", "../a.png", "https://host/../g.png", "x\n../h.png", "-rf.png"]
        for path in module(names, str(folder)):
            assert path.parent == folder and path.name not in ("", ".", "..")

    @pytest.mark.parametrize("find", [find_images, onnx_demo.find_images])
    def test_inputs_without_a_name(self, tmp_path: Path, find) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("", str(tmp_path / "empty" / "..") + "/empty", str(tmp_path / "empty/.")):
            with pytest.raises((UserError, onnx_demo.Mistake), match="holds no image"):
                find([name])

    def test_videos(self, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        for source in ("../../v.mp4", "rtsp://host/../..", "/etc/passwd", "..", "rtsp://h/a/../b"):
            assert output_file(source, str(folder)).parent == folder
