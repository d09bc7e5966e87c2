"""What type checkers infer for `mapping` and `cached`. Nothing here runs: mypy and pyright, both strict, are the test."""

# What follows from an error is left out: that its result is of an unknown type.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false
from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, assert_type

from pocket_plug import Key, Store, SyncReader, SyncStore, SyncWriter
from pocket_plug.store.mapping import StoreMapping

AGE = Key("age:{}", int)
REPORT = Key("report:{region}", str)


def wants_a_dict(ages: MutableMapping[str, int]) -> None: ...


def mappings(store: SyncStore, writer: SyncWriter, reader: SyncReader) -> None:
    ages = store.mapping(AGE)
    wants_a_dict(ages)
    wants_a_dict(store.scope("ages").typed(int).mapping())
    assert_type(ages, StoreMapping[int])
    assert_type(ages["a"], int)
    assert_type(ages.get("a"), int | None)
    assert_type(ages.get("a", 0), int)
    assert_type(ages.get("a", "none"), int | str)
    assert_type(ages.pop("a", None), int | None)
    assert_type(ages.popitem(), tuple[str, int])
    assert_type(list(ages.items()), list[tuple[str, int]])
    assert_type(ages | {"a": 1}, dict[str, int])
    ages |= {"a": 1}
    ages.update(a=1)
    assert_type(writer.mapping(), StoreMapping[Any])
    assert_type(Store().mapping(AGE), StoreMapping[int])
    assert_type(Store().typed(int).mapping(), StoreMapping[int])
    ages["a"] = "1"  # type: ignore[assignment]  # pyright: ignore[reportArgumentType]
    ages.update(a="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(reader.mapping)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def functions(store: Store, sync: SyncStore) -> None:
    @store.cached(REPORT, ttl="5m", ignore=("limit",))
    async def report(region: str, *, limit: int = 10) -> str:
        return region

    assert_type(await report("eu", limit=5), str)
    assert_type(await report.invalidate(region="eu"), bool)

    @sync.scope("a").cached("square:{n}")
    def square(n: int) -> int:
        return n * n

    assert_type(square(3), int)
    assert_type(square.invalidate(3), bool)

    @sync.typed(int).cached("cube:{n}")
    def cube(n: int) -> int:
        return n**3

    @store.typed(int).cached("root:{n}")
    async def root(n: int) -> int:
        return n

    assert_type(cube(3), int)
    assert_type(await root(4), int)
    await report(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    report.invalidate("eu")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    square.invalidate("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    class Shop:
        @store.cached("price:{item}", ignore=("self",))
        def price(self, item: str) -> int:
            return len(item)

        @store.cached(REPORT, ignore=("self",))
        async def report(self, region: str) -> str:
            return region

    assert_type(Shop().price("shoe"), int)
    assert_type(await Shop().report(region="eu"), str)
    assert_type(Shop.price.invalidate(Shop(), "shoe"), bool)
    Shop().price(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Shop().price.invalidate("shoe")  # type: ignore[attr-defined]  # pyright: ignore[reportFunctionMemberAccess]

    def wrong(region: str) -> int:
        return len(region)

    store.cached(REPORT)(wrong)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
