"""Reads traces from a file of OTLP/JSON, one request per line: pocket_plug's, or one of the collector's file exporter.

It needs no SDK and only reads; the file may grow meanwhile.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from sys import intern
from typing import Literal, TypeVar, cast

import msgspec
from opentelemetry.util.types import AnyValue

__all__ = ["Event", "RecordedSpan", "SpanLink", "Trace", "TraceFile", "read_traces"]

K = TypeVar("K", bound=Hashable)
Status = Literal["unset", "ok", "error"]

DEFAULT_FILE = Path(".pocket_plug") / "traces.jsonl"
"""The file that programs write by default."""

LOCAL = "pocket_plug.local"
"""Marks an exception event with messages that stay on this machine: `trace send` removes them. With `capture` there is no mark.

If the stack has messages of causes, the mark's value is the stack without them, which is sent instead; else it is True.
"""

STACK = "exception.stacktrace"

MOST = 2**31 - 1
"""The largest number of things that is believed. A damaged span may state any, and the index has sums in 64 bits."""

NO_RUN = frozenset(("pocket_plug.node.name", "pocket_plug.run.parent_id"))
"""Attributes that nodes and nested runs have besides a run's id, and outermost runs don't have."""


# ---------------------------------------------------------------- spans and traces
@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened within a span; `time` in nanoseconds since the epoch."""

    name: str
    time: int
    attributes: Mapping[str, AnyValue]


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A link to another span, usually in another trace. Ids in hex."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, AnyValue]


@dataclass(frozen=True, slots=True)
class RecordedSpan:
    """A span as it was written.

    Ids are in hex; `start` and `end` are nanoseconds since the epoch, and `end` is 0 while the span is open. `kind` is OTLP's
    number (1 internal, 2 server, 3 client, 4 producer, 5 consumer), `scope` the name of the instrumentation scope.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: int
    scope: str
    start: int
    end: int
    attributes: Mapping[str, AnyValue]
    status: Status = "unset"
    message: str = ""
    events: tuple[Event, ...] = ()
    links: tuple[SpanLink, ...] = ()
    resource: Mapping[str, AnyValue] = field(default_factory=dict[str, AnyValue])

    @property
    def duration(self) -> int:
        """Nanoseconds from start to end; 0 while the span is open."""
        return max(self.end - self.start, 0)

    @property
    def is_run(self) -> bool:
        """Is it the span of a graph's run?"""
        return "pocket_plug.run.id" in self.attributes and "pocket_plug.node.name" not in self.attributes

    @property
    def is_outermost(self) -> bool:
        """Is it the span of a run that isn't nested in another one?"""
        return "pocket_plug.run.id" in self.attributes and not NO_RUN & self.attributes.keys()

    @property
    def failed(self) -> bool:
        """Did it fail finally? An attempt that was followed by a retry didn't."""
        return self.status == "error" and self.attributes.get("pocket_plug.attempt.will_retry") is not True

    @property
    def retries(self) -> int:
        """The number of retries: of the node, or for an outermost run of all nodes below it, also of nodes without a span."""
        own = self.attributes
        retries = own.get("pocket_plug.run.retries", own.get("pocket_plug.node.retries"))
        if retries is None and isinstance(attempts := own.get("pocket_plug.node.attempts"), int):
            retries = attempts - 1  # one attempt, or a file of an older version
        return _number(retries)

    @property
    def suppressed_errors(self) -> int:
        """For a fan-out: the number of items that failed and have no span."""
        return _number(self.attributes.get("pocket_plug.fan_out.suppressed_failed"))

    @property
    def error(self) -> str | None:
        """The type of the span's error, if known: by `error.type`, or else by the last exception event."""
        kind = self.attributes.get("error.type")
        if kind is None and self.status == "error":
            raised = (
                each.attributes.get("exception.type") for each in reversed(self.events) if each.name == "exception"
            )
            kind = next(raised, None)
        return kind if isinstance(kind, str) else None


def _number(attribute: AnyValue | None) -> int:
    """How many things an attribute counts: at most `MOST`, and 0 if it is no such number."""
    return min(max(attribute, 0), MOST) if isinstance(attribute, int) else 0


@dataclass(frozen=True)
class Trace:
    """The spans of one trace id, in the order in which they began. There is at least one."""

    id: str
    spans: tuple[RecordedSpan, ...]

    @cached_property
    def roots(self) -> tuple[RecordedSpan, ...]:
        """The spans whose parent isn't in this trace: there is none, or it was recorded elsewhere, lost, or is still open."""
        ids = {span.span_id for span in self.spans}
        return tuple(span for span in self.spans if span.parent_id not in ids)

    @cached_property
    def runs(self) -> tuple[RecordedSpan, ...]:
        """The outermost runs, without those of nested graphs."""
        return tuple(span for span in self.spans if span.is_outermost)

    @property
    def root(self) -> RecordedSpan:
        """The first of the outermost runs; in a trace without one, the first span whose parent isn't here."""
        return (self.runs or self.roots or self.spans)[0]

    @property
    def run_id(self) -> str | None:
        """The id of the run; None if no span names one."""
        for span in (self.root, *self.spans):
            if isinstance(value := span.attributes.get("pocket_plug.run.id"), str):
                return value
        return None

    @property
    def outcome(self) -> str | None:
        """The run's outcome: success, failure, timeout, cancelled or suspended. None: there is no run, or it hasn't ended."""
        outcome = self.root.attributes.get("pocket_plug.run.outcome")
        return outcome if isinstance(outcome, str) else None

    @property
    def start(self) -> int:
        """Nanoseconds since the epoch."""
        return self.spans[0].start

    @cached_property
    def errors(self) -> int:
        """The number of errors. An exception counts once, however many spans it propagated through."""
        failed = {span.span_id: (span.parent_id, span.error) for span in self.spans if span.failed}
        return len(own_errors(failed)) + sum(span.suppressed_errors for span in self.spans)

    @cached_property
    def retries(self) -> int:
        """The number of retries of nodes. The span of an ended run has the sum for all nodes below it."""
        parents = {span.span_id: span.parent_id for span in self.spans}
        runs = {span.span_id: span for span in self.runs}
        inner: set[str] = set()  # runs within another run
        for id in runs:
            above, seen = parents[id], {id}
            while above is not None and above not in seen and above not in runs:
                seen.add(above)
                above = parents.get(above)
            if above in runs:
                inner.add(id)
        known = sum(run.retries for id, run in runs.items() if id not in inner)
        return max(known, sum(span.retries for span in self.spans if span.span_id not in runs))


def own_errors(failed: Mapping[K, tuple[K | None, str | None]]) -> list[K]:
    """The failed spans in which an error was raised, and not below them. Each has its parent and the type of its error.

    >>> own_errors({"run": (None, "OSError"), "node": ("run", "OSError"), "exec": ("node", "OSError"), "b": ("run", "KeyError")})
    ['exec', 'b']

    If a span names no error, as spans of other libraries may not, and a span below it failed, the error came from there.

    >>> own_errors({"request": (None, None), "query": ("request", "OSError")})
    ['query']
    """
    handed_on = set(failed.values())
    above = {parent for parent, _ in handed_on}
    return [
        span
        for span, (_, kind) in failed.items()
        if not (span in above if kind is None else (span, kind) in handed_on or (span, None) in handed_on)
    ]


def read_traces(path: str | PathLike[str], ids: Collection[str] | None = None) -> list[Trace]:
    """The traces in a file, the newest first. With `ids`, only these are kept in memory: for large files.

    Lines that aren't OTLP/JSON are skipped; `TraceFile` counts them. Raises OSError if there is no file.
    """
    return traces_of(TraceFile(path).spans(ids))


def traces_of(spans: Iterator[RecordedSpan] | Sequence[RecordedSpan]) -> list[Trace]:
    """Spans grouped by trace, the newest trace first. If a span comes twice, the last one counts."""
    traces: dict[str, dict[str, RecordedSpan]] = {}
    for span in spans:
        traces.setdefault(span.trace_id, {})[span.span_id] = span
    found = [Trace(id, tuple(sorted(held.values(), key=lambda span: span.start))) for id, held in traces.items()]
    return sorted(found, key=lambda trace: trace.start, reverse=True)


# ---------------------------------------------------------------- the file
_BEGIN = b'{"resourceSpans":'
"""The beginning of a request. It can't occur inside a JSON string, where quotes are escaped."""

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_TRACE_ID = re.compile(rb'"traceId":\s*"([0-9A-Fa-f]{32})"')


class TraceFile:
    """A file of traces. Each read continues where the last one ended, so it returns what was appended meanwhile.

    `unreadable` counts the lines that couldn't be read, or not wholly: no request, or one whose writer was killed. If another
    process wrote its request after such a half line, that request is read.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self.unreadable = 0
        self._read = 0

    def spans(self, ids: Collection[str] | None = None, *, growing: bool = False) -> Iterator[RecordedSpan]:
        """The spans that weren't read yet; with `ids`, only those of these traces.

        If the last line isn't complete, it is left for the next call if the file is `growing`, and read as it is otherwise.
        Raises OSError if there is no file.
        """
        wanted = None if ids is None else {id.encode() for id in ids}
        for line in self._lines(growing):
            # searching the bytes is many times faster than decoding each line
            if wanted is None or not wanted.isdisjoint(id.lower() for id in _TRACE_ID.findall(line)):
                for _, spans in self._readable(line):
                    for span in spans:
                        if ids is None or span.trace_id in ids:
                            yield span

    def requests(self) -> Iterator[tuple[bytes, int]]:
        """The requests that weren't read yet, as bytes, each with the number of bytes that it takes in the file."""
        for line in self._lines(growing=False):
            for request, _ in self._readable(line):
                yield request, len(line)

    def skip(self) -> None:
        """Skip what is in the file now."""
        self._read = self.path.stat().st_size if self.path.exists() else 0

    def _lines(self, growing: bool) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:
                self._read = 0  # the file was replaced, as by log rotation
            file.seek(self._read)
            for line in file:
                if growing and not line.endswith(b"\n"):
                    return
                self._read += len(line)
                yield line

    def _readable(self, line: bytes) -> list[tuple[bytes, list[RecordedSpan]]]:
        """The requests in a line, of which there is at most one; counts the line if something is unreadable."""
        found, is_whole = requests_in(line)
        self.unreadable += not is_whole
        return found


def requests_in(line: bytes) -> tuple[list[tuple[bytes, list[RecordedSpan]]], bool]:
    """The request in a line, if there is one, with its spans; and whether all of the line could be read.

    If a process was killed while it wrote a request, another process's request may follow on the same line. A request is returned
    without spans that couldn't be read, and without nulls.
    """
    if not line.strip():
        return [], True
    with suppress(*_UNREADABLE):
        return [(line, _spans(line))], True
    with suppress(*_UNREADABLE):
        return _with_care(line)
    if (begin := line.rfind(_BEGIN)) > 0:
        with suppress(*_UNREADABLE):
            return _with_care(line[begin:])[0], False
    return [], False


def _with_care(line: bytes) -> tuple[list[tuple[bytes, list[RecordedSpan]]], bool]:
    """Read a request of another writer: nulls count as missing fields, and each span is decoded separately."""
    document = msgspec.json.decode(line, type=dict[str, object])
    cleaned = _without_nulls(document)
    if "resourceSpans" in document:
        cleaned.setdefault("resourceSpans", [])
    request = msgspec.json.encode(cleaned)
    with suppress(*_UNREADABLE):
        return [(request, _spans(request))], True
    resources: list[dict[str, object]] = []
    found: list[RecordedSpan] = []
    for of_resource in _parts(cleaned, "resourceSpans"):
        scopes: list[dict[str, object]] = []
        for of_scope in _parts(of_resource, "scopeSpans"):
            kept: list[dict[str, object]] = []
            for span in _parts(of_scope, "spans"):
                with suppress(*_UNREADABLE):
                    alone = {"resourceSpans": [of_resource | {"scopeSpans": [of_scope | {"spans": [span]}]}]}
                    found += _spans(msgspec.json.encode(alone))
                    kept.append(span)
            scopes.append(of_scope | {"spans": kept})
        resources.append(of_resource | {"scopeSpans": scopes})
    return [(msgspec.json.encode(cleaned | {"resourceSpans": resources}), found)] if found else [], False


def _without_nulls(part: Mapping[str, object]) -> dict[str, object]:
    return {name: _cleaned(value) for name, value in part.items() if value is not None}


def _cleaned(value: object) -> object:
    if isinstance(value, dict):
        return _without_nulls(cast("dict[str, object]", value))
    return [*map(_cleaned, cast("list[object]", value))] if isinstance(value, list) else value


def _parts(of: Mapping[str, object], name: str) -> list[dict[str, object]]:
    return msgspec.convert(of.get(name, []), list[dict[str, object]])


# ---------------------------------------------------------------- OTLP/JSON
class _Value(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | None = None
    double_value: float | None = None
    array_value: _Array | None = None
    kvlist_value: _Attributes | None = None
    bytes_value: str | None = None


class _Array(msgspec.Struct):
    values: list[_Value] = []


class _Attribute(msgspec.Struct):
    key: str = ""
    value: _Value | None = None


class _Attributes(msgspec.Struct):
    values: list[_Attribute] = []


class _Event(msgspec.Struct, rename="camel"):
    name: str = ""
    time_unix_nano: int = 0
    attributes: list[_Attribute] = []


class _Link(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    attributes: list[_Attribute] = []


class _Status(msgspec.Struct):
    code: int | str = 0
    message: str = ""


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str
    span_id: str
    name: str = ""
    parent_span_id: str = ""
    kind: int | str = 0
    start_time_unix_nano: int = 0
    end_time_unix_nano: int = 0
    attributes: list[_Attribute] = []
    status: _Status | None = None
    events: list[_Event] = []
    links: list[_Link] = []


class _Scope(msgspec.Struct):
    name: str = ""


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[_Span] = []


class _Resource(msgspec.Struct):
    attributes: list[_Attribute] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans]


_decode = msgspec.json.Decoder(_Request, strict=False).decode  # not strict: 64-bit integers may be strings or numbers

_KINDS = {
    f"SPAN_KIND_{name}": number
    for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
}
_STATUSES: dict[int | str, Status] = {1: "ok", 2: "error", "STATUS_CODE_OK": "ok", "STATUS_CODE_ERROR": "error"}


def _spans(line: bytes) -> list[RecordedSpan]:
    return [
        _span(span, intern(scope_spans.scope.name) if scope_spans.scope else "", resource)
        for resource_spans in _decode(line).resource_spans
        for resource in [_attributes(resource_spans.resource.attributes) if resource_spans.resource else {}]
        for scope_spans in resource_spans.scope_spans
        for span in scope_spans.spans
    ]


def _span(span: _Span, scope: str, resource: Mapping[str, AnyValue]) -> RecordedSpan:
    if not (0 <= span.start_time_unix_nano < 2**64 and 0 <= span.end_time_unix_nano < 2**64):
        raise ValueError("a time has more than 64 bits")
    status = span.status or _Status()
    return RecordedSpan(
        trace_id=intern(_id(span.trace_id, 16)),
        span_id=_id(span.span_id, 8),
        parent_id=_id(span.parent_span_id, 8) if span.parent_span_id else None,
        name=intern(span.name),
        kind=span.kind if isinstance(span.kind, int) else _KINDS.get(span.kind, 0),
        scope=scope,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        status=_STATUSES.get(status.code, "unset"),
        message=status.message,
        events=tuple(Event(each.name, each.time_unix_nano, _attributes(each.attributes)) for each in span.events),
        links=tuple(
            SpanLink(each.trace_id.lower(), each.span_id.lower(), _attributes(each.attributes)) for each in span.links
        ),
        resource=resource,
    )


def _id(text: str, size: int) -> str:
    if len(bytes.fromhex(text)) != size:
        raise ValueError(f"{text!r:.40} is not an id of {size} bytes")
    return text.lower()


def _attributes(attributes: Sequence[_Attribute]) -> dict[str, AnyValue]:
    return {intern(each.key): None if each.value is None else _value(each.value) for each in attributes}


def _value(value: _Value) -> AnyValue:
    if value.array_value is not None:
        return tuple(_value(item) for item in value.array_value.values)
    if value.kvlist_value is not None:
        return _attributes(value.kvlist_value.values)
    if value.bytes_value is not None:
        return base64.b64decode(value.bytes_value + "=" * (-len(value.bytes_value) % 4))
    for plain in (value.string_value, value.bool_value, value.int_value, value.double_value):
        if plain is not None:
            return plain
    return None
