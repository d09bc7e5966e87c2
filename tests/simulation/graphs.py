"""The graphs whose runs are simulated: chains, loops, fan-outs, branches, nested graphs, questions, hooks, retries, a shared key.

Each node has an effect: one key per place in the run, incremented by its `post`. So it is visible what was done twice, or never.
Each graph exists twice, with `async def` phases, and with `def` phases for `run_sync`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

import pocket_plug as pp
from pocket_plug.primitives.waiting import drive_inline

if TYPE_CHECKING:
    from .world import World

EFFECT = "effect:"
"""`effect:PLACE` is 1 once the node at that place has landed."""
HOOKED = "hooked:"
"""`hooked:PLACE` is there once its hook has been called."""
TOTAL = "total"
"""How many nodes have landed that count themselves in one key, of all runs."""


class _Stage:
    """The world in which nodes work at the moment. There is one at a time in an interpreter."""

    world: World


stage = _Stage()


class Boom(Exception):
    """The error of a failing node."""


class Work(pp.Node[int, int]):
    """Takes some time, may fail, and has an effect; `shared` nodes also increment a key that all runs change."""

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
    """A node whose exec is retried."""


class Picky(pp.Node[int, int], name="item"):
    """A node that refuses some items, which is a result if errors are collected."""

    async def exec(self, n: int) -> int:
        if not n % 3:
            raise ValueError(n)
        await stage.world.work(pp.idempotency_key(), may_fail=False)
        return n

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.update(EFFECT + pp.idempotency_key(), _more, default=0)
        return result


class Again(Work):
    """Is repeated until it has been visited three times."""

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> Any:
        result = await super().post(store, n, prepared, result)
        return result if result >= 3 else pp.Next("again", result)


class Branch(Work):
    """Leaves by one of two actions."""

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> Any:
        result = await super().post(store, n, prepared, result)
        return pp.Next("odd", result) if result % 2 else result


class Spread(pp.Node[int, list[int]], name="spread"):
    """Makes items from a number."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    async def exec(self, n: int) -> list[int]:
        await stage.world.work(pp.idempotency_key())
        return [n + 1 + i for i in range(self.count)]

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: list[int]) -> list[int]:
        await store.update(EFFECT + pp.idempotency_key(), _more, default=0)
        return result


@pp.node(name="total")
async def add(items: Sequence[Any]) -> int:
    """Adds the items up; an error counts as -1."""
    return sum(item if isinstance(item, int) else -1 for item in items)


@pp.node(name="answered")
async def take_answer(given: pp.Answered[int, int]) -> int:
    """Takes the answer of a question."""
    return given.input + given.answer


def _more(old: int) -> int:
    return old + 1


def _ask(name: str, **options: Any) -> Any:
    return pp.Ask[int, int](int, question=lambda n: f"{name} {n}?", name=name, **options)


Nodes = Callable[[Any], Any]


def _async(node: Any) -> Any:
    return node


def _sync(node: Any) -> Any:
    """A node's class, or a function, with `def` phases that do the same."""
    if not isinstance(node, type):
        function = node.functions["exec"]
        return pp.node(_undone(function, node.__name__, annotated=True))
    phases = ("prep", "exec", "post", "on_success", "on_failure")
    own = {phase for each in node.__mro__ if each not in pp.Node.__mro__ for phase in phases if phase in vars(each)}
    phased: Any = {phase: _undone(getattr(node, phase), phase) for phase in sorted(own)}
    return type(node.__name__, (node,), phased, name=node._options.name)


def _undone(function: Callable[..., Any], name: str, *, annotated: bool = False) -> Callable[..., Any]:
    """The same as a `def`, which doesn't suspend: it waits in its thread."""

    def phase(*arguments: Any) -> Any:
        return drive_inline(
            function(*(_Awaited(each) if isinstance(each, pp.SyncReader) else each for each in arguments))
        )

    phase.__name__ = phase.__qualname__ = name
    phase.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(annotation=inspect.Parameter.empty) for each in inspect.signature(function).parameters.values()]
    )
    phase.__annotations__ = get_type_hints(function) if annotated else {}
    return phase


class _Awaited:
    """A sync store, whose calls can be awaited."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            return getattr(self._store, name)(*arguments, **options)

        return call


def _graphs(of: Nodes) -> dict[str, pp.Graph[int, int]]:
    work, hooked, spread, total, answered = of(Work), of(Hooked), of(Spread), of(add), of(take_answer)
    a, b, c = work("a"), hooked("b"), of(Tried)("c")
    again, branch, odd = of(Again)("again"), of(Branch)("branch"), hooked("odd")
    shared, reader = work("shared", shared=True), work("reader", shared=True, reads=True)
    way: Any = pp.Graph(work("pack") >> hooked("ship", shared=True), name="way")
    loop: Any = pp.Graph(again, again.on("again") >> work("pause") >> again, name="loop")
    asking: Any = pp.Graph(work("pack") >> _ask("each") >> answered >> hooked("ship"), name="asking")
    late = _ask("late", timeout="4s", default=-5)
    chains: dict[str, tuple[Any, ...]] = {
        "single": (work("single"),),
        "chain": (a >> b >> c,),
        "branches": (branch >> a, branch.on("odd") >> odd),
        "shared": (shared >> reader >> work("last", shared=True),),
        "fan": (spread() >> pp.each(hooked("item", shared=True), concurrency=3) >> total >> a,),
        "collect": (spread() >> pp.each(of(Picky)(), concurrency=2, errors="collect") >> total,),
        "ways": (spread() >> pp.each(way, concurrency=2) >> total >> b,),
        "nested": (a >> loop >> hooked("end"),),
        "asks": (a >> _ask("approve") >> answered >> b,),
        "sleeps": (a >> pp.Sleep("3s", name="nap") >> b,),
        "timed": (a >> pp.Sleep("1s", name="nap") >> c >> b,),
        "late": (a >> late >> answered >> b,),
        "gather": (a >> pp.gather(hooked("pack"), loop >> shared, b >> _ask("each") >> answered) >> total >> c,),
        "deep gather": (spread() >> pp.each(pp.Graph(pp.gather(shared, asking) >> total, name="both")) >> total,),
        "items ask": (spread() >> pp.each(asking, concurrency=2) >> total >> a,),
        "one asks": (spread(1) >> pp.each(asking) >> total,),
        "deep": (pp.Graph(loop >> _ask("inner") >> answered >> a, name="outer") >> spread()
                 >> pp.each(way, concurrency=3) >> total >> _ask("last") >> answered >> hooked("end"),),
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


GRAPHS = _graphs(_async)
SYNC_GRAPHS = _graphs(_sync)
FOCUS = (
    tuple(GRAPHS),
    tuple(GRAPHS),
    ("one asks", "items ask"),
    ("fan", "ways", "deep"),
    ("gather", "deep gather"),
    ("single", "chain", "shared"),
)
"""The graphs that a world may have runs of."""
for _graph in (*GRAPHS.values(), *SYNC_GRAPHS.values()):
    _graph.validate()
