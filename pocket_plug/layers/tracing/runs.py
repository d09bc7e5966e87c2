"""The spans of runs, nodes, items and phases."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span

from pocket_plug.hookspecs import SILENT, NodeCall, PhaseCall, Run
from pocket_plug.primitives.failures import capped, capped_all, error_type
from pocket_plug.propagation import SESSION, context_of, current_session, inject, named_baggage

from . import flavours
from .settings import Live
from .spans import RECORDED, Attributes, SpanManager, carried, fail, inside_dropped, is_cancellation

if TYPE_CHECKING:
    from pocket_plug.graph.shape import Shape

MAX_ITEMS = 100
"""Of one fan-out: so many items have spans, and so many more if they fail. Its span says how many had none."""

_FAN_OUT: Final = otel_context.create_key("pocket_plug.fan_out")


class _FanOut:
    """In the context of a fan-out's items: whose they are, how many began (an item's index), how many had no span."""

    __slots__ = ("began", "failed", "run", "suppressed")

    def __init__(self, run: Run) -> None:
        self.run, self.began, self.failed, self.suppressed = run, 0, 0, 0


class RunSpan(SpanManager):
    """`run {graph}`, and what gives the spans inside it."""

    __slots__ = ("dropped", "graph", "id", "live", "recorded", "run", "session", "silent")

    def __init__(self, live: Live, run: Run) -> None:
        self.live, self.run, self.dropped = live, run, True
        self.session: str | None = None
        self.graph, self.id = capped(run.graph), capped(run.id)
        self.silent: set[NodeCall] = set()  # those under way whose span isn't recorded: neither are their phases'
        self.recorded: deque[BaseException] = deque(maxlen=64)

    def of_run(self, run: Run) -> RunSpan | nullcontext[object]:
        """The run's own span."""
        # a sampler would let a nested run in an item without a span pass: its parent, the fan-out, is sampled
        return nullcontext(SILENT) if run.parent is not None and inside_dropped() else self

    def of_node(self, call: NodeCall) -> NodeSpan | Suppressed | None:
        """The span of a visit, which for one item too many is there afterwards, if at all."""
        if self.dropped or not call.trace:
            return None
        fan_out = cast("_FanOut | None", otel_context.get_value(_FAN_OUT)) if call.is_item else None
        if fan_out is None or fan_out.run is not call.run:
            return NodeSpan(self, call)
        index = fan_out.began
        fan_out.began += 1
        return NodeSpan(self, call, index) if index < MAX_ITEMS else Suppressed(self, call, index, fan_out)

    def of_phase(self, call: PhaseCall) -> PhaseSpan | None:
        """The span of an attempt."""
        if self.dropped or not call.node.trace:
            return None
        if not self.live.phases and (call.phase != "exec" or not call.node.guarded):
            return None
        return None if call.node in self.silent else PhaseSpan(self.live, call)

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        """What no span shows by itself: conflicts and failed clean-ups, on the span in which they happened."""
        if not self.dropped and name in ("conflict", "clean_up_failed"):
            error = attributes.get("error")
            kind = {"error.type": error_type(error)} if isinstance(error, BaseException) else {}
            trace.get_current_span().add_event(f"pocket_plug.{name}", kind)

    def __enter__(self) -> object:
        live, run = self.live, self.run
        context, links = self._place(otel_context.get_current())
        session = self.session = current_session(context)
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
        if live.decorated:
            attributes = carried(live, context) | flavours.of_run(live.flavours, run, session) | attributes
        span = live.graph.start_span(capped(f"run {self.graph}"), context, attributes=attributes, links=links)
        if otel_context.get_value(RECORDED, context) is None:
            context = otel_context.set_value(RECORDED, self.recorded, context)
        self.open(span, context)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise
        return SILENT if self.dropped else None

    def _begin(self) -> None:
        """What is to be recorded or kept once there is a span."""
        live, run, span = self.live, self.run, self.span
        self.dropped = not span.is_recording() and inside_dropped()
        if run.carrier is not None:
            run.carrier.clear()
            run.carrier.update(inject(baggage=live.baggage))
        if span.is_recording():
            if live.draws and run.shape is not None:
                span.set_attributes(_drawn(run.shape))
            if live.capture is not None:
                _show(live, span, "pocket_plug.run.input", ("run", "input"), run.input)

    def _place(self, context: Context) -> tuple[Context, Sequence[Link]]:
        """Where the run stands: below what, in which session, and linked to what."""
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
        if live.resume_trace == "parent" and left.get_span_context().is_valid and run.traceparent is None:
            context, left = trace.set_span_in_context(left, context), around
        return context, [Link(left.get_span_context())] if left.get_span_context().is_valid else []

    def finish(self, error: BaseException | None) -> None:
        if self.span.is_recording():
            self._say(error)
        self.recorded.clear()  # its tracebacks lead to the run's context, which holds this

    def _say(self, error: BaseException | None) -> None:
        run, span = self.run, self.span
        outcome = run.outcome or "success"
        span.set_attributes({"pocket_plug.run.outcome": outcome, "pocket_plug.run.steps": run.steps})
        if error is not None:
            fail(self.live, span, error, cancelled=outcome == "cancelled" or is_cancellation(error))
        elif self.live.capture is not None and outcome == "success":
            _show(self.live, span, "pocket_plug.run.output", ("run", "output"), run.output)


_shapes: WeakKeyDictionary[Shape, Mapping[str, Sequence[str]]] = WeakKeyDictionary()


def _drawn(shape: Shape) -> Mapping[str, Sequence[str]]:
    """The graph, so that the ways that the run didn't take can be drawn as well. Made once for each."""
    drawn = _shapes.get(shape)
    if drawn is None:
        drawn = _shapes[shape] = {
            "pocket_plug.graph.nodes": capped_all("\t".join(node) for node in shape.nodes.items()),
            "pocket_plug.graph.edges": capped_all("\t".join(edge) for edge in shape.edges),
        }
    return drawn


def _show(live: Live, span: Span, name: str, path: tuple[str, str], value: Any) -> None:
    """What went in or came out, where that is captured."""
    capture = live.capture
    text = capture.value(path, value) if capture is not None else None
    if capture is not None and text is not None:
        way: Any = path[-1]
        span.set_attribute(name, text)
        span.set_attributes(flavours.of_value(live.flavours, way, text, capture.mime_type))


class NodeSpan(SpanManager):
    """`node {node}`, or `item {node}` for one of a fan-out's."""

    __slots__ = ("call", "fan_out", "index", "run")

    def __init__(self, run: RunSpan, call: NodeCall, index: int | None = None) -> None:
        self.run, self.call, self.index = run, call, index
        self.fan_out = _FanOut(call.run) if call.type == "fan_out" else None

    def start(self, context: Context, start: int | None = None) -> Span:
        """Begin it, now or at another time (in ns)."""
        call, live = self.call, self.run.live
        name = capped(call.name)
        attributes: Attributes = {
            "pocket_plug.node.name": name,
            "pocket_plug.node.type": call.type,
            "pocket_plug.node.visit": call.visit,
            "pocket_plug.run.id": self.run.id,
            "pocket_plug.graph.name": self.run.graph,
        }
        title = capped(f"item {name}" if call.is_item else f"node {name}")
        if self.index is not None:
            attributes["pocket_plug.fan_out.index"] = self.index
        if live.decorated:
            added = flavours.of_node(live.flavours, call, call.name in live.agents, self.run.session)
            attributes = carried(live, context) | added | attributes
        return live.graph.start_span(title, context, attributes=attributes, start_time=start)

    def __enter__(self) -> None:
        context, fan_out = otel_context.get_current(), self.fan_out
        span = self.start(context)
        self.open(span, context if fan_out is None else otel_context.set_value(_FAN_OUT, fan_out, context))
        if not span.is_recording():
            if inside_dropped():
                self.run.silent.add(self.call)
        elif self.run.live.capture is not None:
            try:
                self.show_input()
            except BaseException:
                self.close()
                raise

    def show_input(self) -> None:
        """What the node was given, where that is captured."""
        _show(self.run.live, self.span, "pocket_plug.node.input", ("node", "input"), self.call.input)

    def finish(self, error: BaseException | None) -> None:
        call, span, live = self.call, self.span, self.run.live
        self.run.silent.discard(call)
        if not span.is_recording():
            return
        attributes: Attributes = {"pocket_plug.node.attempts": call.attempts}
        outcome = call.outcome
        if outcome is not None:
            attributes["pocket_plug.node.outcome"] = outcome
        if call.action is not None:
            attributes["pocket_plug.node.action"] = capped(call.action)
        if call.next is not None:
            attributes["pocket_plug.node.next"] = capped(call.next)
        if not live.phases:
            for phase, seconds in call.durations.items():
                attributes[f"pocket_plug.node.{phase}.duration"] = seconds
        if self.fan_out is not None and self.fan_out.suppressed:
            attributes["pocket_plug.fan_out.suppressed"] = self.fan_out.suppressed
        span.set_attributes(attributes)
        if error is not None:
            fail(live, span, error, cancelled=outcome == "cancelled" or is_cancellation(error))
        elif live.capture is not None and outcome in ("ok", "fallback"):
            _show(live, span, "pocket_plug.node.output", ("node", "output"), call.output)


class Suppressed:
    """An item that is one too many: neither it nor what we do inside has spans. If it fails, it gets one afterwards."""

    __slots__ = ("call", "fan_out", "index", "run", "started", "token")

    def __init__(self, run: RunSpan, call: NodeCall, index: int, fan_out: _FanOut) -> None:
        self.run, self.call, self.index, self.fan_out = run, call, index, fan_out

    def __enter__(self) -> None:
        self.started = time.time_ns()
        self.run.silent.add(self.call)
        # not recording, but valid: what others trace inside becomes a child of the fan-out
        parent = NonRecordingSpan(trace.get_current_span().get_span_context())
        self.token = otel_context.attach(trace.set_span_in_context(parent))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        otel_context.detach(self.token)
        self.run.silent.discard(self.call)
        if error is None or self.call.outcome == "cancelled" or self.fan_out.failed >= MAX_ITEMS:
            self.fan_out.suppressed += 1
            return
        self.fan_out.failed += 1
        late = NodeSpan(self.run, self.call, self.index)
        late.span = late.start(otel_context.get_current(), self.started)
        try:
            late.show_input()
            late.finish(error)
        finally:
            late.span.end()


class PhaseSpan(SpanManager):
    """`prep|exec|fallback|post {node}`: one attempt."""

    __slots__ = ("call", "live")

    def __init__(self, live: Live, call: PhaseCall) -> None:
        self.live, self.call = live, call

    def __enter__(self) -> None:
        call, live = self.call, self.live
        phase, node = call.phase, capped(call.node.name)
        attributes: Attributes = {"pocket_plug.phase": phase, "pocket_plug.node.name": node}
        if phase == "exec":
            attributes["pocket_plug.attempt"] = call.attempt
            if call.timeout is not None:
                attributes["pocket_plug.timeout"] = call.timeout
        context = otel_context.get_current()
        if live.decorated:
            attributes = carried(live, context) | flavours.of_phase(live.flavours, phase) | attributes
        self.open(live.phase.start_span(capped(f"{phase} {node}"), context, attributes=attributes), context)
        if self._is_shown() and self.span.is_recording():
            try:
                _show(live, self.span, "pocket_plug.phase.input", ("phase", "input"), call.input)
            except BaseException:
                self.close()
                raise

    def _is_shown(self) -> bool:
        """What prep and post have and give stands on the node's span already, or on that of exec."""
        return self.live.capture is not None and self.call.phase in ("exec", "fallback")

    def finish(self, error: BaseException | None) -> None:
        call, span = self.call, self.span
        if not span.is_recording():
            return
        if error is None:
            if self._is_shown():
                _show(self.live, span, "pocket_plug.phase.output", ("phase", "output"), call.output)
            return
        span.set_attribute("pocket_plug.attempt.will_retry", call.will_retry)
        if call.delay is not None:
            span.set_attribute("pocket_plug.retry.delay", call.delay)
        fail(self.live, span, error, cancelled=is_cancellation(error))
