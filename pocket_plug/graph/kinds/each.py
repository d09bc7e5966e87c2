"""Takes many items through one node: a fixed number of worker tasks share one iterator."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import GenericAlias
from typing import Any, Literal, overload

from pocket_plug.errors import ConfigError, ConflictError, RunSuspendedError
from pocket_plug.graph.elsewhere import Elsewhere
from pocket_plug.graph.nodes.chain import Chain, as_chain
from pocket_plug.graph.nodes.node import Node, X, Y, options_of
from pocket_plug.graph.nodes.options import Options, check_count
from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.planning.step import Step, make_step
from pocket_plug.graph.running.places import note_item
from pocket_plug.graph.running.protocols import STEPS_PER_LOOK, Running
from pocket_plug.graph.running.visit import step_of
from pocket_plug.primitives.typechecks import checker
from pocket_plug.primitives.values import Hint, Value

CONCURRENCY = 10


class Each(Node[Iterable[X], list[Y]]):
    """A node that takes every item of its input through another node; made by `each`."""

    _takes = frozenset({"name", "trace"})

    def __init__(
        self,
        node: Node[X, Y, Any],
        concurrency: int | None,
        errors: Literal["raise", "collect"],
        executor: Elsewhere | None,
        name: str,
    ) -> None:
        if as_chain(node).edges or isinstance(node, Chain):
            raise TypeError("each takes one node; make a graph of the chain: each(Graph(a >> b))")
        if errors not in ("raise", "collect"):
            raise ConfigError(f"errors={errors!r}: give 'raise' or 'collect'")
        self.node = node if executor is None else node.with_options(executor=executor)
        self.concurrency = None if concurrency is None else check_count(concurrency, "concurrency")
        self.errors = errors
        self._options = Options().changed(self._takes, name=name or f"each_{options_of(node).name}")


def _or_error(given: Hint) -> Hint:
    try:
        return given | Exception
    except TypeError:  # a hint that is no type
        return Any


class EachStep(Step):
    """The step of an `Each`. The node that its items go through has a step of its own, without edges."""

    kind = "fan_out"

    def __init__(self, node: Each[Any, Any]) -> None:
        super().__init__(node)
        self.inner = step_of(node.node)
        self.input_type = GenericAlias(Iterable, (self.inner.input_type,))
        self.fits = checker(Iterable)  # the items are checked one by one
        given = self.inner.output_type
        self.output_type = GenericAlias(list, (given if node.errors == "raise" else _or_error(given),))
        self.inner.is_item = True
        self.asks = self.inner.asks
        self.concurrency, self.collects = node.concurrency, node.errors == "collect"

    @property
    def is_sync(self) -> bool:
        return self.inner.is_sync

    @property
    def passed(self) -> Step:
        return self.inner

    def inner_graph(self) -> Any:
        return self.inner.inner_graph()

    def faults(self, exits: Collection[str]) -> list[str]:
        unrouted = [
            f"node {self.inner.name!r} declares the action {action!r}, but has no edge for it; for items that take several "
            "nodes, give a graph: each(Graph(…))"
            for action in self.inner.carried
            if self.inner.kind != "graph"  # for a graph, its own check reports the node inside
        ]
        found = [*self.inner.faults(()), *unrouted]
        return [f"in {self.name!r}: {fault}" for fault in found]

    async def perform(self, run: Running, call: NodeCall | None, value: Value) -> Value:
        items = _Items(value if run.ledger is None else run.ledger.in_order(value))
        await self._take_all(run, items)
        while waiting := items.waiting:  # all other items have ended by now
            assert run.ledger is not None  # items of other runs never wait
            with suppress(ConflictError):  # one of them can continue by now
                await run.ledger.suspend(run, [wait for _, _, error in waiting for wait in error.waits])
            items.begin_again([(position, item) for position, item, _ in waiting])
            await self._take_all(run, items)
        return items.results

    async def _take_all(self, run: Running, items: _Items) -> None:
        concurrency = self._concurrency(run)
        if not run.loop or concurrency == 1:
            await self._work(run, items)
            return
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                await self._in_workers(group, run, items, concurrency)
        except BaseExceptionGroup as errors:
            failed = errors.exceptions[0]
        if isinstance(failed, _Stop):
            failed = failed.error
        if failed is not None:  # raised outside of `except`, so that its `__context__` stays unchanged
            raise failed

    def _concurrency(self, run: Running) -> int:
        """How many items at a time: as the node was given; else as the executor has room for; else CONCURRENCY."""
        if self.concurrency is None and self.inner.executor is not None:
            return run.pocket.executor(self.inner.executor).room
        return self.concurrency or CONCURRENCY

    async def _in_workers(self, group: asyncio.TaskGroup, run: Running, items: _Items, concurrency: int) -> None:
        workers: list[asyncio.Task[None]] = []
        while len(workers) < concurrency and not items.exhausted:
            # Their number doubles, so that few workers start without an item.
            more = min(len(workers) or 1, concurrency - len(workers))
            workers += [group.create_task(self._worker(run, items)) for _ in range(more)]
            await asyncio.sleep(0)
        # Not left to the end of the group: before Python 3.13, a failure there leaves the caller's task with a cancellation that
        # isn't taken back, and a timeout around the caller then raises CancelledError.
        await asyncio.wait(workers)

    async def _worker(self, run: Running, items: _Items) -> None:
        """`_work` as a task of a TaskGroup.

        The group ignores a CancelledError of a task that it hasn't cancelled, and the item would be lost. So `_Stop` carries it.
        """
        try:
            await self._work(run, items)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise _Stop(error) from error

    async def _work(self, run: Running, items: _Items) -> None:
        step, ledger = self.inner, run.ledger
        take = run.visit if ledger is None else partial(ledger.item, run)
        # Call yield_to_loop after this item? In a durable run after each, since items take long there.
        must_yield = True
        for position, item in items:
            try:
                _, output, cancelled = await take(step, item, position)
            except Exception as error:
                if ledger is not None and isinstance(error, RunSuspendedError):
                    items.waiting.append((position, item, error))
                    continue
                note_item(error, run, self, position)
                if not self.collects or (ledger is not None and ledger.must_end(error)):
                    raise
                output, cancelled = error if ledger is None else ledger.collected(error), None
            items.results[position] = output
            if cancelled is not None:
                raise cancelled
            if run.loop and (must_yield or not (position + 1) % STEPS_PER_LOOK):
                must_yield = await run.yield_to_loop() or ledger is not None


class _Stop(Exception):
    """Carries an error that a task of a group must not end with to the task that awaits the group, which raises it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(error)


class _Items:
    """One iterator that all workers take items from, and the results in the items' order."""

    def __init__(self, items: Iterable[Value]) -> None:
        self._items: Iterator[tuple[int, Value]] = enumerate(items)
        self.results: list[Value] = []
        self.waiting: list[tuple[int, Value, RunSuspendedError]] = []
        """The items that wait for an answer or a time: position, item, error."""
        self.exhausted = False

    def begin_again(self, items: Iterable[tuple[int, Value]]) -> None:
        """Take these items once more."""
        self._items, self.waiting, self.exhausted = iter(items), [], False

    def __iter__(self) -> Iterator[tuple[int, Value]]:
        for position, item in self._items:
            if position == len(self.results):
                self.results.append(None)
            yield position, item
        self.exhausted = True


# The third argument, Any, is for mypy: without it, the type of the items in Graph(each(fetch)) would be Any.
@overload
def each(
    node: Node[X, Y, Any],
    /,
    *,
    concurrency: int | None = ...,
    errors: Literal["raise"] = ...,
    executor: Elsewhere | None = ...,
    name: str = ...,
) -> Node[Iterable[X], list[Y], Any]: ...
@overload
def each(
    node: Node[X, Y, Any],
    /,
    *,
    concurrency: int | None = ...,
    errors: Literal["collect"],
    executor: Elsewhere | None = ...,
    name: str = ...,
) -> Node[Iterable[X], list[Y | Exception], Any]: ...
def each(
    node: Any,
    /,
    *,
    concurrency: int | None = None,
    errors: Literal["raise", "collect"] = "raise",
    executor: Elsewhere | None = None,
    name: str = "",
) -> Value:
    """A node that takes every item of its input through `node`, and returns the list of their outputs, in order.

    Up to `concurrency` items are processed at a time: 10 by default; with an `executor`, as many as it has room for. With
    `run_sync`, `def` phases run one after the other. Without a `name`, it is named after `node`: "each_fetch".

    An item is taken from the iterator when a worker task is free, so an iterator of any length is fine. All items share the
    graph's store. The first error cancels the others; with `errors="collect"`, an item's error is its result instead.

    >>> from pocket_plug import Graph, node
    >>> @node
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> Graph(each(double)).run_sync([1, 2, 3])
    [2, 4, 6]
    """
    return Each(node, concurrency, errors, executor, name)


make_step.register(Each, EachStep)
