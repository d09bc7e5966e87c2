"""The copying layer: nobody changes a store by changing a value, neither one that was set nor one that was read."""

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
def test_what_was_set_is_a_copy(layers: list[Layer]) -> None:
    """The value that somebody goes on changing isn't the store's."""
    store = SyncStore(layers=layers)
    guest = Guest("Alice", ["new"])
    store.set_many({"guest": guest, "pair": (guest, {"deep": [guest]})})
    guest.tags.append("changed")
    assert store.get("guest") == Guest("Alice", ["new"])
    assert store.get("pair") == (Guest("Alice", ["new"]), {"deep": [Guest("Alice", ["new"])]})


def test_what_is_read_is_a_copy() -> None:
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
    """What the layer is for: this is what it changes."""
    store = SyncStore()
    names = ["Alice"]
    store.set("names", names)
    names.append("Bob")
    assert store.get("names") == ["Alice", "Bob"]


def test_what_can_not_be_copied_is_refused_at_set() -> None:
    """With the key, and nothing of the write is done."""
    store = SyncStore(layers=[Copying()])
    with pytest.raises(CodecError, match="key 'b'"):
        store.set_many({"a": [1], "b": [Breaks()]})
    assert not store.has("a")


def test_what_can_not_change_is_no_copy() -> None:
    """Text, numbers and tuples of them are handed on as they are: that costs no memory."""
    store = SyncStore(layers=[Copying()])
    value = ("x" * 1000, 2.5, (1, None))
    store.set("a", value)
    assert store.get("a") is value


def test_its_place_by_name() -> None:
    """Outside of what keeps values, inside of what watches and refuses."""
    names = {"bounding", "copying", "readonly", "metrics"} - {"bounding"}
    assert str(Store(layers=names)) == "Store(Metrics() > Readonly() > Copying() > memory)"


def test_a_read_is_inline_over_memory() -> None:
    """It adds no suspension: sync callers are served in place."""
    built = Copying().build(Memory())
    assert (built.inline_read, built.inline_write, built.needs_loop) == (True, True, False)
    assert asyncio.run(built.read("absent")) is None
