"""A graph as a node of another graph."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Union

from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.planning.plan import PlannedGraph
from pocket_plug.graph.planning.step import Step
from pocket_plug.graph.running.protocols import Running
from pocket_plug.primitives.values import Hint, Value


class GraphStep(Step):
    """The step of a graph that is a node of another graph."""

    kind = "graph"

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.graph: PlannedGraph = graph
        self.asks = self.graph.plan.asks
        first = self.graph.plan.start
        self.input_type, self.fits, self.input_class = first.input_type, None, None
        self.output_type = self.graph.plan.output_type

    @property
    def is_sync(self) -> bool:
        return self.graph.plan.is_sync

    def faults(self, exits: Collection[str]) -> list[str]:
        return [f"in graph {self.name!r}: {fault}" for fault in self.graph.plan.findings({*exits, *self.actions})]

    @property
    def carried(self) -> dict[str, Hint]:
        found: dict[str, Hint] = {}
        for step in self.graph.plan.steps.values():
            for action, hint in step.carried.items():
                if action not in step.actions:
                    found[action] = Union[found.get(action, hint), hint]  # noqa: UP007 - None has no |
        return found

    def inner_graph(self) -> PlannedGraph:
        return self.graph

    async def perform(self, run: Running, call: NodeCall | None, value: object) -> Value:
        return await run.nested(self.graph, value, None if self.is_item else self.actions)
