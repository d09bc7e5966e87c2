"""Arrays and scalars of numpy in records: dtype, shape, order and bytes are restored; arrays of objects are refused."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pocket_plug.codec import Codec
from pocket_plug.errors import CodecError, UnregisteredTypeError

SHARED = Codec()
SURROGATE = re.compile("[\ud800-\udfff]")


def again(value: Any, codec: Codec = SHARED) -> Any:
    return codec.decode(codec.encode(value))


def same(made: Any, value: Any) -> bool:
    """Equal to the last bit, with the same type, dtype (byte order, offsets and all), shape and order."""
    if type(made) is not type(value):
        return False
    if isinstance(value, np.str_ | np.bytes_):
        return bool(made == value and len(made) == len(value))
    if (made.dtype, repr(made.dtype), made.tobytes()) != (value.dtype, repr(value.dtype), value.tobytes()):
        return False
    if isinstance(value, np.generic):
        return True
    order = "C_CONTIGUOUS" if value.flags.c_contiguous or not value.flags.f_contiguous else "F_CONTIGUOUS"
    return bool(made.shape == value.shape and made.flags[order])


plain = npst.scalar_dtypes() | npst.byte_string_dtypes() | npst.unicode_string_dtypes()
dtypes = plain | npst.array_dtypes(plain, max_size=3) | npst.nested_dtypes(plain, max_leaves=4)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_array_comes_back_as_it_was(data: st.DataObject) -> None:
    """Every dtype without objects, both byte orders, 0 to 3 dimensions, empty ones, in C order and Fortran order."""
    dtype = data.draw(dtypes)
    shape = data.draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    value: Any = np.ndarray(shape, dtype, data.draw(st.binary(min_size=size, max_size=size)))
    if data.draw(st.booleans()):
        value = np.asfortranarray(value) if value.ndim else value
    assert same(again(value), value)
    assert same(SHARED.private(value), value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_scalar_comes_back_as_it_was(data: st.DataObject) -> None:
    """Also as a key and in containers."""
    dtype = data.draw(dtypes.filter(lambda dtype: dtype.subdtype is None))
    value = data.draw(npst.arrays(dtype, ()))[()]
    assume(not (isinstance(value, np.str_) and SURROGATE.search(value)))  # refused, as in any str
    assert same(again(value), value)
    assert same(again({"a": [value]})["a"][0], value)
    assert same(SHARED.private(value), value)


def test_a_scalar_with_a_lone_surrogate_is_refused() -> None:
    """It is refused, as in any str; an array may contain it, since its bytes are stored."""
    with pytest.raises(CodecError, match="has a lone surrogate, so it isn't valid text"):
        SHARED.encode(np.str_("a\ud800"))
    assert same(again(np.array(["a\ud800"])), np.array(["a\ud800"]))


@pytest.mark.parametrize(
    "value",
    [
        np.float64(1.5), np.float32("nan"), np.bool_(True), np.int8(-1), np.uint64(2**64 - 1), np.longlong(3),
        np.ulonglong(3), np.complex64(1 + 2j), np.longdouble("1.1"), np.clongdouble(1j), np.float16(1),
        np.str_("a\0"), np.str_(""), np.bytes_(b"a\0"), np.void(b"a\0"), np.datetime64("2024-02-29T12", "h"),
        np.datetime64("NaT", "s"), np.datetime64(7, "25s"), np.timedelta64(3, "D"), np.timedelta64("NaT", "ns"),
        np.array([(1, 2.5)], "i4,>f8")[0],
        np.array(5), np.array([]), np.zeros((0, 3)), np.zeros((2, 0), order="F"), np.array(["ä", "bcd"]),
        np.array([b"a\0", b""]), np.array([1, 2], ">u2"), np.arange(6.0).reshape(2, 3).T, np.arange(10)[::3],
        np.arange(6)[::-1], np.broadcast_to(np.int8(1), (2, 2)), np.array([1.5], "longdouble"),
        np.array(["2024-01-01", "NaT"], "M8[D]"), np.array([1], "m8[s]"), np.zeros(3, "V0"), np.zeros(2, np.dtype([])),
        np.zeros(2, np.dtype({"names": ["b", "a"], "formats": ["<f8", ">i4"], "offsets": [8, 0], "itemsize": 32})),
        np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
        np.zeros(2, [(("a title", "a"), "i4"), ("b", [("c", "U2", (2, 2)), ("d", "M8[s]")])]),
    ],
    ids=repr,
)  # fmt: skip
def test_arrays_and_scalars_of_each_kind(value: Any) -> None:
    """The cases that a conversion to lists or to plain bytes would lose."""
    made = again(value)
    assert same(made, value)
    assert getattr(made.dtype, "isalignedstruct", None) == value.dtype.isalignedstruct


def test_an_array_that_was_read_is_writable_and_shared_with_nobody() -> None:
    """The array that was read is writable, and shares nothing with the record or with the stored array."""
    value = np.arange(3)
    value.flags.writeable = False
    made = again(value)
    made[0] = 9
    assert value[0] == 0
    structured = again(np.array([(1,)], [("a", "i4")])[0])
    structured["a"] = 5
    assert structured["a"] == 5


def test_arrays_in_containers_and_in_declared_types() -> None:
    """They may stand wherever a value may; annotations that name them are no problem."""
    from dataclasses import dataclass

    @dataclass
    class Batch:
        rows: np.ndarray[Any, np.dtype[np.float64]]
        mean: np.float64
        by_name: dict[str, np.ndarray[Any, Any]]

    codec = Codec(declared=[Batch, np.ndarray, np.float64])
    value = Batch(np.eye(2), np.float64(0.5), {"a": np.arange(2)})
    made = again([value], codec)[0]
    assert same(made.rows, value.rows)
    assert same(made.mean, value.mean)
    assert same(made.by_name["a"], value.by_name["a"])
    assert again({np.float64(1.5), np.str_("a")}) == {1.5, "a"}
    assert {type(key) for key in again({np.int64(1): 2})} == {np.int64}


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.array([1, "a"], object), CodecError, r"dtype \|O holds Python objects; store array.tolist\(\)"),
        (np.zeros(1, [("a", object)]), CodecError, r"holds Python objects"),
        (np.ma.array([1], mask=[True]), UnregisteredTypeError, r"MaskedArray is not a plain array; store its data and its mask"),
        (np.ma.masked, UnregisteredTypeError, "MaskedConstant is not a plain array"),
        (np.zeros(1, [("a", int)]).view(np.recarray), UnregisteredTypeError, r"recarray is a subclass .*numpy\.asarray"),
        (np.zeros(1, [("a", int)]).view(np.recarray)[0], UnregisteredTypeError, r"store item\.item\(\)"),
        (np.zeros(1, np.dtype("f8", metadata={"a": 1})), CodecError, "has metadata or a record class"),
        (np.zeros(1, np.dtype((np.record, [("a", "f8")]))), CodecError, "has metadata or a record class"),
        (np.array(["a"], np.dtypes.StringDType()), CodecError, "holds Python objects"),
        (np.dtype("f8"), UnregisteredTypeError, "is not registered"),
    ],
    ids=["objects", "structured", "masked", "constant", "recarray", "record", "metadata", "record dtype", "strings", "dtype"],
)  # fmt: skip
def test_arrays_that_are_more_than_bytes_are_refused_with_the_way_out(
    value: Any, error: type[Exception], message: str
) -> None:
    """Arrays of objects would need pickle; masks, attributes and metadata would be lost."""
    with pytest.raises(error, match=message) as caught:
        SHARED.encode({"a": [value]})
    assert str(caught.value).startswith("value['a'][0]: ")
    assert not np.ma.isMaskedArray(value) or not SHARED.knows(type(value))


def test_a_subclass_can_be_registered_with_functions() -> None:
    """As the message says."""
    codec = Codec()
    codec.register(
        np.ma.MaskedArray,
        encode=lambda array: (array.data, np.ma.getmaskarray(array)),
        decode=lambda parts: np.ma.array(parts[0], mask=parts[1]),
    )
    value = np.ma.array([1, 2], mask=[False, True])
    made = again([value], codec)[0]
    assert type(made) is type(value)
    assert made.tolist() == [1, None]


def test_a_private_copy_of_an_array() -> None:
    """Memory may hold any array, so a transaction in memory copies any array: with objects and masks too."""
    for value in (np.arange(3), np.array([[1], [2]], object), np.ma.array([1, 2], mask=[True, False])):
        mine = SHARED.private([value])[0]
        assert type(mine) is type(value)
        assert not np.shares_memory(np.asarray(mine), np.asarray(value))
    objects = np.empty(1, object)
    objects[0] = [1]
    SHARED.private(objects)[0].append(2)
    assert objects[0] == [1]
    scalar = np.float64(1)
    assert SHARED.private(scalar) is scalar
    item = np.zeros(1, [("a", "i4")])[0]
    SHARED.private(item)["a"] = 7
    assert item["a"] == 0


# ---------------------------------------------------------------- records
def record_of(tag: str, state: Any) -> bytes:
    """A record with a valid checksum, as an attacker would make it."""
    inner = msgspec.msgpack.encode([tag, 1, state])
    payload = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner))
    return struct.pack(">BBI", 1, 2, zlib.crc32(payload, 2)) + payload


STRUCTURE = {"names": ["a"], "formats": ["<i4"], "offsets": [0], "titles": [None], "itemsize": 4, "aligned": False}


@pytest.mark.parametrize(
    "state",
    [
        ["|O", "C", bytes(8), 1], ["<f8", "C", bytes(7), 1], ["<f8", "C", bytes(16), 1], ["<f8", "C", b"", -1],
        ["<f8", "C", b"", 2**40], ["<f8", "C", b"", 2**60, 2**60], ["<f8", "X", bytes(8), 1], ["<f8", "C", "text", 1],
        ["object", "C", bytes(8), 1], ["i4,O", "C", bytes(16), 1], ["<f8/52", "C", bytes(8), 1],
        ["<f16/9", "C", bytes(16), 1], [None, "C", b"", 1], [["<f8"], "C", b"", 1], [["|O", 1], "C", bytes(8), 1],
        [{**STRUCTURE, "formats": ["|O"], "itemsize": 8}, "C", bytes(8), 1],
        [{**STRUCTURE, "offsets": [2**40]}, "C", bytes(4), 1], [{**STRUCTURE, "offsets": [-4]}, "C", bytes(4), 1],
        [{}, "C", b"", 1], ["<U999999999999", "C", b"", 1], ["<M8[foo]", "C", bytes(8), 1], [], "text", None, ["<f8"],
    ],
    ids=repr,
)  # fmt: skip
def test_a_made_up_record_is_an_error_of_ours(state: Any) -> None:
    """Never an array of pointers or of missing bytes, and no allocation of a size that is only claimed."""
    SHARED.knows(np.ndarray)
    with pytest.raises(CodecError):
        SHARED.decode(record_of("numpy.ndarray", state))


def test_items_of_no_size_take_no_time() -> None:
    """A few bytes may claim any number of such items: a few are restored, many are refused for writing and for reading."""
    SHARED.knows(np.ndarray)
    for dtype in ("|V0", "<U0", "|S0"):
        assert SHARED.decode(record_of("numpy.ndarray", [dtype, "C", b"", 4096])).shape == (4096,)
        with pytest.raises(CodecError, match="items that take no bytes; 4,096 are allowed"):
            SHARED.decode(record_of("numpy.ndarray", [dtype, "C", b"", 2**50]))
    with pytest.raises(CodecError, match="5,000 items that take no bytes"):
        SHARED.encode(np.zeros(5000, "V0"))


@pytest.mark.parametrize(
    ("tag", "state"),
    [
        ("ndarray", ["<i8", "C", 2_000_000_000, 3]), ("ndarray", ["|i1", "C", 2_000_000_000, 2_000_000_000]),
        ("int64", ["<i8", 2_000_000_000]), ("bytes", 2_000_000_000), ("str", 2_000_000_000),
        ("ndarray", ["|S2000000000", "C", b"", 1]), ("ndarray", [["|i1", 1000, 1000, 1000], "C", b"", 1]),
        ("ndarray", [{**STRUCTURE, "itemsize": 2_000_000_000}, "C", b"", 1]), ("ndarray", {"<i8": 2_000_000_000}),
    ],
    ids=repr,
)  # fmt: skip
def test_a_record_of_a_few_bytes_takes_no_memory(tag: str, state: Any, peak_of: Callable[..., int]) -> None:
    """A number in place of bytes, an item size or a shape: it is passed to no constructor."""
    SHARED.knows(np.ndarray)
    record = record_of(f"numpy.{tag}", state)

    def decode() -> None:
        with pytest.raises(CodecError):
            SHARED.decode(record)

    assert peak_of(decode) < 1_000_000


def test_a_record_of_a_scalar_of_another_type_is_refused() -> None:
    """A tag and bytes that don't belong together."""
    SHARED.knows(np.ndarray)
    for state in (["<f8", bytes(8)], ["<f8", bytes(4)], ["|O", bytes(8)], ["|V8", bytes(8)]):
        with pytest.raises(CodecError):
            SHARED.decode(record_of("numpy.void" if state[0] == "<f8" else "numpy.float64", state))


def test_a_record_of_today_stays_readable() -> None:
    """Users' files contain these bytes."""
    value = [np.array([[1, 2], [3, 4]], ">i2", order="F"), np.float32(0.5), np.str_("a"), np.zeros(1, [("a", "<i4")])]
    record = bytes.fromhex(
        "010432e5830994c7230193ad6e756d70792e6e6461727261790195a33e6932a146c40800010003000200040202c71b0193ad6e756d70792e"
        "666c6f617433320192a33c6634c4040000003fc70e0193a96e756d70792e73747201a161c7570193ad6e756d70792e6e6461727261790194"
        "86a56e616d657391a161a7666f726d61747391a33c6934a76f6666736574739100a67469746c657391c0a86974656d73697a6504a7616c69"
        "676e6564c2a143c4040000000001"
    )
    assert all(map(same, SHARED.decode(record), value))
    assert SHARED.encode(value) == record


def test_numpy_is_imported_by_the_program_only() -> None:
    """Without numpy, reading an array is an error that says what is missing; once numpy is imported, the array is restored."""
    record = SHARED.encode(np.arange(3))
    code = f"""
import sys
from pocket_plug.codec import Codec
from pocket_plug.errors import UnknownTypeError
codec = Codec()
try:
    codec.decode({record!r})
except UnknownTypeError as error:
    print(error)
assert "numpy" not in sys.modules
import numpy
print(codec.decode({record!r}))
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == [
        "the record holds an object of type 'numpy.ndarray', which is not registered here; "
        "import numpy; if that fails, do: pip install 'pocket-plug[numpy]'",
        "[0 1 2]",
    ]
