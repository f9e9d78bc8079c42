"""Pickle files of weights, read without running code.

A pickle is a program, and ``pickle.load`` runs what its author wrote. Here its instructions are
followed one by one by a machine of its own, which knows how arrays, tensors and plain containers
are written and can build nothing else: it looks up no name, calls nothing that the file chooses,
and hands no byte of the file to the unpicklers of numpy.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from .pickle_objects import (
    KNOWN,
    NDARRAY,
    Array,
    Builder,
    Dtype,
    Name,
    PickleError,
    UnsafePickleError,
    set_items,
    shown,
)

_MOST_INSTRUCTIONS = 5_000_000  # weights of 100,000 tensors have fewer
_MARK = object()


def loads(content: bytes) -> Any:
    """What a pickle of arrays, tensors and plain containers holds.

    As ``pickle.loads(content, encoding="latin1")``, with strings of Python 2 as text; but an
    ``OrderedDict`` loses its attributes, and a parameter is a tensor.

    Raises:
        UnsafePickleError: it holds something else.
        PickleError: it is damaged, no pickle, or unfolds to more than weights can be.
    """
    # Each byte may be copied into a string, and from there into an array.
    machine, position = _Machine(Builder(2 * len(content))), 0
    try:
        for count, (opcode, argument, place) in enumerate(pickletools.genops(content)):
            position = place or 0
            if count > _MOST_INSTRUCTIONS:
                raise PickleError("more objects than weights have")
            machine.follow(opcode.name, argument)
        return machine.result()
    except PickleError as error:
        raise type(error)(f"{error} at byte {position:,}") from error
    except MemoryError:
        raise
    except Exception as error:  # of any kind, from instructions that make no sense
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PickleError(f"{shown(reason)[1:-1]} after byte {position:,}") from error


class _Machine:
    """The stack and the memo of a pickle, with the instructions that change them."""

    def __init__(self, builder: Builder):
        self._builder = builder
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self._stack) != 1:
            raise PickleError(f"{len(self._stack)} objects where one should be")
        return self._stack[0]

    def follow(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._stack.append(argument)
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name in _INSTRUCTIONS:
            _INSTRUCTIONS[name](self, argument)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise UnsafePickleError(f"an object made by the instruction {name}")

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def put(self, place: Any) -> None:
        value = self._stack[-1]
        key = len(self._memo) if place is None else int(place)
        self._memo[key] = value
        if isinstance(value, Array):
            value.places.append(key)

    def get(self, place: Any) -> None:
        self._stack.append(self._memo[int(place)])

    def pop(self, _: Any) -> None:
        self._stack.pop()

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def make_tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._pop_to_mark()))

    def make_short_tuple(self, length: int) -> None:
        self._stack.append(tuple([self._stack.pop() for _ in range(length)][::-1]))

    def make_list(self, _: Any) -> None:
        self._stack.append(self._pop_to_mark())

    def make_dict(self, _: Any) -> None:
        items = self._pop_to_mark()
        self._stack.append({})
        set_items(self._stack[-1], items)

    def append(self, _: Any) -> None:
        self._extend([self._stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise PickleError(f"items for a {type(target).__name__}")
        target.extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        set_items(self._stack[-1], [key, value])

    def set_items(self, _: Any) -> None:
        items = self._pop_to_mark()
        set_items(self._stack[-1], items)

    def name(self, argument: str | None) -> None:
        if argument is None:
            name, module = self._stack.pop(), self._stack.pop()
        else:
            module, _, name = argument.partition(" ")
        found = Name(str(module).replace("numpy._core", "numpy.core"), str(name))
        if found not in KNOWN and found != NDARRAY:
            raise UnsafePickleError(f"an object of {shown(f'{module}.{name}')[1:-1]}")
        self._stack.append(found)

    def reduce(self, _: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Name) or function not in KNOWN:
            raise PickleError(f"a call of {shown(function)}")
        self._stack.append(KNOWN[function](self._builder, *arguments))

    def build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Dtype):
            target.build(state)
        elif isinstance(target, Array):
            self._stack[-1] = array = self._builder.finish(state)
            for place in target.places:
                self._memo[place] = array
        elif not isinstance(target, OrderedDict):
            raise UnsafePickleError(f"a {type(target).__name__} with attributes")


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8".split()
)
_EMPTY: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_INSTRUCTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _Machine.name),
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_short_tuple(3),
    "POP": _Machine.pop,
    "MARK": _Machine.mark,
    "POP_MARK": _Machine.pop_mark,
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
