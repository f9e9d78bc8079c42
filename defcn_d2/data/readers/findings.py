"""Findings of a check of a data set: counted by kind, with the first examples of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 3  # shown of each kind


@dataclass(frozen=True)
class Kind:
    """A kind of mistake: ``what`` it is in the plural, and what becomes of it or how to mend it.

    A ``fatal`` one makes training impossible or silently wrong.
    """

    what: str
    remedy: str
    fatal: bool = True


@dataclass
class Findings:
    """Mistakes by kind."""

    _found: dict[Kind, list[str]] = field(default_factory=dict)
    _counts: dict[Kind, int] = field(default_factory=dict)

    def add(self, kind: Kind, example: str) -> None:
        """Count a mistake; ``example`` names the thing and its value."""
        self.add_all(kind, [example], str)

    def add_all(self, kind: Kind, things: Iterable[Any], describe: Callable[[Any], str]) -> None:
        """Count mistakes, of which only those that are shown are described."""
        examples = self._found.setdefault(kind, [])
        for thing in things:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            if len(examples) < EXAMPLES:
                examples.append(describe(thing))

    def sentences(self, fatal: bool) -> list[str]:
        """One for each kind that was found, fatal ones or the others, in the order of finding."""
        return [self._sentence(kind) for kind in self._counts if kind.fatal is fatal]

    def details(self) -> list[dict[str, Any]]:
        """All kinds that were found, for programs, in the order of finding."""
        return [
            {
                "level": "error" if kind.fatal else "warning",
                "sentence": self._sentence(kind),
                "count": count,
                "examples": self._found[kind],
            }
            for kind, count in self._counts.items()
        ]

    def _sentence(self, kind: Kind) -> str:
        count, examples = self._counts[kind], ", ".join(self._found[kind])
        more = ", ..." if count > EXAMPLES else ""
        return f"{kind.what}: {count:,}, first {examples}{more}; {kind.remedy}"
