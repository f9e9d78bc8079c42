"""Pickle files of weights, read without running code.

A pickle is a program, and ``pickle.load`` runs what its author wrote. Here Python's own reader
follows a part of its instructions only, the names in a file stand for functions of this module, and
a state is set on arrays and dtypes alone, once it is checked.
"""

import functools
import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

_MOST_INSTRUCTIONS = 5_000_000  # weights of 100,000 tensors have fewer
_LARGEST_KEY = 2**60  # below, a whole number is its own hash: they do not all collide
_NDARRAY = object()  # stands for the class, which is called by nobody
_OPCODES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG "
    "LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT "
    "MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)


class PickleError(ValueError):
    """A file is no pickle of weights, or damaged."""


class UnsafePickleError(PickleError):
    """A pickle asks for an object that is not read; the message names it."""


def loads(content: bytes) -> Any:
    """The arrays, tensors and plain containers that a pickle holds.

    As ``pickle.loads(content, encoding="latin1")``, with strings of Python 2 as text; but an
    ``OrderedDict`` loses its attributes, and a parameter is a tensor.

    Raises:
        UnsafePickleError: it holds something else.
        PickleError: it is damaged, no pickle, or unfolds to more than weights can be.
    """
    try:
        reader = _WeightsUnpickler(content)
        value = reader.load()
    except (PickleError, MemoryError):
        raise
    except Exception as error:  # of any kind, from instructions that make no sense
        raise PickleError(repr(str(error)[:100] or type(error).__name__)[1:-1]) from error
    if reader.stack or reader.metastack:
        raise PickleError("more than one object")
    return value


class _Dtype:
    """A numpy dtype, whose byte order follows in the pickle."""

    def __init__(self, code: str):
        # whole numbers, floats, complex numbers and bool, with their sizes in bytes
        if not re.fullmatch("[biufc][0-9]{1,2}", code):
            raise UnsafePickleError(f"an array of {code[:20]!r}")
        self.value = np.dtype(code)


_Unpickler: Any = pickle._Unpickler  # in Python, so that each instruction is a method to override


class _WeightsUnpickler(_Unpickler):
    """Python's reader, which asks ``self[code]`` for the method of each instruction."""

    def __init__(self, content: bytes):
        super().__init__(io.BytesIO(content), encoding="latin1")
        self.dispatch = self
        self._count = 0
        # Bytes that may be copied, each of the file once into a string and once into an array, so
        # that references to one large string cannot fill the memory.
        self._budget = 2 * len(content)

    def __getitem__(self, code: int) -> Any:
        self._count += 1
        if self._count > _MOST_INSTRUCTIONS:
            raise PickleError("more objects than weights have")
        name = _OPCODES.get(code)
        if name is None:
            raise PickleError("an instruction that no pickle has")
        if name not in _INSTRUCTIONS:
            raise UnsafePickleError(f"an object made by the instruction {name}")
        return getattr(_WeightsUnpickler, _Unpickler.dispatch[code].__name__)

    def find_class(self, module: str, name: str) -> Any:
        found = f"{module}.{name}".replace("numpy._core", "numpy.core")
        if found not in _NAMES:
            raise UnsafePickleError(f"an object of {repr(f'{module}.{name}'[:100])[1:-1]}")
        function = _NAMES[found]
        return functools.partial(function, self) if callable(function) else function

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(bytearray(self.read(size)))  # Python's makes room for it first

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append(_set_items({}, items))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _set_items(self.stack[-1], items)

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Dtype) and not any(field is not None for field in state[2:5]):
            target.value = target.value.newbyteorder(state[1])
        elif type(target) is np.ndarray and target.size == 0:
            _, shape, dtype, fortran, content = state
            content = self.array_content(content, dtype, shape)
            checked: Any = (1, shape, dtype.value, bool(fortran), content)
            target.__setstate__(checked)
        elif type(target) is not OrderedDict:
            raise UnsafePickleError(f"a {type(target).__name__} with attributes")

    def spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise PickleError("more content than the file has bytes")

    def array_content(self, content: Any, dtype: Any, shape: Any) -> bytes:
        """The bytes that fill an array."""
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(dtype, _Dtype) or not isinstance(content, (bytes, bytearray)):
            raise UnsafePickleError("an array of objects")
        _check_whole(shape)
        if math.prod(shape) * dtype.value.itemsize != len(content):
            raise PickleError(f"{len(content):,} bytes for an array {shape} of {dtype.value}")
        self.spend(len(content))
        return bytes(content)


def _set_items(target: Any, items: list[Any]) -> Any:
    """``target`` with keys and values, in turn, whose keys are cheap to hash."""
    if not isinstance(target, dict):
        raise PickleError(f"items for a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < _LARGEST_KEY):
            raise PickleError(f"a dict with a key of type {type(key).__name__}")
        target[key] = value
    return target


def _check_whole(numbers: Any) -> None:
    if type(numbers) is not tuple or not all(type(x) is int and 0 <= x < 2**48 for x in numbers):
        raise PickleError("a shape that is no tuple of whole numbers")


# The functions that names in a file stand for. Their arguments may be anything.


def _empty_array(_: _WeightsUnpickler, kind: Any, *__: Any) -> np.ndarray:
    if kind is not _NDARRAY:
        raise UnsafePickleError("an array of a class of its own")
    return np.empty(0, np.int8)


def _array(
    reader: _WeightsUnpickler, content: Any, dtype: Any, shape: Any, order: Any
) -> np.ndarray:
    content = reader.array_content(content, dtype, shape)
    return np.ndarray(shape, dtype.value, bytearray(content), order=order)


def _encoded(reader: _WeightsUnpickler, text: Any, encoding: Any) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise PickleError("bytes in another encoding than latin1")
    reader.spend(len(text))
    return text.encode("latin1")


def _ordered_dict(reader: _WeightsUnpickler, pairs: Any = ()) -> Any:
    reader.spend(8 * len(pairs))  # fewer than their bytes in the file
    return _set_items(OrderedDict(), [item for key, value in pairs for item in (key, value)])


def _storage(reader: _WeightsUnpickler, content: Any) -> torch.storage.TypedStorage:
    reader.spend(len(content))
    # torch writes no archive here, and one may be compressed; it reads other objects as well
    if content[:2] != b"PK":
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if isinstance(found, torch.storage.TypedStorage):
            return found
    raise PickleError("no storage of a tensor")


def _tensor(
    _: _WeightsUnpickler, storage: Any, offset: Any, size: Any, stride: Any, *__: Any
) -> torch.Tensor:
    _check_whole((offset, *size, *stride))
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    count = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    if 0 not in size and last >= count:  # torch would make the storage larger
        raise PickleError(f"a tensor {size} in a storage of {count:,}")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())


_NAMES: dict[str, Any] = {
    "numpy.ndarray": _NDARRAY,
    "numpy.core.multiarray._reconstruct": _empty_array,
    "numpy.core.multiarray.scalar": lambda reader, *x: _array(reader, x[1], x[0], (), "C")[()],
    "numpy.core.numeric._frombuffer": _array,
    "numpy.dtype": lambda _, code, *__: _Dtype(code),
    "_codecs.encode": _encoded,  # bytes, and empty ones, of Python 3 for 2
    "__builtin__.bytes": lambda _: b"",
    "collections.OrderedDict": _ordered_dict,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda _, data, *__: data,
}
