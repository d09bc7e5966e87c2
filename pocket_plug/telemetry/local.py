"""Spans as OTLP/JSON: the encoding, and a file with one export request per line, which any OTLP tool can read."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind
from opentelemetry.util.types import AnyValue

from pocket_plug.primitives.files import make_folder
from pocket_plug.traces.recorded import DEFAULT_FILE
from pocket_plug.traces.retention import TraceLimits, appending, cut

COMMAND = "pocket-plug"

LOOK = 3600.0
"""Seconds between two checks for spans that are too old."""

_logger = logging.getLogger("pocket_plug")
_KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3, SpanKind.PRODUCER: 4, SpanKind.CONSUMER: 5}


def where_to_look(file: Path, run_id: object = None) -> str:
    """The path of the trace file, and the command that opens the page of one run, or of the newest.

    >>> where_to_look(DEFAULT_FILE, "order 7")
    "trace: .pocket_plug/traces.jsonl · open it: pocket-plug trace show 'order 7' --open"
    >>> where_to_look(DEFAULT_FILE, "--help")
    'trace: .pocket_plug/traces.jsonl · open it: pocket-plug trace show --open -- --help'
    """
    run = [run_id] if isinstance(run_id, str) else []
    options = ["--open", *([] if file == DEFAULT_FILE else ["--file", str(file)])]
    words = [*options, "--", *run] if run and run[0].startswith("-") else [*run, *options]
    return f"trace: {file} · open it: {shlex.join([_command(), 'trace', 'show', *words])}"


def _command() -> str:
    """The path by which it was called if the PATH doesn't lead to it, such as `.venv/bin/pocket-plug` in `make demo`."""
    called = sys.argv[0]
    return called if Path(called).name == COMMAND and shutil.which(COMMAND) != os.path.abspath(called) else COMMAND


Encoded = dict[str, object]


def encode(spans: Iterable[ReadableSpan]) -> Encoded:
    """An `ExportTraceServiceRequest` in OTLP/JSON: ids in hex, enums as numbers, 64-bit integers as strings."""
    resources: dict[Resource, dict[InstrumentationScope | None, list[ReadableSpan]]] = {}
    for span in spans:
        resources.setdefault(span.resource, {}).setdefault(span.instrumentation_scope, []).append(span)
    return {"resourceSpans": [_resource(resource, scopes) for resource, scopes in resources.items()]}


def written(spans: Iterable[ReadableSpan]) -> bytes:
    """The encoded request as bytes. A lone surrogate, as file names may have, becomes `?`: readers would refuse the request.

    >>> written([])
    b'{"resourceSpans":[]}'
    """
    return json.dumps(encode(spans), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _resource(resource: Resource, scopes: Mapping[InstrumentationScope | None, list[ReadableSpan]]) -> Encoded:
    encoded: Encoded = {
        "resource": {"attributes": _attributes(resource.attributes)},
        "scopeSpans": [_scope(scope, spans) for scope, spans in scopes.items()],
    }
    return encoded | ({"schemaUrl": resource.schema_url} if resource.schema_url else {})


def _scope(scope: InstrumentationScope | None, spans: list[ReadableSpan]) -> Encoded:
    encoded: Encoded = {"spans": [_span(span) for span in spans]}
    if scope is not None:
        encoded["scope"] = {"name": scope.name} | ({"version": scope.version} if scope.version else {})
        if scope.schema_url:
            encoded["schemaUrl"] = scope.schema_url
    return encoded


def _span(span: ReadableSpan) -> Encoded:
    encoded: Encoded = {
        **_ids(span.get_span_context()),
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.start_time or 0),
        "endTimeUnixNano": str(span.end_time or 0),
        "attributes": _attributes(span.attributes),
        "status": {
            "code": span.status.status_code.value,
            **({"message": span.status.description} if span.status.description else {}),
        },
    }
    encoded["flags"] = _flags(span.parent)
    if span.parent is not None:
        encoded["parentSpanId"] = f"{span.parent.span_id:016x}"
    if span.events:
        encoded["events"] = [
            {"timeUnixNano": str(event.timestamp), "name": event.name, "attributes": _attributes(event.attributes)}
            for event in span.events
        ]
    if span.links:
        encoded["links"] = [_link(link) for link in span.links]
    for name in ("attributes", "events", "links"):
        if dropped := getattr(span, f"dropped_{name}"):
            encoded[f"dropped{name.capitalize()}Count"] = dropped
    return encoded


def _link(link: Link) -> Encoded:
    return {**_ids(link.context), "attributes": _attributes(link.attributes), "flags": _flags(link.context)}


def _flags(context: SpanContext | None) -> int:
    """OTLP's flags: 0x100 says that it is known whether the other span is remote, 0x200 that it is."""
    return 0x300 if context is not None and context.is_remote else 0x100


def _ids(context: SpanContext | None) -> dict[str, str]:
    if context is None:
        return {}
    state = context.trace_state.to_header()
    ids = {"traceId": f"{context.trace_id:032x}", "spanId": f"{context.span_id:016x}"}
    return ids | ({"traceState": state} if state else {})


def _attributes(attributes: Mapping[str, AnyValue] | None) -> list[Encoded]:
    return [{"key": key, "value": _value(value)} for key, value in (attributes or {}).items()]


def _value(value: AnyValue) -> Encoded:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        special = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        return {"doubleValue": value if math.isfinite(value) else special}
    if isinstance(value, bytes):
        return {"bytesValue": base64.b64encode(value).decode()}
    if isinstance(value, Mapping):
        return {"kvlistValue": {"values": _attributes(value)}}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {} if value is None else {"stringValue": str(value)}


def _write_all(file: int, line: bytes) -> None:
    """Usually with one write; the system may take only a part of the line."""
    while line:
        line = line[os.write(file, line) :]


class FileExporter(SpanExporter):
    """Appends batches to a file, each as one line in one write, so that several processes may share it.

    If the file exceeds the size or age to keep, the oldest spans are removed from its beginning, with a warning. The age is
    checked with the first batch and then once an hour, the size with each batch.
    """

    def __init__(self, path: Path, keep: TraceLimits | None = None, clock: Callable[[], float] = time.time) -> None:
        self.path, self._keep, self._clock = path, keep or TraceLimits(), clock
        self._looked = -math.inf

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append the spans. Raises OSError if the file can't be written; the processor logs it."""
        line = written(spans) + b"\n"
        make_folder(self.path.parent)
        with appending(self.path) as file:
            _write_all(file, line)
            size = os.fstat(file).st_size
        now = self._clock()
        if now - self._looked >= LOOK or (self._keep.size is not None and size > self._keep.size):
            self._looked = now
            if removed := cut(self.path, self._keep, now):
                _logger.warning(
                    "telemetry: the oldest %.0f kB of %s were removed; it keeps %s. To change the limits, use "
                    "observe(keep=…), or POCKET_PLUG_TRACES_SIZE and POCKET_PLUG_TRACES_AGE",
                    removed / 1e3,
                    self.path,
                    self._keep,
                )
        return SpanExportResult.SUCCESS
