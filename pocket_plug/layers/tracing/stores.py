"""The layer `tracing`: a span for each operation that reaches a stack; at detail "debug" one for each part it passes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from pocket_plug.errors import ConflictError, is_fault
from pocket_plug.otel.additions import added
from pocket_plug.otel.late import LateSpan
from pocket_plug.otel.reporting import current_context, server_of, suppressed, surviving, system_of
from pocket_plug.primitives.failures import capped, say_once
from pocket_plug.primitives.names import OWN, PAST_OWN, RESERVED
from pocket_plug.primitives.polls import is_poll
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry, Put
from pocket_plug.store.keys import template_of
from pocket_plug.store.layer import Layer, parts
from pocket_plug.store.memory import Memory

from . import settings
from .settings import Listening, Live
from .spans import Attributes, carried, fail, is_cancellation, is_dropped

LABEL = "pocket_plug.layer.label"

SIZE = "pocket_plug.store.size"
"""How many keys an operation is for. In OpenTelemetry's conventions only several operations in one call are a batch."""

CHECKPOINT = (f"{RESERVED}run:", f"{RESERVED}run-part:")
"""The prefixes of the keys of a durable run's checkpoint, and of its other records."""


class Tracing(Layer):
    """One span for each operation that reaches the stack, named by the declared template of its key: `get user:{}`.

    `namespace` names the store (`db.namespace`), as in the layer `metrics`.

    A provider may be set, or replaced, after the stack was built: the next operation uses it. Keys and values are
    shown only if `capture` says so; a name that no `Key` declares is left out. Inner operations that suspend run with
    the span as the current one; those in memory have no spans below, except of layers, if the stack was built at detail
    "debug".
    """

    namespace: str = ""

    inline_read = inline_write = True

    def on_build(self) -> None:
        self._listening = listening_of(self)
        backend = parts(self.inner)[-1]
        server = server_of(backend)
        # by the conventions for SQL, a call of a database is a client's, also of an embedded one
        self._kind = SpanKind.CLIENT if server or backend.system else SpanKind.INTERNAL
        self._about: Attributes = {"db.system.name": capped(system_of(backend)), **server}
        if self.namespace:
            self._about["db.namespace"] = capped(self.namespace)
        if self.label:
            self._about[LABEL] = capped(self.label)
        self._of_get, self._of_set, self._of_delete = map(self._attributes, ("get", "set", "delete"))
        self._of_hit, self._of_miss = ({**self._of_get, "pocket_plug.store.hit": hit} for hit in (True, False))
        self._read_on = self.inner.read
        probed = isinstance(self.inner, Probe)
        self._attach_read = probed or not self.inner.inline_read
        self._attach_write = probed or not self.inner.inline_write

    def wrap_inner(self, part: Backend) -> Backend:
        """At detail "debug" wrap each part of the stack in a Probe, except Memory, which a layer may adopt."""
        if listening_of(self).settings.detail != "debug" or type(part) is Memory or isinstance(part, Probe):
            return part
        probe = Probe()
        probe.made_by(self.plugin, {})
        return probe.build(part)

    def _attributes(self, operation: str) -> Attributes:
        return {**self._about, "db.operation.name": operation}

    # Not `async`: if there is no span to make, the inner coroutine is returned, without one of its own.
    def read(self, key: str) -> Coroutine[Any, Any, Entry | None]:  # pyright: ignore[reportIncompatibleMethodOverride] - awaited alike
        live = self._listening.look()
        if live is not None and (live := _heard(live, context := current_context())) is not None:
            return self._traced_read(key, live, context)
        read_on = self._read_on
        return read_on(key)

    async def _traced_read(self, key: str, live: Live, context: Context) -> Entry | None:
        target = _target(key)
        if self._attach_read:
            span = self._start(live, ("get", target, self._of_get, context, key))
            if span is None:
                return await self.inner.read(key)
            with _Attached(live, span) as operation:
                entry = await self.inner.read(key)
                operation.result = ("pocket_plug.store.hit", entry is not None)
                operation.values = entry
                return entry
        start = time.time_ns()
        try:
            entry = await self.inner.read(key)
        except BaseException as error:
            self._made(live, ("get", target, self._of_get, context, key), start, error)
            raise
        attributes = self._of_miss if entry is None else self._of_hit
        self._made(live, ("get", target, attributes, context, key), start, None, entry)
        return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        live = self._listening.look()
        if live is None or (live := _heard(live, context := current_context())) is None:
            return await self.inner.read_many(keys)
        keys = list(keys)
        attributes = self._attributes("get_many") | {SIZE: len(keys)}
        about: Operation = "get_many", _common_target(keys), attributes, context, keys
        if self._attach_read:
            span = self._start(live, about)
            if span is None:
                return await self.inner.read_many(keys)
            with _Attached(live, span) as operation:
                entries = await self.inner.read_many(keys)
                operation.result = ("db.response.returned_rows", len(entries))
                operation.values = entries
                return entries
        start = time.time_ns()
        try:
            entries = await self.inner.read_many(keys)
        except BaseException as error:
            self._made(live, about, start, error)
            raise
        attributes["db.response.returned_rows"] = len(entries)
        self._made(live, about, start, None, entries)
        return entries

    def write(  # pyright: ignore[reportIncompatibleMethodOverride] - awaited alike
        self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS
    ) -> Coroutine[Any, Any, int]:
        live = self._listening.look()
        if live is not None and (live := _heard(live, context := current_context())) is not None:
            return self._traced_write(changes, expect, live, context)
        return self.inner.write(changes, expect)

    async def _traced_write(
        self, changes: Sequence[Change], expect: Mapping[str, int], live: Live, context: Context
    ) -> int:
        if len(changes) == 1:
            key = changes[0].key
            name, attributes = ("set", self._of_set) if isinstance(changes[0], Put) else ("delete", self._of_delete)
            about: Operation = name, _target(key), attributes, context, key
        else:
            keys = [change.key for change in changes] or [*expect]
            name = "write" if changes else "check"
            attributes = self._attributes(name) | {"db.operation.batch.size" if changes else SIZE: len(keys)}
            about = name, _common_target(keys), attributes, context, keys
        if self._attach_write:
            span = self._start(live, about)
            if span is None:
                return await self.inner.write(changes, expect)
            with _Attached(live, span) as operation:
                operation.values = changes
                return await self.inner.write(changes, expect)
        start = time.time_ns()
        try:
            version = await self.inner.write(changes, expect)
        except BaseException as error:
            self._made(live, about, start, error, changes)
            raise
        self._made(live, about, start, None, changes)
        return version

    def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        live = self._listening.look()
        keys = self.inner.scan(prefix, after=after, reverse=reverse, limit=limit)
        if live is None or (live := _heard(live, current_context())) is None:
            return keys
        return self._scanned(live, prefix, keys)

    async def _scanned(self, live: Live, prefix: str, keys: AsyncIterator[str]) -> AsyncIterator[str]:
        """The span is made at the end, with the time that the store worked: none is open while the caller uses a key."""
        parent, start = current_context(), time.time_ns()
        busy, count, error = 0, 0, None
        began = time.perf_counter_ns()
        try:
            async for key in keys:
                busy += time.perf_counter_ns() - began
                count += 1
                yield key
                began = time.perf_counter_ns()
            busy += time.perf_counter_ns() - began
        except Exception as failure:
            busy += time.perf_counter_ns() - began
            error = failure
            raise
        finally:
            attributes = self._attributes("scan") | {"db.response.returned_rows": count}
            about = "scan", template_of(prefix), attributes, parent, prefix
            self._made(live, about, start, error, end=start + busy)

    def _made(
        self,
        live: Live,
        about: Operation,
        start: int,
        error: BaseException | None,
        values: Values = None,
        end: int | None = None,
    ) -> None:
        """Make the span of an operation that has ended: no code below could have needed it as the current one."""
        span = self._start(live, about, start)
        if span is not None:
            _finish(live, span, error, None, values, end)

    def _start(self, live: Live, about: Operation, start: int | None = None) -> Span | None:
        """A recording span that starts now, or at another time (in ns); or None. Tracing that fails must not fail the store."""
        operation, target, attributes, parent, keys = about
        if _is_bookkeeping(keys) and not trace.get_current_span(parent).get_span_context().is_valid:
            return None  # a durable run reads its records before it has a span: that must not begin a trace
        try:  # not by `surviving`: here and in `_finish` it would take 8 % of a read's time
            name = capped(f"{operation} {target}") if target else operation
            if (asked := live.additions().store) or live.baggage:
                attributes = carried(live, parent) | added("store", asked, attributes) | attributes
            span = live.store.start_span(name, parent, self._kind, attributes, start_time=start)
            if not span.is_recording():
                return None
            if live.capture is not None and keys:
                _show_keys(live, span, keys)
        except BaseException as error:  # a user's sampler or processor may raise anything
            if not is_fault(error):
                raise
            say_once("tracing a store operation", error)
            return None
        return span


Operation = tuple[str, str, Attributes, Context, str | Sequence[str]]
"""What a span shows of an operation: its name, its target, its attributes, the context around it, and its keys."""


def listening_of(layer: Layer) -> Listening:
    """The settings for a layer: those of the Pocket that made its recipe, else the process's."""
    found = getattr(layer.plugin, "listening", None)
    return found if isinstance(found, Listening) else settings.process


def _heard(live: Live, context: Context) -> Live | None:
    """Where a store operation's span goes; None if it isn't wanted, or a sampler dropped the span around it."""
    if not live.stores:
        return None
    if context:  # an empty one, as outside of runs and requests, has no span: a look would cost as much as the read
        if suppressed(context) or is_poll.get():
            return None
        parent = trace.get_current_span(context)
        if type(parent) is LateSpan or is_dropped(parent):
            return None
    return live


def _target(key: str) -> str:
    """The key in the name of an operation's span: its template, or "checkpoint" for a durable run's records."""
    return template_of(key) or ("checkpoint" if key.startswith(CHECKPOINT) else "")


def _common_target(keys: Sequence[str]) -> str:
    """The same for several keys: "checkpoint" if a durable run's record is among them."""
    if len(keys) == 1:
        return _target(keys[0])
    return "checkpoint" if any(key.startswith(CHECKPOINT) for key in keys) else ""


def _is_bookkeeping(keys: str | Sequence[str]) -> bool:
    """Are all of these keys pocket_plug's own records?"""
    if isinstance(keys, str):
        return OWN <= keys < PAST_OWN
    return bool(keys) and all(OWN <= name < PAST_OWN for name in keys)


def _show_keys(live: Live, span: Span, keys: str | Sequence[str]) -> None:
    assert live.capture is not None
    if isinstance(keys, str):
        text = live.capture.key(keys)
        span.set_attribute("pocket_plug.store.key", text)
    else:
        shown = live.capture.keys(keys)
        span.set_attribute("pocket_plug.store.keys", shown)
        text = "\n".join(shown)
    if asked := live.additions().value:
        span.set_attributes(added("value", asked, None, "input", text, "text/plain"))


Values = Entry | Mapping[str, Entry] | Sequence[Change] | None
"""The result of a read, or the changes of a write."""


def _show_values(live: Live, span: Span, values: Values) -> None:
    assert live.capture is not None
    if isinstance(values, Entry):
        found: Any = values.value
    elif isinstance(values, Mapping):
        found = {key: entry.value for key, entry in values.items()}
    else:
        puts = {change.key: change.value for change in values or () if isinstance(change, Put)}
        if not puts:
            return
        found = puts if values is not None and len(values) > 1 else next(iter(puts.values()))
    text = live.capture.value(("store", "value"), found)
    if text is not None:
        span.set_attribute("pocket_plug.store.value", text)
        asked = live.additions().value
        if asked and isinstance(values, Entry | Mapping):
            span.set_attributes(added("value", asked, None, "output", text, live.capture.mime_type))


class _Attached:
    """The block in which an operation runs with its span as the current one. Errors of tracing are reported once, not raised."""

    __slots__ = ("live", "result", "span", "token", "values")

    def __init__(self, live: Live, span: Span) -> None:
        self.live, self.span = live, span
        self.result: tuple[str, bool | int] | None = None
        self.values: Values = None
        self.token = otel_context.attach(trace.set_span_in_context(span))

    def __enter__(self) -> _Attached:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, stack: object) -> None:
        otel_context.detach(self.token)
        _finish(self.live, self.span, error, self.result, self.values)


def _finish(
    live: Live,
    span: Span,
    error: BaseException | None,
    result: tuple[str, bool | int] | None,
    values: Values,
    end: int | None = None,
) -> None:
    try:
        try:
            if result is not None:
                span.set_attribute(*result)
            if live.capture is not None and values:
                _show_values(live, span, values)
            if error is not None:
                fail(live, span, error, cancelled=is_cancellation(error) or isinstance(error, ConflictError))
        finally:
            span.end(end)
    except BaseException as failure:  # a user's span processor may raise anything
        if not is_fault(failure):
            raise
        say_once("tracing a store operation", failure)


# ---------------------------------------------------------------- the parts of a stack
class Probe(Layer):
    """Wraps a part of a stack that is built at detail "debug": makes a span for each operation of that part."""

    inline_read = inline_write = True

    def on_build(self) -> None:
        self._look = listening_of(self).look
        part = self.inner
        self._name = capped(part.name if isinstance(part, Layer) else system_of(part))
        self._kind = "layer" if isinstance(part, Layer) else "backend"
        self._about: Attributes = {"pocket_plug.layer": self._name}
        if isinstance(part, Layer) and part.label:
            self._about[LABEL] = capped(part.label)
        if isinstance(part, Layer):  # no span for operations that the layer only passes on
            for operation in ("read", "read_many", "write"):
                own = getattr(part, operation)
                if own == getattr(part.inner, operation):
                    setattr(self, operation, own)

    def _watched(self, operation: str) -> _Attached | None:
        """A span, only inside of an operation whose span is recorded."""
        live = self._look()
        if live is None or live.detail != "debug":
            return None
        context = current_context()
        around = trace.get_current_span(context)
        if suppressed(context) or is_poll.get() or type(around) is LateSpan or not around.is_recording():
            return None
        attributes: Attributes = {**self._about, "db.operation.name": operation}
        with surviving("tracing a layer"):
            span = live.store.start_span(capped(f"{self._kind} {self._name}"), context, attributes=attributes)
            return _Attached(live, span) if span.is_recording() else None
        return None

    async def read(self, key: str) -> Entry | None:
        """The part's, with a span."""
        watched = self._watched("get")
        if watched is None:
            return await self.inner.read(key)
        with watched:
            entry = await self.inner.read(key)
            watched.result = ("pocket_plug.store.hit", entry is not None)
            return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        """The part's, with a span."""
        watched = self._watched("get_many")
        if watched is None:
            return await self.inner.read_many(keys)
        with watched:
            entries = await self.inner.read_many(keys)
            watched.result = ("db.response.returned_rows", len(entries))
            return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        """The part's, with a span."""
        watched = self._watched("write")
        if watched is None:
            return await self.inner.write(changes, expect)
        with watched:
            return await self.inner.write(changes, expect)
