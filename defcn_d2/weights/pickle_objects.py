"""The objects that a pickle of weights may name: arrays, tensors, and what they are made of."""

from __future__ import annotations

import io
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

_MOST_DIMENSIONS = 32
_ORDERS: Mapping[str, Literal["<", ">", "=", "|"]] = {"<": "<", ">": ">", "=": "=", "|": "|"}


class PickleError(ValueError):
    """A file is no pickle of weights, or damaged; the message has the place."""


class UnsafePickleError(PickleError):
    """A pickle asks for an object that is not read; the message names it, and the place."""


class Name(NamedTuple):
    """A class or function that a pickle names; numpy's have the names of numpy 1."""

    module: str
    name: str


class Dtype:
    """A numpy dtype, the byte order of which follows in the pickle."""

    def __init__(self, code: Any):
        # whole numbers, floats, complex numbers and bool, with their sizes in bytes
        if not isinstance(code, str) or not re.fullmatch("[biufc][0-9]{1,2}", code):
            raise UnsafePickleError(f"an array of {shown(code)}")
        self.value = np.dtype(code)

    def build(self, state: Any) -> None:
        order, fields = state[1], state[2:5]
        if any(field is not None for field in fields):
            raise UnsafePickleError("an array of records")
        self.value = self.value.newbyteorder(_ORDERS[order])


class Array:
    """An array whose content follows in the pickle; ``places`` are those in its memo."""

    def __init__(self) -> None:
        self.places: list[int] = []


class Builder:
    """Makes objects from the arguments that stand in a pickle, all of which may be anything.

    ``KNOWN`` has the method for each name; their errors are of any kind.
    """

    def __init__(self, budget: int):
        """
        Args:
            budget: bytes that may be copied, so that a few references to one large string do not
                fill the memory.
        """
        self._budget = budget

    def _spend(self, size: int) -> None:
        self._budget -= size
        if self._budget < 0:
            raise PickleError("more content than the file has bytes")

    def array(self, content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
        """An array that owns its memory."""
        content = content.encode("latin1") if isinstance(content, str) else content
        if not isinstance(dtype, Dtype) or not isinstance(content, (bytes, bytearray)):
            raise UnsafePickleError("an array of objects")
        _check_whole(shape)
        expected = math.prod(shape) * dtype.value.itemsize
        if expected != len(content):
            raise PickleError(
                f"{len(content):,} bytes for an array {tuple(shape)} of {dtype.value}, which has "
                f"{expected:,}"
            )
        self._spend(len(content))
        layout: Literal["F", "C"] = "F" if order == "F" else "C"
        return np.ndarray(shape, dtype.value, bytearray(content), order=layout)

    def finish(self, state: Any) -> np.ndarray:
        """The array that an ``Array`` becomes."""
        _, shape, dtype, fortran, content = state
        array = self.array(content, dtype, shape, "F" if fortran else "C")
        return array.astype(array.dtype.newbyteorder("="), copy=False)  # as numpy does here

    def begin(self, kind: Any, *_: Any) -> Array:
        if kind != NDARRAY:
            raise UnsafePickleError(f"an array of class {shown(kind)}")
        return Array()

    def scalar(self, dtype: Any, content: Any) -> Any:
        return self.array(content, dtype, (), "C")[()]

    def dtype(self, code: Any, *_: Any) -> Dtype:
        return Dtype(code)

    def encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise PickleError(f"bytes from {shown(text)}")
        self._spend(len(text))
        return text.encode("latin1")

    def empty_bytes(self) -> bytes:
        return b""

    def ordered_dict(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        found: OrderedDict[Any, Any] = OrderedDict()
        set_items(found, [item for key, value in pairs for item in (key, value)])
        return found

    def storage(self, content: Any) -> Any:
        self._spend(len(content))
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> torch.Tensor:
        if not isinstance(storage, torch.storage.TypedStorage):
            raise PickleError(f"a tensor in {shown(storage)}")
        _check_whole((offset, *size, *stride))
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        count = storage._untyped_storage.nbytes() // storage.dtype.itemsize
        if 0 not in size and last >= count:  # torch would make the storage larger
            raise PickleError(f"a tensor {size} in a storage of {count:,}")
        return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())

    def parameter(self, data: Any, *_: Any) -> Any:
        return data


NDARRAY = Name("numpy", "ndarray")
KNOWN: Mapping[Name, Callable[..., Any]] = {
    Name("numpy.core.multiarray", "_reconstruct"): Builder.begin,
    Name("numpy.core.multiarray", "scalar"): Builder.scalar,
    Name("numpy.core.numeric", "_frombuffer"): Builder.array,
    Name("numpy", "dtype"): Builder.dtype,
    Name("_codecs", "encode"): Builder.encode,  # bytes, and empty ones, of Python 3 for 2
    Name("__builtin__", "bytes"): Builder.empty_bytes,
    Name("collections", "OrderedDict"): Builder.ordered_dict,
    Name("torch.storage", "_load_from_bytes"): Builder.storage,
    Name("torch._utils", "_rebuild_tensor_v2"): Builder.tensor,
    Name("torch._utils", "_rebuild_parameter"): Builder.parameter,
}

_LARGEST_KEY = 2**60  # below, a whole number is its own hash: they do not all collide


def set_items(target: Any, items: list[Any]) -> None:
    """Put keys and values, in turn, into a dict."""
    if not isinstance(target, dict) or len(items) % 2:
        raise PickleError(f"{len(items)} keys and values for a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2]):
        whole = isinstance(key, int) and abs(key) < _LARGEST_KEY
        if not (whole or isinstance(key, str)):
            raise PickleError(f"a dict with the key {shown(key)}")
        target[key] = value


def _check_whole(numbers: Any) -> None:
    if len(numbers) > 2 * _MOST_DIMENSIONS + 1 or not all(
        type(number) is int and number >= 0 for number in numbers
    ):
        raise PickleError(f"a shape {shown(numbers)}")


def shown(value: Any) -> str:
    """A value for an error message: short, and without looking into containers."""
    if isinstance(value, Name):
        return ".".join(value)
    if not isinstance(value, (str, bytes, int, float)):
        return f"a {type(value).__name__}"
    text = repr(value[:100] if isinstance(value, (str, bytes)) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."
