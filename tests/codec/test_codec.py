"""The codec: exact, limited to registered types, and safe for any bytes."""

from __future__ import annotations

import enum
import gc
import random
import socket
import struct
import threading
import weakref
import zlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from pocket_plug.codec import Codec, default_codec, register_type, registry
from pocket_plug.codec.adapters import adapter_of
from pocket_plug.errors import CodecError, CorruptRecordError, UnknownTypeError, UnregisteredTypeError
from pocket_plug.primitives.lists import ListHead
from pocket_plug.store.keys import Key

T = TypeVar("T")


class Color(enum.Enum):
    RED = "r"
    BLUE = ("b", 1)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(enum.StrEnum):
    A = "a"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass
class Plain:
    name: str
    value: Any = None


@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = 0


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any


@dataclass(slots=True, kw_only=True)
class Keywords:
    a: Any
    b: list[Any] = field(default_factory=list)


@dataclass
class Derived:
    """`__post_init__` computes `total`, and must not run again when the object is read."""

    base: Any
    factor: InitVar[int] = 2
    total: Any = field(init=False)

    def __post_init__(self, factor: int) -> None:
        self.total = [self.base, factor]


class Pair(NamedTuple):
    left: Any
    right: Any = None


class Row(msgspec.Struct):
    id: Any
    tags: Any = ()


class Fixed(msgspec.Struct, frozen=True, kw_only=True):
    id: Any


class Counting(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Text(str):
    """A subclass that must not become its base class."""


class Shift(tzinfo):
    def utcoffset(self, dt: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, dt: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, dt: datetime | None) -> str:
        return "SHIFT"


REGISTERED = [
    Color, Level, Word, Access, Plain, Frozen, Slotted, Keywords, Derived, Pair, Row, Fixed, Counting,
]  # fmt: skip


@pytest.fixture
def codec() -> Codec:
    return full_codec()


def full_codec() -> Codec:
    codec = Codec()
    for cls in REGISTERED:
        codec.register(cls)
    codec.register(Text, encode=str, decode=Text)
    return codec


def canonical(value: Any) -> Any:
    """Equal only for values that are equal and have the same types at every level; NaN equals NaN."""
    kind = type(value)
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is complex:
        return kind, struct.pack(">dd", value.real, value.imag)
    if kind is Decimal:
        return kind, str(value)
    if kind in (list, tuple):
        return kind, tuple(map(canonical, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(canonical, value))
    if kind is bytearray:
        return kind, bytes(value)
    if kind is dict:
        return kind, tuple((canonical(key), canonical(item)) for key, item in value.items())
    if kind in (datetime, time):
        return kind, value.replace(tzinfo=None), value.fold, canonical(value.tzinfo)
    if kind is timezone:
        return kind, value, value.tzname(None)
    if kind is ZoneInfo:
        return kind, value.key
    if isinstance(value, enum.Enum) or kind is Text:
        return kind, str(value)
    if kind is Pair:
        return kind, tuple(map(canonical, tuple(value)))
    if kind in REGISTERED:
        names = [*getattr(kind, "__dataclass_fields__", getattr(kind, "__struct_fields__", ()))]
        return kind, tuple(canonical(getattr(value, name)) for name in names if hasattr(value, name))
    return kind, value


def again(codec: Codec, value: Any) -> Any:
    return codec.decode(codec.encode(value))


def same(codec: Codec, value: Any) -> bool:
    return canonical(again(codec, value)) == canonical(value)


# ---------------------------------------------------------------- exact round trips
def named(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """The strategy with a short repr: Hypothesis builds it often, and warns if it is long."""
    return st.composite(lambda draw: draw(strategy))()


zones = named(
    st.none()
    | st.just(UTC)
    | st.sampled_from(["Europe/Berlin", "America/New_York", "UTC"]).map(ZoneInfo)
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
    | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.sampled_from(["", "CET", "ü"]))
)
hashable_atoms = named(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**40, -(10**40)])
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.binary()
    | st.datetimes(timezones=zones, allow_imaginary=True)
    | st.builds(lambda value, fold: value.replace(fold=fold), st.datetimes(timezones=zones), st.integers(0, 1))
    | st.builds(lambda value, fold, zone: value.replace(fold=fold, tzinfo=zone), st.times(), st.integers(0, 1), zones)
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | zones
    | st.builds(range, st.integers(), st.integers(), st.integers().filter(bool))
    | st.builds(PurePosixPath, st.text(max_size=9), st.text(max_size=3))
    | st.builds(Path, st.text(st.characters(exclude_characters="\0"), max_size=9))
    | st.sampled_from([*Color, *Level, *Word, *Access, Access.READ | Access.WRITE, Access(0)])
    | st.text(st.characters(exclude_categories=["Cs"])).map(Text)
)
hashables = named(
    st.recursive(
        hashable_atoms,
        lambda parts: (
            st.tuples(parts, parts)
            | st.frozensets(parts, max_size=3)
            | st.builds(Frozen, parts, parts)
            | st.builds(Slotted, parts)
            | st.builds(Pair, parts, parts)
            | st.builds(Fixed, id=parts)
        ),
        max_leaves=4,
    )
)
values = st.recursive(
    hashables | st.decimals() | st.binary().map(bytearray),
    lambda parts: (
        st.lists(parts, max_size=4)
        | st.lists(parts, max_size=4).map(tuple)
        | st.sets(hashables, max_size=4)
        | st.dictionaries(hashables, parts, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), parts, max_size=4)
        | st.builds(Plain, st.just("é"), parts)
        | st.builds(Keywords, a=parts, b=st.lists(parts, max_size=2))
        | st.builds(Derived, parts)
        | st.builds(Row, parts, parts)
        | st.builds(Frozen, parts, parts)
    ),
    max_leaves=12,
)
SHARED = full_codec()


@settings(max_examples=400, deadline=None)
@given(values)
def test_any_nesting_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    """Any value made of known types is the same after encoding and decoding, at every level."""
    assert same(SHARED, value)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), -0.0, struct.unpack(">d", b"\x7f\xf8\x00\x00\x00\x00\x00\x07")[0],
        True, 1, 1.0, complex(-0.0, float("nan")), "", "\x00é😀", b"", bytearray(b"ab"),
        [], (), set(), frozenset(), {}, [()], ([],), [[], (), {}],
        {1: "int", "1": "str", b"1": "bytes", None: 0, (1, 2): 0, 1.5: 0, frozenset({1}): 0},
        {"z": 1, "a": 2, "m": {"y": 1, "b": 2}}, {2**70: -(2**70)}, [2**64, 5, -(2**63) - 1, {"n": 2**64}],
        datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), datetime.min, datetime.max,
        time(23, 59, 59, 999999, fold=1), time(1, tzinfo=UTC), date.min, timedelta.max, timedelta.min,
        Decimal("-0"), Decimal("1.10"), Decimal("sNaN12"), Decimal("Infinity"), Decimal("1E+999999"),
        UUID(int=0), Level.HIGH, Word.A, Access.READ | Access.WRITE, Text("x"), [Text("x"), "x"],
        {Text("k"): Level.LOW},
        Pair(1, (2,)), Row(1, [2]), Fixed(id=(1,)), Counting(5), Derived(3),
    ],
    ids=repr,
)  # fmt: skip
def test_values_that_other_formats_change_are_restored(codec: Codec, value: Any) -> None:
    """The cases that JSON and plain MessagePack change silently."""
    assert same(codec, value)


def test_a_dict_keeps_its_order_whatever_its_keys_are(codec: Codec) -> None:
    """Insertion order is part of a dict."""
    for keys in (["z", "a", "m"], [(3,), (1,), (2,)], [3, "a", (1,), None]):
        assert list(again(codec, dict.fromkeys(keys))) == keys


def test_utc_is_still_the_one_utc(codec: Codec) -> None:
    """`timezone.utc` is a singleton that programs compare by identity."""
    assert again(codec, datetime.now(UTC)).tzinfo is UTC


def test_a_record_of_today_stays_readable(codec: Codec) -> None:
    """Users' files contain these bytes; a change that can't read them needs a new format byte."""
    record = bytes.fromhex(
        "010439b9a9c1c801090598a1619501cbc004000000000000c0c3c40162d5029101c70d0391c70906010000000000000000a1649bc71a0932"
        "3032342d30312d30325430333a30343a30352e303030303036c7260b93b3323032342d30312d30325430303a30303a303000c70d10457572"
        "6f70652f4265726c696ec70c0c93a830313a30323a303001c0c70a0d323032342d30312d3032c70c0e000000010000000200000003c70e0f"
        "0000000000000e10000000003d58d611312e3130d81200000000000000000000000000000007d8073ff00000000000004000000000000000"
        "d40878d60491d40290a16fc7250193a5506c61696e0382a46e616d65a16ea576616c7565c70c0193a5436f6c6f7201a3524544"
    )
    codec.register(Plain, version=3)
    value = {
        "a": [1, -2.5, None, True, b"b"],
        (1,): {2**64},
        "d": [
            datetime(2024, 1, 2, 3, 4, 5, 6), datetime(2024, 1, 2, tzinfo=ZoneInfo("Europe/Berlin")),
            time(1, 2, fold=1), date(2024, 1, 2), timedelta(1, 2, 3), timezone(timedelta(hours=1), "X"),
            Decimal("1.10"), UUID(int=7), 1 + 2j, bytearray(b"x"), frozenset({()}),
        ],
        "o": Plain("n", Color.RED),
    }  # fmt: skip
    assert canonical(codec.decode(record)) == canonical(value)
    assert codec.encode(value) == record


PATHS: list[Any] = [
    PurePosixPath("/a/../b"), PurePosixPath("//a"), PurePosixPath(""), PurePosixPath("é/\udcff"), PureWindowsPath("C:\\a\\b"),
    PureWindowsPath("c:x"), PureWindowsPath("//server/share/é"), PureWindowsPath("\\a"), Path("a/b"), Path("."),
]  # fmt: skip
RANGES = [range(0), range(5), range(5, 0, -2), range(-(10**30), 10**30, 7), range(3, 3)]


@pytest.mark.parametrize("value", [*PATHS, *RANGES], ids=repr)
def test_paths_and_ranges_come_back_exactly(value: Any) -> None:
    """With the same class and parts; as keys and members too. Private copies share them."""
    codec = Codec()
    made = again(codec, value)
    assert (type(made), made, repr(made)) == (type(value), value, repr(value))
    parts = (made.start, made.stop, made.step) if isinstance(made, range) else made.parts
    assert parts == ((value.start, value.stop, value.step) if isinstance(value, range) else value.parts)
    assert again(codec, {value: [value], (1, value): {value}}) == {value: [value], (1, value): {value}}
    assert codec.private(value) is value
    assert codec.private([value]) == [value]


def test_a_path_of_another_system_is_an_error_that_says_what_could_be_read() -> None:
    """A concrete path opens files, so none of another system is made; pure paths are read anywhere."""
    codec = Codec()
    there = WindowsPath if type(Path()) is PosixPath else PosixPath
    inner = msgspec.msgpack.encode([f"pathlib.{there.__name__}", 1, "a/b"])
    foreign = sealed(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner)))
    with pytest.raises(
        CodecError, match=rf"this system has no {there.__name__}; a path stored as Pure{there.__name__} "
    ):
        codec.decode(foreign)


@pytest.mark.parametrize(
    "state", [2**31, b"\xff", None, ["a"], {"a": 1}, (0, 1), (0, 1, 0), (0, 1.5, 1), (0, "a", 1), "a\0" * 9]
)
def test_made_up_paths_and_ranges_are_errors(state: Any) -> None:
    """Only stored values are passed to a constructor; a path is made only from a path's text."""
    codec = Codec()
    codec.knows(range)
    for tag in ("range", "pathlib.PurePosixPath", "pathlib.PureWindowsPath"):
        inner = msgspec.msgpack.encode([tag, 1]).replace(b"\x92", b"\x93", 1) + codec.encode(state)[6:]
        record = sealed(msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner)), 3)
        if isinstance(state, str) and tag != "range":
            assert isinstance(codec.decode(record), PurePosixPath | PureWindowsPath)
            continue
        with pytest.raises(CodecError):
            codec.decode(record)


def test_functions_of_a_users_own_for_a_class_known_here_hold() -> None:
    """If a program registered `range` or a path before these were built in, its functions and its records are still used."""
    codec = Codec()
    codec.register(
        range, tag="my range", encode=lambda value: [*value], decode=lambda items: range(items[0], items[-1] + 1)
    )
    assert b"my range" in codec.encode(range(2, 5))
    assert again(codec, [range(2, 5)]) == [range(2, 5)]


def test_a_class_is_registered_where_it_is_defined() -> None:
    """As a decorator, with options or without."""
    codec = Codec()

    @codec.register(tag="one.Point", version=2, upgrade={1: lambda fields: {**fields, "y": 0}})
    @dataclass
    class Point:
        x: int
        y: int

    assert b"one.Point" in codec.encode(Point(1, 2))
    assert again(codec, Point(1, 2)) == Point(1, 2)
    with pytest.raises(CodecError, match="only a class can be registered, not None"):
        codec.register(None)  # type: ignore[call-overload]


SECRET = "4111 1111 1111 1111"  # noqa: S105 - of a card


@pytest.mark.parametrize(
    "value",
    [
        SECRET + "\ud800", [SECRET + "\ud800"], {"card": SECRET + "\ud800"}, {SECRET: Fraction(1)}, {SECRET + "\ud800": 1},
        Plain(SECRET + "\ud800"), [Fraction(1), SECRET], Text(SECRET), {SECRET: Text("x")},
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_no_value_stands_in_a_message(value: Any) -> None:
    """The error names path, type and size; also if a user's own function quotes the value."""

    def quote(text: Text) -> str:
        raise ValueError(f"{text} is not a card")

    codec = full_codec()
    codec.register(Text, encode=quote, decode=Text)
    with pytest.raises(CodecError) as caught:
        codec.encode(value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("code", [9, 10, 11, 13, 16, 17])
def test_no_value_of_a_record_stands_in_a_message(code: int) -> None:
    """Nor of a made-up record: neither in the error nor in its cause."""
    with pytest.raises(CodecError) as caught:
        Codec().decode(sealed(msgspec.msgpack.encode(msgspec.msgpack.Ext(code, SECRET.encode()))))
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None or SECRET not in str(caught.value.__cause__)


# ---------------------------------------------------------------- subclasses and unregistered types
class MyInt(int):
    pass


class MyDatetime(datetime):
    pass


@dataclass
class Fields(dict[str, int]):
    x: int = 0


@pytest.mark.parametrize(
    "value",
    [MyInt(1), MyDatetime(2024, 1, 1), OrderedDict(a=1), defaultdict(list), deque([1]), type("L", (list,), {})(),
     Text("x"), Color.RED, Level.LOW, Pair(1), Plain("x"), Row(1), Fraction(3), object(), int, len, Fields(),
     memoryview(b"")],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_unregistered_type_is_refused_wherever_it_stands(value: Any) -> None:
    """A subclass is never taken for its base class: alone, in a list, as a value or key of a dict, in a tuple."""
    codec = Codec()
    places: list[Any] = [value, [value], {"k": value}, (value,), [{"a": [value]}]]
    if type(value).__hash__ is not None and not isinstance(value, (Plain, Row, memoryview)):
        places += [{value: 1}, {value}, frozenset({value})]
    for place in places:
        with pytest.raises(UnregisteredTypeError, match=type(value).__name__):
            codec.encode(place)
    assert not codec.knows(type(value))


def test_the_error_names_the_path_the_type_and_the_way_out() -> None:
    """The error names the place inside the value, and the function to call."""
    codec = Codec()
    codec.register(Plain)
    codec.register(Text, encode=lambda text: [str(text), Slotted(1)], decode=lambda parts: Text(parts[0]))
    value = {"items": [1, 2, Plain("x", {(1, 2): Slotted(3)})], "ok": 1}
    with pytest.raises(UnregisteredTypeError) as caught:
        codec.encode(value)
    assert str(caught.value) == (
        f"value['items'][2].value[<tuple>]: {__name__}.Slotted is not registered; call register_type(Slotted), "
        'or declare it: Key("…", Slotted)'
    )
    for value, path in [
        ({Slotted(1): 1}, "value[key <Slotted>]:"),
        ([{Slotted(1)}], "value[0]{…}:"),
        ((1, Slotted(1)), "value[1]:"),
        (Text("a"), "value[1]:"),
        ([datetime(2024, 1, 1, tzinfo=Shift())], "value[0].tzinfo:"),
    ]:
        with pytest.raises(UnregisteredTypeError) as caught:
            codec.encode(value)
        assert str(caught.value).startswith(path), str(caught.value)


def test_a_type_that_needs_functions_gets_this_advice() -> None:
    """The advice in the message works."""
    with pytest.raises(UnregisteredTypeError, match=r"call register_type\(Fraction, encode=…, decode=…\)$"):
        Codec().encode([Fraction(3)])
    with pytest.raises(CodecError, match=r"give register_type\(…, encode=…, decode=…\)"):
        Codec().register(Fraction)


def test_subclasses_registered_with_functions_come_back_exactly(codec: Codec) -> None:
    """A registered subclass of a built-in type is restored with its type and its state."""
    codec.register(OrderedDict, encode=lambda value: list(value.items()), decode=OrderedDict)
    codec.register(Shift, encode=lambda _: None, decode=lambda _: Shift())
    value = again(codec, [OrderedDict([((1,), 2)]), datetime(2024, 1, 1, tzinfo=Shift())])
    assert type(value[0]) is OrderedDict
    assert value[0] == {(1,): 2}
    assert type(value[1].tzinfo) is Shift


def test_a_lone_surrogate_is_refused_by_path(codec: Codec) -> None:
    """Such a str can't be written by any store; the message says where it is."""
    for value, path in [("\ud800", "value:"), ({"a": ["x\udfff"]}, "value['a'][0]:"), (Plain("\ud800"), "value.name:"),
                        ({"\ud800": 1}, "value[key <a str of 1 character>]:"), ({"\ud800"}, "value{…}:")]:  # fmt: skip
        with pytest.raises(CodecError, match="lone surrogate") as caught:
            codec.encode(value)
        assert str(caught.value).startswith(path), str(caught.value)
        str(caught.value).encode()  # the message can be printed


def test_a_zone_without_a_key_is_refused(codec: Codec) -> None:
    """A ZoneInfo made from a file has no name by which it could be found again."""
    import importlib.resources
    import zoneinfo

    keyless = None
    for root in zoneinfo.TZPATH:
        try:
            with open(f"{root}/Europe/Berlin", "rb") as file:
                keyless = ZoneInfo.from_file(file)
                break
        except OSError:
            continue
    if keyless is None:
        with importlib.resources.files("tzdata.zoneinfo.Europe").joinpath("Berlin").open("rb") as file:
            keyless = ZoneInfo.from_file(file)
    with pytest.raises(CodecError, match=r"value\[0\]: a ZoneInfo is stored by its key"):
        codec.encode([keyless])


# ---------------------------------------------------------------- objects of registered types
def test_no_initialiser_runs_when_an_object_is_read(codec: Codec) -> None:
    """`__post_init__` has run before; if it ran again, it would change the object or refuse it."""
    original = Derived(3, factor=5)
    original.total = "changed since"
    assert again(codec, original) == original
    counting = Counting(5)
    assert again(codec, counting) == counting


def test_a_field_that_is_not_set_stays_unset(codec: Codec) -> None:
    """A field with `init=False` may be unset, and is unset after reading."""
    original = Derived(3)
    del original.total
    copied = again(codec, original)
    assert copied.base == 3
    assert not hasattr(copied, "total")
    broken = Plain("x")
    del broken.name
    with pytest.raises(CodecError, match="field 'name' is not set"):
        codec.encode(broken)


def test_an_attribute_that_is_no_field_is_refused_rather_than_lost(codec: Codec) -> None:
    """Other attributes would be lost, so they are an error; caches, which are computed again, are left out."""

    @dataclass
    class Circle(Generic[T]):
        radius: T

        @cached_property
        def area(self) -> float:
            return 3.0

    codec.register(Circle)
    circle = Circle[int](1)
    assert circle.area == 3.0
    assert again(codec, circle) == circle
    circle.colour = "red"  # type: ignore[attr-defined]
    with pytest.raises(
        CodecError, match=r"value\[0\]: encoding a .*Circle failed: its attribute 'colour' is not a field"
    ):
        codec.encode([circle])


def test_structs_and_named_tuples_lose_no_attribute_either() -> None:
    """A Struct with a `__dict__` and a subclass of a named tuple can have more than fields, too."""

    class Open(msgspec.Struct, dict=True):
        x: int

    class Wide(Pair):
        pass

    codec = Codec()
    for cls in (Open, Wide):
        codec.register(cls)
        value = cls(1)
        assert type(again(codec, value)) is cls
        value.more = 2  # type: ignore[attr-defined]
        with pytest.raises(CodecError, match="attribute 'more' is not a field and would be lost"):
            codec.encode(value)


def test_a_dataclass_that_holds_more_than_fields_needs_functions() -> None:
    """A dict or a slot beside the fields would be lost, so such a class is refused without functions."""

    class Hidden:
        __slots__ = ("secret",)

    @dataclass
    class Both(Hidden):
        x: int = 0

    for cls in (Fields, Both):
        with pytest.raises(CodecError, match="not a plain dataclass"):
            Codec().register(cls)


def test_a_class_may_gain_fields_with_defaults_but_not_lose_any() -> None:
    """A class with new fields reads old records; no stored field is dropped, and no missing one is invented."""
    old, new = Codec(), Codec()
    old_cls = make_dataclass("Item", ["a", "b"])
    old.register(old_cls, tag="item")
    cls = make_dataclass("Item", ["a", "b", ("c", Any, 7), ("d", Any, field(default_factory=list))])
    new.register(cls, tag="item")
    record = old.encode(old_cls(1, 2))
    assert new.decode(record) == cls(1, 2, 7, [])
    way_out = r"upgrade the records of the former class by register_type\(…, version=…, upgrade=…\)$"
    for names, message in [
        (["a"], "fields that the class doesn't have: b; " + way_out),
        (["a", "b", "x"], "without field 'x', which has no default; give it one, or " + way_out),
    ]:
        other = Codec()
        other.register(make_dataclass("Item", names), tag="item")
        with pytest.raises(CodecError, match=message):
            other.decode(record)


def test_an_unknown_enum_member_is_an_error() -> None:
    """The error names the class and the member."""
    old, new = Codec(), Codec()
    old_colour = enum.Enum("Colour", ["RED", "GREY"])
    old.register(old_colour, tag="colour")
    new.register(enum.Enum("Colour", ["RED"]), tag="colour")
    with pytest.raises(
        CodecError, match=r"'colour' failed: the class has no member of the name that was stored; it has: RED$"
    ):
        new.decode(old.encode(old_colour.GREY))


def test_a_named_tuple_of_another_length_is_an_error() -> None:
    """A named tuple needs exactly its number of items."""
    old, new = Codec(), Codec()
    old.register(Pair)
    new.register(NamedTuple("Pair", [("a", int)]), tag="Pair")
    with pytest.raises(CodecError, match="it was stored with 2 items, but the class has 1"):
        new.decode(old.encode(Pair(1, 2)))


def test_an_error_in_a_users_function_is_a_codec_error_with_its_cause() -> None:
    """The error names the type, the path and the cause."""

    def fail(value: Any) -> Any:
        raise OSError("no luck")

    codec = Codec()
    codec.register(Fraction, encode=fail, decode=fail)
    with pytest.raises(CodecError, match=r"value\['r'\]: encoding a fractions.Fraction failed with OSError$") as caught:
        codec.encode({"r": Fraction(2)})
    assert isinstance(caught.value.__cause__, OSError)
    writer = Codec()
    writer.register(Fraction, encode=lambda _: 1, decode=fail)
    with pytest.raises(CodecError, match=r"of type 'Fraction' failed with OSError$"):
        writer.decode(writer.encode(Fraction(2)))


# ---------------------------------------------------------------- the registry
def test_a_tag_belongs_to_one_class() -> None:
    """The error names both classes and the way out."""
    codec = Codec()
    codec.register(Plain, tag="thing")
    with pytest.raises(CodecError) as caught:
        codec.register(Frozen, tag="thing")
    assert str(caught.value) == (
        f"tag 'thing' is already used by {__name__}.Plain, so {__name__}.Frozen needs another tag: "
        "register_type(Frozen, tag=…)"
    )
    assert again(codec, Plain("x", [1])) == Plain("x", [1])


def test_registering_again_is_allowed_and_older_tags_stay_readable() -> None:
    """A class may get a new tag; records with the old tag stay readable."""
    codec = Codec()
    codec.register(Plain)
    old = codec.encode(Plain("x"))
    assert codec.register(Plain, tag="plain.v2") is Plain
    assert codec.decode(old) == Plain("x")
    assert b"plain.v2" in codec.encode(Plain("x"))


def test_an_invalid_registration_is_refused_with_the_reason() -> None:
    """Built-in types, only one of two functions, a version below 1."""
    codec = Codec()
    for cls in (int, dict, datetime, type(None)):
        with pytest.raises(CodecError, match=f"{cls.__name__} is built into the codec"):
            codec.register(cls)
    with pytest.raises(CodecError, match="encode and decode go together"):
        codec.register(Fraction, encode=list)
    with pytest.raises(CodecError, match="version must be 1 or more, not 0"):
        codec.register(Plain, version=0)


def test_a_record_of_a_newer_version_is_an_error() -> None:
    """An older program doesn't guess what a newer one has written."""
    old, new = Codec(), Codec()
    old.register(Plain, version=1)
    new.register(Plain, version=2)
    with pytest.raises(CodecError, match=r"version 2 of type 'Plain'; .*Plain is registered as version 1"):
        old.decode(new.encode(Plain("x")))


def test_an_unknown_tag_is_named_with_the_way_out(codec: Codec) -> None:
    """A type that this program lacks is no corruption, and nothing is imported for it."""
    record = codec.encode([Plain("x")])
    with pytest.raises(UnknownTypeError) as caught:
        Codec().decode(record)
    assert str(caught.value) == (
        "the record holds an object of type 'Plain', which is not registered here; "
        "import the module that declares it, or call register_type(…, tag='Plain')"
    )


def test_no_module_is_imported_for_a_tag() -> None:
    """A tag is only looked up, also if it is the name of an importable module."""
    import sys

    writer = Codec()
    writer.register(Plain, tag="antigravity.geohash")
    with pytest.raises(UnknownTypeError):
        Codec().decode(writer.encode(Plain("x")))
    assert "antigravity" not in sys.modules


# ---------------------------------------------------------------- declared types
@dataclass
class Line:
    sku: str
    price: Decimal
    access: Access | None = None


class Extra(TypedDict):
    row: Row


@dataclass
class Bill:
    lines: list[Line]
    by_name: dict[str, Pair | Frozen]
    extra: Extra
    next: Bill | None = None


@dataclass
class Box(Generic[T]):
    content: T


def test_a_declared_type_is_registered_with_its_fields_types() -> None:
    """`Key("bill:{}", Bill)` is enough: the classes inside need no registration."""
    codec = Codec(declared=[list[Bill | None], Box[Slotted], Any, "Unknown", socket.socket, int, None])
    bill = Bill([Line("a", Decimal(1), Access.READ)], {"p": Pair(1), "f": Frozen(2)}, {"row": Row(1)}, None)
    bill.next = Bill([], {}, {"row": Row(2)})
    assert again(codec, [bill, Box(Slotted(1))]) == [bill, Box(Slotted(1))]
    reader = Codec(declared=[Bill])
    assert reader.decode(codec.encode(bill)) == bill
    assert codec.knows(Line)
    assert not codec.knows(socket.socket)


def test_declarations_that_cannot_be_resolved_are_skipped() -> None:
    """A type alias of itself or of a missing name, hints that can't be imported: the other types are registered."""

    class Alias:
        @property
        def __value__(self) -> Any:
            raise NameError("name 'Missing' is not defined")

    class Loop:
        @property
        def __value__(self) -> Any:
            return self

    @dataclass
    class Unresolved:
        x: Missing  # type: ignore[name-defined]  # noqa: F821

    users = TypeAliasType("users", list[Pair])  # type: ignore[misc]
    codec = Codec(declared=[Alias(), Loop(), Unresolved, users, Annotated[Row, []], [], Plain])
    for cls in (Unresolved, Pair, Row, Plain):
        assert codec.knows(cls)


def test_a_type_declared_later_is_registered_when_it_is_needed() -> None:
    """At an unregistered type or an unknown tag, the codec looks for types declared meanwhile."""
    declared: list[Any] = []
    writer, reader = Codec(declared=declared), Codec(declared=declared)
    with pytest.raises(UnregisteredTypeError):
        writer.encode(Plain("x"))
    declared.append(Plain)
    assert reader.decode(writer.encode(Plain("x"))) == Plain("x")


def test_a_key_registers_its_type_with_the_default_codec() -> None:
    """The default codec reads values of declared keys; `register_type` is its `register`."""

    @dataclass
    class OnlyHere:
        x: int

    assert not default_codec.knows(OnlyHere)
    Key("only-here", OnlyHere)
    assert default_codec.decode(default_codec.encode(OnlyHere(1))) == OnlyHere(1)
    assert register_type(OnlyHere, tag="only-here") is OnlyHere
    assert b"only-here" in default_codec.encode(OnlyHere(1))


def definitions(module: str = "m", field: str = "x") -> Any:
    made = make_dataclass("Again", [field])
    made.__module__, made.__qualname__ = module, "definitions.<locals>.Again"
    return made


def test_of_a_class_defined_twice_the_later_one_is_used() -> None:
    """A reloaded module, or a class made by a function: values are read as the new class, also values that
    the old class stored.
    """
    old, new, other = definitions(), definitions(), definitions(field="y")
    declared = [old]
    codec = Codec(declared=declared)
    record = codec.encode(old(1))
    declared.append(new)
    assert type(codec.decode(record)) is new
    assert codec.knows(new)
    assert codec.decode(codec.encode([old(1)])) == [new(1)]
    declared.append(other)
    assert codec.knows(other)
    for former in (old(1), new(1)):
        with pytest.raises(
            UnregisteredTypeError, match=r"m\..*Again was defined again, with other fields, since this object"
        ):
            codec.encode(former)


def test_two_declared_classes_with_one_tag_are_an_error_where_the_second_is_used() -> None:
    """The error names both and the way out, which works; the first class and other declarations still work."""
    first, second = definitions("one"), definitions("two")
    codec = Codec(declared=[first, second, Plain])
    assert again(codec, [first(1), Plain("x")]) == [first(1), Plain("x")]
    with pytest.raises(UnregisteredTypeError) as caught:
        codec.encode(second(1))
    name = "definitions.<locals>.Again"
    assert str(caught.value) == (
        f"value: two.{name} is not registered, and its tag {name!r} is already used by one.{name}; "
        "give it another tag: register_type(Again, tag=…)"
    )
    codec.register(second, tag="second")
    assert type(again(codec, second(1))) is second


def test_threads_that_meet_a_declared_type_together_all_know_it() -> None:
    """While one thread registers the declared types, or just has, another must not miss them."""
    threads = 4
    for _ in range(100):
        codec = Codec(declared=[Bill, Plain])
        start = threading.Barrier(threads)

        def meet(codec: Codec = codec, start: threading.Barrier = start) -> bytes:
            start.wait()
            return codec.encode(Plain("x"))

        with ThreadPoolExecutor(threads) as pool:
            meetings = [pool.submit(meet) for _ in range(threads)]
            assert len({meeting.result() for meeting in meetings}) == 1


def test_a_type_that_another_thread_registers_at_that_moment_is_found() -> None:
    """Another thread may register a type between the lookup of the type and the search for new declarations."""

    class Racing(dict[type, Any]):
        raced = False

        def get(self, key: type, default: Any = None) -> Any:
            found = super().get(key, default)
            if not self.raced:
                self.raced = True
                thread = threading.Thread(target=codec.knows, args=(Plain,))
                thread.start()
                thread.join()
            return found

    codec = Codec(declared=[Plain])
    codec._registry.types = Racing()
    assert again(codec, Plain("x")) == Plain("x")


# ---------------------------------------------------------------- hostile bytes and limits
def sealed(payload: bytes, depth: int = 1) -> bytes:
    """A record with a valid checksum, as an attacker would make it."""
    return struct.pack(">BBI", 1, depth, zlib.crc32(payload, depth)) + payload


def records() -> list[bytes]:
    codec = full_codec()
    return [
        codec.encode(value)
        for value in [
            5, "text", [1, 2.5, None, {"a": b"b"}], (1, {2, 3}, frozenset({4})), {(1, 2): [3]}, 2**80, -(2**80), 1 + 2j,
            datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), time(1, tzinfo=timezone(timedelta(hours=1), "x")),
            date(2024, 1, 1), timedelta(1), Decimal("1.5"), UUID(int=1), bytearray(b"x"), Color.RED, Access.READ,
            Word.A,
            Plain("x", [Slotted(1), Keywords(a=Pair(1, 2)), Row(1), Fixed(id=2), Derived(1)]), Text("x"),
        ]
    ]  # fmt: skip


def mutate(chance: random.Random, data: bytes) -> bytes:
    mutated = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(mutated) + 1)
        match chance.randrange(4):
            case 0:
                mutated[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del mutated[place : place + chance.randint(1, 4)]
            case 2:
                mutated[place:place] = chance.randbytes(chance.randint(1, 4))
            case _:
                mutated[place : place + 1] = chance.choice(
                    [b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1"]
                )
    return bytes(mutated)


def test_any_damage_to_a_record_is_detected(codec: Codec) -> None:
    """Each byte changed, each length truncated, and random changes: an error, never another value."""
    chance = random.Random(7)
    for record in records():
        damaged = [record[:length] for length in range(len(record))]
        damaged += [
            record[:i] + bytes([record[i] ^ 1 << chance.randrange(8)]) + record[i + 1 :] for i in range(len(record))
        ]
        damaged += [mutated for _ in range(100) if (mutated := mutate(chance, record)) != record]
        for data in damaged:
            with pytest.raises(CorruptRecordError):
                codec.decode(data)


def test_random_bytes_are_no_record(codec: Codec) -> None:
    """For any bytes, the error is a CorruptRecordError."""
    chance = random.Random(8)
    for _ in range(2000):
        data = chance.randbytes(chance.randrange(60))
        for record in (data, b"\x01" + data):
            with pytest.raises(CorruptRecordError):
                codec.decode(record)


def test_made_up_records_raise_codec_errors_only(codec: Codec) -> None:
    """Bytes with a valid checksum give a value or an error of the codec, whatever they contain."""
    chance = random.Random(9)
    refused = 0
    originals = [record[6:] for record in records()]
    for _ in range(6000):
        payload = mutate(chance, chance.choice(originals)) if chance.random() < 0.8 else chance.randbytes(20)
        try:
            codec.decode(sealed(payload + b"\xc0" * (not payload)))
        except CodecError:
            refused += 1
    assert refused > 3000


WRONG = [
    b"", b"\x00", b"\xc0", b"\x93\x01\x02\x03", b"\x93\xa1x\xa1y\xc0", b"\x91\x91\x00", b"\x92\x90\x00",
    b"\x93\xa1x\x00\xc0", b"2024-99-99", b"../../etc/passwd", b"os.path", b"\xff" * 12, b"\x7f" * 16, b"\x80",
]  # fmt: skip


@pytest.mark.parametrize("code", range(-128, 128))
def test_no_extension_code_breaks_the_reader(codec: Codec, code: int) -> None:
    """Every code, with contents that are valid for some codes and invalid for most."""
    for content in WRONG:
        try:
            codec.decode(sealed(msgspec.msgpack.encode(msgspec.msgpack.Ext(code, content))))
        except CodecError:
            continue


def test_a_time_zone_is_no_way_to_read_files_or_modules(codec: Codec) -> None:
    """A key is passed to zoneinfo only if it looks like one; for an unknown one the error says what to install."""
    for key in (b"../Europe/Berlin", b"/etc/passwd", b"os.path", b"", b"a//b"):
        with pytest.raises(CorruptRecordError, match="not the key of a time zone"):
            codec.decode(sealed(msgspec.msgpack.encode(msgspec.msgpack.Ext(16, key))))
    with pytest.raises(CodecError, match="knows no time zone 'Mars/Base'; install the distribution tzdata"):
        codec.decode(sealed(msgspec.msgpack.encode(msgspec.msgpack.Ext(16, b"Mars/Base"))))


def test_a_claimed_length_takes_no_memory(codec: Codec, peak_of: Callable[..., int]) -> None:
    """A few bytes that claim 4,000 million items are refused without any allocation."""
    for head in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9", b"\x91\xdd", b"\xc7\x05\x02\xdd"):
        record = sealed(head + b"\xff\xff\xff\xff")

        def decode() -> None:
            with pytest.raises(CorruptRecordError):
                codec.decode(record)  # noqa: B023 - called in this round

        assert peak_of(decode) < 100_000


def nested(depth: int, wrap: Any = lambda value: [value]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: [v],
        lambda v: {"k": v},
        lambda v: (v,),
        lambda v: {date.min: v},
        lambda v: Plain("x", v),
        lambda v: Pair(v),
    ],
    ids=["list", "dict", "tuple", "pairs", "dataclass", "namedtuple"],
)
def test_the_depth_limit_applies_to_writing_and_reading(codec: Codec, wrap: Any) -> None:
    """`max_depth` containers may nest; one more is an error for writing, and for reading records of another codec."""
    deep = full_codec_of(max_depth=255)
    allowed, beyond = nested(100, wrap), nested(101, wrap)
    assert canonical(again(codec, allowed)) == canonical(allowed)
    with pytest.raises(CodecError, match=r"containers nested more than 100 deep \(max_depth\)"):
        codec.encode(beyond)
    with pytest.raises(CorruptRecordError, match=r"containers nested 101 deep; 100 are allowed \(max_depth\)"):
        codec.decode(deep.encode(beyond))


def full_codec_of(**limits: int) -> Codec:
    codec = Codec(**limits)
    codec.register(Plain)
    codec.register(Pair)
    return codec


def test_nesting_without_end_is_an_error_on_both_sides(codec: Codec) -> None:
    """A list in itself, once or twice, an `encode` that never ends, and bytes with a wrong depth."""
    loop: list[Any] = []
    loop.append(loop)
    fork: list[Any] = []
    fork += [fork, fork]
    codec.register(Text, encode=lambda value: Text("x"), decode=Text)
    for value in (loop, fork, {"a": loop}, (loop,), (fork,), {"a": fork}, Text("y")):
        with pytest.raises(CodecError, match="contains itself"):
            codec.encode(value)
    extensions = b"\x90"
    for _ in range(20_000):
        extensions = b"\xc9" + struct.pack(">IB", len(extensions), 2) + extensions
    for payload in (b"\x91" * 100_000, b"\x81\x01" * 100_000, extensions):
        with pytest.raises(CorruptRecordError):
            codec.decode(sealed(payload))


def test_the_size_limit_applies_to_writing_and_reading() -> None:
    """`max_bytes` is the limit of a whole record; the error says the size and the limit, for writing and for reading."""
    small, large = Codec(max_bytes=100), Codec()
    assert again(small, b"x" * 92) == b"x" * 92
    with pytest.raises(CodecError, match=r"takes 101 bytes; 100 are allowed \(max_bytes\)"):
        small.encode(b"x" * 93)
    with pytest.raises(CorruptRecordError, match=r"7 to 100 bytes \(max_bytes\); this one has 101"):
        small.decode(large.encode(b"x" * 93))
    for limit in (0, 256):
        with pytest.raises(ValueError, match=f"max_depth must be from 1 to 255, not {limit}"):
            Codec(max_depth=limit)


def test_records_of_another_kind_are_told_apart(codec: Codec) -> None:
    """Another format and a damaged record have different messages."""
    record = codec.encode({"a": 1})
    with pytest.raises(CorruptRecordError, match="first byte is 0x03, not 0x01 or 0x02"):
        codec.decode(b"\x03" + record[1:])
    with pytest.raises(CorruptRecordError, match=r"checksum does not match: it was damaged or cut off$"):
        codec.decode(record + b"\x00")


# ---------------------------------------------------------------- private copies
@settings(max_examples=150, deadline=None)
@given(values)
def test_a_private_copy_is_exact(value: Any) -> None:
    """It equals the original, with the same types at every level."""
    assert canonical(SHARED.private(value)) == canonical(value)


@pytest.mark.parametrize(
    "value",
    [None, True, 1, 2**99, 1.5, 1j, "x", b"x", date.min, datetime.max, time(1), timedelta(1), Decimal(1), UUID(int=1),
     UTC, (), (1, ("a", None)), frozenset({1, (2,)}), Frozen(1, (2,)), Slotted("x"), Pair(1, 2), Fixed(id=(1,)),
     Color.RED, Access.READ, Frozen(Slotted(Pair(1)))],
    ids=repr,
)  # fmt: skip
def test_immutable_values_are_not_copied(codec: Codec, value: Any) -> None:
    """Atoms, and frozen objects that contain nothing else, are returned unchanged."""
    assert codec.private(value) is value


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1], lambda v: v.append(2)),
        ([[1], 2], lambda v: v[0].append(2)),
        ([{"a": [2**70]}], lambda v: v[0]["a"].append(2)),
        ({"a": {"b": 1}}, lambda v: v["a"].update(c=2)),
        ({"a": "\ud800", "b": [1]}, lambda v: v["b"].append(2)),
        ({(1,): [1]}, lambda v: v[(1,)].append(2)),
        (([1],), lambda v: v[0].append(2)),
        ({1}, lambda v: v.add(2)),
        (bytearray(b"x"), lambda v: v.append(1)),
        (Plain("x", [1]), lambda v: v.value.append(2)),
        (Plain("x"), lambda v: setattr(v, "name", "y")),
        (Frozen([1]), lambda v: v.x.append(2)),
        (Slotted({"a": 1}), lambda v: v.x.clear()),
        (Pair([1]), lambda v: v.left.append(2)),
        (Row([1]), lambda v: v.id.append(2)),
        (Fixed(id=[1]), lambda v: v.id.append(2)),
        (deque([[1]]), lambda v: v[0].append(2)),
        (OrderedDict(a=[1]), lambda v: v["a"].append(2)),
        (Box([1]), lambda v: v.content.append(2)),
        ([Box([1])], lambda v: v[0].content.append(2)),
    ],
    ids=lambda value: repr(value) if not callable(value) else "",
)
def test_a_change_to_the_copy_does_not_reach_the_original(codec: Codec, value: Any, change: Any) -> None:
    """Whether registered or not, at any depth."""
    before = repr(value)
    copied = codec.private(value)
    assert type(copied) is type(value)
    assert repr(copied) == before
    change(copied)
    assert repr(copied) != before
    assert repr(value) == before


def test_objects_registered_with_functions_are_copied_for_each_reader() -> None:
    """Also if `encode` gives an immutable value such as a text: the object itself may change."""

    class Label:
        def __init__(self, text: str) -> None:
            self.text = text

    codec = Codec()
    codec.register(Label, encode=lambda label: label.text, decode=Label)
    stored = Label("a")
    for holds in (stored, [stored], {"label": stored}, (stored,)):
        copied = codec.private(holds)
        mine = copied if holds is stored else copied["label"] if isinstance(holds, dict) else copied[0]
        assert type(mine) is Label
        mine.text = "b"
        assert stored.text == "a"


def test_what_cannot_be_copied_is_shared(codec: Codec) -> None:
    """Objects that the codec doesn't know and deepcopy can't copy are returned unchanged."""

    class Session:
        pass

    lock, session = threading.Lock(), Session()
    assert codec.private(session) is session
    assert codec.private(len) is len
    assert codec.private(Plain) is Plain
    copied = codec.private([lock, session])
    assert copied is not None
    assert copied[0] is lock
    assert copied[1] is session
    unregistered = Box(lock)
    assert codec.private(unregistered) is unregistered


def test_a_value_that_contains_itself_has_a_private_copy(codec: Codec) -> None:
    """Memory can hold such a value, so a transaction in memory can too."""
    loop: list[Any] = [1]
    loop.append(loop)
    copied = codec.private(loop)
    assert copied is not loop
    assert copied[1] is copied


def test_a_codec_and_its_values_can_be_collected() -> None:
    """A codec without references can be garbage-collected."""
    codec = full_codec()
    value = again(codec, Plain("x", [1]))
    dead = weakref.ref(codec), weakref.ref(value)
    del codec, value
    gc.collect()
    assert [ref() for ref in dead] == [None, None]


def test_an_interrupt_during_a_registration_loses_no_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are registered when one is first needed: after an interrupt (Ctrl-C in a notebook), the next caller registers them."""

    @dataclass
    class Declared:
        n: int

    for at in range(1, 100):
        calls = iter(range(1, at))

        def interrupted(cls: type, calls: Iterator[int] = calls) -> Any:
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return adapter_of(cls)

        codec = Codec(declared=[Declared])
        with monkeypatch.context() as patched:
            patched.setattr(registry, "adapter_of", interrupted)
            try:
                is_over = not codec.knows(slice)
            except KeyboardInterrupt:
                is_over = False
        for value in (ListHead("c0ffee00", 0, 1), Declared(1)):
            assert codec.decode(codec.encode(value)) == value, at
        if is_over:
            break
    assert 5 < at < 99
