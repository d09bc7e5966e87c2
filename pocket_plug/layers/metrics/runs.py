"""How long runs and nodes take, and which of them go on."""

from __future__ import annotations

import time

from opentelemetry.context import Context, get_current

from pocket_plug.hookspecs import NodeCall, Run
from pocket_plug.otel import open_runs
from pocket_plug.otel.late import measuring_context

from .counting import Active, Attributes, actions, errors, graphs
from .instruments import Instruments, about, failure


class RunTimer:
    """A run: that it goes on, and how long it took."""

    __slots__ = ("active", "context", "graph", "instruments", "run", "started")

    def __init__(self, instruments: Instruments, run: Run) -> None:
        self.instruments, self.run = instruments, run
        self.graph: Attributes = {"pocket_plug.graph.name": graphs[run.graph]}

    def __enter__(self) -> None:
        self.active = self.instruments.runs.begin(self.graph)
        self.context = get_current()
        self.started = time.perf_counter()
        open_runs.begun(self)

    def __exit__(self, *_: object) -> None:
        if open_runs.ended(self):
            self._record(self.run.outcome or "success", failure(self.run.error), measuring_context())

    def interrupt(self, reason: str) -> None:
        """It ends with the process, in another context than its own."""
        self._record(open_runs.INTERRUPTED, {"error.type": errors[reason]}, self.context)

    def _record(self, outcome: str, failed: Attributes, context: Context) -> None:
        """The context's span is the exemplar."""
        seconds = time.perf_counter() - self.started
        self.active.end()
        attributes = self.graph | failed
        attributes["pocket_plug.run.outcome"] = outcome
        self.instruments.run_duration.record(seconds, attributes, context)


class NodeTimer:
    """A visit of a node: how long it took, if that is `timed`; of a fan-out's item also that it goes on."""

    __slots__ = ("active", "call", "instruments", "started", "timed")

    def __init__(self, instruments: Instruments, call: NodeCall, timed: bool) -> None:
        self.instruments, self.call, self.timed = instruments, call, timed
        self.active: Active | None = None

    def __enter__(self) -> None:
        if self.call.is_item:
            self.active = self.instruments.items.begin(about(self.call))
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.started
        if self.active is not None:
            self.active.end()
        if not self.timed:
            return
        call = self.call
        attributes = about(call) | failure(call.error)
        attributes["pocket_plug.node.outcome"] = call.outcome or "ok"
        if call.action is not None:  # some edge's: a run refuses what no edge has, whoever made it up
            attributes["pocket_plug.node.action"] = actions[call.action]
        self.instruments.node_duration.record(seconds, attributes, measuring_context())
