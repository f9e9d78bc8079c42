"""The examples in the docstrings of the registries run."""

from __future__ import annotations

import doctest

import pytest
import registries


@pytest.mark.parametrize("name", registries.REGISTRIES)
def test_example_of_the_registry_runs(name: str) -> None:
    text = registries.REGISTRIES[name].__doc__
    example = doctest.DocTestParser().get_doctest(text or "", {}, f"{name}_REGISTRY", None, 0)
    report: list[str] = []
    with registries.restored():
        before = set(registries.REGISTRIES[name].names())
        failed, _ = doctest.DocTestRunner().run(example, out=report.append)
        registered = set(registries.REGISTRIES[name].names()) - before
    assert not failed, "".join(report)
    assert len(registered) == 1, "the example registers a component, whose keys it shows"
    assert set(registries.REGISTRIES[name].names()) == before
