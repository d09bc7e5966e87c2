"""Records with types that this process doesn't know: moved byte for byte by those who ask for it, and inspected without code."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from pocket_plug.codec import Codec, Opaque, Sealed, inspect_record
from pocket_plug.errors import CodecError, CorruptRecordError, UnknownTypeError, UnregisteredTypeError


@dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str


class Colour(enum.Enum):
    RED = 1


def theirs(version: int = 1) -> Codec:
    """The codec of the program that wrote the records."""
    codec = Codec()
    codec.register(Money, tag="money", version=version)
    codec.register(Colour)
    return codec


def ours() -> Codec:
    """A codec that knows none of their types, and is asked to keep them sealed."""
    codec = Codec()
    codec.seals = True
    return codec


@pytest.mark.parametrize("value", [Money(Decimal("1.50"), "EUR"), {"a": [1, {Money(Decimal(1), "x")}]}, (Colour.RED,)])
def test_an_unknown_type_passes_byte_for_byte(value: Any) -> None:
    """A value that is read as sealed is written as the very same record, wherever in it the unknown type is."""
    record = theirs().encode(value)
    sealed = ours().decode(record)
    assert type(sealed) is Sealed
    assert isinstance(sealed.error, UnknownTypeError)
    assert ours().encode(sealed) == record
    assert theirs().decode(ours().encode(sealed)) == value


def test_a_newer_version_passes_too() -> None:
    """So is a type that is registered here in an older version."""
    codec = theirs(version=1)
    codec.seals = True
    record = theirs(version=2).encode(Money(Decimal(1), "EUR"))
    sealed = codec.decode(record)
    assert type(sealed) is Sealed
    assert "newer program" in str(sealed.error)
    assert codec.encode(sealed) == record


def test_known_types_are_not_sealed() -> None:
    """Known values are decoded as usual."""
    codec = theirs()
    codec.seals = True
    value = Money(Decimal(1), "EUR")
    assert codec.decode(codec.encode(value)) == value


def test_only_those_who_ask_get_a_sealed_record() -> None:
    """A program would take it for its value: without `seals` it is an error, as before."""
    with pytest.raises(UnknownTypeError, match="'money'"):
        Codec().decode(theirs().encode(Money(Decimal(1), "EUR")))


def test_damage_is_never_sealed() -> None:
    """Bytes that are no record are not moved."""
    record = theirs().encode(Money(Decimal(1), "EUR"))
    for damaged in (record[:-1], record + b"x", b"\x02" + record[1:], b""):
        with pytest.raises(CorruptRecordError):
            ours().decode(damaged)


def test_a_sealed_record_is_no_part_of_a_value() -> None:
    """In a list it would be an object of an unknown type, which is refused like any other."""
    sealed = ours().decode(theirs().encode(Colour.RED))
    with pytest.raises(UnregisteredTypeError, match="Sealed"):
        ours().encode([sealed])


def test_a_record_is_inspected_without_its_types() -> None:
    """Objects are seen by tag, version and state, nested in any way; no decode function is called."""

    def explode(_: Any) -> Any:
        raise AssertionError("code of the type has run")

    codec = Codec()
    codec.register(Money, tag="money", version=3, encode=lambda money: (money.amount, {money.currency}), decode=explode)
    seen = inspect_record(codec.encode({Money(Decimal(1), "EUR"): [Money(Decimal(2), "USD")]}))
    ((key, [other]),) = seen.items()
    assert isinstance(key, Opaque)
    assert (key.tag, key.version, key.state) == ("money", 3, (Decimal(1), {"EUR"}))
    assert repr(other) == "<money (Decimal('2'), {'USD'})>"


def test_a_made_up_record_is_an_error_of_ours() -> None:
    """Inspecting has the same limits as reading."""
    record = bytearray(theirs().encode(Colour.RED))
    record[-1] ^= 1
    with pytest.raises(CodecError):
        inspect_record(bytes(record))
