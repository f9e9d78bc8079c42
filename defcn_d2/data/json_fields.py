"""JSON of strangers: what Python's reader lets pass, or ends in, is an error with its place."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """As ``json.loads``; but an object with a key twice is refused, not half forgotten.

    NaN and infinities are let through, as in files of many writers: refuse them where a number is
    used.

    Raises:
        json.JSONDecodeError: it is no JSON; the message has line and column.
        UnicodeDecodeError: it is no text.
        ValueError: a key stands twice, or lists and objects are nested too deeply.
    """
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
