"""JSON of strangers: what Python's reader lets pass, or ends in, is an error with its place.

So is a value of another type than expected.
"""

from __future__ import annotations

import json
from typing import Any

LIMIT = 1e7  # pixels: a coordinate beyond it is a mistake


def parse_json(text: str | bytes) -> Any:
    """Value of a JSON text, as by ``json.loads``; refuses an object that has a key twice.

    A byte order mark at the beginning, which Windows' editors write, is passed over.

    NaN and infinities are let through, as in files of many writers: refuse them where a number is
    used.

    Raises:
        json.JSONDecodeError: it is no JSON; the message has line and column.
        UnicodeDecodeError: it is no text.
        ValueError: a key stands twice, or lists and objects are nested too deeply.
    """
    if isinstance(text, str):
        text = text.removeprefix("\ufeff")  # of bytes it is done there
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("its lists and objects are nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        others = ", ".join(map(ascii, [key for key in found if key != twice][:3]))
        raise ValueError(f"the key {ascii(twice)} stands twice in an object (beside {others})")
    return found


_NAMES: dict[type | tuple[type, ...], str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    int: "a whole number",
    (int, str): "a whole number or a string",
}


def field(value: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """The value of key ``name`` of a JSON object; ValueError unless there, and of this kind.

    A whole number may be written as 160.0, as some programs do.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got {short_repr(value)}")
    if name not in value:
        known = [key if key.isidentifier() else repr(key) for key in list(value)[:10]]
        keys = f" (its keys: {', '.join(known)})" if value else ""
        raise ValueError(f"{name!r} is missing{keys}")
    given = value[name]
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if not isinstance(given, kind) or isinstance(given, bool):
        raise ValueError(f"{name!r} must be {_NAMES[kind]}, got {short_repr(value[name])}")
    if isinstance(given, str) and not _is_text(given):
        raise ValueError(f"{name!r} has a character that no file can hold, {short_repr(given)}")
    return given


def _is_text(value: str) -> bool:
    r"""Checks that it can be encoded: JSON can hold halves of characters, such as "\ud800"."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_box(value: Any) -> bool:
    """Checks for four numbers x, y, w, h, the latter two not negative."""
    numbers = isinstance(value, list) and len(value) == 4 and all(is_number(v) for v in value)
    return numbers and min(value[2:]) >= 0


def is_number(value: Any) -> bool:
    """Checks for a sensible number; NaN and infinities, which Python's JSON accepts, are none."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and -LIMIT < value < LIMIT
    )


def short_repr(value: Any) -> str:
    """A value for an error message, cut if long."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a {type(value).__name__} of great depth"
    return text if len(text) <= 60 else text[:57] + "..."
