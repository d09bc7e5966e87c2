"""Versions of a type: records of older versions are upgraded, step by step, when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, ConfigDict

from pocket_plug.codec import Codec, upgraded
from pocket_plug.errors import CodecError


@dataclass
class User:
    """Version 3: version 1 had `name`; version 2 `first` and `last`."""

    first: str
    last: str
    country: str


def split(fields: dict[str, Any]) -> dict[str, Any]:
    first, _, last = fields.pop("name").partition(" ")
    return {"first": first, "last": last, **fields}


def add_country(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "country": "unknown"}


def program(version: int, *names: str, **options: Any) -> tuple[Codec, Any]:
    """A codec from a time when the class had just these fields."""
    cls = make_dataclass("User", names)
    codec = Codec()
    codec.register(cls, tag="user", version=version, **options)
    return codec, cls


def today(upgrade: Mapping[int, Any] | None) -> Codec:
    codec = Codec()
    codec.register(User, tag="user", version=3, upgrade=upgrade)
    return codec


FIRST, FirstUser = program(1, "name")
SECOND, SecondUser = program(2, "first", "last")


def test_a_record_is_upgraded_step_by_step() -> None:
    """From any older version, through all later ones; a record of the current version is unchanged."""
    codec = today({1: split, 2: add_country})
    assert codec.decode(FIRST.encode(FirstUser("Ada Byron"))) == User("Ada", "Byron", "unknown")
    assert codec.decode(SECOND.encode(SecondUser("Ada", "Byron"))) == User("Ada", "Byron", "unknown")
    value = User("Ada", "Byron", "UK")
    assert codec.decode(codec.encode(value)) == value


def test_objects_are_upgraded_wherever_they_stand() -> None:
    """In containers, and in objects of other types; the inner object is upgraded before the outer one."""

    @dataclass
    class Team:
        users: dict[int, Any]

    seen: list[Any] = []

    def note(fields: dict[str, Any]) -> dict[str, Any]:
        seen.append(fields["users"][1])
        return fields

    FIRST.register(Team, tag="team")
    codec = today({1: split, 2: add_country})
    codec.register(Team, tag="team", version=2, upgrade={1: note})
    ada = User("Ada", "Byron", "unknown")
    assert codec.decode(FIRST.encode([(Team({1: FirstUser("Ada Byron")}),)])) == [(Team({1: ada}),)]
    assert seen == [ada]


def test_a_missing_step_is_an_error_with_the_way_out() -> None:
    """It names the versions; other records are still read."""
    codec = today({2: add_country})
    with pytest.raises(CodecError) as caught:
        codec.decode(FIRST.encode(FirstUser("Ada Byron")))
    assert str(caught.value) == (
        f"the record holds version 1 of type 'user'; {__name__}.User is registered as version 3, but no function upgrades "
        "version 1 to 2; give register_type(User, …, upgrade={1: …})"
    )
    assert codec.decode(SECOND.encode(SecondUser("Ada", "Byron"))).country == "unknown"
    with pytest.raises(CodecError, match="no function upgrades version 2 to 3"):
        today(None).decode(SECOND.encode(SecondUser("Ada", "Byron")))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda fields: {"first": fields["nmae"]}, " with KeyError"),
        (lambda fields: None, ": it returned None, not the dict of the fields"),
        (lambda fields: User("a", "b", "c"), ": it returned User, not the dict of the fields"),
    ],
    ids=["raises", "forgets to return", "gives an object"],
)
def test_an_upgrade_that_fails_names_the_step(step: Any, message: str) -> None:
    """The function's exception is the cause."""
    codec = today({1: step, 2: add_country})
    with pytest.raises(CodecError, match=rf"upgrading a .*User from version 1 to 2 failed{message}") as caught:
        codec.decode(FIRST.encode(FirstUser("Ada Byron")))
    assert caught.value.__cause__ is not None


def test_an_upgrade_to_other_fields_than_the_class_has_is_an_error() -> None:
    """Neither additional nor missing fields are accepted."""
    for result, message in [({"first": "a", "last": "b", "country": "c", "name": "d"}, "that the class doesn't have: name"),
                            ({"first": "a", "last": "b"}, "without field 'country'")]:  # fmt: skip
        codec = today({1: lambda _, result=result: result, 2: lambda fields: fields})
        with pytest.raises(CodecError, match=message):
            codec.decode(FIRST.encode(FirstUser("Ada Byron")))


@pytest.mark.parametrize("wrong", [{3: split}, {0: split}, {1: split, 7: add_country}])
def test_an_upgrade_from_a_version_that_is_not_older_is_refused(wrong: dict[int, Any]) -> None:
    """The error comes at the registration, not when a record is read."""
    with pytest.raises(CodecError, match=r"User: upgrade has [037]; its keys must be versions from 1 up and below 3"):
        today(wrong)


def test_upgrades_of_a_type_with_functions_get_the_encoded_value() -> None:
    """The step gets the stored value, of any type, and returns what the current `decode` accepts."""
    old, new = Codec(), Codec()
    old.register(range, encode=lambda r: (r.start, r.stop), decode=lambda parts: range(*parts))
    new.register(
        range,
        version=2,
        upgrade={1: lambda parts: {"start": parts[0], "stop": parts[1], "step": 1}},
        encode=lambda r: {"start": r.start, "stop": r.stop, "step": r.step},
        decode=lambda parts: range(parts["start"], parts["stop"], parts["step"]),
    )
    assert new.decode(old.encode(range(2, 5))) == range(2, 5)


def test_named_tuples_and_models_are_upgraded_too() -> None:
    """The state of a named tuple is its items; of a model its fields, with private attributes and extra fields."""

    class Point(NamedTuple):
        x: int
        y: int
        z: int

    class Model(BaseModel):
        model_config = ConfigDict(extra="allow")
        full_name: str
        age: int = 0
        _note: str = "n"

    old, new = Codec(), Codec()

    class Flat(NamedTuple):
        x: int
        y: int

    old.register(Flat, tag="point")
    new.register(Point, tag="point", version=2, upgrade={1: lambda items: (*items, 0)})
    assert new.decode(old.encode(Flat(1, 2))) == Point(1, 2, 0)

    class Before(BaseModel):
        model_config = ConfigDict(extra="allow")
        name: str
        age: int = 0
        _note: str = "n"

    before = Before(name="Ada", more=1)
    before._note = "changed"
    old.register(Before, tag="model")
    new.register(Model, tag="model", version=2, upgrade={1: lambda f: {"full_name": f.pop("name"), **f}})
    made = new.decode(old.encode(before))
    assert (made.full_name, made.age, made._note, made.model_extra) == ("Ada", 0, "changed", {"more": 1})
    assert made.model_fields_set == {"full_name", "more"}


def test_a_class_that_a_key_declares_keeps_the_version_it_was_registered_with() -> None:
    """In either order."""
    declared: list[Any] = [User]
    for first in (True, False):
        codec = Codec(declared=declared)
        if first:
            assert codec.knows(User)
        codec.register(User, version=2, upgrade={1: lambda fields: {**fields, "country": "X"}})
        assert codec.knows(User)
        old = Codec()
        old.register(make_dataclass("User", ["first", "last"]), tag="User")
        cls = next(iter(old._registry.types))
        assert codec.decode(old.encode(cls("a", "b"))) == User("a", "b", "X")


def test_a_reader_can_learn_that_a_record_was_upgraded() -> None:
    """With the tags, once for each object, in this context only."""
    codec = today({1: split, 2: add_country})
    record = FIRST.encode([FirstUser("Ada Byron"), FirstUser("Bob Ross")])
    codec.decode(record)
    seen: list[str] = []
    token = upgraded.set(seen)
    codec.decode(codec.encode(User("a", "b", "c")))
    assert seen == []
    codec.decode(record)
    upgraded.reset(token)
    codec.decode(record)
    assert seen == ["user", "user"]


def test_made_up_versions_are_errors_of_ours() -> None:
    """Versions below 1, huge ones, or no numbers."""
    import struct
    import zlib

    import msgspec

    codec = today({1: split, 2: add_country})
    for version in (0, -1, -(2**63), 2**63, 1.5, "1", None, [1], True):
        inner = msgspec.msgpack.encode(["user", version, {"odd": 1}])
        payload = msgspec.msgpack.encode(msgspec.msgpack.Ext(1, inner))
        with pytest.raises(CodecError):
            codec.decode(struct.pack(">BBI", 1, 2, zlib.crc32(payload, 2)) + payload)
