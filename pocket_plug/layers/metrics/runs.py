"""How long runs and nodes take, and how many are active."""

from __future__ import annotations

import time

from opentelemetry.context import Context, get_current

from pocket_plug.hookspecs import NodeCall, Run
from pocket_plug.otel import open_runs
from pocket_plug.otel.late import measuring_context

from .counting import Active, Attributes, actions, errors, graphs
from .instruments import Instruments, about, failure


class RunTimer:
    """Counts a run as active, and measures how long it takes."""

    __slots__ = ("__weakref__", "active", "context", "graph", "instruments", "run", "started")

    def __init__(self, instruments: Instruments, run: Run) -> None:
        self.instruments, self.run = instruments, run
        self.graph: Attributes = {"pocket_plug.graph.name": graphs[run.graph]}

    def __enter__(self) -> None:
        self.active = self.instruments.runs.begin(self, self.graph)
        self.context = get_current()
        self.started = time.perf_counter()
        open_runs.begun(self)

    def __exit__(self, *_: object) -> None:
        if open_runs.ended(self):
            self._record(self.run.outcome or "success", failure(self.run.error), measuring_context())

    def interrupt(self, reason: str) -> None:
        """Record a run that ends with the process, in another context than its own."""
        self._record(open_runs.INTERRUPTED, {"error.type": errors[reason]}, self.context)

    def _record(self, outcome: str, failed: Attributes, context: Context) -> None:
        """Record the end; the span of `context` becomes the exemplar."""
        seconds = time.perf_counter() - self.started
        self.active.end(self)
        attributes = self.graph | failed
        attributes["pocket_plug.run.outcome"] = outcome
        self.instruments.run_duration.record(seconds, attributes, context)


class NodeTimer:
    """Measures how long a visit of a node takes, if `timed`; and counts an item of a fan-out as active."""

    __slots__ = ("__weakref__", "active", "call", "instruments", "started", "timed")

    def __init__(self, instruments: Instruments, call: NodeCall, timed: bool) -> None:
        self.instruments, self.call, self.timed = instruments, call, timed
        self.active: Active | None = None

    def __enter__(self) -> None:
        if self.call.is_item:
            self.active = self.instruments.items.begin(self, about(self.call))
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.started
        if self.active is not None:
            self.active.end(self)
        if not self.timed:
            return
        call = self.call
        attributes = about(call) | failure(call.error)
        attributes["pocket_plug.node.outcome"] = call.outcome or "ok"
        if call.action is not None:  # the action of an edge: a run refuses all others
            attributes["pocket_plug.node.action"] = actions[call.action]
        self.instruments.node_duration.record(seconds, attributes, measuring_context())
