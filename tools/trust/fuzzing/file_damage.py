"""Damage to files, for tools/trust/fuzz_files.py: what disks, copies and editors do, and strangers.

Each kind of damage takes the content of a file and a random state, and returns another content.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import torch

Damage = Callable[[bytes, random.Random], bytes]

# What a value of a JSON file may become.
_VALUES: tuple[Any, ...] = (
    *(None, True, "", "text", "12", "\0", "\ud800", "../../x", "/etc/passwd", "http://host/x"),
    *([], {}, [[]], [0, 0, "0", 0], [1, 2, 3], [1, 2, 3, 4, 5], {"id": 1}),
    *(0, 1, -1, 3.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**63, -(2**63), 10**30, -(10**400)),
)


def cut_off(content: bytes, rng: random.Random) -> bytes:
    """The beginning alone, as after a copy that was interrupted."""
    return content[: rng.randrange(len(content))]


def flip_bits(content: bytes, rng: random.Random) -> bytes:
    """One bit that is another, or up to eight."""
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def replace_run(content: bytes, rng: random.Random) -> bytes:
    """A run of zeros, of noise, or of bytes from elsewhere in the file, as of a lost block."""
    start = rng.randrange(len(content))
    length = min(rng.choice((2, 16, 512, 4096)), len(content) - start)
    source = rng.randrange(len(content))
    runs = (bytes(length), rng.randbytes(length), content[source : source + length])
    return content[:start] + rng.choice(runs) + content[start + length :]


def move_bytes(content: bytes, rng: random.Random) -> bytes:
    """A few bytes missing, or there twice: all that follows is elsewhere."""
    start = rng.randrange(len(content))
    end = start + rng.choice((1, 3, 64))
    return (
        content[:end] + content[start:] if rng.random() < 0.5 else content[:start] + content[end:]
    )


def change_json(content: bytes, rng: random.Random) -> bytes:
    """A value, a key or an entry of a JSON file, or of one line of it, that is not as it was."""
    try:
        return json.dumps(_changed(json.loads(content), rng)).encode()
    except json.JSONDecodeError:
        lines = content.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    try:
        lines[number] = json.dumps(_changed(json.loads(lines[number]), rng)).encode() + b"\n"
    except json.JSONDecodeError:
        lines[number] = b"{}\n"
    return b"".join(lines)


def change_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """A whole file of ``torch.save``, the content of which is not as it was."""
    value = torch.load(io.BytesIO(content), weights_only=True)
    file = io.BytesIO()
    torch.save(_changed(value, rng), file)
    return file.getvalue()


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with a few places changed."""
    for _ in range(rng.choice((1, 1, 1, 3))):
        places = list(_places(value))
        if not places:
            return rng.choice(_VALUES)
        container, key = rng.choice(places)
        _CHANGES[rng.choice(list(_CHANGES))](container, key, rng)
    return value


def _places(value: Any) -> Any:
    """All (container, key or index) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)


def _remove(container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _set(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = rng.choice(_VALUES)


def _copy(container: Any, key: Any, rng: random.Random) -> None:
    """The same entry twice, or the value of another key."""
    if isinstance(container, list):
        container.append(container[key])
    else:
        container[key] = rng.choice(list(container.values()))


def _turn(container: Any, key: Any, rng: random.Random) -> None:
    """A list for an object, an object for a list, text for a number."""
    value = container[key]
    if isinstance(value, list):
        container[key] = {str(number): item for number, item in enumerate(value)}
    elif isinstance(value, dict):
        container[key] = list(value.values())
    else:
        container[key] = str(value)


def _nudge(container: Any, key: Any, rng: random.Random) -> None:
    """A number that is not far: another id, a side that is too long."""
    if isinstance(container[key], (int, float)):
        container[key] += rng.choice((-1, 1, 1000, -1000))


def _rename(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict) and isinstance(key, str):
        container[key.upper()] = container.pop(key)


_CHANGES: Mapping[str, Callable[[Any, Any, random.Random], None]] = {
    f.__name__: f for f in (_remove, _set, _copy, _turn, _nudge, _rename)
}

DAMAGE: Mapping[str, Damage] = {
    "cut off": cut_off,
    "bits flipped": flip_bits,
    "run replaced": replace_run,
    "bytes moved": move_bytes,
}
CHANGES: Mapping[str, Damage] = {"content changed": change_json}
CHECKPOINT_CHANGES: Mapping[str, Damage] = {"content changed": change_checkpoint}
