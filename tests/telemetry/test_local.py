"""The trace file: valid OTLP/JSON for a collector, one request per line."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from pocket_plug.layers.tracing import local_messages
from pocket_plug.telemetry.local import FileExporter, encode, where_to_look
from pocket_plug.telemetry.messages import with_message
from pocket_plug.traces.recorded import DEFAULT_FILE, TraceFile


def spans_of_every_kind() -> Any:
    """Spans with parents, links, events, states, and attributes of all types."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "test"}, "https://res"), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("one", "1.2", "https://schema")
    remote = SpanContext(2**127 + 5, 2**63 + 7, is_remote=True, trace_flags=TraceFlags(1))
    outer = tracer.start_span("outer", set_span_in_context(NonRecordingSpan(remote)), kind=SpanKind.CLIENT)
    for name, value in {
        "s": "ü\n",
        "i": -(2**62),
        "b": True,
        "f": 0.5,
        "l": ["a", "b"],
        "n": (1, 2),
        "y": b"\x00\xff",
    }.items():
        outer.set_attribute(name, value)  # type: ignore[arg-type]
    outer.add_event("exception", {"exception.type": "ValueError"})
    with provider.get_tracer("two").start_as_current_span(
        "inner", set_span_in_context(outer), links=[Link(remote, {"why": "resume"})]
    ) as inner:
        inner.set_status(StatusCode.ERROR, "no funds")
    outer.end()
    return exporter.get_finished_spans()


def as_protobuf(request: dict[str, Any]) -> ExportTraceServiceRequest:
    """Parse it, after changing the only difference of OTLP/JSON to protobuf's JSON: ids in hex."""

    def rewrite(value: Any) -> Any:
        if isinstance(value, list):
            return [rewrite(item) for item in value]
        if isinstance(value, dict):
            ids = ("traceId", "spanId", "parentSpanId")
            return {
                k: base64.b64encode(bytes.fromhex(v)).decode() if k in ids else rewrite(v) for k, v in value.items()
            }
        return value

    return json_format.ParseDict(rewrite(json.loads(json.dumps(request))), ExportTraceServiceRequest())


def test_the_encoding_is_what_the_official_exporter_would_send() -> None:
    """Parsed strictly, it equals the protobuf request for the same spans, field by field."""
    spans = spans_of_every_kind()
    ours, theirs = as_protobuf(encode(spans)), encode_spans(spans)
    assert json_format.MessageToDict(ours) == json_format.MessageToDict(theirs)


def test_ids_enums_and_64_bit_integers_are_written_as_in_otlp_json() -> None:
    """Hex, numbers, strings."""
    (resource,) = encode(spans_of_every_kind())["resourceSpans"]
    spans = {span["name"]: span for scope in resource["scopeSpans"] for span in scope["spans"]}
    assert spans["outer"]["traceId"] == "80000000000000000000000000000005"
    assert spans["outer"]["parentSpanId"] == "8000000000000007"
    assert spans["outer"]["kind"] == 3
    assert spans["inner"]["status"] == {"code": 2, "message": "no funds"}
    assert isinstance(spans["outer"]["startTimeUnixNano"], str)
    assert {"key": "i", "value": {"intValue": str(-(2**62))}} in spans["outer"]["attributes"]


def the_span(request: Any) -> dict[str, Any]:
    ((span,),) = [scope["spans"] for each in request["resourceSpans"] for scope in each["scopeSpans"]]
    found: dict[str, Any] = span
    return found


def test_a_span_that_shows_its_message_is_otherwise_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the numbers of what its limits have dropped."""
    monkeypatch.setattr(local_messages, "_are_wanted", True)
    one_of_each = SpanLimits(max_span_attributes=1, max_events=1, max_links=1)
    exporter = InMemorySpanExporter()
    provider = TracerProvider(span_limits=one_of_each, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    elsewhere = Link(SpanContext(5, 7, is_remote=True))
    span = provider.get_tracer("t").start_span("s", attributes={"a": 1, "b": 2, "c": 3}, links=[elsewhere] * 4)
    for _ in range(5):
        span.add_event("exception", {"exception.type": "ValueError"})
    local_messages.keep(span, ValueError("no funds"), None)
    span.end()
    (plain,) = exporter.get_finished_spans()
    shown = with_message(plain)
    local_messages.forget(plain.get_span_context())
    assert [dict(event.attributes or {}).get("exception.message") for event in shown.events] == ["no funds"]
    before, after = the_span(encode([plain])), the_span(encode([shown]))
    assert {**before, "events": []} == {**after, "events": []}
    assert [after[f"dropped{kind}Count"] for kind in ("Attributes", "Links", "Events")] == [2, 3, 4]


@pytest.mark.parametrize(("number", "written"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_numbers_that_json_lacks_are_written_as_protobuf_does(number: float, written: str) -> None:
    """A line is valid JSON for every reader."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("s", attributes={"f": number}).end()
    text = json.dumps(encode(exporter.get_finished_spans()), allow_nan=False)
    assert f'{{"doubleValue": "{written}"}}' in text


def test_batches_are_appended_a_line_each_to_a_file_made_on_demand(tmp_path: Path) -> None:
    """Two exporters, as of two processes, share a file; existing lines stay."""
    path = tmp_path / "deep" / "traces.jsonl"
    spans = spans_of_every_kind()
    exporters = [FileExporter(path), FileExporter(path)]
    assert not path.exists()
    for exporter in (*exporters, *exporters):
        exporter.export(spans)
    for exporter in exporters:
        exporter.shutdown()
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == 4 * [encode(spans)]


def test_a_file_name_with_a_surrogate_breaks_no_other_span(tmp_path: Path) -> None:
    """`os.listdir` returns lone surrogates for such names: they are `?` in the file, and all spans are readable."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer, name = provider.get_tracer("t"), b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    tracer.start_span("before").end()
    with tracer.start_as_current_span(f"read {name}", attributes={"file": name, name: "é"}) as span:
        span.add_event(name, {name: [name]})
        span.set_status(StatusCode.ERROR, name)
    path = tmp_path / "traces.jsonl"
    FileExporter(path).export(exporter.get_finished_spans())
    reader = TraceFile(path)
    assert [span.name for span in reader.spans()] == ["before", "read caf?.txt"]
    assert reader.unreadable == 0


def test_the_printed_command_can_be_executed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In an environment that isn't activated the command has its path, as `make demo` calls it, also if another one is active."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [".venv/bin/pocket-plug", "run"])
    assert "open it: .venv/bin/pocket-plug trace show r-1 --open" in where_to_look(DEFAULT_FILE, "r-1")
    monkeypatch.setattr("sys.argv", ["program.py"])
    assert "open it: pocket-plug trace show r-1 --open" in where_to_look(DEFAULT_FILE, "r-1")
    (tmp_path / "pocket-plug").touch(0o755)  # of another environment, which may have another version
    monkeypatch.setattr("sys.argv", [".venv/bin/pocket-plug", "run"])
    assert "open it: .venv/bin/pocket-plug trace show r-1 --open" in where_to_look(DEFAULT_FILE, "r-1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["./pocket-plug", "run"])
    assert "open it: pocket-plug trace show r-1 --open" in where_to_look(DEFAULT_FILE, "r-1")
