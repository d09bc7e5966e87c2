"""The spans of runs, nodes, items and phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span

from pocket_plug.hookspecs import SILENT, NodeCall, PhaseCall, Run
from pocket_plug.otel.additions import Way, added
from pocket_plug.otel.late import LateSpan
from pocket_plug.otel.reporting import current_context
from pocket_plug.primitives.failures import capped, capped_all, error_type
from pocket_plug.propagation import SESSION, context_of, current_session, inject, named_baggage

from .fan_outs import FAN_OUT, FanOut, clock
from .settings import Live
from .spans import NOTED, Attributes, Noted, SpanManager, carried, fail, inside_dropped, is_cancellation, noted

if TYPE_CHECKING:
    from pocket_plug.graph.observing.shape import Shape

MAX_PHASES = 32
"""How many phases of an item without a span are noted, in case it gets one."""


class RunSpan(SpanManager):
    """The span `run {graph}`, and the maker of the spans inside it."""

    __slots__ = ("additions", "dropped", "graph", "id", "live", "noted", "run", "silent")

    def __init__(self, live: Live, run: Run) -> None:
        self.live, self.run, self.dropped = live, run, True
        self.additions = live.additions()
        self.graph, self.id = capped(run.graph), capped(run.id)
        self.silent: dict[NodeCall, ItemSpan | None] = {}
        """Running visits whose span isn't recorded, so neither are their phases'. Items that may get one note their phases."""
        self.noted: Noted | None = None
        """What is noted of this run, if it is an outermost one."""

    def of_run(self, run: Run) -> RunSpan | nullcontext[object] | None:
        """The run's own span; none if it is nested in an item without one, but its events are observed all the same."""
        if run.parent is None:
            return self
        if type(trace.get_current_span()) is LateSpan:
            return None
        return nullcontext(SILENT) if inside_dropped() else self

    def of_node(self, call: NodeCall) -> NodeSpan | Unseen | None:
        """The span of a visit; for many items it is made afterwards, or not at all."""
        if self.dropped:
            return None
        fan_out = cast("FanOut | None", otel_context.get_value(FAN_OUT)) if call.is_item else None
        if fan_out is None or fan_out.run is not call.run:
            return NodeSpan(self, call) if call.trace else None
        if fan_out.hidden:
            return Unseen(self.silent, call)
        if not fan_out.chooses:
            return NodeSpan(self, call) if call.trace else None
        if not call.trace:
            fan_out.untraced = True
            return None
        return ItemSpan(self, call, fan_out)

    def of_phase(self, call: PhaseCall) -> PhaseSpan | NotedPhase | None:
        """The span of an attempt."""
        if self.dropped or not call.node.trace:
            return None
        if not self.live.phases and (call.phase != "exec" or not call.node.guarded):
            return None
        if call.node not in self.silent:
            return PhaseSpan(self, call)
        item = self.silent[call.node]
        return None if item is None else NotedPhase(item, call)

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        """Add conflicts and failed clean-ups to the span in which they happened, and count retries."""
        if name == "retry" and (known := noted()) is not None:
            known.count_retry()
        if self.dropped or name not in ("conflict", "clean_up_failed"):
            return
        span = trace.get_current_span()
        if type(span) is not LateSpan or span.has_begun:
            error = attributes.get("error")
            kind = {"error.type": error_type(error)} if isinstance(error, BaseException) else {}
            span.add_event(f"pocket_plug.{name}", kind)

    def __enter__(self) -> object:
        live, run = self.live, self.run
        context, links = self._place(current_context())
        session = current_session(context)
        attributes: Attributes = {
            "pocket_plug.graph.name": self.graph,
            "pocket_plug.run.id": self.id,
            "pocket_plug.run.resumed": run.resumed,
        }
        if run.shape is not None:
            attributes["pocket_plug.graph.version"] = run.shape.version
        if run.parent is not None:
            attributes["pocket_plug.run.parent_id"] = capped(run.parent.id)
        if session is not None:
            attributes[SESSION] = capped(session)
        if (asked := self.additions.run) or live.baggage:
            attributes = carried(live, context) | added("run", asked, run, attributes) | attributes
        span = live.graph.start_span(capped(f"run {self.graph}"), context, attributes=attributes, links=links)
        around = cast("Noted | None", otel_context.get_value(NOTED, context))
        if around is None or run.parent is None:
            self.noted = Noted(around)
            context = otel_context.set_value(NOTED, self.noted, context)
        self.open(span, context)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return SILENT if self.dropped else None

    def _begin(self) -> None:
        """Record and keep what needs the span."""
        live, run, span = self.live, self.run, self.span
        self.dropped = not span.is_recording() and inside_dropped()
        if run.carrier is not None:
            run.carrier.clear()
            run.carrier.update(inject(baggage=live.baggage))
        if span.is_recording():
            if live.draws and run.shape is not None:
                span.set_attributes(_drawn(run.shape))
            if live.capture is not None:
                self.show(span, run, "pocket_plug.run.input", ("run", "input"), run.input)

    def _place(self, context: Context) -> tuple[Context, Sequence[Link]]:
        """The run's context, with its parent and session, and its links."""
        live, run = self.live, self.run
        if run.traceparent is not None:
            context = context_of(run.traceparent, context, baggage=live.baggage)
        if run.carrier is None:
            return context, ()
        former = context_of(run.carrier, Context(), baggage=live.baggage)
        session = current_session(former) or current_session(context) or run.id
        context = otel_context.set_value(SESSION, session, context)
        for name, value in named_baggage(live.baggage, former).items():
            if baggage.get_baggage(name, context) is None:
                context = baggage.set_baggage(name, value, context)
        left, around = trace.get_current_span(former), trace.get_current_span(context)
        to = "former_execution" if run.resumed else "submitter"
        if live.resume_trace == "parent" and left.get_span_context().is_valid and run.traceparent is None:
            context, left, to = trace.set_span_in_context(left, context), around, "caller"
        return context, [
            Link(left.get_span_context(), {"pocket_plug.link": to})
        ] if left.get_span_context().is_valid else []

    def finish(self, error: BaseException | None) -> None:
        if self.span.is_recording():
            self._describe(error)
        self.noted = None  # tracebacks in it lead to the run's context, which holds this

    def _describe(self, error: BaseException | None) -> None:
        run, span = self.run, self.span
        outcome = run.outcome or "success"
        attributes: Attributes = {"pocket_plug.run.outcome": outcome, "pocket_plug.run.steps": run.steps}
        if self.noted is not None and self.noted.retries:
            attributes["pocket_plug.run.retries"] = self.noted.retries
        span.set_attributes(attributes)
        if error is not None:
            fail(self.live, span, error, cancelled=outcome == "cancelled" or is_cancellation(error))
        elif self.live.capture is not None and outcome == "success":
            self.show(span, run, "pocket_plug.run.output", ("run", "output"), run.output)

    def show(self, span: Span, call: Run | NodeCall | PhaseCall, name: str, path: tuple[str, Way], value: Any) -> None:
        """Add an input or output to the span, if it is captured."""
        capture = self.live.capture
        text = capture.value(path, value) if capture is not None else None
        if capture is not None and text is not None:
            span.set_attribute(name, text)
            if asked := self.additions.value:
                span.set_attributes(added("value", asked, call, path[1], text, capture.mime_type))


_shapes: WeakKeyDictionary[Shape, Mapping[str, Sequence[str]]] = WeakKeyDictionary()


def _drawn(shape: Shape) -> Mapping[str, Sequence[str]]:
    """The nodes and edges of a graph, so that the paths not taken can be drawn as well. Made once for each graph."""
    drawn = _shapes.get(shape)
    if drawn is None:
        drawn = _shapes[shape] = {
            "pocket_plug.graph.nodes": capped_all("\t".join(node) for node in shape.nodes.items()),
            "pocket_plug.graph.edges": capped_all("\t".join(edge) for edge in shape.edges),
        }
    return drawn


class NodeSpan(SpanManager):
    """The span `node {node}`, or `item {node}` for an item of a fan-out."""

    __slots__ = ("call", "fan_out", "run")

    def __init__(self, run: RunSpan, call: NodeCall) -> None:
        self.run, self.call = run, call
        self.fan_out = FanOut(call.run) if call.type == "fan_out" else None

    def start(self, context: Context, start: int | None = None) -> Span:
        """Start the span, now or at another time (in ns)."""
        call, live = self.call, self.run.live
        name = capped(call.name)
        attributes: Attributes = {
            "pocket_plug.node.name": name,
            "pocket_plug.node.type": call.type,
            "pocket_plug.node.visit": call.visit,
            "pocket_plug.run.id": self.run.id,
            "pocket_plug.graph.name": self.run.graph,
            **call.attributes,
        }
        title = capped(f"item {name}" if call.is_item else f"node {name}")
        if type(self) is ItemSpan and call.position is not None:
            attributes["pocket_plug.fan_out.index"] = call.position
        if (asked := self.run.additions.node) or live.baggage:
            attributes = carried(live, context) | added("node", asked, call, attributes) | attributes
        return live.graph.start_span(title, context, attributes=attributes, start_time=start)

    def __enter__(self) -> None:
        self.enter()

    def enter(self, start: int | None = None) -> None:
        """Start the span, now or at another time (in ns), and make it the current one."""
        context, fan_out = current_context(), self.fan_out
        span = self.start(context, start)
        if fan_out is not None:
            fan_out.chooses = span.is_recording()
            context = otel_context.set_value(FAN_OUT, fan_out, context)
        if not self.open(span, context):
            if inside_dropped():
                self.run.silent[self.call] = None
        elif self.run.live.capture is not None:
            try:
                self.show_input()
            except BaseException:
                self.close()
                raise

    def show_input(self) -> None:
        """Add the node's input to the span, if it is captured."""
        self.run.show(self.span, self.call, "pocket_plug.node.input", ("node", "input"), self.call.input)

    def finish(self, error: BaseException | None) -> None:
        call, span, live = self.call, self.span, self.run.live
        self.run.silent.pop(call, None)
        if not span.is_recording():
            return
        attributes: Attributes = {"pocket_plug.node.attempts": call.attempts}
        outcome = call.outcome
        if outcome is not None:
            attributes["pocket_plug.node.outcome"] = outcome
        if call.attempts > 1:  # a conflict may have caused another attempt, which is no retry
            attributes["pocket_plug.node.retries"] = call.retries
        if call.action is not None:
            attributes["pocket_plug.node.action"] = capped(call.action)
        if call.next is not None:
            attributes["pocket_plug.node.next"] = capped(call.next)
        if not live.phases:
            for phase, seconds in call.durations.items():
                attributes[f"pocket_plug.node.{phase}.duration"] = seconds
        if self.fan_out is not None:
            attributes |= self.fan_out.close()
        span.set_attributes(attributes)
        if error is not None:
            fail(live, span, error, cancelled=outcome == "cancelled" or is_cancellation(error))
        elif live.capture is not None and outcome in ("ok", "fallback"):
            self.run.show(span, call, "pocket_plug.node.output", ("node", "output"), call.output)


class ItemSpan(NodeSpan):
    """The span `item {node}`: if the item isn't in the sample, one that begins late, if it is needed or earned."""

    __slots__ = ("among", "ended", "error", "index", "late", "phases", "started")

    def __init__(self, run: RunSpan, call: NodeCall, among: FanOut) -> None:
        super().__init__(run, call)
        self.among, self.index = among, among.begin()
        self.late: LateSpan | None = None
        self.phases: list[tuple[PhaseCall, int, int, BaseException | None]] = []

    def __enter__(self) -> None:
        self.started = clock()
        if self.among.is_sampled(self.index):
            self.enter(self.started)
            return
        context = otel_context.get_current()
        if self.fan_out is not None:  # an item that is a fan-out itself
            self.fan_out.hidden = True
            context = otel_context.set_value(FAN_OUT, self.fan_out, context)
        self.span = self.late = LateSpan(partial(self.start, context, self.started), context)
        self.run.silent[self.call] = self
        self.token = otel_context.attach(trace.set_span_in_context(self.late, context))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        self.ended, is_over = clock(), self.call.outcome != "suspended"
        took = max(self.ended - self.started, 0)
        if is_over:
            self.among.count(self.call, took)
        late = self.late
        if late is None:
            super().__exit__(kind, error, stack)
        else:
            otel_context.detach(self.token)
            self.run.silent.pop(self.call, None)
            self.error = error
            if late.has_begun or (is_over and self.among.earns_span(self.call)):
                self.write()
            elif not is_over:
                late.dismiss()
        if is_over:
            self.among.compare(self.index, took, None if late is None or late.has_begun else self)

    def write(self) -> None:
        """Make the span afterwards, with what was noted."""
        assert self.late is not None
        context = trace.set_span_in_context(self.late.begun(), self.late.around)
        try:
            self.show_input()
            for call, started, ended, error in self.phases:
                phase = PhaseSpan(self.run, call)
                phase.span = phase.start(context, started)
                try:
                    phase.show_input()
                    phase.finish(error)
                finally:
                    phase.span.end(ended)
            self.finish(self.error)
        finally:
            self._forget()
            self.span.end(self.ended)

    def release(self) -> None:
        """It isn't one of the slowest any more."""
        assert self.late is not None
        if self.late.dismiss():
            self.among.suppressed += 1
            self.among.suppressed_failed += self.call.outcome == "failed"
            self._forget()
        else:
            self.write()

    def _forget(self) -> None:
        """Drop errors, whose tracebacks lead to objects that hold this one."""
        self.error = None
        self.phases.clear()


class Unseen:
    """An item of a fan-out that is itself an item without a span: neither the item nor its phases have one."""

    __slots__ = ("call", "silent")

    def __init__(self, silent: dict[NodeCall, ItemSpan | None], call: NodeCall) -> None:
        self.silent, self.call = silent, call

    def __enter__(self) -> None:
        self.silent[self.call] = None

    def __exit__(self, *_: object) -> None:
        self.silent.pop(self.call, None)


class NotedPhase:
    """An attempt in an item that has no span so far."""

    __slots__ = ("call", "item", "started")

    def __init__(self, item: ItemSpan, call: PhaseCall) -> None:
        self.item, self.call = item, call

    def __enter__(self) -> None:
        self.started = clock()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        if len(self.item.phases) < MAX_PHASES:
            self.item.phases.append((self.call, self.started, clock(), error))


class PhaseSpan(SpanManager):
    """The span `prep|exec|fallback|post {node}` of one attempt."""

    __slots__ = ("call", "live", "run")

    def __init__(self, run: RunSpan, call: PhaseCall) -> None:
        self.run, self.live, self.call = run, run.live, call

    def start(self, context: Context, start: int | None = None) -> Span:
        """Start the span, now or at another time (in ns)."""
        call, live = self.call, self.live
        phase, node = call.phase, capped(call.node.name)
        attributes: Attributes = {"pocket_plug.phase": phase, "pocket_plug.node.name": node}
        if phase == "exec":
            attributes["pocket_plug.attempt"] = call.attempt
            if call.timeout is not None:
                attributes["pocket_plug.timeout"] = call.timeout
        if (asked := self.run.additions.phase) or live.baggage:
            attributes = carried(live, context) | added("phase", asked, call, attributes) | attributes
        return live.phase.start_span(capped(f"{phase} {node}"), context, attributes=attributes, start_time=start)

    def __enter__(self) -> None:
        context = current_context()
        self.open(self.start(context), context)
        if self.live.capture is not None and self.span.is_recording():
            try:
                self.show_input()
            except BaseException:
                self.close()
                raise

    def show_input(self) -> None:
        """Add the phase's input to the span, if it is captured and on no other span."""
        if self._is_shown():
            self.run.show(self.span, self.call, "pocket_plug.phase.input", ("phase", "input"), self.call.input)

    def _is_shown(self) -> bool:
        """The inputs and outputs of prep and post are on the node's span already, or on that of exec."""
        return self.live.capture is not None and self.call.phase in ("exec", "fallback")

    def finish(self, error: BaseException | None) -> None:
        call, span = self.call, self.span
        if not span.is_recording():
            return
        if error is None:
            if self._is_shown():
                self.run.show(span, call, "pocket_plug.phase.output", ("phase", "output"), call.output)
            return
        span.set_attribute("pocket_plug.attempt.will_retry", call.will_retry)
        if call.delay is not None:
            span.set_attribute("pocket_plug.retry.delay", call.delay)
        fail(self.live, span, error, cancelled=is_cancellation(error))
