"""The copying layer: changing a value in place never changes the store, whether the value was set or read."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from pocket_plug import CodecError, Memory, Store, SyncStore, register_type
from pocket_plug.layers import Bounding, Copying, Persistence
from pocket_plug.store.layer import Layer
from pocket_plug.testing.layer_contract import LayerContract


class TestCopying(LayerContract):
    def recipe(self) -> Layer:
        return Copying()


@dataclass
class Guest:
    name: str
    tags: list[str] = field(default_factory=list)


register_type(Guest, tag="tests.copying.Guest")


class Breaks:
    """Its encoding fails."""


def _fail(value: Breaks) -> None:
    raise ZeroDivisionError


register_type(Breaks, tag="tests.copying.Breaks", encode=_fail, decode=lambda state: Breaks())


@pytest.mark.parametrize(
    "layers", [[Copying()], [Copying(), Bounding(max_entries=9)], [Copying(), Persistence(to=Memory())]]
)
def test_a_value_is_copied_when_it_is_set(layers: list[Layer]) -> None:
    """The caller may change the value after the set."""
    store = SyncStore(layers=layers)
    guest = Guest("Alice", ["new"])
    store.set_many({"guest": guest, "pair": (guest, {"deep": [guest]})})
    guest.tags.append("changed")
    assert store.get("guest") == Guest("Alice", ["new"])
    assert store.get("pair") == (Guest("Alice", ["new"]), {"deep": [Guest("Alice", ["new"])]})


def test_a_value_is_copied_when_it_is_read() -> None:
    """By each way of reading: alone, with others, in a transaction, by update."""
    store = SyncStore(layers=[Copying()])
    store.set("guest", Guest("Alice"))
    store.get("guest").tags.append("changed")
    store.get_many(["guest"])["guest"].tags.append("changed")
    store.require("guest").tags.append("changed")
    with store.transaction() as tx:
        tx.get("guest").tags.append("changed")
    assert store.get("guest") == Guest("Alice")
    assert store.update("guest", lambda guest: Guest(guest.name, ["meant"])) == Guest("Alice", ["meant"])
    store.get("guest").tags.append("changed")
    assert store.get("guest") == Guest("Alice", ["meant"])


def test_without_it_a_store_in_memory_shares() -> None:
    """This is what the layer changes."""
    store = SyncStore()
    names = ["Alice"]
    store.set("names", names)
    names.append("Bob")
    assert store.get("names") == ["Alice", "Bob"]


def test_a_value_that_can_not_be_copied_is_refused_at_set() -> None:
    """With the key, and nothing of the write is done."""
    store = SyncStore(layers=[Copying()])
    with pytest.raises(CodecError, match="key 'b'"):
        store.set_many({"a": [1], "b": [Breaks()]})
    assert not store.has("a")


def test_immutable_values_are_not_copied() -> None:
    """Text, numbers and tuples of them are passed on unchanged, which needs no memory."""
    store = SyncStore(layers=[Copying()])
    value = ("x" * 1000, 2.5, (1, None))
    store.set("a", value)
    assert store.get("a") is value


def test_its_place_by_name() -> None:
    """Outside of layers that store values, inside of layers that observe and refuse."""
    names = {"bounding", "copying", "readonly", "metrics"} - {"bounding"}
    assert str(Store(layers=names)) == "Store(Metrics() > Readonly() > Copying() > memory)"


def test_a_read_is_inline_over_memory() -> None:
    """It adds no suspension, so sync callers run it in their own thread."""
    built = Copying().build(Memory())
    assert (built.inline_read, built.inline_write, built.needs_loop) == (True, True, False)
    assert asyncio.run(built.read("absent")) is None
