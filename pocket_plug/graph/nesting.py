"""A graph as a node of another graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from pocket_plug.store.store import StoreReader

from .chain import DEFAULT, Next
from .context import in_own_context
from .plan import Step

if TYPE_CHECKING:
    from pocket_plug.graph.observing import NodeCall

    from .graph import Graph
    from .runner import Execution


class GraphStep(Step):
    """A graph as a node of another."""

    kind = "graph"

    def __init__(self, graph: Graph[Any, Any]) -> None:
        super().__init__(graph)
        self.graph = graph
        self.asks = graph.plan.asks
        first = graph.plan.start
        self.input_type, self.fits, self.input_class = first.input_type, None, None

    @property
    def is_sync(self) -> bool:
        store = self.graph._store  # pyright: ignore[reportPrivateUsage]
        return self.graph.plan.is_sync and (store is None or not store.place[0].needs_loop)

    def faults(self, exits: Collection[str]) -> list[str]:
        return [f"in graph {self.name!r}: {fault}" for fault in self.graph.plan.findings({*exits, *self.actions})]

    async def perform(self, execution: Execution, value: Any, call: NodeCall | None) -> Any:
        graph = self.graph
        place = graph.place(StoreReader(execution.stack, execution.prefix))
        if place[0].is_new:
            await place[0].ensure_open()
        inner = type(execution)(
            graph, place, value, execution.pocket, execution.loop, execution.threads, parent=execution
        )
        inner.exits = {**execution.exits, **self.actions}
        output = await in_own_context(inner.go(value))
        return output if inner.left_by == DEFAULT else Next(inner.left_by, output)
