"""Write docs/configuration.md: every key of the project, from the defaults' own comments.

The comment above a key says why it is there; keys that follow without one share it.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not

from defcn_d2.utils.files import write_atomically  # noqa: E402

SOURCE, PAGE = ROOT / "defcn_d2" / "config" / "defaults.py", ROOT / "docs" / "configuration.md"
HEAD = """\
# Configuration

Every key that this project adds to Detectron2's own, with its default and what it is for. Any of
them can be given in a yaml or as `KEY VALUE` at the end of a command line. This page is written by
`python tools/config_reference.py` from [defaults.py](../defcn_d2/config/defaults.py).
"""


def comments(source: str) -> dict[str, str]:
    """The comment of each key: its name as the source has it, such as ``LOSS.FOCAL_ALPHA``.

    The name lacks what stands before it in the config; the longest name that ends a key is its.
    """
    lines = source.splitlines()
    found: dict[str, str] = {}
    comment, last_line = "", -1
    for node in sorted(_assignments(source), key=lambda node: node.lineno):
        name = ".".join(_chain(node.targets[0])[1:])
        above = list(_comment_above(lines, node.lineno - 1))
        if above:
            comment = " ".join(reversed(above))
        elif lines[last_line : node.lineno - 1]:
            comment = ""  # an empty line ends a group
        last_line = node.end_lineno or node.lineno
        if name not in found:
            found[name] = comment
    return found


def _assignments(source: str) -> Iterator[ast.Assign]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield node


def _chain(node: ast.expr) -> list[str]:
    """``a.B.C`` as ["a", "B", "C"]."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def _comment_above(lines: list[str], line: int) -> Iterator[str]:
    """The comment lines that end above a line, from the last to the first."""
    while line and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        yield lines[line].lstrip("# ").rstrip()


def keys() -> dict[str, object]:
    """Every key that ``add_defcn_config`` adds, with its default."""
    from detectron2.config import get_cfg

    from defcn_d2 import add_defcn_config

    cfg = get_cfg()
    before = dict(_leaves(cfg))
    add_defcn_config(cfg)
    return {key: value for key, value in _leaves(cfg) if key not in before}


def _leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def comment_of(key: str, known: dict[str, str]) -> str:
    """The comment of a key; of the node that it stands in, where it has none; ``""`` without."""
    while key:
        names = [name for name in known if known[name] and f".{key}".endswith(f".{name}")]
        if names:
            return known[max(names, key=len)]
        key = key.rpartition(".")[0]
    return ""


def reference(source: str) -> str:
    """The page, a table for each group of keys.

    Raises:
        ValueError: a key without a comment.
    """
    known = comments(source)
    tables: dict[str, list[str]] = {}
    above: dict[str, str] = {}
    for key, value in keys().items():
        text = comment_of(key, known)
        if not text:
            raise ValueError(f"{key} has no comment in {SOURCE.name}; add a line of why above it")
        group, _, name = key.rpartition(".")
        shown = f'"{value}"' if isinstance(value, str) else value
        previous, above[group] = above.get(group), text
        cell = "as above" if previous == text else text.replace("|", "\\|")
        row = f"| `{name}` | `{shown}` | {cell} |"
        tables.setdefault(group, []).append(row)
    parts = [HEAD]
    for group in sorted(tables):
        rows = "\n".join(tables[group])
        parts.append(f"## {group}\n\n| key | default | |\n|---|---|---|\n{rows}\n")
    return "\n".join(parts)


def main() -> int:
    """The command; returns the exit status."""
    try:
        text = reference(SOURCE.read_text())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    write_atomically(PAGE, text.encode())
    print(f"{PAGE}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
