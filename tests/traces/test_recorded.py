"""Traces are read from a file as they were written, by whatever program, and however it ended."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event as SdkEvent
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from pocket_plug.telemetry.local import encode
from pocket_plug.traces.recorded import Event, RecordedSpan, SpanLink, TraceFile, read_traces

A, B = "a" * 32, "b" * 32

texts = st.text(max_size=12)
times = st.integers(0, 2**63 - 1)
plain = st.one_of(
    texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.binary(max_size=9)
)
values = st.one_of(
    plain, st.lists(texts, max_size=3).map(tuple), st.lists(st.floats(allow_nan=False), max_size=3).map(tuple)
)
attributes = st.dictionaries(texts, values, max_size=4)
contexts = st.builds(
    SpanContext,
    st.integers(1, 2**128 - 1),
    st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.just(TraceFlags(1)),
)
statuses = st.one_of(
    st.just(Status()),
    st.just(Status(StatusCode.OK)),
    st.builds(Status, st.just(StatusCode.ERROR), texts),
)


@st.composite
def spans(draw: st.DrawFn) -> ReadableSpan:
    """Any spans that the SDK could pass to an exporter."""
    context = draw(contexts)
    parent = SpanContext(context.trace_id, draw(st.integers(1, 2**64 - 1)), is_remote=False)
    return ReadableSpan(
        name=draw(texts),
        context=context,
        parent=draw(st.sampled_from([parent, None])),
        resource=Resource(draw(attributes)),
        attributes=draw(attributes),
        events=draw(st.lists(st.builds(SdkEvent, texts, attributes, times), max_size=2)),
        links=draw(st.lists(st.builds(Link, contexts, attributes), max_size=2)),
        kind=draw(st.sampled_from(SpanKind)),
        instrumentation_scope=draw(st.sampled_from([InstrumentationScope("pocket_plug.graph", "1"), None])),
        status=draw(statuses),
        start_time=draw(times),
        end_time=draw(times),
    )


def as_recorded(span: ReadableSpan) -> RecordedSpan:
    """The span that should be read."""
    context, scope = span.get_span_context(), span.instrumentation_scope
    assert context is not None
    return RecordedSpan(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else None,
        name=span.name,
        kind=span.kind.value + 1,
        scope=scope.name if scope else "",
        start=span.start_time or 0,
        end=span.end_time or 0,
        attributes=dict(span.attributes or {}),
        status=span.status.status_code.name.lower(),  # type: ignore[arg-type]
        message=span.status.description or "",
        events=tuple(Event(event.name, event.timestamp, dict(event.attributes or {})) for event in span.events),
        links=tuple(
            SpanLink(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}", dict(link.attributes or {}))
            for link in span.links
        ),
        resource=dict(span.resource.attributes),
    )


@given(st.lists(spans(), max_size=5, unique_by=lambda span: (span.context.trace_id, span.context.span_id)))
def test_a_span_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, written: list[ReadableSpan]
) -> None:
    """Any span is read with all its fields: ids, times, attributes of every type, events, links, status, resource."""
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    path.write_text(json.dumps(encode(written)) + "\n")
    file = TraceFile(path)
    read = {(span.trace_id, span.span_id): span for span in file.spans()}
    assert read == {(span.trace_id, span.span_id): span for span in map(as_recorded, written)}
    assert file.unreadable == 0


def span(trace: str, number: int, parent: int | None = None, **fields: Any) -> dict[str, Any]:
    """One of OTLP/JSON."""
    ids = {"traceId": trace, "spanId": f"{number:016x}"} | ({"parentSpanId": f"{parent:016x}"} if parent else {})
    return ids | {"name": f"s{number}", "startTimeUnixNano": str(number), "endTimeUnixNano": str(number + 10)} | fields


def line(*found: dict[str, Any]) -> str:
    """A request."""
    return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": found}]}]}, separators=(",", ":")) + "\n"


def said(**attributes: str | int | bool) -> list[dict[str, Any]]:
    """Attributes of pocket_plug's own, `_` for `.`."""
    kinds = {str: "stringValue", int: "intValue", bool: "boolValue"}
    return [
        {"key": f"pocket_plug.{name.replace('_', '.', 1)}", "value": {kinds[type(value)]: value}}
        for name, value in attributes.items()
    ]


def test_files_of_other_tools_are_read_too(tmp_path: Path) -> None:
    """Enums by name, 64-bit integers as numbers, ids in capitals, empty parents, unknown fields, base64 without padding."""
    path = tmp_path / "t.jsonl"
    foreign = span("A" * 32, 10, kind="SPAN_KIND_SERVER", status={"code": "STATUS_CODE_ERROR", "message": "no"}, new=1,
                   parentSpanId="", startTimeUnixNano=7, endTimeUnixNano=9,
                   attributes=[{"key": "n", "value": {"intValue": 5}}, {"key": "y", "value": {"bytesValue": "AP8"}},
                               {"key": "d", "value": {"doubleValue": "-Infinity"}}, {"key": "nothing", "value": {}},
                               {"key": "m", "value": {"kvlistValue": {"values": [
                                   {"key": "a", "value": {"arrayValue": {"values": [{"boolValue": True}]}}}]}}}])  # fmt: skip
    path.write_text(line(foreign).rstrip("\n"))  # the last line has no line feed
    (read,) = TraceFile(path).spans()
    assert (read.trace_id, read.span_id, read.parent_id, read.kind) == (A, f"{10:016x}", None, 2)
    assert (read.start, read.end, read.status, read.message) == (7, 9, "error", "no")
    assert read.attributes == {"n": 5, "y": b"\x00\xff", "d": float("-inf"), "nothing": None, "m": {"a": (True,)}}


def test_a_trace_knows_its_run(tmp_path: Path) -> None:
    """Id and outcome are those of the outermost run, below any other span; newest trace first."""
    path = tmp_path / "t.jsonl"
    run = said(run_id="r-1", graph_name="shop", run_outcome="failure")
    nested = said(run_id="r-2", graph_name="sub", run_parent_id="r-1", run_outcome="success")
    node = said(run_id="r-1", graph_name="shop", node_name="charge", node_attempts=3)
    path.write_text(
        line(span(A, 3, 2, attributes=node, status={"code": 2}), span(A, 4, 3, attributes=nested))
        + line(span(A, 1), span(A, 2, 1, attributes=run, status={"code": 2}))
        + line(span(B, 9, 77))
    )
    newest, trace = read_traces(path)
    assert (newest.id, newest.root.name, newest.run_id, newest.outcome) == (B, "s9", None, None)
    assert [each.name for each in trace.spans] == ["s1", "s2", "s3", "s4"]
    assert [each.name for each in trace.roots] == ["s1"]
    assert [each.name for each in trace.runs] == ["s2"]
    assert (trace.root.name, trace.run_id, trace.outcome) == ("s2", "r-1", "failure")
    assert (trace.start, trace.errors, trace.retries) == (1, 1, 2)
    assert [trace.id for trace in read_traces(path, {A})] == [A]


def test_unreadable_lines_are_counted_and_the_others_are_read(tmp_path: Path) -> None:
    """A line that a killed process left incomplete, with another's line behind it; noise; an incomplete last line."""
    path = tmp_path / "t.jsonl"
    whole = line(span(A, 1))
    path.write_text(whole + line(span(A, 2))[:-20] + line(span(A, 3)) + "noise\n\n" + "[" * 100_000 + "\n" + whole[:40])
    file = TraceFile(path)
    assert [each.name for each in file.spans()] == ["s1", "s3"]
    assert file.unreadable == 4


NULLS = {
    **dict.fromkeys(("name", "parentSpanId", "kind", "attributes", "status", "events", "links", "new")),
    **dict.fromkeys(("startTimeUnixNano", "endTimeUnixNano")),
}


@pytest.mark.parametrize("field", NULLS)
def test_null_is_the_default_of_a_field(tmp_path: Path, field: str) -> None:
    """As in protobuf's mapping to JSON: such a span is read as one without the field, and counts as readable."""
    path = tmp_path / "t.jsonl"
    whole = span(A, 1, 9, attributes=said(run_id="r"), events=[{"name": "e"}])
    path.write_text(line({**whole, field: None}) + line({name: whole[name] for name in whole if name != field}))
    file = TraceFile(path)
    read, same = file.spans()
    assert read == same
    assert file.unreadable == 0


def test_null_is_the_default_within_parts_of_a_request(tmp_path: Path) -> None:
    """For resources, scopes, events, links and values, too; and for the request's only field."""
    path = tmp_path / "t.jsonl"
    inner = span(
        A,
        1,
        attributes=[{"key": "a", "value": None}, {"key": "b", "value": {"stringValue": None, "intValue": "5"}}],
        events=[{"name": None, "timeUnixNano": None, "attributes": None}],
        links=[{"traceId": A, "spanId": None, "attributes": None}],
        status={"code": None, "message": None},
    )
    scopes = [{"scope": None, "spans": [inner]}, {"scope": {"name": None}, "spans": None}]
    resources = [{"resource": {"attributes": None}, "scopeSpans": scopes}, {"resource": None, "scopeSpans": None}]
    path.write_text(json.dumps({"resourceSpans": resources}) + '\n{"resourceSpans":null}\n')
    file = TraceFile(path)
    (read,) = file.spans()
    assert read.attributes == {"a": None, "b": 5}
    assert (read.events, read.links, read.status) == ((Event("", 0, {}),), (SpanLink(A, "", {}),), "unset")
    assert file.unreadable == 0


BAD: dict[str, dict[str, Any]] = {
    "a time of an event": {"events": [{"name": "e", "timeUnixNano": "x"}]},
    "its id": {"spanId": "x"},
    "no id": {"traceId": None},
    "its attributes": {"attributes": [None]},
}


@pytest.mark.parametrize("bad", BAD)
def test_an_unreadable_span_loses_no_other(tmp_path: Path, bad: str) -> None:
    """The rest of its request is read; the line counts as unreadable."""
    path = tmp_path / "t.jsonl"
    path.write_text(line(span(A, 1, new="kept"), span(A, 2, **BAD[bad]), span(A, 3)))
    file = TraceFile(path)
    assert [each.name for each in file.spans()] == ["s1", "s3"]
    assert file.unreadable == 1
    ((request, size),) = TraceFile(path).requests()
    assert request.decode() + "\n" == line(span(A, 1, new="kept"), span(A, 3))
    assert size == path.stat().st_size


def test_a_growing_file_is_read_further(tmp_path: Path) -> None:
    """A later call returns only new spans, and waits for an incomplete line."""
    path = tmp_path / "t.jsonl"
    first, second = line(span(A, 1)), line(span(A, 2))
    path.write_text(first + second[:30])
    file = TraceFile(path)
    assert [each.name for each in file.spans(growing=True)] == ["s1"]
    assert [each.name for each in file.spans(growing=True)] == []
    path.write_text(first + second)
    assert [each.name for each in file.spans(growing=True)] == ["s2"]
    assert file.unreadable == 0


def test_a_file_that_was_started_again_is_read_from_its_beginning(tmp_path: Path) -> None:
    """For example after a rotation during a watch."""
    path = tmp_path / "t.jsonl"
    path.write_text(line(span(A, 1)) + line(span(A, 2)))
    file = TraceFile(path)
    assert len([*file.spans(growing=True)]) == 2
    path.write_text(line(span(A, 3)))
    assert [each.name for each in file.spans(growing=True)] == ["s3"]


def test_invalid_times_are_unreadable(tmp_path: Path) -> None:
    """OTLP has 64 bits for them, which is enough until 2554."""
    path = tmp_path / "t.jsonl"
    path.write_text(
        line(span(A, 1, startTimeUnixNano=str(2**64)))
        + line(span(A, 2, endTimeUnixNano="-1"))
        + line(span(A, 3, endTimeUnixNano=str(2**64 - 1)))
    )
    file = TraceFile(path)
    assert [each.name for each in file.spans()] == ["s3"]
    assert file.unreadable == 2


def test_a_span_that_was_written_twice_is_there_once(tmp_path: Path) -> None:
    """For example in a file that was appended to itself; the last one counts."""
    path = tmp_path / "t.jsonl"
    path.write_text(line(span(A, 1)) + line(span(A, 1, name="again")))
    (trace,) = read_traces(path)
    assert [each.name for each in trace.spans] == ["again"]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """Not an empty list of traces."""
    with pytest.raises(FileNotFoundError, match=r"t\.jsonl"):
        read_traces(tmp_path / "t.jsonl")


def test_spans_are_immutable(tmp_path: Path) -> None:
    """So views may share them."""
    recorded = RecordedSpan(A, "1" * 16, None, "n", 1, "", 0, 0, MappingProxyType({}))
    with pytest.raises(AttributeError):
        recorded.name = "other"  # type: ignore[misc]
