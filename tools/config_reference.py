"""Write docs/configuration.md: every key of the project, with its default and what it is for.

Keys of components are documented by the ``Args:`` of their classes, all others by the comment above
them in the defaults; keys that follow without a comment share it.
"""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, installed or not

from detectron2.config import get_cfg  # noqa: E402

from defcn_d2 import add_defcn_config  # noqa: E402
from defcn_d2.config.components import ComponentRegistry  # noqa: E402
from defcn_d2.config.defaults import REGISTRIES  # noqa: E402
from defcn_d2.utils.files import write_atomically  # noqa: E402

SOURCE, PAGE = ROOT / "defcn_d2" / "config" / "defaults.py", ROOT / "docs" / "configuration.md"
HEAD = """\
# Configuration

Every key that this project adds to Detectron2's own, with its default and what it is for. Any of
them can be given in a yaml or as `KEY VALUE` at the end of a command line. This page is written by
`python tools/config_reference.py` from [defaults.py](../defcn_d2/config/defaults.py) and from the
classes of the [components](#components), whose keyword arguments their keys are.
"""
COMPONENTS = """\
## Components

`NAME` of a node chooses one of these; its keys stand below its name, as
`MODEL.DEFCN.MATCHER.<Name>.<KEY>`. Those of the others count for nothing.
"""


def comments(source: str) -> dict[str, str]:
    """The comment of each key: its name as the source has it, such as ``MAX_FILTERING.TAU``.

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


def places() -> dict[str, ComponentRegistry]:
    """The nodes at which a component is chosen, with its registry."""
    nodes = {key.removesuffix(".NAME") for key in keys() if key.endswith(".NAME")}
    return {
        node: REGISTRIES[node.rpartition(".")[2]]
        for node in sorted(nodes)
        if node.rpartition(".")[2] in REGISTRIES
    }


def arguments_of(kind: type) -> dict[str, str]:
    """Texts of a constructor's arguments from ``Args:``, those of the base classes included."""
    found: dict[str, str] = {}
    for base in inspect.getmro(kind):
        docstring = inspect.getdoc(vars(base).get("__init__")) or ""
        section = re.search(r"^Args:\n((?:    .*\n?|\n)*)", docstring, re.MULTILINE)
        body = section[1] if section else ""
        for names, text in re.findall(r"^    (\S[^:]*): ((?:.|\n {5,})*)", body, re.MULTILINE):
            for name in names.split(", "):
                found.setdefault(name, " ".join(text.split()))
    return found


def comment_of(key: str, known: dict[str, str]) -> str:
    """The comment of a key; of the node that it stands in, where it has none; ``""`` without."""
    while key:
        names = [name for name in known if known[name] and f".{key}".endswith(f".{name}")]
        if names:
            return known[max(names, key=len)]
        key = key.rpartition(".")[0]
    return ""


def reference(source: str) -> str:
    """The page: a table for each group of keys, then one for each component.

    Raises:
        ValueError: a key without a comment, or an argument of a component without a text.
    """
    known, nodes = comments(source), places()
    tables: dict[str, list[str]] = {}
    above: dict[str, str] = {}
    for key, value in keys().items():
        group, _, name = key.rpartition(".")
        if group.rpartition(".")[0] in nodes:  # of a component
            continue
        text = comment_of(key, known)
        if not text:
            raise ValueError(f"{key} has no comment in {SOURCE.name}; add a line of why above it")
        previous, above[group] = above.get(group), text
        comment = "as above" if previous == text else text
        tables.setdefault(group, []).append(_row(name, value, comment))
    parts = [HEAD, *(f"## {group}\n\n{_table(tables[group])}" for group in sorted(tables))]
    parts.append(COMPONENTS)
    for registry in REGISTRIES.values():
        places_of = [place for place, other in nodes.items() if other is registry]
        parts += [_component(registry, name, places_of) for name in registry.names()]
    return "\n".join(parts)


def _component(registry: ComponentRegistry, name: str, nodes: list[str]) -> str:
    """The section of a component, with the ``nodes`` at which it may be chosen."""
    kind = registry.get(name)
    texts, rows = arguments_of(kind), []
    for argument, default in registry.keys_of(name).items():
        if not texts.get(argument):
            raise ValueError(f"{name}: {argument} has no text; add it to Args of its constructor")
        rows.append(_row(argument.upper(), default, texts[argument]))
    where = " or ".join(f"`{node}.{name}`" for node in nodes)
    first_line = (inspect.getdoc(kind) or "").partition("\n")[0]
    body = f"Keys at {where}:\n\n{_table(rows)}" if rows else f"No keys of its own at {where}.\n"
    return f"### {name}\n\n{first_line}\n\n{body}"


def _row(name: str, value: object, text: str) -> str:
    shown = f'"{value}"' if isinstance(value, str) else value
    return f"| `{name}` | `{shown}` | {text.replace('``', '`').replace('|', chr(92) + '|')} |"


def _table(rows: list[str]) -> str:
    return "| key | default | |\n|---|---|---|\n" + "\n".join(rows) + "\n"


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
