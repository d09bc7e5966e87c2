"""Many items through one node: a fixed number of workers over one iterator."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, overload

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.typechecks import checker

from .chain import Chain
from .graph import Graph, make_step
from .node import Node, X, Y, as_chain, options_of
from .options import Options, check_count
from .phases import declared_actions
from .places import note_item
from .plan import Step
from .runner import STEPS_PER_LOOK

if TYPE_CHECKING:
    from pocket_plug.graph.observing import NodeCall
    from pocket_plug.store.store import StoreScope
    from pocket_plug.store.sync import SyncScope

    from .runner import Execution

CONCURRENCY = 10


class Each(Node[Iterable[X], list[Y]]):
    """A node that takes every item of its input through another node; made by `each`."""

    _takes = frozenset({"name", "trace"})

    def __init__(self, node: Node[X, Y, Any], concurrency: int, errors: Literal["raise", "collect"]) -> None:
        if as_chain(node).edges or isinstance(node, Chain):
            raise TypeError("each takes one node; make a graph of the chain: each(Graph(a >> b))")
        if errors not in ("raise", "collect"):
            raise ConfigError(f"errors={errors!r}: it is 'raise' or 'collect'")
        self.node, self.concurrency, self.errors = node, check_count(concurrency, "concurrency"), errors
        self._options = Options(name=f"each_{options_of(node).name}")


class EachStep(Step):
    """The step of an `Each`. Its items' node is a step of its own, which leads nowhere."""

    kind = "fan_out"

    def __init__(self, node: Each[Any, Any]) -> None:
        super().__init__(node)
        self.input_type, self.fits = Iterable, checker(Iterable)
        self.inner = make_step(node.node)
        self.inner.is_item = True
        self.concurrency, self.collects = node.concurrency, node.errors == "collect"

    @property
    def is_sync(self) -> bool:
        return self.inner.is_sync

    def faults(self, exits: Collection[str]) -> list[str]:
        unrouted = [f"node {self.inner.name!r} declares the action {action!r}, which leads nowhere; an item's way is a "
                    "graph: each(Graph(…))" for action in declared_actions(self.inner.node)]  # fmt: skip
        found = [*self.inner.faults(()), *unrouted]
        if self.inner.asks:
            found.append(f"node {self.inner.name!r} asks, which an item of a fan-out can't; ask before or after it")
        return [f"in {self.name!r}: {fault}" for fault in found]

    async def perform(self, execution: Execution, value: Any, call: NodeCall | None) -> Any:
        results: list[Any] = []
        items = _Items(execution.in_order(value), results)
        if not execution.threads or self.concurrency == 1:
            await self._work(execution, items)
            return results
        failed: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                await self._start(group, execution, items)
        except BaseExceptionGroup as errors:
            failed = errors.exceptions[0]
        if isinstance(failed, _Stop):
            failed = failed.error
        if failed is not None:  # not from within `except`: what caused it stays what it was
            raise failed
        return results

    async def _start(self, group: asyncio.TaskGroup, execution: Execution, items: _Items) -> None:
        for _ in range(self.concurrency):
            group.create_task(self._worker(execution, items))
            await asyncio.sleep(0)  # let it take an item, so that no more workers start than there are items
            if items.exhausted:
                break

    async def _worker(self, execution: Execution, items: _Items) -> None:
        """`_work` as a task of a group, which would pass over a cancellation that isn't its own: an item would be lost."""
        try:
            await self._work(execution, items)
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            raise _Stop(error) from error

    async def _work(self, execution: Execution, items: _Items) -> None:
        take, step = execution.item, self.inner
        for position, item in items:
            try:
                _, output, cancelled = await take(step, item, position)
            except Exception as error:
                note_item(error, execution, self, position)
                if not self.collects or execution.must_end(error):
                    raise
                output, cancelled = execution.collected(error), None
            items.results[position] = output
            if cancelled is not None:
                raise cancelled
            if execution.loop and not (position + 1) % STEPS_PER_LOOK:
                await execution.outermost.give_way()


class _Stop(Exception):
    """Carries what a task must not end with to the task that awaits the group: there it is raised."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        super().__init__(error)


class _Items:
    """One iterator that all workers draw from, and the results in the items' order."""

    def __init__(self, items: Iterable[Any], results: list[Any]) -> None:
        self._items, self.results = iter(items), results
        self.exhausted = False

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        for item in self._items:
            self.results.append(None)
            yield len(self.results) - 1, item
        self.exhausted = True


@overload
def each(
    node: Node[X, Y, Any], /, *, concurrency: int = ..., errors: Literal["raise"] = ...
) -> Node[Iterable[X], list[Y]]: ...
@overload
def each(node: Node[X, Y, Any], /, *, concurrency: int = ...,
         errors: Literal["collect"]) -> Node[Iterable[X], list[Y | Exception]]: ...  # fmt: skip
def each(node: Any, /, *, concurrency: int = CONCURRENCY, errors: Literal["raise", "collect"] = "raise") -> Any:
    """A node that takes every item of its input through `node`, up to `concurrency` at a time; results in order.

    Items are drawn as workers become free, so an iterator of any length is fine. They share the graph's store. The first
    error cancels the rest; with `errors="collect"` it stands among the results instead.

    >>> from pocket_plug import node
    >>> @node
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> Graph(each(double)).run_sync([1, 2, 3])
    [2, 4, 6]
    """
    return Each(node, concurrency, errors)


@overload
async def fan_out(node: Node[X, Y, Any], items: Iterable[X], /, *, concurrency: int = ..., errors: Literal["raise"] = ...,
                  store: StoreScope | SyncScope | None = ..., run_id: str | None = ...) -> list[Y]: ...  # fmt: skip
@overload
async def fan_out(node: Node[X, Y, Any], items: Iterable[X], /, *, concurrency: int = ..., errors: Literal["collect"],
                  store: StoreScope | SyncScope | None = ..., run_id: str | None = ...) -> list[Y | Exception]: ...  # fmt: skip
async def fan_out(node: Any, items: Iterable[Any], /, *, concurrency: int = CONCURRENCY,
                  errors: Literal["raise", "collect"] = "raise", store: StoreScope | SyncScope | None = None,
                  run_id: str | None = None) -> Any:  # fmt: skip
    """Take every item through `node`, as a run of its own: `await fan_out(fetch, urls, concurrency=5)`.

    With a `run_id` it is a durable one: what is finished is not done again after a crash.
    """
    everything: Any = each(node, concurrency=concurrency, errors=errors)
    return await Graph(everything, store=store, name=options_of(everything).name).run(items, run_id=run_id)
