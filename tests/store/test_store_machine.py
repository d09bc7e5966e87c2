"""A store against a model: after any operations in any order, on several stacks, it equals a dict with deadlines."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pocket_plug import MISSING, Backend, Change, ConflictError, Entry, Layer, Memory, MissingKeyError, Store
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.layers.bounding import Bounding
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.layer_contract import FaultyMemory

NAMES = ["a", "b", "a:b", "a:a", "%", "é"]
names = st.sampled_from(NAMES)
scopes = st.sampled_from(["", "a", "a:b"])
values = st.one_of(st.integers(), st.none(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
ttls = st.sampled_from([0.5, 1, 2, 5])


class Passing(Layer):
    """Overrides every operation, and changes nothing."""

    inline_read = inline_write = True

    async def read(self, key: str) -> Entry | None:
        return await self.inner.read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = {}) -> int:
        return await self.inner.write(changes, expect)

    async def scan(self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None) -> Any:
        async for key in self.inner.scan(prefix, after=after, reverse=reverse, limit=limit):
            yield key


class Aside(FaultyMemory):
    """Another class than Memory, so bounding has an index over it."""


class StoreMachine(RuleBasedStateMachine):
    """The store under test, used with `await` and, if its stack needs no loop, without; and the model beside it."""

    backend: Callable[[Path], Backend]
    layers: Sequence[Layer] = ()

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.run = self.runner.run
        self.clock = FakeClock()
        self.store = Store(type(self).backend(Path(self.folder.name)), layers=self.layers, clock=self.clock)
        self.run(self.store.open())
        self.model: dict[str, tuple[Any, float | None]] = {}

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()
        self.folder.cleanup()

    # ------------------------------------------------------------ the model
    def live(self) -> dict[str, Any]:
        """The entries that can be read now."""
        self.model = {k: (v, end) for k, (v, end) in self.model.items() if end is None or self.clock() < end}
        return {key: value for key, (value, _) in self.model.items()}

    def put(self, key: str, value: Any, ttl: float | None = None) -> None:
        self.model[key] = (value, None if ttl is None else self.clock() + ttl)

    @staticmethod
    def full(scope: str, name: str) -> str:
        return f"{scope}:{name}" if scope else name

    def view(self, scope: str) -> Any:
        return self.store.scope(scope) if scope else self.store

    # ------------------------------------------------------------ operations
    @initialize(filled=st.dictionaries(names, values))
    def fill(self, filled: dict[str, Any]) -> None:
        self.run(self.store.set_many(filled))
        for key, value in filled.items():
            self.put(key, value)

    @rule(scope=scopes, name=names, value=values, ttl=st.none() | ttls)
    def set(self, scope: str, name: str, value: Any, ttl: float | None) -> None:
        self.run(self.view(scope).set(name, value, ttl=ttl))
        self.put(self.full(scope, name), value, ttl)

    @rule(scope=scopes, pairs=st.dictionaries(names, values, max_size=4), ttl=st.none() | ttls)
    def set_many(self, scope: str, pairs: dict[str, Any], ttl: float | None) -> None:
        self.run(self.view(scope).set_many(pairs, ttl=ttl))
        for name, value in pairs.items():
            self.put(self.full(scope, name), value, ttl)

    @rule(scope=scopes, name=names)
    def delete(self, scope: str, name: str) -> None:
        there = self.full(scope, name) in self.live()
        assert self.run(self.view(scope).delete(name)) is there
        self.model.pop(self.full(scope, name), None)

    @rule(scope=scopes, some=st.lists(names, max_size=3))
    def delete_many(self, scope: str, some: list[str]) -> None:
        self.run(self.view(scope).delete_many(some))
        for name in some:
            self.model.pop(self.full(scope, name), None)

    @rule(scope=scopes, name=names, item=st.integers(), default=st.just(MISSING) | values)
    def update(self, scope: str, name: str, item: int, default: Any) -> None:
        key, live = self.full(scope, name), self.live()
        given = {} if default is MISSING else {"default": default}
        updating = self.view(scope).update(name, lambda old: [old, item], **given)
        if key not in live and default is MISSING:
            try:
                self.run(updating)
            except MissingKeyError:
                return
            raise AssertionError("an update of nothing")
        expected = [live.get(key, default), item]
        assert self.run(updating) == expected
        self.model[key] = (expected, self.model[key][1] if key in live else None)

    @rule(seconds=st.sampled_from([0.25, 0.5, 1, 10]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(
        scope=scopes, reads=st.lists(names, max_size=2), writes=st.dictionaries(names, values, max_size=3),
        deletes=st.lists(names, max_size=2), end=st.sampled_from(["commit", "abort"]), other=st.none() | names,
    )  # fmt: skip
    def transaction(
        self, scope: str, reads: list[str], writes: dict[str, Any], deletes: list[str], end: str, other: str | None
    ) -> None:
        """Reads, writes, then perhaps another caller's write, then the end."""
        before = self.live()
        seen = {self.full(scope, name) for name in (*reads, *(name for name in deletes if name not in writes))}

        async def work() -> None:
            async with self.store.scope(scope).transaction() if scope else self.store.transaction() as tx:
                for name in reads:
                    assert await tx.get(name, MISSING) == before.get(self.full(scope, name), MISSING)
                for name, value in writes.items():
                    await tx.set(name, value)
                inside = {**before, **{self.full(scope, name): value for name, value in writes.items()}}
                for name in deletes:
                    assert await tx.delete(name) is (self.full(scope, name) in inside)
                    inside.pop(self.full(scope, name), None)
                prefix = f"{scope}:" if scope else ""
                found = [prefix + key async for key in tx.keys()]
                assert found == sorted(key for key in inside if key.startswith(prefix))
                assert await tx.get_many([*reads, *writes]) == {
                    name: inside[self.full(scope, name)]
                    for name in (*reads, *writes)
                    if self.full(scope, name) in inside
                }
                if other is not None:
                    await self.store.set(other, "other")
                if end == "abort":
                    raise ZeroDivisionError

        conflicting: Set[str] = set()
        try:
            self.run(work())
            outcome = "commit"
        except ZeroDivisionError:
            outcome = "abort"
        except ConflictError as conflict:
            outcome = "conflict"
            conflicting = conflict.keys
        if other is not None:
            self.put(other, "other")
        checked = seen | {self.full(scope, name) for name in reads}
        lost = other in checked
        assert outcome == ("abort" if end == "abort" else "conflict" if lost else "commit")
        assert conflicting == ({other} if outcome == "conflict" else set())
        if outcome == "commit":
            for name, value in writes.items():
                self.put(self.full(scope, name), value)
            for name in (name for name in deletes if name in writes or self.full(scope, name) in before):
                self.model.pop(self.full(scope, name), None)

    # ------------------------------------------------------------ invariants
    @invariant()
    def everything_reads_as_in_the_model(self) -> None:
        live = self.live()

        async def read() -> None:
            assert [key async for key in self.store.keys()] == sorted(live)
            everything = {*live, *NAMES}
            assert await self.store.get_many(everything) == live
            for key in everything:
                assert await self.store.get(key, MISSING) == live.get(key, MISSING)
                assert await self.store.has(key) is (key in live)
            for key, (_, end) in self.model.items():
                assert await self.store.ttl(key) == (None if end is None else end - self.clock())
            for scope in ("a", "a:b"):
                below = {key.removeprefix(f"{scope}:"): live[key] for key in live if key.startswith(f"{scope}:")}
                view = self.store.scope(scope)
                assert [key async for key in view.keys()] == sorted(below)
                assert await view.get_many(below) == below

        self.run(read())

    @invariant()
    def without_await_it_is_the_same(self) -> None:
        if self.store.stack.needs_loop:
            return
        live = self.live()
        assert list(self.store.sync.keys()) == sorted(live)
        assert self.store.sync.get_many(NAMES) == {key: live[key] for key in NAMES if key in live}


def machine(name: str, backend: Callable[[Path], Backend], layers: Sequence[Layer] = (), *, examples: int) -> Any:
    """A test case for one stack."""
    kind = type(name, (StoreMachine,), {"backend": staticmethod(backend), "layers": layers})
    kind.TestCase.settings = settings(  # type: ignore[attr-defined]
        deadline=None, max_examples=examples, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow]
    )
    return kind.TestCase  # type: ignore[attr-defined]


TestMemory = machine("MemoryMachine", lambda folder: Memory(), examples=50)
TestBoundedMemory = machine(
    "BoundedMachine", lambda folder: Memory(), [Bounding(max_entries=1000, ttl="1d")], examples=30
)
TestPassing = machine("PassingMachine", lambda folder: Memory(), [Passing()], examples=20)
TestSuspending = machine("SuspendingMachine", lambda folder: FaultyMemory(), examples=20)
TestBoundedAside = machine("AsideMachine", lambda folder: Aside(), [Bounding(max_entries=1000, ttl="1d")], examples=20)
TestSQLite = machine("SQLiteMachine", lambda folder: SQLite(folder / "state.db", durability="process"), examples=8)
