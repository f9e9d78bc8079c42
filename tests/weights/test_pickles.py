"""Pickles of weights: what Python's own reader gives, and none of what it would do."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from defcn_d2.weights import pickles
from defcn_d2.weights.pickles import PickleError, UnsafePickleError, loads

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
dtypes = st.sampled_from(["f2", "<f4", ">f4", "f8", "u1", "i8", ">i4", "b1", "c8"])
arrays = st_numpy.arrays(dtypes, st_numpy.array_shapes(min_dims=0, min_side=0, max_side=4))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.tuples(inner, inner)
    ),
    max_leaves=8,
)


def assert_same(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(theirs, (np.ndarray, np.generic)):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.tobytes("A") == theirs.tobytes("A")  # in the order of memory
        if isinstance(ours, np.ndarray):
            assert ours.flags.writeable and ours.flags.f_contiguous == theirs.flags.f_contiguous
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_same(one, other)
    else:
        assert ours == theirs


@given(arrays, st.sampled_from("CF"), st.booleans(), st.sampled_from(PROTOCOLS))
def test_arrays_are_those_that_pickle_reads(
    array: np.ndarray, order: Any, stepped: bool, protocol: int
) -> None:
    array = np.asarray(array, order=order)
    if stepped and array.ndim:
        array = array[::2]
    weights = {"model": OrderedDict(a=array, b=array), "scalar": array.dtype.type(1)}
    content = pickle.dumps(weights, protocol)
    found = loads(content)
    assert_same(found, pickle.loads(content, encoding="latin1"))
    assert found["model"]["a"] is found["model"]["b"]


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_containers_are_those_that_pickle_reads(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    assert_same(loads(content), pickle.loads(content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_are_those_that_pickle_reads(protocol: int) -> None:
    matrix = torch.arange(12.0).view(3, 4)
    parameter = torch.nn.Parameter(torch.ones(2))
    tensors = [matrix, matrix.t()[1:], torch.tensor(3), torch.zeros(0, 2), parameter]
    found = loads(pickle.dumps(tensors, protocol))
    for ours, theirs in zip(found, tensors, strict=True):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_names_of_numpy_1_and_2(core: bytes) -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = pickle.dumps([array, array[0, 0]], 2).replace(b"numpy._core", b"numpy.core")
    content = content.replace(b"numpy.core", core)
    assert core in content
    assert_same(loads(content), [array, array[0, 0]])


def python2_array(array: np.ndarray) -> bytes:
    """The instructions for an array of floats as Python 2 has written them, with str for bytes."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    shape = b"(" + b"".join(b"K" + bytes([side]) for side in array.shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + short(b"f4") + b"K\x00K\x01\x87R"
    dtype += b"(K\x03" + short(b"<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    data = array.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + (short(b"b") + b"\x87R(K\x01" + shape + dtype + b"\x89")
        + (b"T" + struct.pack("<i", len(data)) + data + b"tb")
    )


def test_files_of_python_2() -> None:
    array = np.linspace(-3, 3, 6, dtype=np.float32).reshape(2, 3)
    content = b"\x80\x02}U\x07conv1_w" + python2_array(array) + b"s."
    assert_same(loads(content), pickle.loads(content, encoding="latin1"))
    assert_same(loads(content), {"conv1_w": array})


def test_ordered_dicts_of_python_2() -> None:
    content = b"\x80\x02ccollections\nOrderedDict\n](](U\x01bK\x01e](U\x01aK\x02ee\x85R."
    assert_same(loads(content), pickle.loads(content, encoding="latin1"))
    assert_same(loads(content), OrderedDict([("b", 1), ("a", 2)]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_tuple_that_holds_itself(protocol: int) -> None:
    for length in (1, 5):
        inner: list[Any] = []
        value = (inner,) * length
        inner.append(value)
        found = loads(pickle.dumps(value, protocol))
        assert len(found) == length and found[0][0] is found


class Call:
    """Unpickled, it is a call."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def attacks(sign: Path) -> dict[str, bytes]:
    """Pickles that would make the folder ``sign``, by all ways that there are."""
    name = str(sign).encode()
    text, mkdir = b"X" + struct.pack("<I", len(name)) + name, os.mkdir.__module__.encode()
    named = b"c" + mkdir + b"\nmkdir\n"
    array = b"cnumpy.core.multiarray\n_reconstruct\n"
    return {
        "REDUCE": b"\x80\x02" + named + text + b"\x85R.",
        "INST": b"(" + text + b"i" + mkdir + b"\nmkdir\n.",
        "OBJ": b"(" + named + text + b"o.",
        "names on the stack": b"\x80\x04U"
        + bytes([len(mkdir)])
        + mkdir
        + b"U\x05mkdir\x93"
        + text
        + b"\x85R.",
        "in an array": pickle.dumps(np.array([Call(os.mkdir, str(sign))], object)),
        "in a dict": pickle.dumps({"model": {}, "extra": Call(os.mkdir, str(sign))}),
        "as the class of an array": array + named + text + b"\x85RK\x00\x85U\x01b\x87R.",
        "as a state": array + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R" + named + text + b"\x85Rb.",
        "by getattr": b"c__builtin__\ngetattr\n" + named + b"U\x08__call__\x86R" + text + b"\x85R.",
        "in a torch file": pickle.dumps(Call(torch.storage._load_from_bytes, hostile_torch(sign))),
        "by eval": b"\x80\x02c__builtin__\neval\n"
        + pickle_text(f"__import__('os').mkdir({str(sign)!r})")
        + b"\x85R.",
    }


def pickle_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def hostile_torch(sign: Path) -> bytes:
    file = io.BytesIO()
    torch.save(Call(os.mkdir, str(sign)), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


ATTACKS = sorted(attacks(Path("sign")))


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_of_a_pickle_runs(attack: str, tmp_path: Path) -> None:
    sign = tmp_path / "executed"
    content = attacks(sign)[attack]
    with pytest.raises(PickleError):
        loads(content)
    assert not sign.exists()
    try:
        pickle.loads(content, encoding="latin1")
    except Exception:
        pass  # after the deed
    assert sign.exists()  # the attack itself is sound


NDARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
FLOAT = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
GADGETS = {
    # names that are allowed, with arguments and states that are not what they should be
    "attributes of a name": b"\x80\x02cnumpy\nndarray\nN}U\x01xK\x01s\x86b.",
    "state of a filled array": pickle.dumps(np.ones(3), 2)[:-1]
    + b"(K\x01K\x01\x85"
    + FLOAT
    + b"\x89U\x04abcdtb.",
    "attributes of an array": pickle.dumps(np.ones(3), 2)[:-1] + b"N}U\x01xK\x01s\x86b.",
    "array of another class": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\n"
    + b"K\x00\x85U\x01b\x87R.",
    "new object": b"\x80\x02cnumpy\nndarray\nK\x03\x85\x81.",
    "call of the class": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
    "content too short": b"\x80\x02" + NDARRAY + b"(K\x01K\x09\x85" + FLOAT + b"\x89U\x04abcdtb.",
    "negative shape": b"\x80\x02"
    + NDARRAY
    + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"
    + FLOAT
    + b"\x89U\x04abcdtb.",
    "huge shape": b"\x80\x02"
    + NDARRAY
    + b"(K\x01K\x00\x8a\x08"
    + b"\xff" * 7
    + b"\x7f\x86"
    + FLOAT
    + b"\x89U\x00tb.",
    "pointers as content": b"\x80\x02"
    + NDARRAY
    + b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R\x89U\x08abcdabcdtb.",
    "records": b"\x80\x02cnumpy\ndtype\nU\x03V16K\x00K\x01\x87R.",
    "fields with offsets": b"\x80\x02"
    + FLOAT
    + b"(K\x03U\x01<NU\x01a\x85}U\x01a"
    + FLOAT
    + b"J\x00\x00\x00\x80\x86sK\x04K\x01K\x00tb.",
    "another codec": b"\x80\x02c_codecs\nencode\n" + pickle_text("x") + b"U\x03rot\x86R.",
    "a file for torch": b"\x80\x02ctorch.storage\n_load_from_bytes\nU\x04PK\x03\x04\x85R.",
    "tensor without storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89}tR.",
    "persistent object": b"\x80\x02U\x01xQ.",
    "registered extension": b"\x80\x02\x82\x01.",
    "buffer from outside": b"\x80\x05\x97.",
    "unhashable key": b"\x80\x02}]K\x01s.",
    "items of a number": b"\x80\x02K\x01K\x02a.",
    "odd number of items": b"\x80\x02}(K\x01K\x02K\x03u.",
    "nothing": b"\x80\x02.",
    "too much": b"\x80\x02K\x01K\x01.",
    "unknown memo": b"\x80\x02h\x05.",
    "no end": b"\x80\x02}",
    "no pickle": b"<!DOCTYPE html><html>sign in</html>",
    "empty": b"",
    "string longer than the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
}


@pytest.mark.parametrize("gadget", GADGETS)
def test_allowed_names_are_no_gadgets(gadget: str) -> None:
    with pytest.raises(PickleError):
        loads(GADGETS[gadget])


@pytest.mark.parametrize("name", sorted(pickles._NAMES))
def test_names_get_no_attributes(name: str) -> None:
    """A state of what a name stands for would change it for the whole process."""
    module, _, attribute = name.rpartition(".")
    named = f"c{module}\n{attribute}\n".encode()
    for state in (b"}U\x08attackedK\x01s", b"N}U\x08attackedK\x01s\x86"):
        with pytest.raises(UnsafePickleError, match="with attributes"):
            loads(named + state + b"b.")
    assert not hasattr(pickles._NAMES[name], "attacked")


def test_such_a_state_works_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    function = torch._utils._rebuild_parameter
    monkeypatch.setattr(function, "attacked", 0, raising=False)
    pickle.loads(b"\x80\x02ctorch._utils\n_rebuild_parameter\n}U\x08attackedK\x01sb.")
    assert function.attacked == 1


def compressed_torch() -> bytes:
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save(torch.zeros(1_000_000).untyped_storage(), plain)
    with zipfile.ZipFile(plain) as a, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as b:
        for record in a.infolist():
            b.writestr(record.filename, a.read(record))
    return packed.getvalue()


def torch_function() -> bytes:
    """A file of which torch's own safe reader returns a function."""
    file = io.BytesIO()
    torch.save(torch._utils._rebuild_tensor_v2, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("make", [compressed_torch, torch_function])
def test_torch_reads_storages_alone(make: Any) -> None:
    torch.load(io.BytesIO(make()), weights_only=True)
    with pytest.raises(PickleError, match="no storage of a tensor"):
        loads(pickle.dumps(Call(torch.storage._load_from_bytes, make())))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_a_view_cannot_reach_beyond_its_storage() -> None:
    tensor, function = torch.ones(4), torch._utils._rebuild_tensor_v2
    views = ((0, (8,), (1,)), (3, (2,), (1,)), (0, (2,), (9,)), (0, (2,), (-1,)), (0, (2,), ()))
    for offset, size, stride in views:
        arguments = (tensor.storage(), offset, size, stride, False, OrderedDict())
        with pytest.raises(PickleError):
            loads(pickle.dumps(Call(function, *arguments)))


def test_what_is_refused_is_named() -> None:
    with pytest.raises(UnsafePickleError, match=r"an object of pathlib\S*Path$"):
        loads(pickle.dumps({"model": {}, "who": Path("/")}, 2))
    with pytest.raises(UnsafePickleError, match="an object made by the instruction FROZENSET"):
        loads(pickle.dumps(frozenset([1]), 4))


def test_a_small_file_cannot_fill_the_memory() -> None:
    text = b"T" + struct.pack("<i", 100_000) + b"x" * 100_000
    copies = b"c_codecs\nencode\nh\x00U\x06latin1\x86R" * 10_000
    pairs = pickle.dumps([(str(i), i) for i in range(10_000)], 2)[2:-1]
    ordered = b"ccollections\nOrderedDict\nh\x00\x85R" * 1_000
    bytearrays = b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"x."
    far_memo = b"\x80\x02Nr\xff\xff\xff\x7f."  # Python's reader makes room for all before it
    tracemalloc.start()
    with pytest.raises(PickleError, match="more content than the file has"):
        loads(b"\x80\x02" + text + b"q\x00(" + copies + b"t.")
    with pytest.raises(PickleError, match="more content than the file has"):
        loads(b"\x80\x02(" + pairs + ordered + b"t.")
    with pytest.raises(PickleError):
        loads(bytearrays)
    assert loads(far_memo) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30_000_000


def test_shared_containers_are_not_unfolded() -> None:
    value: list[Any] = []
    for _ in range(200):
        value = [value, value]  # 2^200 lists, if unfolded
    assert len(loads(pickle.dumps(value))) == 2


def test_more_objects_than_weights_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickles, "_MOST_INSTRUCTIONS", 1000)
    with pytest.raises(PickleError, match="more objects than weights have"):
        loads(b"\x80\x02(" + b"N" * 2000 + b"l.")


def test_keys_that_collide_are_refused() -> None:
    with pytest.raises(PickleError, match="a dict with a key of type int"):
        loads(pickle.dumps({2**61 - 1: 0}))


@pytest.mark.parametrize("end", [b"}h\x00Ns.", b"}(h\x00Nu.", b"(h\x00Nd."])
def test_keys_that_take_for_ever_are_refused(end: bytes) -> None:
    pairs = b")" + b"q\x00h\x00\x86" * 100 + b"q\x000"  # of pairs: 2^100 to hash
    with pytest.raises(PickleError, match="a dict with a key of type tuple"):
        loads(b"\x80\x02" + pairs + end)


def test_every_cut_and_every_flipped_bit_is_an_error_or_a_value() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    content = pickle.dumps({"model": {"a": array, "b": array[0]}, "__author__": "x"}, 2)
    for length in range(len(content)):
        with pytest.raises(PickleError):
            loads(content[:length])
    for place in range(len(content)):
        for bit in range(8):
            flipped = content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
            try:
                loads(flipped)
            except PickleError as error:
                assert str(error).isprintable()
