"""What a user of a store can rely on, with any stack and with or without `await`."""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, Protocol, TypedDict

import pytest

from pocket_plug import (
    MISSING,
    Backend,
    Change,
    ConfigError,
    ConflictError,
    Entry,
    Graph,
    Key,
    KeyNameError,
    Layer,
    Memory,
    MissingKeyError,
    Put,
    Store,
    StoreClosedError,
    StoreError,
    StoreReader,
    StoreScope,
    StoreWriter,
    SyncReader,
    SyncStore,
    SyncWriter,
    ValueTypeError,
    node,
)
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.layer_contract import FaultyMemory
from pocket_plug.testing.scenarios import hasty_threads

Open = Callable[..., Any]
COUNT = Key("count:{}", int)
TENANT = Key("tenant:{}")


class Label(str, Enum):  # noqa: UP042 - its `str` is not its value: "Label.A"
    A = "label:a"


def run_like(store: Any, coroutine: Any) -> Any:
    """Run it where the store's own operations run."""
    return store.place[0].run(coroutine) if isinstance(store, SyncStore) else store._run(coroutine)


# ------------------------------------------------------------ basic operations
def test_set_get_delete(open_store: Open) -> None:
    """A value exists from its set to its delete, which returns whether it existed."""
    store = open_store()
    assert store.get("user:123") is None
    store.set("user:123", {"id": "123", "name": "Alice"})
    assert store.get("user:123") == {"id": "123", "name": "Alice"}
    store.set("user:123", "Bob")
    assert store.get("user:123") == "Bob"
    assert store.delete("user:123") is True
    assert store.delete("user:123") is False
    assert store.get("user:123") is None


class Literal(FaultyMemory):
    """A backend from before `PRESENT`: it compares expected versions by `==`."""

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        if -1 in expect.values():
            raise ConflictError(expect)
        return await super().write(changes, expect)


def test_a_delete_that_a_backend_does_not_support_is_an_error() -> None:
    """It doesn't look as if another caller had deleted it: the entry still exists."""
    with SyncStore(Literal()) as store:
        store.set("a", 1)
        with pytest.raises(
            StoreError, match="'a' could not be deleted: its backend raises ConflictError where PRESENT is expected"
        ):
            store.delete("a")
        assert store.delete("b") is False


def test_none_is_a_value(open_store: Open) -> None:
    """A stored None is not missing: `has`, `require`, `get_many` and MISSING distinguish the two."""
    store = open_store()
    store.set("nothing", None)
    assert store.get("nothing", "default") is None
    assert store.get("nothing", MISSING) is None
    assert store.get("absent", MISSING) is MISSING
    assert store.get("absent", "default") == "default"
    assert store.has("nothing")
    assert not store.has("absent")
    assert store.require("nothing") is None
    assert store.get_many(["nothing", "absent"]) == {"nothing": None}
    assert store.update("nothing", lambda value: [value], default="unused") == [None]


def test_missing_may_be_given_as_a_default(open_store: Open) -> None:
    """MISSING is a default like any other for `pop`, in mappings and typed views too, and for `update`."""
    store = open_store()
    store.set("nothing", None)
    assert (store.pop("nothing", MISSING), store.pop("nothing", MISSING)) == (None, MISSING)
    assert store.typed(int).pop("nothing", MISSING) is MISSING
    assert store.mapping().pop("nothing", MISSING) is MISSING
    assert store.update("nothing", lambda value: value is MISSING, default=MISSING) is True
    for taking in (lambda: store.pop("absent"), lambda: store.update("absent", lambda value: value)):
        with pytest.raises(MissingKeyError, match="give a default"):
            taking()


def test_missing_has_a_repr() -> None:
    """In a message or a REPL its repr is readable."""
    assert repr(MISSING) == "MISSING"


def test_require_names_the_key_and_the_scope(open_store: Open) -> None:
    """The error is a KeyError whose text is a sentence, not a quoted one."""
    store = open_store()
    with pytest.raises(MissingKeyError) as caught:
        store.require("config:pricing")
    assert str(caught.value) == "nothing at 'config:pricing'"
    with pytest.raises(KeyError) as scoped:
        store.scope("tenant:7").require(COUNT("a"))
    assert str(scoped.value) == "nothing at 'count:a' (scope 'tenant:7:')"


def test_several_at_once(open_store: Open) -> None:
    """set_many, get_many and delete_many accept names and Keys, and return names as they are in the scope."""
    store = open_store()
    scope = store.scope("s")
    scope.set_many({"a": 1, COUNT("b"): 2, "c:d": 3})
    assert store.get_many(["s:a", "s:count:b", "s:c:d"]) == {"s:a": 1, "s:count:b": 2, "s:c:d": 3}
    assert scope.get_many(iter(["a", COUNT("b"), "a", "absent"])) == {"a": 1, "count:b": 2}
    scope.delete_many(["a", COUNT("b"), "never there"])
    assert list(store.keys()) == ["s:c:d"]
    store.set_many({})
    store.delete_many([])
    assert store.get_many([]) == {}
    store.set_many({"a": 1, "b": 2})
    for one in ("ab", COUNT("b")):  # a text is an iterable of texts, so type checkers accept it
        for use in (store.get_many, store.delete_many, store.typed(int).delete_many):
            with pytest.raises(KeyNameError, match="is one key where several are expected; give a list of keys"):
                use(one)
    assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}


def test_a_subclass_of_str_counts_as_its_text(open_store: Open) -> None:
    """A str-Enum stands for its value in every operation."""
    store = open_store()
    store.set(Label.A, 1)
    assert store.get("label:a") == 1
    assert store.get_many([Label.A]) == {"label:a": 1}
    assert list(store.scope(Label.A).keys()) == []


def test_set_many_is_all_or_none(open_store: Open) -> None:
    """One invalid name or value leaves everything unchanged."""
    store = open_store()
    for bad, error in (({"": 1}, KeyNameError), ({COUNT("x"): "one"}, ValueTypeError), ({"pocket:x": 1}, KeyNameError)):
        with pytest.raises(error):
            store.set_many({"a": 1, **bad, "b": 2})
    with pytest.raises(ConfigError):
        store.set_many({"a": 1}, ttl=0)
    assert list(store.keys()) == []


def test_keys_are_in_order_and_by_prefix(open_store: Open) -> None:
    """Names are returned as this view would write them, and a prefix is just text."""
    store = open_store()
    for name in ("user:2", "user:10", "user:1:profile", "users", "config", "user:%", "user:_"):
        store.set(name, 0)
    assert list(store.keys()) == sorted(["user:2", "user:10", "user:1:profile", "users", "config", "user:%", "user:_"])
    assert list(store.keys("user:1")) == ["user:10", "user:1:profile"]
    assert list(store.keys("user:_")) == ["user:_"]
    assert list(store.scope("user").keys()) == ["%", "10", "1:profile", "2", "_"]
    assert list(store.scope("user").keys("1")) == ["10", "1:profile"]
    assert list(store.keys("nothing such")) == []


def test_a_scan_may_be_left_early(open_store: Open) -> None:
    """The store works on afterwards."""
    store = open_store()
    store.set_many({f"k{n}": n for n in range(10)})
    for name in store.keys():  # noqa: B007
        break
    assert name == "k0"
    assert store.get("k9") == 9


# ------------------------------------------------------------ scopes
def test_a_scope_and_the_root_share_entries(open_store: Open) -> None:
    """The guide's `parent.Scope("user").Set("123", …)` writes `user:123` of the root, and the other way round."""
    store = open_store()
    user = store.scope("user")
    user.set("123", "Alice")
    store.set("user:7", "Bob")
    admin = user.scope("admin")
    admin.set("001", "Root")
    assert store.get("user:123") == "Alice"
    assert user.get("7") == "Bob"
    assert store.get("user:admin:001") == user.get("admin:001") == store.scope("user:admin").get("001") == "Root"
    assert user.update("123", str.upper) == "ALICE"
    assert admin.delete("001")
    assert list(store.keys()) == ["user:123", "user:7"]


def test_nested_scopes_are_flat() -> None:
    """At any depth, a scope is one prefix over the same stack: a read costs the same."""
    store = Store()
    deep: Any = store
    for _ in range(500):
        deep = deep.scope("s")
    assert deep.place == (store.stack, "s:" * 500)
    assert type(deep) is StoreScope


def test_tenants_never_share_entries(open_store: Open) -> None:
    """`scope(TENANT("a:b"))` is another scope than `scope(TENANT("a")).scope("b")`, and so are all similar names."""
    store = open_store()
    views = [
        store.scope(TENANT("a:b")),
        store.scope(TENANT("a")).scope("b"),
        store.scope(TENANT("a%3Ab")),
        store.scope(TENANT("a")),
        store.scope(TENANT("a%")),
        store.scope(TENANT("a:b:c")),
    ]
    for number, view in enumerate(views):
        view.set("x", number)
    assert [view.get("x") for view in views] == list(range(len(views)))
    assert list(views[0].keys()) == ["x"]
    assert store.get("tenant:a%3Ab:x") == 0
    assert store.get("tenant:a:b:x") == 1


BAD_NAMES = ["", None, 7, b"bytes", ("a",), "lone\ud800", "pocket:run", TENANT]
USES: dict[str, Callable[[Any, Any], object]] = {
    "get": lambda store, key: store.get(key),
    "require": lambda store, key: store.require(key),
    "has": lambda store, key: store.has(key),
    "get_many": lambda store, key: store.get_many([key]),
    "ttl": lambda store, key: store.ttl(key),
    "set": lambda store, key: store.set(key, 1),
    "set_many": lambda store, key: store.set_many({key: 1}),
    "update": lambda store, key: store.update(key, lambda n: n, default=0),
    "delete": lambda store, key: store.delete(key),
    "delete_many": lambda store, key: store.delete_many([key]),
    "scope": lambda store, key: store.scope(key),
    "typed get": lambda store, key: store.typed(int).get(key),
    "typed set": lambda store, key: store.typed(int).set(key, 1),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_an_invalid_name_is_refused_everywhere(use: Callable[[Any, Any], object]) -> None:
    """Empty, no string, a lone surrogate, reserved, an unfilled template: by every operation, in scopes too."""
    store = SyncStore()
    for name in BAD_NAMES:
        with pytest.raises(KeyNameError):
            use(store, name)
    for name in BAD_NAMES[:-2]:
        with pytest.raises(KeyNameError):
            use(store.scope("s"), name)
    assert list(store.keys()) == []


def test_the_reserved_prefix_is_out_of_reach(open_store: Open) -> None:
    """pocket_plug's own records are hidden from `keys`, and no scope contains them."""
    store = open_store()
    store.set("plain", 1)
    store.set("pocket", 2)
    run_like(store, store.place[0].write([Put("pocket:run:7", "ours")]))
    assert list(store.keys()) == ["plain", "pocket"]
    assert list(store.keys("pocket:")) == []
    for way in ("pocket", "pocket:run"):
        with pytest.raises(KeyNameError, match="reserved"):
            store.scope(way)
    tenant = store.scope(Key("{}")("pocket"))  # a value, so it is escaped: a scope of its own
    assert list(tenant.keys()) == []
    tenant.set("run:7", "theirs")
    assert tenant.get("run:7") == "theirs"
    assert run_like(store, store.place[0].read("pocket:run:7")).value == "ours"


def test_within_a_scope_nothing_is_reserved(open_store: Open) -> None:
    """`a:pocket:x` is an ordinary name: a name that `keys` returns there can be read there."""
    store = open_store()
    store.set("a:pocket:x", 1)
    scope = store.scope("a")
    assert list(scope.keys()) == ["pocket:x"]
    assert scope.get("pocket:x") == 1
    scope.scope("pocket").set("x", 2)
    assert store.get("a:pocket:x") == 2


# ------------------------------------------------------------ types
class Sized(Protocol):
    """A type that isinstance can't check."""

    size: int


class Movie(TypedDict):
    title: str


def test_a_typed_store_checks_on_set_and_on_get(open_store: Open) -> None:
    """The error names the key, the type and what was given. (The Go original checked on get only.)"""
    store = open_store()
    users = store.typed(dict)
    users.set("user:1", {"name": "Alice"})
    assert users.get("user:1") == users.require("user:1") == {"name": "Alice"}
    with pytest.raises(ValueTypeError) as caught:
        users.set("user:2", "Bob")
    assert str(caught.value) == "'user:2': this store is typed dict, the value is str"
    assert not store.has("user:2")
    store.set("user:3", None)
    for read in (users.get, users.require):
        with pytest.raises(ValueTypeError, match="typed dict, the value is NoneType"):
            read("user:3")
    assert users.get("absent") is None
    assert users.get("absent", "default") == "default"
    with pytest.raises(MissingKeyError):
        users.require("absent")
    assert users.delete("user:1")


def test_a_typed_update_checks_old_and_new_values(open_store: Open) -> None:
    """The stored value, the default and the new value: another type is an error."""
    store = open_store()
    counts = store.typed(int)
    assert counts.update("n", lambda n: n + 1, default=0) == 1
    with pytest.raises(ValueTypeError):
        counts.update("n", str, default=0)
    with pytest.raises(ValueTypeError):
        counts.update("m", lambda n: 0, default="none")
    store.set("s", "text")
    with pytest.raises(ValueTypeError):
        counts.update("s", len, default=0)
    with pytest.raises(MissingKeyError, match="give a default"):
        counts.update("m", lambda n: n + 1)
    assert counts.update("n", lambda n: n + 1) == 2
    assert store.get_many(["n", "m", "s"]) == {"n": 2, "s": "text"}


@pytest.mark.parametrize(
    ("type_", "good", "bad"),
    [
        (list[int], [1], ["a"]),
        (int | None, None, "a"),
        (float, 1, "a"),
        (Movie, {"title": "M"}, 7),
        (dict[str, int], {}, {1: 1}),
    ],
)
def test_typed_stores_check_more_than_classes(type_: Any, good: object, bad: object) -> None:
    """Generics, unions, TypedDicts; an int is a float, as for type checkers."""
    store = SyncStore().typed(type_)
    store.set("a", good)
    assert store.get("a") == good
    with pytest.raises(ValueTypeError):
        store.set("a", bad)


def test_a_type_that_cant_be_checked_accepts_everything() -> None:
    """A protocol that can't be checked at run time accepts every value."""
    store = SyncStore().typed(Sized)
    store.set("a", 1)
    assert store.get("a") == 1


def test_a_keys_type_is_checked_wherever_it_is_used(open_store: Open) -> None:
    """On set, set_many, update, get, require and get_many: a value of another type is an error."""
    store = open_store()
    key = COUNT("a")
    for write in (
        lambda: store.set(key, "one"),
        lambda: store.set_many({key: "one"}),
        lambda: store.update(key, str, default=0),
    ):
        with pytest.raises(ValueTypeError, match="'count:a' is declared as int, the value is str"):
            write()
    assert not store.has(key)
    store.set("count:a", "written by its plain name")
    for read in (lambda: store.get(key), lambda: store.require(key), lambda: store.get_many([key])):
        with pytest.raises(ValueTypeError, match="'count:a' is declared as int, the value is str"):
            read()
    assert store.get("count:a") == "written by its plain name"
    assert store.get(COUNT("b"), "default") == "default"


# ------------------------------------------------------------ readers
def test_a_reader_cannot_write(open_store: Open) -> None:
    """It has no method for it, nor have its scopes and its typed views: in the Go original the reader's scope could write."""
    store = open_store()
    store.set("s:a", 1)
    reader = store.reader()
    assert reader.get("s:a") == reader.scope("s").get("a") == reader.scope("s").typed(int).get("a") == 1
    for view in (
        reader,
        reader.scope("s"),
        reader.scope("s").scope("t"),
        reader.typed(int),
        reader.scope("s").typed(int),
    ):
        for name in ("set", "set_many", "delete", "delete_many", "update", "transaction", "close"):
            with pytest.raises(AttributeError):
                getattr(view, name)


def test_with_and_without_await_are_the_same() -> None:
    """Each public method has its counterpart, with the same parameters and defaults."""
    for awaited, plain in ((StoreReader, SyncReader), (StoreWriter, SyncWriter), (Store, SyncStore)):
        ours_and_theirs = (
            {name for name in dir(kind) if not name.startswith("_") and hasattr(kind, name)}
            for kind in (awaited, plain)
        )
        names = next(ours_and_theirs) - {"sync"}
        assert names == next(ours_and_theirs)
        for name in names - {"place", "stack"}:
            ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (awaited, plain))
            assert [str(p.replace(annotation=p.empty)) for p in ours.parameters.values()] == [
                str(p.replace(annotation=p.empty)) for p in theirs.parameters.values()
            ]


# ------------------------------------------------------------ time to live
def test_a_value_expires_exactly_at_its_deadline(open_store: Open) -> None:
    """It exists until `now >= expires_at`, for every read; reading doesn't renew it."""
    clock = FakeClock()
    store = open_store(clock=clock)
    store.set("guest", "Alice", ttl=60)
    clock.advance(59.75)
    assert store.get("guest") == "Alice"
    assert store.ttl("guest") == 0.25
    clock.advance(0.25)
    assert store.get("guest", MISSING) is MISSING
    assert not store.has("guest")
    assert store.get_many(["guest"]) == {}
    assert list(store.keys()) == []
    assert store.delete("guest") is False
    with pytest.raises(MissingKeyError):
        store.require("guest")
    with pytest.raises(MissingKeyError, match="nothing at 'guest', so it has no time to live"):
        store.ttl("guest")


def test_a_set_after_the_expiry_is_readable(open_store: Open) -> None:
    """In the Go original the expired deadline stayed: a value that was set again was gone at once."""
    clock = FakeClock()
    store = open_store(clock=clock)
    store.set("k", "old", ttl=10)
    clock.advance(10)
    store.set("k", "new")
    assert store.get("k") == "new"
    clock.advance(1000)
    assert store.get("k") == "new"
    assert store.ttl("k") is None


def test_a_set_renews_the_deadline(open_store: Open) -> None:
    """Overwriting with a ttl counts from now; without one the value never expires, whatever the old deadline was."""
    clock = FakeClock()
    store = open_store(clock=clock)
    store.set_many({"longer": 1, "lifted": 1}, ttl=10)
    clock.advance(9)
    store.set("longer", 2, ttl=10)
    store.set("lifted", 2)
    assert (store.ttl("longer"), store.ttl("lifted")) == (10, None)
    clock.advance(9)
    assert store.get_many(["longer", "lifted"]) == {"longer": 2, "lifted": 2}
    clock.advance(1)
    assert store.get_many(["longer", "lifted"]) == {"lifted": 2}


def test_an_update_keeps_the_deadline(open_store: Open) -> None:
    """A counter with a ttl of five minutes ends after five minutes, however often it counts; then it
    starts again without a ttl.
    """
    clock = FakeClock()
    store = open_store(clock=clock)
    store.set("hits", 0, ttl=10)
    clock.advance(9)
    assert store.update("hits", lambda n: n + 1) == 1
    assert store.ttl("hits") == 1
    clock.advance(1)
    with pytest.raises(MissingKeyError):
        store.update("hits", lambda n: n + 1)
    assert store.update("hits", lambda n: n + 1, default=100) == 101
    assert store.ttl("hits") is None


@pytest.mark.parametrize(
    ("ttl", "left"), [(60, 60), (0.5, 0.5), ("5m", 300), ("500ms", 0.5), (timedelta(hours=1), 3600)]
)
def test_a_ttl_may_be_written_in_several_ways(ttl: Any, left: float) -> None:
    """Seconds, text with units, a timedelta."""
    store = SyncStore(clock=FakeClock())
    store.set("k", 1, ttl=ttl)
    assert store.ttl("k") == left


@pytest.mark.parametrize(
    "ttl", [0, -1, 0.0, float("nan"), float("inf"), "0s", "", "soon", "5", True, timedelta(0), [5]]
)
def test_an_invalid_ttl_is_refused(ttl: Any) -> None:
    """Including 0 and below: nothing is stored, and the message says what is allowed."""
    store = SyncStore()
    for write in (lambda: store.set("k", 1, ttl=ttl), lambda: store.set_many({"k": 1}, ttl=ttl)):
        with pytest.raises(ConfigError, match="give seconds above 0"):
            write()
    assert not store.has("k")


# ------------------------------------------------------------ update
def test_update_returns_the_new_value(open_store: Open) -> None:
    """From the default if there is no entry; without a default that is an error with the key, and nothing is stored."""
    store = open_store()
    assert store.update("n", lambda n: n + 1, default=0) == 1
    assert store.update("n", lambda n: n + 1, default=0) == 2
    assert store.update("n", lambda n: n + 1) == 3
    with pytest.raises(MissingKeyError, match="nothing at 'm' to update; give a default"):
        store.scope("s").update("m", lambda n: n + 1)
    assert store.get_many(["n", "s:m"]) == {"n": 3}


def test_a_failing_update_changes_nothing(open_store: Open) -> None:
    """The caller gets the function's exception; a value that the function changed in place is unchanged in the store."""
    store = open_store()
    store.set("items", [1])
    error = RuntimeError("no")

    def spoil(items: list[int]) -> list[int]:
        items.append(2)
        raise error

    with pytest.raises(RuntimeError) as caught:
        store.update("items", spoil)
    assert caught.value is error
    assert store.get("items") == [1]
    with pytest.raises(RuntimeError):  # StopIteration may not leave a coroutine, nor be taken for its end
        store.update("items", lambda items: next(iter(())))
    assert store.update("items", len) == 1


def test_an_update_works_on_a_copy(open_store: Open) -> None:
    """A function that changes its argument in place, the default too, changes no other caller's object."""
    store = open_store()
    store.set("items", {"list": [1]})
    held = store.get("items")
    default: list[int] = []

    def grow(items: dict[str, list[int]]) -> dict[str, list[int]]:
        items["list"].append(2)
        return items

    assert store.update("items", grow) == {"list": [1, 2]}
    assert held == {"list": [1]}
    store.update("new", lambda items: items.append(1) or items, default=default)
    assert default == []
    assert store.get_many(["items", "new"]) == {"items": {"list": [1, 2]}, "new": [1]}


# ------------------------------------------------------------ failures never look like misses
OPERATIONS: dict[str, Callable[[Any], Any]] = {
    "get": lambda store: store.get("a"),
    "get with default": lambda store: store.get("a", MISSING),
    "has": lambda store: store.has("a"),
    "require": lambda store: store.require("a"),
    "get_many": lambda store: store.get_many(["a", "b"]),
    "keys": lambda store: list(store.keys()),
    "ttl": lambda store: store.ttl("a"),
    "set": lambda store: store.set("a", 2),
    "set_many": lambda store: store.set_many({"a": 2, "b": 2}),
    "update": lambda store: store.update("a", lambda n: n + 1, default=0),
    "delete": lambda store: store.delete("a"),
    "delete_many": lambda store: store.delete_many(["a"]),
    "typed get": lambda store: store.typed(int).get("a"),
    "typed update": lambda store: store.typed(int).update("a", lambda n: n + 1, default=0),
    "scoped get": lambda store: store.scope("s").get("a"),
    "transaction that reads": lambda store: in_transaction(store, lambda tx: tx.get("a")),
    "transaction that writes": lambda store: in_transaction(store, lambda tx: tx.set("a", 2)),
    "transaction that scans": lambda store: in_transaction(store, lambda tx: list(tx.keys())),
    "transaction that only checks": lambda store: in_transaction(store, lambda tx: tx.get_many(["a", "b"])),
}


def in_transaction(store: Any, use: Callable[[Any], object]) -> None:
    with store.transaction() as tx:
        use(tx)


class Failing(Layer):
    """Fails as a lost connection would, when it is told to."""

    error: list[Exception]
    inline_read = inline_write = True

    async def read(self, key: str) -> Entry | None:
        self._fail()
        return await self.inner.read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        self._fail()
        return await self.inner.write(changes, expect)

    def scan(self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None) -> Any:
        self._fail()
        return self.inner.scan(prefix, after=after, reverse=reverse, limit=limit)

    def _fail(self) -> None:
        for error in self.error:
            raise error


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
def test_a_failing_backend_is_an_error_not_a_miss(open_store: Open, operation: Callable[[Any], Any]) -> None:
    """In every operation the caller gets the backend's error; the Go original answered "not there"."""
    errors: list[Exception] = []
    store = open_store(layers=[Failing(error=errors)])
    store.set_many({"a": 1, "b": 1})
    errors.append(ConnectionError("lost"))
    with pytest.raises(ConnectionError) as caught:
        operation(store)
    assert caught.value is errors[0]
    errors.clear()
    assert store.get_many(["a", "b"]) == {"a": 1, "b": 1}
    assert store.update("a", lambda n: n + 1) == 2  # no caller still waits for the key


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS.keys())
@pytest.mark.parametrize("kind", [Memory, FaultyMemory])
def test_after_close_every_operation_raises(kind: Callable[[], Backend], operation: Callable[[Any], Any]) -> None:
    """StoreClosedError at once, never an answer that looks like a missing entry; closing again is allowed."""
    with SyncStore(kind()) as store:
        store.set("a", 1)
    with pytest.raises(StoreClosedError):
        operation(store)
    store.close()
    with pytest.raises(StoreClosedError):
        operation(store)


def test_a_closed_store_may_be_opened_again(open_store: Open) -> None:
    """Memory is then empty, since its entries were dropped at the close."""
    with SyncStore() as store:
        store.set("a", 1)
    with store:
        assert store.get("a") is None
        store.set("a", 2)
        assert store.get("a") == 2


@pytest.mark.parametrize("mode", [None, "through", "behind"])
def test_threads_may_open_and_close_a_store_at_once(mode: Any, tmp_path: Path) -> None:
    """Each gets at most StoreClosedError; acknowledged writes stay, and the store can be opened again."""
    file = f"sqlite:///{tmp_path}/state.db?durability=process"
    store = SyncStore(layers=[Persistence(to=file, mode=mode)]) if mode else SyncStore(file)

    def at_once(step: Callable[[], object]) -> None:
        with hasty_threads(), ThreadPoolExecutor(4) as threads:
            for outcome in [threads.submit(step) for _ in range(4)]:
                outcome.result(timeout=30)

    def open_and_close() -> None:
        for _ in range(5):
            store.__enter__()
            with suppress(StoreClosedError):
                store.set("b", 1)
            store.close()

    for turn in range(5):
        at_once(store.__enter__)
        store.set("a", turn)
        at_once(store.close)
    at_once(open_and_close)
    with store:
        assert store.get("a") == turn
        assert store.get("b") == 1


# ------------------------------------------------------------ no operation bypasses a layer
class Rot(Layer):
    """Encrypts values: overrides nothing but `read` and `write`."""

    inline_read = inline_write = True

    async def read(self, key: str) -> Entry | None:
        entry = await self.inner.read(key)
        return entry and Entry(turned(entry.value), entry.version, entry.expires_at)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        turned_changes = [
            Put(c.key, turned(c.value), c.expires_at, c.version) if isinstance(c, Put) else c for c in changes
        ]
        return await self.inner.write(turned_changes, expect)


def turned(text: str) -> str:
    return "".join(chr(ord(letter) ^ 1) for letter in text)


def test_an_encrypting_layer_leaks_nothing(open_store: Open) -> None:
    """No operation passes plain text to the backend, and everything is decrypted when it is read through the layer."""
    store = open_store(layers=[Rot()])
    plain = "secret"
    store.set("set", plain)
    store.set_many({"many:1": plain, "many:2": plain})
    store.update("updated", lambda text: text, default=plain)
    store.update("updated", lambda text: text + plain)
    store.typed(str).set("typed", plain)
    store.scope("scope").set("k", plain, ttl=60)
    with store.transaction() as tx:
        tx.set("tx", plain)
        tx.update("updated", lambda text: text + plain)
        assert tx.get("updated") == 3 * plain
    names = list(store.keys())
    assert store.get_many(names) == dict.fromkeys(names, plain) | {"updated": 3 * plain}
    assert all(store.get(name) == store.require(name) for name in names)
    below = store.place[0].inner.inner

    async def stored() -> list[str]:
        return [entry.value for entry in (await below.read_many(names)).values()]

    found = run_like(store, stored())
    assert len(found) == len(names) == 7
    assert not [text for text in found if plain in text]


# ------------------------------------------------------------ creating a store
@pytest.mark.parametrize("backend", [Path("state.db"), None, 7, Memory, Bounding(max_entries=1), {"url": "memory://"}])
def test_anything_but_a_backend_is_refused(backend: Any) -> None:
    """A path, a class, a layer's recipe: the error shows it and the way out."""
    for kind in (Store, SyncStore):
        with pytest.raises(ConfigError, match=r"a store's backend can't be .*; give a URL"):
            kind(backend)


@pytest.mark.parametrize("layers", ["tracing", Bounding(max_entries=1)])
def test_layers_must_be_a_list(layers: Any) -> None:
    """A single name would be read letter by letter."""
    with pytest.raises(ConfigError, match=r"layers is .*; give a list: layers=\["):
        Store(layers=layers)


def test_a_sync_store_over_a_store_accepts_no_layers() -> None:
    """Layers and a clock, which would be ignored, are refused."""
    store = Store()
    SyncStore(store).set("a", 1)
    assert store.sync.scope("s").place == (store.stack, "s:")
    assert store.scope("s").sync.place == (store.stack, "s:")
    assert store.sync.get("a") == 1
    for options in ({"layers": [Bounding(max_entries=1)]}, {"clock": FakeClock()}):
        with pytest.raises(ConfigError, match="give them to the Store"):
            SyncStore(store, **options)  # type: ignore[arg-type]


def test_a_store_shows_its_stack() -> None:
    """`repr` has the layers, outermost first, and the scope."""
    store = Store(layers=[Rot(), Bounding(max_entries=5)])
    assert repr(store) == "Store(Rot() > Bounding(max_entries=5) > memory)"
    assert repr(store.reader().scope("a").scope("b")) == f"StoreReader({store.stack!r}, scope='a:b')"
    plain = SyncStore()
    assert repr(plain.typed(list[int])) == "SyncTypedStore(TypedStore(StoreWriter(memory), list[int]))"
    with plain.transaction() as tx:
        assert repr(tx.scope("a")) == "SyncWriter(Transaction(memory), scope='a')"


def test_memory_needs_no_opening() -> None:
    """`Store()` and `SyncStore()` work at once, and `async with` closes."""

    async def main() -> None:
        store = Store()
        await store.set("a", 1)
        async with store:
            assert await store.get("a") == 1
            await store.flush()
        with pytest.raises(StoreClosedError):
            await store.get("a")

    asyncio.run(main())


# ---------------------------------------------------------------- scopes don't own the store
def test_a_scope_neither_opens_nor_closes_the_store(tmp_path: Path) -> None:
    """It has no `with` and no `close`, sync or not: it would close a store that others use."""
    with SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        part: Any = store.scope("user")
        with pytest.raises(TypeError, match="SyncScope"), part:
            pass
        assert not hasattr(part, "close")
        with pytest.raises(ConfigError, match=r"scope\.sync"):
            SyncStore(Store().scope("user"))  # type: ignore[arg-type]
        store.set("a", 1)
        assert store.get("a") == 1

    async def with_await() -> None:
        store = Store()
        part: Any = store.scope("user")
        with pytest.raises(TypeError, match="StoreScope"):
            async with part:
                pass
        assert not hasattr(part, "open")
        assert not hasattr(part.sync, "close")
        assert not hasattr(part.scope("admin"), "close")

    asyncio.run(with_await())


def test_a_scope_has_all_other_operations(tmp_path: Path) -> None:
    """Transactions, readers, its own sync view, flush, and a graph over it, all within its prefix."""

    @node.post
    def keep(store: SyncWriter, n: int) -> int:
        store.set("kept", n)
        return n

    async def with_await() -> None:
        store = Store()
        part = store.scope("user").scope("admin")
        async with part.transaction() as tx:
            await tx.set("a", 1)
        await part.flush()
        assert part.sync.get("a") == await part.reader().get("a") == await store.get("user:admin:a") == 1
        with part.sync.transaction() as tx_sync:
            tx_sync.set("a", 2)
        assert await part.get("a") == 2
        assert part.stack is store.stack
        assert await Graph(keep, store=part).run(7) == 7
        assert Graph(keep, store=part.sync, scope="more").run_sync(8) == 8
        assert [name async for name in store.keys()] == ["user:admin:a", "user:admin:kept", "user:admin:more:kept"]

    asyncio.run(with_await())


@pytest.mark.parametrize("prefix", ["\ud800", "user:\udcff", 5, None, Key("user:{}")], ids=ascii)
def test_a_prefix_that_no_name_can_have_is_refused(open_store: Open, prefix: Any) -> None:
    """`keys` with a lone surrogate or with no string is a KeyNameError on every stack, as for `get`."""
    store = open_store()
    with pytest.raises(KeyNameError, match=r"prefix of names must be a string|lone surrogate"):
        list(store.keys(prefix))
    assert list(store.keys("")) == []


# ---------------------------------------------------------------- a forgotten return
@dataclass
class Cart:
    items: list[str]


@dataclass(frozen=True)
class Price:
    amount: int


CART = Key("cart", Cart | None)
PRICE = Key("price", Price)
IN_PLACE: list[tuple[Any, Callable[[Any], Any]]] = [
    ([1], lambda items: items.append(2)),
    ([], lambda items: items.append(2)),
    ({"a": 1}, lambda table: table.update(b=2)),
    ({1}, lambda members: members.add(2)),
    (bytearray(b"a"), lambda data: data.extend(b"b")),
    (Cart(["a"]), lambda cart: cart.items.append("b")),
    (([1], 2), lambda pair: pair[0].append(2)),
]


@pytest.mark.parametrize(("value", "fn"), IN_PLACE, ids=[type(value).__name__ for value, _ in IN_PLACE])
@pytest.mark.parametrize("there", [True, False], ids=["there", "default"])
def test_an_update_that_forgets_to_return_is_refused(open_store: Open, value: Any, fn: Any, there: bool) -> None:
    """None in place of a value that can be changed in place: the error says what to do, and the value is unchanged."""
    store = open_store()
    if there:
        store.set("k", value)
    with pytest.raises(
        ValueTypeError, match=rf"'k': .* returned None in place of a {type(value).__name__}.*must return"
    ):
        store.update("k", fn, default=copy.deepcopy(value))
    assert store.get("k") == (value if there else None)
    with store.transaction() as tx, pytest.raises(ValueTypeError, match="returned None"):
        tx.update("k", fn, default=copy.deepcopy(value))


def test_an_update_by_an_async_function_is_refused(open_store: Open) -> None:
    """Its result is a coroutine, which a store in memory would keep as the value."""

    async def more(number: int) -> int:
        return number + 1

    store = open_store()
    store.set("k", 1)
    for key in ("k", Key("k"), Key("k", int)):
        with pytest.raises(ValueTypeError, match="'k': the function is `async def`; write `def`"):
            store.update(key, more, default=0)
    assert store.get("k") == 1


def test_an_update_may_return_none(open_store: Open) -> None:
    """If the old value can't be changed in place, or if the type of the Key or of the typed view includes None."""
    store = open_store()
    for value in (None, 5, "text", (1, 2), Price(5)):
        store.set("k", value)
        assert store.update("k", lambda value: None) is None
        assert store.get("k", MISSING) is None
    store.set(CART, Cart(["a"]))
    assert store.update(CART, lambda value: None, default=None) is None
    untyped: Any = Key("untyped")
    store.set(untyped, [1])
    with pytest.raises(ValueTypeError, match="returned None in place of a list"):
        store.update(untyped, lambda items: items.append(2), default=[])
    store.set("cart", Cart(["a"]))
    assert store.typed(Cart | None).update("cart", lambda value: None, default=None) is None
    store.set("cart", Cart(["a"]))
    with pytest.raises(ValueTypeError, match="cart"):
        store.typed(Cart).update("cart", lambda cart: cart.items.append("b"), default=Cart([]))
    assert store.get("cart") == Cart(["a"])
