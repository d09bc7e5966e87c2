"""`pocket-plug trace send`: a trace file is sent to a backend, span for span."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path
from ssl import SSLCertVerificationError
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, StatusCode, set_span_in_context
from otlp_sink import Sink
from urllib3.util import Retry

from pocket_plug.cli import main
from pocket_plug.telemetry.local import FileExporter
from pocket_plug.traces import send
from pocket_plug.traces.recorded import RecordedSpan, TraceFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Three traces with two spans, one span per line, with all possible fields."""
    path = tmp_path / "traces.jsonl"
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter := FileExporter(path)))
    tracer = provider.get_tracer("pocket_plug.graph", "1.0", "https://schema")
    former = None
    for number in range(3):
        links = [Link(former.get_span_context(), {"why": "resumed"})] if former else []
        root = tracer.start_span(f"run {number}", links=links, attributes={"n": number, "f": 0.5, "l": "a,b"})
        inner = tracer.start_span("node ü", set_span_in_context(root))
        inner.add_event("exception", {"exception.type": "ValueError"})
        inner.set_status(StatusCode.ERROR, "no funds")
        inner.end()
        root.end()
        former = root
    exporter.shutdown()
    return path


def facts(spans: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The fields that must be equal on both sides."""
    kinds = ["UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"]
    return sorted(
        (span.trace_id, span.span_id, span.parent_id or "", span.name, span.start, span.end, dict(span.attributes),
         span.status.lower(), span.message, [(event.name, dict(event.attributes)) for event in span.events],
         [(link.trace_id, link.span_id, dict(link.attributes)) for link in span.links], dict(span.resource),
         span.scope if isinstance(span, RecordedSpan) else span.scope.name,
         kinds[span.kind] if isinstance(span, RecordedSpan) else span.kind)
        for span in spans
    )  # fmt: skip


def test_the_same_spans_arrive(file: Path, otlp_sink: Sink, capsys: pytest.CaptureFixture[str]) -> None:
    """With their ids, parents, links, events, attributes, statuses, times, scopes and resource, in one request."""
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 0
    assert facts(otlp_sink.spans) == facts(TraceFile(file).spans())
    assert len(otlp_sink.spans) == 6
    (request,) = otlp_sink.requests
    assert request.path == "/v1/traces"
    assert {(span.scope.version, span.scope.schema_url) for span in otlp_sink.spans} == {("1.0", "https://schema")}
    assert capsys.readouterr().err == f"sent 6 spans to {otlp_sink.url}/v1/traces\n"


def test_requests_are_of_a_bounded_size(file: Path) -> None:
    """Small ones are combined and large ones divided; no span is lost, nor its resource or scope."""
    limit = 900
    found = [*send.batches(send.parsed(TraceFile(file), send.Sent(), lambda size: None), limit)]
    requests = [ExportTraceServiceRequest.FromString(body) for body, _ in found]
    assert 1 < len(found) < 6
    assert all(len(body) < limit * 1.2 for body, _ in found)
    assert sum(number for _, number in found) == 6
    for request in requests:
        for resource in request.resource_spans:
            assert resource.resource.attributes
            assert [scope.scope.name for scope in resource.scope_spans] == ["pocket_plug.graph"]


def test_headers_are_sent_and_never_shown(
    file: Path, otlp_sink: Sink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option's headers have priority over the environment's; an error shows none of them, nor the URL's password."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=env-secret,x-other=o%20ther")
    to = otlp_sink.url.replace("//", "//me:pass-secret@") + "/v1/traces?key=query-secret"
    assert main(["trace", "send", str(file), "--to", to, "--header", "x-key=opt-secret"]) == 1
    (request,) = otlp_sink.requests
    assert (request.headers["x-key"], request.headers["x-other"]) == ("opt-secret", "o ther")
    assert main(["trace", "send", str(file), "--to", otlp_sink.url, "--header", "no-secret"]) == 2
    said = capsys.readouterr()
    assert "secret" not in said.out + said.err


def test_a_busy_backend_is_retried(file: Path, otlp_sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is answered with 503 is sent once more, and in the end counted as refused."""
    monkeypatch.setattr(send, "RETRIES", Retry(2, status_forcelist=(503,), allowed_methods=None, raise_on_status=False))
    otlp_sink.refuse(503)
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    assert [request.status for request in otlp_sink.requests] == [503] * 3
    assert 503 in send.RETRIES.status_forcelist


def test_refused_spans_are_reported(
    file: Path, otlp_sink: Sink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the number of spans and the answer; after an error that applies to all requests, nothing more is sent."""
    monkeypatch.setattr(send, "batches", lambda found: [(batch.SerializeToString(), 1) for batch in found])
    otlp_sink.refuse(400)
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    assert len(otlp_sink.requests) == 6
    otlp_sink.refuse(401)
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    assert len(otlp_sink.requests) == 7
    said = capsys.readouterr().err
    assert "not accepted: 6 spans, HTTP 400 Bad Request" in said
    assert "not accepted: 6 spans, HTTP 401 Unauthorized. Give its credentials by --header" in said


def test_partial_success_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch, otlp_sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    """A backend may accept a request and refuse some of its spans."""
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans, answer.partial_success.error_message = 2, "too old"
    post = send.requests.Session.post

    def answered(*arguments: Any, **options: Any) -> Any:
        response = post(*arguments, **options)
        response._content = answer.SerializeToString()
        return response

    monkeypatch.setattr(send.requests.Session, "post", answered)
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    said = capsys.readouterr().err
    assert "sent 4 spans" in said
    assert "not accepted: 2 spans, too old" in said


def test_an_odd_answer_is_reported(file: Path, otlp_sink: Sink, capsys: pytest.CaptureFixture[str]) -> None:
    """A redirection is not followed, wherever it leads to."""
    otlp_sink._set((302, {"Location": "http://["}), hanging=False)
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    assert "not accepted: 6 spans, the answer redirects to an invalid URL" in capsys.readouterr().err


def test_an_invalid_id_of_a_link_keeps_no_other_span_back(
    file: Path, otlp_sink: Sink, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other tools write it too."""
    first, *others = file.read_text().splitlines(keepends=True)
    document = json.loads(first)
    [span] = document["resourceSpans"][0]["scopeSpans"][0]["spans"]
    span["links"] = [{"traceId": "no hex", "spanId": "0123456789abcdef"}]
    file.write_text(json.dumps(document) + "\n" + "".join(others))
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    said = capsys.readouterr().err
    assert "sent 5 spans" in said
    assert "not accepted: 1 span, invalid OTLP: non-hexadecimal number" in said
    assert len(otlp_sink.spans) == 5


def test_an_unreachable_backend(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is printed, in one line, and the exit code is 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/?key=query-secret"
        assert main(["trace", "send", str(file), "--to", url]) == 1
    said = capsys.readouterr().err
    assert "not accepted: 6 spans, no connection: ConnectionRefusedError" in said
    assert "secret" not in said


def test_a_wrong_address_says_the_way_out(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], otlp_sink: Sink
) -> None:
    """The port of gRPC, an own certificate, a wrong path."""
    failures = {
        "http://localhost:4317": (ConnectionResetError("reset"), "Port 4317 is usually for gRPC, and 4318 for HTTP"),
        "https://localhost:4318": (
            SSLCertVerificationError("self-signed"),
            "Set OTEL_EXPORTER_OTLP_CERTIFICATE to a file",
        ),
    }
    for url, (cause, way_out) in failures.items():

        def fail(*_: object, cause: Exception = cause, **__: object) -> None:
            try:
                raise cause
            except OSError:
                raise send.requests.ConnectionError("outer") from None

        with monkeypatch.context() as patched:
            patched.setattr(send.requests.Session, "post", fail)
            assert main(["trace", "send", str(file), "--to", url]) == 1
        assert way_out in capsys.readouterr().err
    otlp_sink.refuse(404)
    assert main(["trace", "send", str(file), "--to", f"{otlp_sink.url}/v1/trace"]) == 1
    assert "HTTP 404 Not Found. It takes OTLP at another path" in capsys.readouterr().err


def test_certificates_are_those_of_the_environment(
    file: Path, otlp_sink: Sink, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As for `observe()`; a missing file is reported."""
    trusted: list[object] = []
    post = send.requests.Session.post
    monkeypatch.setattr(
        send.requests.Session, "post", lambda self, *a, **o: (trusted.append(self.verify), post(self, *a, **o))[1]
    )
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(file))
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 0
    assert trusted == [str(file)]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", "nowhere.pem")
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 2
    assert "OTEL_EXPORTER_OTLP_CERTIFICATE is nowhere.pem, but there is no such file" in capsys.readouterr().err


def test_invalid_files_and_urls(file: Path, otlp_sink: Sink, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, no URL of a backend, a truncated line: each is reported; the rest of a truncated file is sent."""
    assert main(["trace", "send", "nowhere.jsonl", "--to", otlp_sink.url]) == 2
    missing = capsys.readouterr().err
    assert "there is no file nowhere.jsonl" in missing
    assert "--file" not in missing, "`send` has no such option"
    assert main(["trace", "send", str(file), "--to", "localhost:4318"]) == 2
    assert "'localhost:4318' is not a URL of a backend" in capsys.readouterr().err
    assert main(["trace", "send", str(file), "--to", "me:hunter2@host:4318"]) == 2
    assert "a str of 20 characters is not a URL of a backend" in capsys.readouterr().err
    for url in ("http://[::1", "http://localhost:99999"):
        assert main(["trace", "send", str(file), "--to", url]) == 2
        assert "the URL of the backend is invalid" in capsys.readouterr().err
    for secret in ("key=hush\u00ef", "k\u00eby=hush", "key=hush\n"):
        assert main(["trace", "send", str(file), "--to", otlp_sink.url, "--header", secret]) == 2
        said = capsys.readouterr().err
        assert "--header is KEY=VALUE, in ASCII on one line" in said
        assert "hush" not in said
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(lines[0][:50] + "".join(lines[1:]) + "noise\n")
    assert main(["trace", "send", str(file), "--to", otlp_sink.url]) == 1
    assert len(otlp_sink.spans) == 5
    assert "2 lines could not be read" in capsys.readouterr().err
    document = json.loads(lines[0])
    assert document["resourceSpans"]
