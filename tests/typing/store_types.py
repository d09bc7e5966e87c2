"""What type checkers infer for stores and keys. Nothing here runs: mypy and pyright, both strict, are the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from enum import Enum
from typing import Any, Literal, assert_type

from pocket_plug import (
    MISSING,
    Backend,
    Entry,
    Key,
    Layer,
    Memory,
    Store,
    StoredValue,
    StoreReader,
    StoreScope,
    StoreWriter,
    SyncReader,
    SyncScope,
    SyncStore,
    SyncWriter,
    TypedReader,
    TypedStore,
    join_name,
    register_type,
    secret,
    split_name,
)
from pocket_plug.layers import Bounding, Metrics, Persistence
from pocket_plug.store.typed import SyncTypedReader, SyncTypedStore


@dataclass(frozen=True)
class User:
    id: str


@register_type(tag="ours.Team", version=2, upgrade={1: lambda fields: fields})
@dataclass
class Team:
    lead: User


@register_type
@dataclass
class Member:
    user: User


class Colour(Enum):
    RED = 1


AGE = Key("age", int)
USER = Key("user:{}", User)
FRIENDS = Key("user:{}:friends", list[User])
ANYTHING = Key("anything:{}")
LIMIT = Key("limit", int | None)
MODE = Key("mode", Literal["fast", "safe"])


def keys(unknown: Any) -> None:
    assert_type(AGE, Key[int])
    assert_type(USER, Key[User])
    assert_type(USER(7), Key[User])
    assert_type(FRIENDS("7"), Key[list[User]])
    assert_type(ANYTHING(Colour.RED), Key[Any])
    assert_type(LIMIT, Key[int | None])
    assert_type(MODE, Key[Literal["fast", "safe"]])
    assert_type(Key("untyped", None), Key[Any])
    assert_type(str(AGE), str)
    assert_type(USER.matches("user:7"), bool)
    assert_type(USER.parse("user:7"), Key[User] | None)
    assert_type(USER.checked(unknown), User)
    assert_type(USER(date(2024, 2, 29)), Key[User])
    assert_type(join_name("user", 7, Colour.RED), str)
    assert_type(split_name("user:7"), tuple[str, ...])


async def many(store: Store, sync: SyncStore) -> None:
    assert_type(await store.get_many([USER(1), USER(2)]), dict[str, User])
    several: dict[str, int | User] = await store.get_many([AGE, USER(1)])
    print(several)
    assert_type(await store.get_many(["a", "b"]), dict[str, Any])
    assert_type(await store.get_many(["a", AGE]), dict[str, Any])
    assert_type(await store.get_many([ANYTHING(1)]), dict[str, Any])
    assert_type(sync.get_many(USER(n) for n in range(3)), dict[str, User])
    assert_type(sync.get_many({"a"}), dict[str, Any])


async def unions(store: Store, sync: SyncStore) -> None:
    await store.set(LIMIT, None)
    await store.set(LIMIT, 5)
    assert_type(await store.require(LIMIT), int | None)
    assert_type(await store.update(LIMIT, lambda limit: (limit or 0) + 1, default=None), int | None)
    assert_type(store.typed(int | str), TypedStore[int | str])
    assert_type(sync.typed(User | None), SyncTypedStore[User | None])
    assert_type(sync.reader().typed(User | None), SyncTypedReader[User | None])


async def get(store: Store, reader: StoreReader, writer: StoreWriter) -> None:
    assert_type(await store.get(AGE), int | None)
    assert_type(await store.get(AGE, 0), int)
    assert_type(await store.get(AGE, default=0), int)
    assert_type(await store.get(AGE, "unknown"), int | str)
    assert_type(await store.get(FRIENDS(1), []), list[User])
    assert_type(await reader.get(USER(1)), User | None)
    assert_type(await writer.get(USER(1), User("nobody")), User)
    assert_type(await store.get("age"), Any)
    assert_type(await store.get("age", 0), Any)
    assert_type(await store.get(ANYTHING(1)), Any | None)

    found = await store.get(USER(1), MISSING)
    if found is not MISSING:
        assert_type(found, User)


def registered() -> None:
    assert_type(Team(User("1")).lead, User)
    assert_type(Member(User("1")).user, User)
    assert_type(register_type(User, encode=lambda user: user.id, decode=User), type[User])


async def other_reads(store: Store, reader: StoreReader) -> None:
    assert_type(await store.require(USER(1)), User)
    assert_type(await reader.require("user:1"), Any)
    assert_type(await reader.has(USER(1)), bool)
    assert_type(await reader.get_many([AGE, USER(1), "name"]), dict[str, Any])
    assert_type([name async for name in reader.keys("user:")], list[str])
    assert_type([name async for name in reader.keys(after=USER(1), reverse=True, limit=10)], list[str])
    assert_type([pair async for pair in reader.items("user:", after="user:1", limit=10)], list[tuple[str, Any]])
    assert_type(await reader.count("user:"), int)
    assert_type(await reader.entry(USER(1)), StoredValue[User] | None)
    assert_type(await reader.entry("user:1"), StoredValue[Any] | None)
    if (entry := await store.entry(AGE)) is not None:
        assert_type(entry.value, int)
        assert_type(entry.version, int)
        assert_type(entry.expires_at, float | None)
    assert_type(await reader.ttl(USER(1)), float | None)


async def writes(store: Store, writer: StoreWriter) -> None:
    await store.set(AGE, 7)
    await store.set(AGE, True)  # a bool is an int
    await store.set("age", 7, ttl=60)
    await writer.set(USER(1), User("1"), ttl=timedelta(hours=1))
    await writer.set_many({AGE: 7, "name": "Alice"}, ttl="5m")
    assert_type(await writer.delete(AGE), bool)
    assert_type(await writer.delete_many([AGE, "name"]), int)
    assert_type(await writer.delete_prefix("user:"), int)
    await writer.set(AGE, 8, expect=0)
    assert_type(await writer.add(AGE, 7, ttl="1h"), bool)
    assert_type(await writer.touch(AGE, ttl=None), bool)
    assert_type(await writer.pop(AGE), int)
    assert_type(await writer.pop(AGE, 0), int)
    assert_type(await writer.pop(AGE, None), int | None)
    assert_type(await writer.pop("age"), Any)
    assert_type(await writer.pop("age", 0), Any)
    assert_type(await store.update(AGE, lambda age: age + 1, default=0, ttl=5), int)
    assert_type(await store.update(AGE, lambda age: age + 1, default=0), int)
    assert_type(await store.update(AGE, lambda age: age + 1), int)
    assert_type(await writer.append(FRIENDS(1), User("2")), int)
    assert_type(await writer.append("log", {"any": "value"}), int)
    assert_type(await writer.tail(FRIENDS(1), 3), list[User])
    assert_type(await writer.tail("log", 3), list[Any])
    assert_type(await writer.tail(ANYTHING(1), 3), list[Any])
    assert_type(writer.each_item(FRIENDS(1)), AsyncIterator[User])
    assert_type([friend async for friend in writer.each_item(FRIENDS(1))], list[User])
    assert_type(await writer.length(FRIENDS(1)), int)
    assert_type(await writer.trim(FRIENDS(1), keep=3), int)
    assert_type(await writer.typed(User).tail("log", 3), list[User])
    assert_type(writer.typed(User).each_item("log"), AsyncIterator[User])
    assert_type(await writer.update(FRIENDS(1), lambda friends: [*friends, User("2")], default=[]), list[User])
    assert_type(await writer.update("age", lambda age: age + 1, default=0), Any)
    await writer.update("age", lambda age: age + 1)


def takes(number: float | None) -> None: ...


async def wider_than_the_key(store: Store, sync: SyncStore) -> None:
    """A value that is read at a key may be used where a wider type is expected."""
    print(await store.require(AGE), await store.get(AGE, 0), await store.update(AGE, lambda age: age + 1, default=0))
    print(f"{await store.require(AGE)} {sync.require(AGE)}")
    takes(await store.get(AGE))
    takes(await store.require(AGE))
    takes(await store.get(AGE, 0))
    takes(await store.update(AGE, lambda age: age + 1, default=0))
    takes(sync.get(AGE, 0))
    takes(sync.update(AGE, lambda age: age + 1, default=0))
    number: float = await store.get(AGE, 0.5)
    takes(number)


async def views(store: Store, reader: StoreReader, writer: StoreWriter) -> None:
    assert_type(store.scope("user"), StoreScope)
    assert_type(store.scope(ANYTHING("a:b")).scope("c"), StoreScope)
    assert_type(store.scope("user").reader(), StoreReader)
    assert_type(store.scope("user").sync, SyncScope)
    async with store.scope("user").transaction() as part:
        assert_type(part, StoreWriter)
    assert_type(reader.scope("user"), StoreReader)
    assert_type(writer.scope("user"), StoreWriter)
    assert_type(store.reader(), StoreReader)
    assert_type(store.sync, SyncStore)
    async with store.transaction() as transaction:
        assert_type(transaction, StoreWriter)
        assert_type(await transaction.get(AGE, 0), int)
    async with Store("sqlite:///users.db") as opened:
        assert_type(opened, Store)


async def typed(store: Store, reader: StoreReader, writer: StoreWriter) -> None:
    users = store.typed(User)
    assert_type(users, TypedStore[User])
    assert_type(writer.typed(User), TypedStore[User])
    assert_type(reader.typed(User), TypedReader[User])
    assert_type(await users.get("1"), User | None)
    assert_type(await users.get("1", User("nobody")), User)
    assert_type(await users.get("1", "nobody"), User | str)
    assert_type(await users.require("1"), User)
    assert_type(await users.update("1", lambda user: user, default=User("1")), User)
    assert_type(await users.update("1", lambda user: user), User)
    assert_type(await users.delete("1"), bool)
    await users.set("1", User("1"), ttl=60, expect=3)
    assert_type(await users.add("1", User("1")), bool)
    assert_type(await users.pop("1"), User)
    assert_type(await users.pop("1", None), User | None)
    assert_type(await users.touch("1", ttl="1h"), bool)
    assert_type(await users.entry("1"), StoredValue[User] | None)
    assert_type([pair async for pair in users.items()], list[tuple[str, User]])
    assert_type([name async for name in reader.typed(User).keys()], list[str])
    assert_type(await users.count("1"), int)
    assert_type(await users.delete_many(["1"]), int)
    assert_type(await users.delete_prefix("1"), int)


def sync(store: SyncStore, reader: SyncReader, writer: SyncWriter) -> None:
    assert_type(store.get(AGE), int | None)
    assert_type(store.get(AGE, 0), int)
    assert_type(reader.get(AGE, "unknown"), int | str)
    assert_type(writer.get("age"), Any)
    assert_type(reader.require(USER(1)), User)
    assert_type(reader.require("age"), Any)
    assert_type(reader.has(AGE), bool)
    assert_type(reader.get_many([AGE]), dict[str, int])
    assert_type(list(reader.keys()), list[str])
    assert_type(reader.ttl(AGE), float | None)
    assert_type(list(reader.items("user:", after="user:1", limit=10)), list[tuple[str, Any]])
    assert_type(reader.count(), int)
    assert_type(reader.entry(USER(1)), StoredValue[User] | None)
    assert_type(writer.pop(AGE), int)
    assert_type(writer.pop(AGE, None), int | None)
    assert_type(writer.add(AGE, 7), bool)
    assert_type(writer.touch(AGE, ttl=5), bool)
    assert_type(writer.delete_many([AGE]), int)
    assert_type(writer.delete_prefix(""), int)
    writer.set(AGE, 7, expect=0)
    writer.set(AGE, 7, ttl="5m")
    writer.set("age", 7)
    writer.set_many({AGE: 7})
    assert_type(writer.delete(AGE), bool)
    assert_type(writer.update(AGE, lambda age: age + 1, default=0), int)
    assert_type(writer.update(AGE, lambda age: age + 1), int)
    assert_type(writer.typed(User).update("1", lambda user: user), User)
    assert_type(writer.update("age", lambda age: age + 1), Any)
    assert_type(store.scope("user"), SyncScope)
    assert_type(store.scope("user").scope("c"), SyncScope)
    with store.scope("user").transaction() as part:
        assert_type(part, SyncWriter)
    assert_type(reader.scope("user"), SyncReader)
    assert_type(writer.scope("user"), SyncWriter)
    assert_type(store.reader(), SyncReader)
    assert_type(reader.typed(User), SyncTypedReader[User])
    assert_type(store.typed(User), SyncTypedStore[User])
    assert_type(store.append(FRIENDS(1), User("2"), ttl="1h"), int)
    assert_type(store.tail(FRIENDS(1), 3), list[User])
    assert_type(store.each_item(FRIENDS(1)), Iterator[User])
    assert_type(store.typed(User).tail("log", 3), list[User])
    assert_type(store.typed(User).get("1"), User | None)
    assert_type(store.typed(User).get("1", "nobody"), User | str)
    assert_type(store.typed(User).require("1"), User)
    assert_type(store.typed(User).entry("1"), StoredValue[User] | None)
    assert_type(list(store.typed(User).items(limit=3)), list[tuple[str, User]])
    assert_type(store.typed(User).pop("1", None), User | None)
    assert_type(store.typed(User).update("1", lambda user: user, default=User("1")), User)
    with store.transaction() as transaction:
        assert_type(transaction, SyncWriter)
    with SyncStore("sqlite:///users.db") as opened:
        assert_type(opened, SyncStore)


class Slow(Layer):
    """A layer's annotated fields are its keyword-only options."""

    seconds: float = 0.1

    async def read(self, key: str) -> Entry | None:
        assert_type(self.inner, Backend)
        return await self.inner.read(key)


class Sealing(Layer):
    """A secret option is one as any other, required unless it has a default."""

    key: str = secret()
    salt: bytes = secret(default=b"")


def stacks(names: list[str], mixed: list[str | Layer]) -> None:
    def tell(key: str, value: Any, reason: str) -> None: ...
    async def tell_slowly(key: str, value: Any, reason: str) -> None: ...

    Store()
    Store(Memory(), layers=[Slow(seconds=2), Metrics(), Bounding(max_entries=10, ttl="5m", on_evict=tell)])
    Store("sqlite:///users.db", layers=["tracing", "metrics"])
    Store(layers=["tracing", Bounding(max_bytes=1_000, on_evict=tell_slowly)])
    Store(layers=names)
    Store(layers=mixed)
    Store(layers={"tracing", "metrics"}, clock=lambda: 0.0)
    Store(layers=[Persistence(to="sqlite:///users.db"), Bounding(ttl=timedelta(hours=1))])
    SyncStore(Store())
    SyncStore(layers=["metrics", Slow(), Sealing(key="k"), Sealing(key="k", salt=b"s")])
    assert_type(Sealing(key="k").salt, bytes)
