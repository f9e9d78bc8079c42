"""Rules for single values of a config, to be put together in a table of keys.

A rule is a function from a key and its value to a sentence that says what is wrong, or None.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import get_norm

from ..utils.errors import UserError, did_you_mean

Rule = Callable[[str, Any], str | None]


class ConfigError(UserError, ValueError):
    """A value of a config, or several together, with which there is nothing to build."""


class ArgumentError(ValueError):
    """An argument of a component that breaks its rule.

    Attributes:
        name: of the argument; with dots, of an argument of a part.
        value, rule: what was given, and the rule that it breaks.
    """

    def __init__(self, name: str, value: object, rule: "Rule"):
        super().__init__(rule(name, value))
        self.name, self.value, self.rule = name, value, rule

    def sentence(self, key: str) -> str:
        """The message with the key of a config instead of the argument's name."""
        return str(self.rule(key, self.value))


def check_argument(name: str, value: object, rule: "Rule") -> None:
    """Raise ``ArgumentError`` where an argument of a constructor breaks its rule."""
    if rule(name, value) is not None:
        raise ArgumentError(name, value, rule)


def unknown_name(key: str, name: object, names: Iterable[str]) -> str:
    """The sentence for a ``name`` at ``key`` that is none of ``names``, which are few."""
    return f"{key} {name!r} is unknown; {did_you_mean(name, names)}"


def value_of(cfg: CfgNode, key: str) -> Any:
    """The value of a key with dots; ``KeyError`` where there is none."""
    return functools.reduce(CfgNode.__getitem__, key.split("."), cfg)


def check_rules(cfg: CfgNode, rules: Mapping[str, Rule]) -> None:
    """Raise ``ConfigError`` for the first key whose value breaks its rule.

    Keys that the config does not have are left out: versions of Detectron2 differ.
    """
    for key, rule in rules.items():
        try:
            value = value_of(cfg, key)
        except KeyError:
            continue
        problem = rule(key, value)
        if problem is not None:
            raise ConfigError(problem)


def numbers(interval: str, divisor: int | None = None, remainder: int = 0) -> Rule:
    """Rule: numbers of an interval, written as in mathematics: "[0, 1)", "(0, inf)"; never NaN.

    Args:
        divisor: whole numbers alone, which leave ``remainder`` when divided by it.
    """
    low, high = (float(x) for x in interval[1:-1].split(","))
    words = []
    if math.isfinite(low):
        words.append(f"{'above' if interval[0] == '(' else 'at least'} {low:g}")
    if math.isfinite(high):
        words.append(f"{'below' if interval[-1] == ')' else 'at most'} {high:.12g}")
    parity = {(2, 0): ["even"], (2, 1): ["odd"]}.get((divisor or 1, remainder), [])
    requirement = " and ".join(parity + words)

    def rule(key: str, value: Any) -> str | None:
        if isinstance(value, bool) or not isinstance(value, Integral if divisor else Real):
            kind = "whole number" if divisor else "number"
            return f"{key} is {value!r}, but must be a {kind} {requirement}"
        if math.isnan(value) or math.isinf(value) and interval[-1] == ")":
            return f"{key} is {value}, but must be finite"
        number = float(value)
        inside = (low < number or interval[0] == "[" and number == low) and (
            number < high or interval[-1] == "]" and number == high
        )
        if not inside or divisor and value % divisor != remainder:
            return f"{key} is {value}, but must be {requirement}"
        return None

    return rule


def whole_numbers(interval: str) -> Rule:
    """Rule: whole numbers of an interval."""
    return numbers(interval, divisor=1)


def one_of(*names: str) -> Rule:
    """Rule: one of a few names."""
    return lambda key, value: None if value in names else unknown_name(key, value, names)


_NORMS = ("", "BN", "FrozenBN", "GN", "LN", "SyncBN", "naiveSyncBN", "nnSyncBN")


def norm_name(key: str, value: Any) -> str | None:
    """Rule: a name that ``detectron2.layers.get_norm`` knows."""
    try:
        get_norm(value, 32)
    except (KeyError, TypeError, AttributeError):
        return unknown_name(key, value, _NORMS)
    return None


def norm_of(channels: int) -> Rule:
    """Rule: a normalisation of so many channels, "" for none."""

    def rule(key: str, value: Any) -> str | None:
        problem = norm_name(key, value)
        if problem is None and value == "GN" and channels % 32:
            return (
                f"{key} 'GN' needs a multiple of 32 channels, not {channels}; set "
                "MODEL.FPN.OUT_CHANNELS to one, or the norm to 'BN'"
            )
        return problem

    return rule


def list_of(rule: Rule, least: int = 1) -> Rule:
    """Rule: a list or a tuple of at least ``least`` values that all keep ``rule``."""

    def of_list(key: str, values: Any) -> str | None:
        if not isinstance(values, (list, tuple)) or len(values) < least:
            return f"{key} is {values!r}, but must be a list of at least {least}"
        return first_problem(rule(f"{key} {list(values)}: a value", value) for value in values)

    return of_list


def range_of(rule: Rule) -> Rule:
    """Rule: the smallest and the largest of a range, which both keep ``rule``."""

    def of_range(key: str, values: Any) -> str | None:
        problem = list_of(rule, least=2)(key, values)
        if problem is None and (len(values) > 2 or values[0] > values[1]):
            return f"{key} is {values!r}, but must be the smallest and the largest"
        return problem

    return of_range


def optional(rule: Rule) -> Rule:
    """Rule: None, or a value that keeps ``rule``."""
    return lambda key, value: None if value is None else rule(key, value)


def first_problem(problems: Iterable[str | None]) -> str | None:
    """The first problem that is not None, or None."""
    return next((problem for problem in problems if problem is not None), None)
