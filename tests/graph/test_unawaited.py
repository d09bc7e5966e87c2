"""A store's method that a phase calls without await is found before the first run: otherwise its write would be lost silently."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from pocket_plug.errors import GraphError
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.awaits import unawaited_calls
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.store.store import StoreWriter
from pocket_plug.store.typed import TypedStore


async def plain(store: Any, x: int) -> int:
    store.set("a", x)
    return x


async def scoped(store: Any, x: int) -> int:
    if x:
        store.scope("user").set("a", x, ttl="5m")
    return x


async def typed(store: Any, x: int) -> int:
    for _ in range(x):
        store.typed(int).update("a", lambda n: store.place and n + 1, default=0)
    return x


async def called_with_a_list(store: Any, x: int) -> int:
    try:
        store.set_many(*[{"a": x}])
    finally:
        await store.delete("b")
    return x


@pytest.mark.parametrize(
    ("function", "call"),
    [(plain, "store.set"), (scoped, "store.scope(…).set"), (typed, "store.typed(…).update"),
     (called_with_a_list, "store.set_many")],
    ids=lambda given: getattr(given, "__name__", ""),
)  # fmt: skip
def test_a_write_that_is_not_awaited_is_a_finding(function: Any, call: str) -> None:
    """It names the node, the phase, the call and its line; no run starts, so no write is lost."""
    with pytest.raises(GraphError) as error:
        Graph(node.post(function), name="g").validate()
    (found,) = error.value.findings
    lines, first = inspect.getsourcelines(function)
    line = next(number for number, text in enumerate(lines, first) if call.partition("(")[0] in text)
    assert found == (
        f"post of {function.__name__!r} calls {call}(…) without `await` in line {line}, so nothing is done there"
    )


def test_methods_and_hooks_are_checked_too() -> None:
    """The store is the first parameter after `self`, whatever its name."""

    class Charge(Node[int, int]):
        async def prep(self, db: Any, n: int) -> int:
            db.get("a")
            return n

        async def on_success(self, s: Any, output: int) -> None:
            s.append("log", output)

    with pytest.raises(GraphError) as error:
        Graph(Charge()).validate()
    calls = [found.partition(" without ")[0] for found in error.value.findings]
    assert calls == ["Charge.prep calls db.get(…)", "Charge.on_success calls s.append(…)"]


async def all_is_well(store: Any, x: int) -> int:
    await store.set("a", x)
    later = store.set("b", x)
    store.mapping().update({"c": x})
    x += await store.get("a")
    store.scope("d")
    await later
    return x


async def another_store(store: Any, x: int) -> int:
    store = [store]
    store.pop()
    return x


async def of_another(store: Any, x: Any) -> Any:
    x.set("a")
    x.update(store.place)
    return x


@pytest.mark.parametrize("function", [all_is_well, another_store, of_another, print, len, str.join])
def test_other_calls_are_accepted(function: Any) -> None:
    """A coroutine that is assigned, a view that isn't async, a variable of the same name, and functions without Python code."""
    assert unawaited_calls(function) == []


def test_a_typed_view_has_the_same_async_methods_as_a_store() -> None:
    """Otherwise the check would misjudge calls of a view."""
    awaited = {name for name, _ in inspect.getmembers(StoreWriter, inspect.iscoroutinefunction)}
    plain = {name for name, _ in inspect.getmembers(TypedStore, inspect.isfunction)} & awaited
    assert all(inspect.iscoroutinefunction(getattr(TypedStore, name)) for name in plain)
    assert "set" in plain
