"""tools/setup/install_detectron2.py: the rules on small sources, the downloads from servers on this
machine, the order of choice, and what is said when something is missing."""

import dataclasses
import hashlib
import http.server
import io
import os
import socket
import tarfile
import threading
from pathlib import Path

import detectron2_download as download
import detectron2_patches as patches
import install_detectron2 as installer
import pytest
from detectron2_download import InstallError, Unavailable
from hypothesis import given
from hypothesis import strategies as st

ALIASES = next(rule for rule in patches.V05_RULES if rule.name == "numpy-aliases")

# The least source that every rule of the release fits: written for this test, file by file.
RELEASE_SOURCE = {
    "setup.py": """\
def get_model_zoo_configs():
    config_paths = glob.glob("configs/**/*.yaml", recursive=True) + glob.glob(
        "configs/**/*.py", recursive=True
    )
    return config_paths
setup(
    install_requires=[
        "tqdm>4.29.0",
        "future",  # comment
        "pydot",
        "black==21.4b2",
    ],
    ext_modules=get_extensions(),
    cmdclass={"build_ext": torch.utils.cpp_extension.BuildExtension},
)
""",
    "detectron2/evaluation/coco_evaluation.py": (
        "e = (COCOeval_opt if use_fast_impl else COCOeval)(gt, dt, kind)\n"
    ),
    "detectron2/model_zoo/model_zoo.py": """\
import pkg_resources
import torch
def f(config_path):
    return pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
""",
    "detectron2/layers/mask_ops.py": "m = np.array(mask, copy=False)\n" + "b = np.bool\n" * 18,
    "detectron2/data/transforms/transform.py": "def f(interp=Image.LINEAR): ...\n",
    "detectron2/modeling/anchor_generator.py": "y, x = torch.meshgrid(shifts_y, shifts_x)\n",
    "detectron2/engine/hooks.py": "s = torch.optim.lr_scheduler._LRScheduler\n" * 2,
    "detectron2/data/detection_utils.py": "def f(boxes):\n    target.gt_boxes = Boxes(boxes)\n",
    "detectron2/utils/comm.py": """\
def f(buffer):
    storage = torch.ByteStorage.from_buffer(buffer)
    tensor = torch.ByteTensor(storage).to(device=device)
""",
    "detectron2/export/__init__.py": "from .api import *\nfrom .flatten import g\n",
}


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def read_tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def make_archive(files: dict[str, str], top: str = "source") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}" if top else name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return stream.getvalue()


# ------------------------------------------------------------------------------------ rules


def test_every_rule_applies_to_the_release_and_leaves_valid_python(tmp_path):
    write_tree(tmp_path, RELEASE_SOURCE)
    applied = patches.apply_rules(tmp_path)
    assert applied == [rule.name for rule in patches.V05_RULES]
    assert len(set(applied)) == len(applied)
    tree = read_tree(tmp_path)
    assert tree.pop(patches.MARKER).split() == applied
    for name, text in tree.items():
        compile(text, name, "exec")
        for gone in ("np.bool\n", "pkg_resources", "_LRScheduler", "Image.LINEAR", "ByteStorage"):
            assert gone not in text, (name, gone)
    assert '"tqdm>4.29.0",\n        "black",\n    ]' in tree["setup.py"]
    assert "ext_modules" not in tree["setup.py"]
    assert '["configs/**/*.yaml", "configs/**/*.py"]' in tree["setup.py"]


def test_applying_twice_changes_nothing(tmp_path):
    write_tree(tmp_path, RELEASE_SOURCE)
    patches.apply_rules(tmp_path)
    before = read_tree(tmp_path)
    assert patches.apply_rules(tmp_path) == []
    assert read_tree(tmp_path) == before


@pytest.mark.parametrize("broken", [rule.name for rule in patches.V05_RULES])
def test_a_rule_that_no_longer_fits_fails_by_name_and_writes_nothing(tmp_path, broken):
    rule = next(rule for rule in patches.V05_RULES if rule.name == broken)
    write_tree(tmp_path, {"setup.py": "x = 1\n", "detectron2/a/b.py": "np.bool_\n"})
    if isinstance(rule, patches.AddFile):
        write_tree(tmp_path, {rule.path: "already here\n"})
    elif "*" not in rule.files:
        write_tree(tmp_path, {rule.files: "nothing that the rule looks for\n"})
    before = read_tree(tmp_path)
    with pytest.raises(patches.PatchError, match=f"rule '{broken}'"):
        patches.apply_rules(tmp_path, (rule,))
    assert read_tree(tmp_path) == before


def test_a_missing_file_or_folder_is_named(tmp_path):
    rules = {rule.name: rule for rule in patches.V05_RULES}
    with pytest.raises(patches.PatchError, match=r"no file matches detectron2/engine/hooks\.py"):
        rules["scheduler-state"].plan(tmp_path)
    with pytest.raises(patches.PatchError, match="there is no folder detectron2"):
        rules["operators-stub"].plan(tmp_path)


def test_after_a_failure_the_rules_go_on_where_they_stopped(tmp_path):
    first = patches.Replace("first", "", "a.py", "old", "new older", 1)
    second = patches.Replace("second", "", "b.py", "old", "new", 1)
    write_tree(tmp_path, {"a.py": "old", "b.py": "nothing"})
    with pytest.raises(patches.PatchError, match="'second': expected 1 matches of 'old'"):
        patches.apply_rules(tmp_path, (first, second))
    write_tree(tmp_path, {"b.py": "old"})
    assert patches.apply_rules(tmp_path, (first, second)) == ["second"]
    tree = read_tree(tmp_path)
    assert (tree["a.py"], tree["b.py"]) == ("new older", "new")


@pytest.mark.parametrize("alias", ["bool", "int", "float", "object", "str"])
def test_numpy_aliases_are_replaced_exactly(tmp_path, alias):
    text = (
        f"x.astype(np.{alias}); np.zeros(3, dtype=np.{alias})\n"
        f"np.{alias}_ np.{alias}64 np.{alias}ify mynp.{alias} np.{alias}s\n"
    )
    write_tree(tmp_path, {"detectron2/a.py": text})
    patches.apply_rules(tmp_path, (dataclasses.replace(ALIASES, count=2),))
    first, second = read_tree(tmp_path)["detectron2/a.py"].splitlines()
    assert first == f"x.astype({alias}); np.zeros(3, dtype={alias})"
    assert second == text.splitlines()[1]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=200))
def test_text_without_a_match_is_left_alone(tmp_path_factory, text):
    text = text.replace("np.", "")
    root = write_tree(tmp_path_factory.mktemp("tree"), {"detectron2/keep.py": "y = np.int\n"})
    (root / "detectron2" / "other.py").write_text(text, encoding="utf-8")
    assert list(dataclasses.replace(ALIASES, count=1).plan(root)) == [root / "detectron2/keep.py"]


def test_the_stub_answers_the_environment_report_and_names_what_is_missing():
    module: dict = {}
    exec(patches.STUB_MODULE, module)
    assert "not compiled" in module["get_compiler_version"]()
    assert isinstance(module["get_cuda_version"](), str)
    assert module["has_cuda"]() is False
    with pytest.raises(AttributeError, match="'box_iou_rotated'.*upstream Detectron2"):
        module["__getattr__"]("box_iou_rotated")


# -------------------------------------------------------------------------------- downloads


@pytest.fixture
def server():
    """An HTTP server on this machine; ``server.pages`` maps paths to contents."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = self.server.pages.get(self.path)
            self.send_response(200 if content is not None else 404)
            kind = "application/gzip" if self.path.endswith(".gz") else "text/html"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pages = {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_proxy(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


def test_download_within_returns_what_the_server_sends(server, no_proxy):
    server.pages["/a.tar.gz"] = b"content"
    assert download.download_within(f"{server.url}/a.tar.gz", 10.0) == b"content"


def test_download_within_passes_on_where_nothing_answers(server, no_proxy):
    with pytest.raises(Unavailable, match="404"):
        download.download_within(f"{server.url}/missing", 10.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="cannot be reached"):
            download.download_within(f"http://127.0.0.1:{closed.getsockname()[1]}/", 10.0)


def test_download_within_gives_up_on_a_silent_server(no_proxy):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(Unavailable):
            download.download_within(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.2)


@pytest.fixture
def index(server, monkeypatch, no_proxy):
    """The server as pip's only package index."""
    pytest.importorskip("pip")
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return server


def test_the_release_is_found_on_the_index_that_pip_uses(index):
    index.pages["/simple/detectron2-cdo/"] = (
        b'<a href="/files/detectron2_cdo-0.4.tar.gz">old</a>'
        b'<a href="/files/detectron2_cdo-0.5-py3-none-any.whl">wheel</a>'
        b'<a href="/files/detectron2_cdo-0.5.tar.gz">new</a>'
    )
    index.pages["/files/detectron2_cdo-0.5.tar.gz"] = b"the release"
    assert download.download_sdist("detectron2-cdo", "0.5") == b"the release"


def test_an_index_without_the_release_is_named_with_a_remedy(index):
    with pytest.raises(InstallError, match=r"no detectron2-cdo==0\.5.*PIP_INDEX_URL.*DETECTRON2"):
        download.download_sdist("detectron2-cdo", "0.5")


def test_a_file_that_the_index_promises_and_does_not_have(index):
    page = b'<a href="/files/detectron2_cdo-0.5.tar.gz">new</a>'
    index.pages["/simple/detectron2-cdo/"] = page
    with pytest.raises(InstallError, match="could not be downloaded"):
        download.download_sdist("detectron2-cdo", "0.5")


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"no archive at all", "cannot be unpacked"),
        (make_archive({"a/x": "", "b/x": ""}, top=""), "found 2"),
        (make_archive({}), "found 0"),
    ],
    ids=["no archive", "two folders", "no folder"],  # the bytes differ from process to process
)
def test_a_wrong_archive_is_refused(tmp_path, archive, message):
    with pytest.raises(InstallError, match=message):
        download.unpack(archive, tmp_path)


def test_unpack_returns_the_top_folder(tmp_path):
    top = download.unpack(make_archive({"setup.py": "x"}, top="d-1"), tmp_path)
    assert top == tmp_path / "d-1"
    assert (top / "setup.py").read_text() == "x"


# ----------------------------------------------------------------------------- installation


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: records (target, files of a target folder) and installs nothing."""
    calls: list[tuple[str, dict[str, str]]] = []

    def record(target, constraint, tools=()):
        calls.append((target, read_tree(Path(target)) if Path(target).is_dir() else {}))

    monkeypatch.setattr(installer, "pip_install", record)
    return calls


def test_another_checksum_is_refused(pip):
    digest = hashlib.sha256(b"tampered").hexdigest()
    with pytest.raises(InstallError, match=f"{digest}.*{installer.RELEASE_SHA256}"):
        installer.install_release(b"tampered", None)
    assert pip == []


def test_the_release_is_repaired_before_it_is_installed(pip, monkeypatch):
    archive = make_archive(RELEASE_SOURCE)
    monkeypatch.setattr(installer, "RELEASE_SHA256", hashlib.sha256(archive).hexdigest())
    assert "detectron2-cdo==0.5" in installer.install_release(archive, None)
    [(_, files)] = pip
    assert files["detectron2/_C.py"] == patches.STUB_MODULE
    assert "b = bool" in files["detectron2/layers/mask_ops.py"]


def test_a_release_that_the_rules_do_not_fit_is_not_installed(pip, monkeypatch):
    archive = make_archive({**RELEASE_SOURCE, "detectron2/engine/hooks.py": "new code\n"})
    monkeypatch.setattr(installer, "RELEASE_SHA256", hashlib.sha256(archive).hexdigest())
    with pytest.raises(InstallError, match="'scheduler-state'.*detectron2_patches"):
        installer.install_release(archive, None)
    assert pip == []


def test_a_folder_is_built_from_a_copy_of_its_sources(pip, tmp_path):
    write_tree(
        tmp_path / "clone",
        {
            "setup.py": "s",
            "detectron2/data/datasets/coco.py": "c",
            "build/lib/x.py": "",
            "datasets/images/1.jpg": "",
            ".git/HEAD": "",
        },
    )
    before = read_tree(tmp_path)
    installer.from_setting(str(tmp_path / "clone"), None)
    [(target, files)] = pip
    assert not Path(target).is_relative_to(tmp_path)
    assert files == {"setup.py": "s", "detectron2/data/datasets/coco.py": "c"}
    assert read_tree(tmp_path) == before


def test_settings_that_lead_nowhere(pip, tmp_path, monkeypatch):
    with pytest.raises(InstallError, match="no such file or folder"):
        installer.from_setting(str(tmp_path / "nowhere"), None)
    with pytest.raises(InstallError, match=r"holds no setup\.py"):
        installer.from_setting(str(tmp_path), None)
    write_tree(tmp_path, {"setup.py": "", "detectron2/layers/csrc/vision.cpp": ""})
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InstallError, match=r"needs a C\+\+ compiler"):
        installer.from_setting(str(tmp_path), None)
    assert pip == []


@pytest.mark.parametrize(
    "setting", ["git+https://host/detectron2.git@main", "detectron2==0.6", "https://host/a.whl"]
)
def test_urls_and_requirements_go_to_pip(pip, setting):
    assert setting in installer.from_setting(setting, None)
    assert pip == [(setting, {})]


@pytest.mark.parametrize("setting", ["detectron2-cdo==0.5", "detectron2_cdo == 0.5"])
def test_the_release_as_a_requirement_is_repaired_too(monkeypatch, setting):
    monkeypatch.setattr(installer, "download_sdist", lambda name, version: b"archive")
    monkeypatch.setattr(installer, "install_release", lambda archive, constraint: archive.decode())
    assert installer.from_setting(setting, None) == "archive"


def test_the_release_as_a_file_is_repaired_too(pip, monkeypatch, tmp_path):
    archive = make_archive(RELEASE_SOURCE)
    monkeypatch.setattr(installer, "RELEASE_SHA256", hashlib.sha256(archive).hexdigest())
    (tmp_path / "release.tar.gz").write_bytes(archive)
    installer.from_setting(str(tmp_path / "release.tar.gz"), None)
    assert "detectron2/_C.py" in pip[0][1]


def test_upstream_needs_a_compiler_and_the_pinned_commit(pip, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"C\+\+ compiler"):
        installer.from_upstream(None)
    monkeypatch.setenv("CXX", "python3")
    monkeypatch.setattr(installer, "has_compiler", lambda: True)
    archive = make_archive({"setup.py": ""}, top="detectron2-other")
    monkeypatch.setattr(installer, "download_within", lambda url, patience: archive)
    with pytest.raises(InstallError, match="sent detectron2-other, not the commit"):
        installer.from_upstream(None)
    archive = make_archive({"setup.py": ""}, top=f"detectron2-{installer.UPSTREAM_COMMIT}")
    assert installer.UPSTREAM_COMMIT[:8] in installer.from_upstream(None)
    assert len(pip) == 1


# -------------------------------------------------------------------------------- the choice


@pytest.fixture
def world(monkeypatch):
    """Stands in for what is installed and what can be reached; ``world.calls`` tells the order."""

    class World:
        calls: list[str] = []
        installed = False
        error: str | None = None
        upstream: Exception | None = None
        index: Exception | None = None

        def importable(self):
            self.calls.append("importable")
            return installer.Found("0.5 (/there)" if self.installed else None, self.error)

        def source(self, name):
            def install(*arguments):
                self.calls.append(name)
                outcome = getattr(self, name, None)
                if outcome is not None:
                    raise outcome
                self.installed = True
                return name

            return install

    world = World()
    world.calls = []
    monkeypatch.setattr(installer, "importable", world.importable)
    monkeypatch.setattr(installer, "check_prerequisites", lambda: None)
    monkeypatch.setattr(installer, "from_setting", world.source("setting"))
    monkeypatch.setattr(installer, "from_upstream", world.source("upstream"))
    monkeypatch.setattr(installer, "from_index", world.source("index"))
    return world


def test_one_that_is_there_is_taken_whatever_the_setting(world, capsys):
    world.installed = True
    assert "already there" in installer.choose("somewhere", None)
    assert world.calls == ["importable"]
    assert "DETECTRON2=somewhere is not used" in capsys.readouterr().out


def test_the_setting_comes_before_upstream(world):
    assert installer.choose("somewhere", None).endswith("from setting")
    assert world.calls == ["importable", "setting", "importable"]


def test_a_setting_that_fails_is_not_replaced_by_another_source(world):
    world.setting = InstallError("no such file")
    with pytest.raises(InstallError, match="no such file"):
        installer.choose("somewhere", None)
    assert world.calls == ["importable", "setting"]


def test_upstream_comes_before_the_index(world):
    assert installer.choose(None, None).endswith("from upstream")
    assert world.calls == ["importable", "upstream", "importable"]


def test_the_index_comes_where_upstream_cannot_be_had(world, capsys):
    world.upstream = Unavailable("no answer within 15 s")
    assert installer.choose("", None).endswith("from index")
    assert world.calls == ["importable", "upstream", "index", "importable"]
    assert "no answer within 15 s; going on to the next source" in capsys.readouterr().out


def test_one_that_does_not_import_is_reported_and_replaced(world, capsys):
    world.error = "ImportError: undefined symbol"
    assert installer.choose(None, None).endswith("from upstream")
    assert "does not import (ImportError: undefined symbol)" in capsys.readouterr().out


def test_success_is_claimed_only_for_one_that_imports(world, monkeypatch):
    monkeypatch.setattr(installer, "from_upstream", lambda constraint: "upstream")
    world.error = "ImportError: no numpy"
    with pytest.raises(InstallError, match="does not import: ImportError: no numpy"):
        installer.choose(None, None)


def test_main_tells_what_was_taken_or_what_failed(world, monkeypatch, capsys):
    monkeypatch.delenv("DETECTRON2", raising=False)
    assert installer.main([]) == 0
    assert "using 0.5 (/there), from upstream" in capsys.readouterr().out
    world.installed = False
    world.upstream = Unavailable("no compiler")
    world.index = InstallError("the index is on fire")
    assert installer.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "detectron2: failed: the index is on fire"


def test_prerequisites_are_named_with_the_command_that_brings_them(monkeypatch):
    find_spec = installer.importlib.util.find_spec
    for missing in ("pip", "torch"):
        monkeypatch.setattr(
            installer.importlib.util,
            "find_spec",
            lambda name, gone=missing: None if name == gone else find_spec(name),
        )
        with pytest.raises(InstallError, match=f"has no {missing}.*run `"):
            installer.check_prerequisites()


def test_the_detectron2_of_these_tests_is_found():
    found = installer.importable()
    assert found.error is None
    assert found.description is not None
    assert found.description[0].isdigit()
