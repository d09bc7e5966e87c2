"""Takes many items through one node concurrently: a graph whose only node is an `each`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, overload

from pocket_plug.primitives.values import Value
from pocket_plug.store.store import StoreScope
from pocket_plug.store.sync import SyncScope

from .elsewhere import Elsewhere
from .graph import Graph
from .kinds.each import each
from .nodes.node import Node, X, Y, options_of
from .observing.host import RunHost


@overload
async def fan_out(
    node: Node[X, Y, Any],
    items: Iterable[X],
    /,
    *,
    concurrency: int | None = ...,
    errors: Literal["raise"] = ...,
    executor: Elsewhere | None = ...,
    store: StoreScope | SyncScope | None = ...,
    run_id: str | None = ...,
    pocket: RunHost | None = ...,
) -> list[Y]: ...
@overload
async def fan_out(
    node: Node[X, Y, Any],
    items: Iterable[X],
    /,
    *,
    concurrency: int | None = ...,
    errors: Literal["collect"],
    executor: Elsewhere | None = ...,
    store: StoreScope | SyncScope | None = ...,
    run_id: str | None = ...,
    pocket: RunHost | None = ...,
) -> list[Y | Exception]: ...
async def fan_out(
    node: Any,
    items: Iterable[Value],
    /,
    *,
    concurrency: int | None = None,
    errors: Literal["raise", "collect"] = "raise",
    executor: Elsewhere | None = None,
    store: StoreScope | SyncScope | None = None,
    run_id: str | None = None,
    pocket: RunHost | None = None,
) -> Value:
    """Take every item through `node`, in a run of its own: `await fan_out(fetch, urls, concurrency=5)`. Returns their outputs.

    The options are those of `each`, and those of `Graph.run`: with a `run_id` the run is durable, so that after a crash finished
    items are not done again.
    """
    everything: Any = each(node, concurrency=concurrency, errors=errors, executor=executor)
    graph: Graph[Any, Any] = Graph(everything, store=store, name=options_of(everything).name)
    return await graph.run(items, run_id=run_id, pocket=pocket)
