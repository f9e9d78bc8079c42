"""``tools/trust/mutate.py``: what it changes before mutmut does, and what it counts."""

import ast
import json
import sys
from types import SimpleNamespace

import mutate
import pytest
from helpers import ROOT

MATCHERS = sorted((ROOT / "defcn_d2" / "modeling" / "matcher").glob("*.py"))


@pytest.mark.parametrize("path", MATCHERS, ids=lambda path: path.stem)
def test_no_function_of_a_matcher_keeps_its_decorator(path) -> None:
    """It is applied after the class: mutmut changes plain functions and class methods alone."""
    source = path.read_text()
    changed = mutate.without_decorators(source)
    functions = [node for node in ast.walk(ast.parse(changed)) if isinstance(node, ast.FunctionDef)]
    decorators = {ast.unparse(x) for node in functions for x in node.decorator_list}
    assert decorators <= {"classmethod"}
    for name in mutate.DECORATORS:
        assert changed.count(f" = {name}(") == source.count(f"@{name}\n")


def test_a_class_without_its_decorators_is_the_same() -> None:
    source = """
class A:
    @property
    def a(self) -> int:
        return self.b + 1

    @classmethod
    def c(cls) -> int:
        return 3


class B(A):
    @property
    def b(self) -> int:
        return self.c()
"""
    changed = mutate.without_decorators(source)
    assert "@property" not in changed and "    @classmethod\n    def c" in changed
    assert changed.endswith("\n\nA.a = property(A.a)\nB.b = property(B.b)\n")
    found: dict = {}
    exec(changed, found)
    assert found["B"]().a == 4
    assert mutate.without_decorators("A = 1\n") == "A = 1\n"


def test_report(tmp_path, monkeypatch, capsys) -> None:
    statuses = {0: "survived", 1: "killed", 36: "timeout", None: "not checked"}
    stats = SimpleNamespace(status_by_exit_code=statuses)
    monkeypatch.setitem(sys.modules, "mutmut", SimpleNamespace(stats=stats))
    monkeypatch.setitem(sys.modules, "mutmut.stats", stats)
    monkeypatch.setattr(mutate, "FOLDER", tmp_path)
    monkeypatch.setattr(mutate, "run_mutmut", lambda *args: SimpleNamespace(stdout=args[1]))
    folder = tmp_path / "mutants" / "defcn_d2"
    folder.mkdir(parents=True)

    def write(name: str, codes: list) -> None:
        content = {"exit_code_by_key": {f"{name}_{i}": code for i, code in enumerate(codes)}}
        (folder / f"{name}.py.meta").write_text(json.dumps(content))

    write("a", [1, 1, 36, 0])
    write("b", [None, 1, 0])
    write("empty", [])
    assert mutate.report() == 1
    output = capsys.readouterr().out
    assert "| `defcn_d2/a.py` | 4 | 3 | 1 | 75.0 % |\n" in output
    assert "| `defcn_d2/b.py` | 3 | 1 | 1 | 50.0 % |\n" in output
    assert "| `total` | 7 | 4 | 2 | 66.7 % |\n" in output and "empty" not in output
    assert "1 mutants are not decided yet" in output
    assert (tmp_path / "survivors.txt").read_text() == "a_3\nb_2"
    write("b", [1, 1, 0])
    assert mutate.report() == 0
