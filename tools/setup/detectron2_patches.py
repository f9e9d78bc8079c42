"""Rules that make the released Detectron2 v0.5 build and run on today's torch, numpy and Pillow.

Every rule names what it repairs, the files it looks at, a pattern, and how often that pattern
occurs in the release. A count that differs means that the source is not the one the rule was
written for: nothing is then written, and :class:`PatchError` says which rule failed and where.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MARKER = "defcn_d2_patches.txt"
"""Written into a patched tree, one applied rule a line; a rule listed there is not run again."""

STUB_MODULE = '''"""Stands in for the compiled operators, which this release does not carry.

Written by tools/setup/install_detectron2.py of defcn_d2.
"""


def get_compiler_version():
    return "none (operators not compiled)"


def get_cuda_version():
    return "not available"


def has_cuda():
    return False


def __getattr__(name):
    raise AttributeError(
        f"detectron2._C has no {name!r}: this copy of Detectron2 has no compiled operators "
        "(rotated boxes, deformable convolution on CUDA, fast COCO evaluation). "
        "Install upstream Detectron2, which compiles them, to use it."
    )
'''


class PatchError(RuntimeError):
    """A rule does not fit the source: the release is not the one the rules were written for."""


@dataclass(frozen=True)
class Replace:
    """Replace a pattern that occurs an exact number of times in the files of one glob.

    Attributes:
        name: what the rule is called in messages and in the marker file.
        reason: what fails without it.
        files: glob, relative to the root of the source tree.
        pattern: regular expression (``re.MULTILINE``).
        replacement: template as for :func:`re.sub`.
        count: number of matches over all the files.
    """

    name: str
    reason: str
    files: str
    pattern: str
    replacement: str
    count: int

    def plan(self, root: Path) -> dict[Path, str]:
        """New contents of the files that change.

        Raises:
            PatchError: no file matches the glob, or the number of matches is not ``count``.
        """
        paths = sorted(path for path in root.glob(self.files) if path.is_file())
        if not paths:
            raise PatchError(f"rule '{self.name}': no file matches {self.files}")
        changed, total = {}, 0
        for path in paths:
            text, hits = re.subn(
                self.pattern, self.replacement, path.read_text(encoding="utf-8"), flags=re.MULTILINE
            )
            if hits:
                changed[path] = text
                total += hits
        if total != self.count:
            raise PatchError(
                f"rule '{self.name}': expected {self.count} matches of {self.pattern!r} "
                f"in {self.files}, found {total}"
            )
        return changed


@dataclass(frozen=True)
class AddFile:
    """Write a file that the release lacks."""

    name: str
    reason: str
    path: str
    text: str

    def plan(self, root: Path) -> dict[Path, str]:
        """The new file and its contents.

        Raises:
            PatchError: the file is there already, or its folder is not.
        """
        path = root / self.path
        if path.exists():
            raise PatchError(f"rule '{self.name}': {self.path} exists already")
        if not path.parent.is_dir():
            raise PatchError(f"rule '{self.name}': there is no folder {Path(self.path).parent}")
        return {path: self.text}


Rule = Replace | AddFile

V05_RULES: tuple[Rule, ...] = (
    AddFile(
        name="operators-stub",
        reason="the release carries no C++ sources, yet detectron2.layers imports detectron2._C",
        path="detectron2/_C.py",
        text=STUB_MODULE,
    ),
    Replace(
        name="setup-no-extension",
        reason="setup.py would compile the C++ sources that are not there",
        files="setup.py",
        pattern=r"^    ext_modules=get_extensions\(\),\n"
        r"    cmdclass=\{\"build_ext\": torch\.utils\.cpp_extension\.BuildExtension\},$",
        replacement="",
        count=1,
    ),
    Replace(
        name="setup-model-zoo-configs",
        reason="the model zoo's configs lie inside the package; setup.py looks beside it",
        files="setup.py",
        pattern=r'^    config_paths = glob\.glob\("configs/\*\*/\*\.yaml", recursive=True\) '
        r'\+ glob\.glob\(\n        "configs/\*\*/\*\.py", recursive=True\n    \)\n'
        r"    return config_paths$",
        replacement='    return ["configs/**/*.yaml", "configs/**/*.py"]',
        count=1,
    ),
    Replace(
        name="setup-black",
        reason="black 21.4b2, which formats saved configs, breaks with today's click",
        files="setup.py",
        pattern=r'"black==21\.4b2"',
        replacement='"black"',
        count=1,
    ),
    Replace(
        name="setup-caffe2-dependencies",
        reason="future and pydot served Caffe2 alone, which is gone from torch",
        files="setup.py",
        pattern=r'^        "(?:future|pydot)",.*\n',
        replacement="",
        count=2,
    ),
    Replace(
        name="coco-evaluation-in-python",
        reason="the fast COCO evaluation is one of the compiled operators",
        files="detectron2/evaluation/coco_evaluation.py",
        pattern=r"\(COCOeval_opt if use_fast_impl else COCOeval\)\(",
        replacement="COCOeval(",
        count=1,
    ),
    Replace(
        name="model-zoo-paths",
        reason="setuptools 82 and newer have no pkg_resources",
        files="detectron2/model_zoo/model_zoo.py",
        pattern=r'pkg_resources\.resource_filename\(\n        "detectron2\.model_zoo", '
        r'os\.path\.join\("configs", config_path\)\n    \)',
        replacement='os.path.join(os.path.dirname(__file__), "configs", config_path)',
        count=1,
    ),
    Replace(
        name="model-zoo-import",
        reason="setuptools 82 and newer have no pkg_resources",
        files="detectron2/model_zoo/model_zoo.py",
        pattern=r"^import pkg_resources\n",
        replacement="",
        count=1,
    ),
    Replace(
        name="numpy-aliases",
        reason="numpy 1.24 removed np.bool, np.int, np.float, np.object and np.str",
        files="detectron2/**/*.py",
        pattern=r"\bnp\.(bool|int|float|object|str)\b",
        replacement=r"\1",
        count=18,
    ),
    Replace(
        name="numpy-copy",
        reason="numpy 2 raises where copy=False cannot be honoured",
        files="detectron2/layers/mask_ops.py",
        pattern=r"np\.array\(mask, copy=False\)",
        replacement="np.asarray(mask)",
        count=1,
    ),
    Replace(
        name="pillow-linear",
        reason="Pillow 10 removed Image.LINEAR",
        files="detectron2/**/*.py",
        pattern=r"\bImage\.LINEAR\b",
        replacement="Image.BILINEAR",
        count=1,
    ),
    Replace(
        name="meshgrid-indexing",
        reason="torch warns at every start that meshgrid's indexing will have to be given",
        files="detectron2/modeling/anchor_generator.py",
        pattern=r"torch\.meshgrid\(shifts_y, shifts_x\)",
        replacement='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        count=1,
    ),
    Replace(
        name="scheduler-state",
        reason="torch 2 schedulers derive from LRScheduler; their state would not be saved",
        files="detectron2/engine/hooks.py",
        pattern=r"\btorch\.optim\.lr_scheduler\._LRScheduler\b",
        replacement="torch.optim.lr_scheduler.LRScheduler",
        count=2,
    ),
    Replace(
        name="boxes-from-list",
        reason="torch is slow on, and warns of, a list of numpy rows, once an image",
        files="detectron2/data/detection_utils.py",
        pattern=r"^    target\.gt_boxes = Boxes\(boxes\)$",
        replacement="    boxes = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)\\n"
        "    target.gt_boxes = Boxes(boxes)",
        count=1,
    ),
    Replace(
        name="gather-buffer",
        reason="torch's typed storages, which carry gathered objects, are about to be removed",
        files="detectron2/utils/comm.py",
        pattern=r"^    storage = torch\.ByteStorage\.from_buffer\(buffer\)\n"
        r"    tensor = torch\.ByteTensor\(storage\)\.to\(device=device\)$",
        replacement="    buffer = bytearray(buffer)\\n"
        "    tensor = torch.frombuffer(buffer, dtype=torch.uint8).to(device)",
        count=1,
    ),
    Replace(
        name="export-without-caffe2",
        reason="Caffe2 is gone from torch; tracing and scripting need none of it",
        files="detectron2/export/__init__.py",
        pattern=r"^from \.api import \*\n",
        replacement="",
        count=1,
    ),
)


def apply_rules(root: Path, rules: tuple[Rule, ...] = V05_RULES) -> list[str]:
    """Apply every rule not yet listed in the tree's marker file.

    A rule's files are written only after its count was found right, so a failure leaves no
    half-applied rule behind; a second call does nothing.

    Args:
        root: unpacked source tree.
        rules: in the order in which to apply them.

    Returns:
        Names of the rules applied by this call.

    Raises:
        PatchError: a rule does not fit.
    """
    marker = root / MARKER
    done = marker.read_text(encoding="utf-8").split() if marker.exists() else []
    applied = []
    for rule in rules:
        if rule.name in done:
            continue
        for path, text in rule.plan(root).items():
            path.write_text(text, encoding="utf-8")
        applied.append(rule.name)
        marker.write_text("\n".join(done + applied) + "\n", encoding="utf-8")
    return applied
