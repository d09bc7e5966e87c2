"""The graphs whose runs are simulated: chains, loops, fan-outs, nested graphs, questions, hooks, retries, a shared counter.

Each node leaves an effect: one key per place in the run, counted up by its `post`. So what was done twice, or never, can be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pocket_plug as pp

if TYPE_CHECKING:
    from .world import World

EFFECT = "effect:"
"""`effect:PLACE` is 1 once the node at that place has landed."""
HOOKED = "hooked:"
"""`hooked:PLACE` is there once its hook has been called."""
TOTAL = "total"
"""How many nodes have landed that count themselves in one key, of all runs."""


class _Stage:
    """Where nodes find the world in which they work right now. There is one at a time in an interpreter."""

    world: World


stage = _Stage()


class Boom(Exception):
    """What a node fails with."""


class Work(pp.Node[int, int]):
    """Takes its time, may fail, and leaves its effect; `shared` ones count themselves in a key that all runs change."""

    def __init__(self, name: str, *, shared: bool = False, reads: bool = False) -> None:
        self.shared, self.reads = shared, reads
        self._options = self._options.changed(self._takes, name=name)

    async def prep(self, store: pp.StoreReader, n: int) -> int:
        if self.reads:
            await store.get(TOTAL)
        return n

    async def exec(self, n: int) -> int:
        await stage.world.work(pp.idempotency_key())
        return n + 1

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> Any:
        await store.update(EFFECT + pp.idempotency_key(), _more, default=0)
        if self.shared:
            await store.update(TOTAL, _more, default=0)
        return result


class Hooked(Work):
    """With hooks, which run after the commit and may run again."""

    async def on_success(self, store: pp.StoreWriter, outcome: Any) -> None:
        stage.world.hooked.add(pp.idempotency_key())
        await store.set(HOOKED + pp.idempotency_key(), 1)

    async def on_failure(self, store: pp.StoreWriter, error: BaseException) -> None:
        await store.set(HOOKED + "failure", 1)


class Tried(Work, retry=pp.Retry(attempts=3, delay=0.2, backoff=2)):
    """One whose exec is tried again."""


class Picky(pp.Node[int, int], name="item"):
    """One that refuses some items, which is a result where errors are collected."""

    async def exec(self, n: int) -> int:
        if not n % 3:
            raise ValueError(n)
        await stage.world.work(pp.idempotency_key(), may_fail=False)
        return n

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.update(EFFECT + pp.idempotency_key(), _more, default=0)
        return result


class Again(Work):
    """Goes round until it has been visited three times."""

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> Any:
        result = await super().post(store, n, prepared, result)
        return result if result >= 3 else pp.Next("again", result)


class Branch(Work):
    """Leaves by one of two ways."""

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> Any:
        result = await super().post(store, n, prepared, result)
        return pp.Next("odd", result) if result % 2 else result


class Spread(pp.Node[int, list[int]], name="spread"):
    """Makes items of a number."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    async def exec(self, n: int) -> list[int]:
        await stage.world.work(pp.idempotency_key())
        return [n + 1 + i for i in range(self.count)]

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: list[int]) -> list[int]:
        await store.update(EFFECT + pp.idempotency_key(), _more, default=0)
        return result


@pp.node
async def total(items: list[Any]) -> int:
    """One number of many."""
    return sum(item if isinstance(item, int) else -1 for item in items)


@pp.node
async def answered(given: pp.Answered[int, int]) -> int:
    """Of a question the answer."""
    return given.input + given.answer


def _more(old: int) -> int:
    return old + 1


def _ask(name: str, **options: Any) -> Any:
    return pp.Ask[int, int](int, question=lambda n: f"{name} {n}?", name=name, **options)


def _graphs() -> dict[str, pp.Graph[int, int]]:
    a, b, c = Work("a"), Hooked("b"), Tried("c")
    again, branch, odd = Again("again"), Branch("branch"), Hooked("odd")
    shared, reader = Work("shared", shared=True), Work("reader", shared=True, reads=True)
    way: Any = pp.Graph(Work("pack") >> Hooked("ship", shared=True), name="way")
    loop: Any = pp.Graph(again, again.on("again") >> Work("pause") >> again, name="loop")
    asking: Any = pp.Graph(Work("pack") >> _ask("each") >> answered >> Hooked("ship"), name="asking")
    late = _ask("late", timeout="4s", default=-5)
    chains: dict[str, tuple[Any, ...]] = {
        "single": (Work("single"),),
        "chain": (a >> b >> c,),
        "branches": (branch >> a, branch.on("odd") >> odd),
        "shared": (shared >> reader >> Work("last", shared=True),),
        "fan": (Spread() >> pp.each(Hooked("item", shared=True), concurrency=3) >> total >> a,),
        "collect": (Spread() >> pp.each(Picky(), concurrency=2, errors="collect") >> total,),
        "ways": (Spread() >> pp.each(way, concurrency=2) >> total >> b,),
        "nested": (a >> loop >> Hooked("end"),),
        "asks": (a >> _ask("approve") >> answered >> b,),
        "sleeps": (a >> pp.Sleep("3s", name="nap") >> b,),
        "timed": (a >> pp.Sleep("1s", name="nap") >> c >> b,),
        "late": (a >> late >> answered >> b,),
        "items ask": (Spread() >> pp.each(asking, concurrency=2) >> total >> a,),
        "one asks": (Spread(1) >> pp.each(asking) >> total,),
        "deep": (pp.Graph(loop >> _ask("inner") >> answered >> a, name="outer") >> Spread()
                 >> pp.each(way, concurrency=3) >> total >> _ask("last") >> answered >> Hooked("end"),),
    }  # fmt: skip
    return {
        name: pp.Graph(
            *ways,
            name=name,
            keep_finished="90d" if name in ("single", "deep") else None,
            timeout="8s" if name == "timed" else None,
        )
        for name, ways in chains.items()
    }


GRAPHS = _graphs()
FOCUS = (
    tuple(GRAPHS),
    tuple(GRAPHS),
    ("one asks", "items ask"),
    ("fan", "ways", "deep"),
    ("single", "chain", "shared"),
)
"""The graphs that a world may have runs of."""
for _graph in GRAPHS.values():
    _graph.validate()
