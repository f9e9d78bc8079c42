"""Every block of commands and code in docs/ works, on small data and a small model.

A block that cannot run here says so and why: ```` ```bash no-run: the reason ````.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import registries
from helpers import ROOT, random_inputs
from tiny_data import CONFIG, TINY_MODEL, tiny_crowd, tiny_sets

from defcn_d2.engine import Trainer, load_config

PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w+)[ ]?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PARTS = "docs/architecture.md"  # says what each part is for
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")

# What the code of a page has built must work as well.
CHECKS = {
    "extending.md": """
from detectron2.structures import Boxes, Instances
(criterion,) = model.criteria
assert type(model.backbone.bottom_up).__name__ == "Strided"
assert model.neck.context[1].out_channels == 8 and model.head.dropout.p == 0.1
assert criterion.matcher.topk == 2 and criterion.class_loss.epsilon == 0.5
gt = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), gt_classes=torch.zeros(1).long())
losses = model([{"image": torch.zeros(3, 64, 64).byte(), "instances": gt}])
assert set(losses) == {"loss_cls", "loss_box_reg", "loss_overlap"}
assert all(loss.isfinite() for loss in losses.values()), losses
sum(losses.values()).backward()
assert all(parameter.grad is not None for parameter in model.parameters())
""",  # noqa: E501
}


class Block(NamedTuple):
    language: str
    remark: str
    code: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in FENCE.findall(page.read_text())]


@pytest.fixture
def workplace(tmp_path: Path) -> dict[str, str]:
    """A folder like a checkout, with small data; returns the environment to run in, PWD there.

    ``python train_net.py`` gets a small model and few iterations there.
    """
    for name in ("configs", "defcn_d2", "demo", "tools", "train_net.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    tiny_crowd()
    (tmp_path / "datasets").symlink_to(tiny_sets())
    shutil.copy(tiny_sets() / "shapes" / "val" / "images" / "000000.jpg", tmp_path / "image.jpg")
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    shim.write_text(
        f'#!/bin/sh\ncase "$1" in train_net.py) set -- "$@" {shlex.join(TINY_MODEL)};; esac\n'
        f'exec {shlex.quote(sys.executable)} -W ignore "$@"\n'
    )
    shim.chmod(0o755)
    return {
        **os.environ,
        "PWD": str(tmp_path),
        "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "DETECTRON2_DATASETS": str(tmp_path / "datasets"),
        "OMP_NUM_THREADS": "1",
    }


def run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=environment["PWD"], env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


RUNNABLE = [page for page in PAGES if any(b.language in ("bash", "python") for b in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_blocks_work(page: Path, workplace: dict[str, str]) -> None:
    found = [b for b in blocks(page) if b.language in ("bash", "python")]
    for block in found:
        assert re.fullmatch(r"(no-run: .{10,})?", block.remark), f"{page.name}: {block.remark!r}"
    runnable = [block for block in found if not block.remark]
    for language, group in itertools.groupby(runnable, key=lambda block: block.language):
        code = "\n".join(block.code for block in group)  # consecutive code is one program
        if language == "bash":
            run(["bash", "-euo", "pipefail", "-c", code], workplace)
        else:
            run(["python", "-c", code + CHECKS.get(page.name, "")], workplace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_notebook(workplace: dict[str, str]) -> None:
    cells = json.loads((ROOT / "demo" / "quickstart.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # what a run gave is not kept
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    small = ", ".join(map(repr, TINY_MODEL))
    for text, short in (
        ("ITERATIONS = 250", "ITERATIONS = 2"),
        ("str(ITERATIONS), ", f'str(ITERATIONS), {small}, "SOLVER.MAX_ITER", "2", '),
        ("../output", "output"),
    ):
        assert text in code
        code = code.replace(text, short)
    run(["python", "-c", f"import matplotlib\nmatplotlib.use('Agg')\n{code}"], workplace)


def test_architecture_names_every_part_of_the_package() -> None:
    linked = {target.rstrip("/") for target, _ in LINK.findall((ROOT / PARTS).read_text())}
    package = ROOT / "defcn_d2"
    folders = [path.parent for path in package.rglob("__init__.py") if path.parent != package]
    files = [package / "structures.py", *(package / "modeling").glob("[!_]*.py")]
    for path in (*folders, *files):
        assert f"../{path.relative_to(ROOT).as_posix()}" in linked, path


def test_matcher_of_the_readme_works(tmp_path: Path) -> None:
    found = [b for b in blocks(ROOT / "README.md") if "BestInsideBox" in b.code]
    code, yaml = (next(b.code for b in found if b.language == x) for x in ("python", "yaml"))
    assert len(code.splitlines()) <= 20
    path = tmp_path / "own.yaml"
    path.write_text(f'_BASE_: "{CONFIG}"\n{yaml}')
    with registries.restored():
        exec(code, {})
        model = Trainer.build_model(load_config(str(path), TINY_MODEL))
        assert model.criteria[0].matcher.topk == 5
        losses = model(random_inputs([(64, 64)] * 2, [1, 2], num_classes=7))
    assert losses["loss_box_reg"] > 0


def test_matcher_of_the_docs_is_small() -> None:
    (matcher,) = (b.code for b in blocks(ROOT / "docs" / "extending.md") if "gt):" in b.code)
    assert len(matcher.splitlines()) <= 30
