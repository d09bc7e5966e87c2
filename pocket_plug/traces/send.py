"""Sends a trace file to any backend that takes OTLP over HTTP as protobuf. Needs the extra `otlp`."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ssl import SSLCertVerificationError
from typing import Any
from urllib.parse import SplitResult, urlsplit

import requests
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.redaction import public_url, summary
from pocket_plug.primitives.terminal import escaped

from .recorded import LOCAL, STACK, TraceFile

BATCH_BYTES = 1_000_000
"""The size of a request; a larger span is sent alone. Collectors take 4 MB, some proxies 1 MB."""

TIMEOUT = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""

RETRIES = Retry(
    5,
    connect=1,
    read=1,
    redirect=0,
    backoff_factor=1,
    backoff_jitter=0.5,
    allowed_methods=None,
    status_forcelist=(429, 502, 503, 504),
    raise_on_status=False,
)
"""If a backend is busy, the request is retried: after the time that the answer names, or else after up to 16 seconds."""

HOPELESS = (401, 403, 404, 405)
"""HTTP statuses that each further request would get too."""

WAYS_OUT = {
    **dict.fromkeys((401, 403), ". Give its credentials by --header"),
    **dict.fromkeys((404, 405), ". It takes OTLP at another path; add the path to the URL"),
}

GRPC_PORT = 4317


@dataclass
class Sent:
    """How many spans the backend took and how many it refused; `reasons` has the number of spans for each reason."""

    taken: int = 0
    refused: int = 0
    reasons: dict[str, int] = field(default_factory=dict[str, int])

    def refuse(self, spans: int, reason: str) -> None:
        """Count spans that were refused for a reason."""
        self.refused += spans
        self.reasons[reason] = self.reasons.get(reason, 0) + spans


def endpoint(url: str) -> SplitResult:
    """The URL to post to: the given one, with `/v1/traces` if it has no path. Raises ConfigError if it isn't HTTP.

    >>> endpoint("http://localhost:4318").geturl()
    'http://localhost:4318/v1/traces'
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # its message may quote a part of a password
        raise ConfigError(
            f"the URL of the backend is invalid: {public_url(url)!r}. Give one such as http://localhost:4318"
        ) from None
    if not usable:
        # without ://, there may be a password in it
        given = repr(shown(parts)) if parts.netloc or "@" not in url else summary(url)
        raise ConfigError(
            f"{given} is not a URL of a backend; give one such as http://localhost:4318, for OTLP over HTTP"
        )
    return parts._replace(path="/v1/traces") if parts.path in ("", "/") else parts


def shown(url: SplitResult) -> str:
    """The URL without user name, password and query.

    >>> shown(urlsplit("https://me:secret@host:4318/v1/traces?key=secret"))
    'https://host:4318/v1/traces'
    """
    return url._replace(netloc=url.netloc.rpartition("@")[2], query="", fragment="").geturl()


def send(file: TraceFile, url: str, headers: Mapping[str, str], advance: Callable[[int], None]) -> Sent:
    """Post all requests of a file. If the backend is busy, a request is retried for about half a minute.

    `advance` is called with the number of bytes read since its last call. After an answer that every request would get, the rest
    isn't sent and counts as refused. Raises ConfigError for an invalid URL or certificate file, and OSError if there is no file.
    """
    target = endpoint(url)
    sent = Sent()
    hopeless = ""
    with requests.Session() as session:
        if trusted := os.environ.get("OTEL_EXPORTER_OTLP_CERTIFICATE"):
            if not os.path.exists(trusted):
                raise ConfigError(f"OTEL_EXPORTER_OTLP_CERTIFICATE is {trusted}, but there is no such file")
            session.verify = trusted
        session.mount(f"{target.scheme}://", HTTPAdapter(max_retries=RETRIES))
        session.headers.update({**headers, "Content-Type": "application/x-protobuf"})
        for request, spans in batches(parsed(file, sent, advance)):
            if not hopeless:
                hopeless = _post(session, target, request, spans, sent)
            else:
                sent.refuse(spans, hopeless)
    for reason in [*sent.reasons]:
        clean = reason
        for secret in headers.values():
            clean = clean.replace(secret, "***") if secret else clean
        sent.reasons[clean] = sent.reasons.pop(reason)
    return sent


def _post(session: requests.Session, url: SplitResult, request: bytes, spans: int, sent: Sent) -> str:
    """Post a request and count its spans. Returns the reason of a failure that every other request would have too, or ""."""
    try:
        answer = session.post(url.geturl(), data=request, timeout=TIMEOUT, allow_redirects=False)
    except requests.RequestException as error:
        reason = _of_connection(error, url)
        sent.refuse(spans, reason)
        return reason
    except ValueError:  # from requests, which looks where a redirection leads to
        reason = "the answer redirects to an invalid URL"
        sent.refuse(spans, reason)
        return reason
    if reason := _of_answer(answer):
        reason += WAYS_OUT.get(answer.status_code, "")
        sent.refuse(spans, reason)
        return reason if answer.status_code in (200, *HOPELESS) or 300 <= answer.status_code < 400 else ""
    rejected, why = _partial(answer)
    sent.taken += spans - rejected
    if rejected:
        sent.refuse(rejected, why or "no reason given")
    return ""


def refusal(outcome: requests.Response | requests.RequestException, url: SplitResult) -> str:
    """Why all or some of the posted spans were refused; "" if all were taken."""
    if isinstance(outcome, requests.RequestException):
        return _of_connection(outcome, url)
    if reason := _of_answer(outcome):
        return reason
    rejected, why = _partial(outcome)
    return (why or "no reason given") if rejected else ""


def _of_connection(error: requests.RequestException, url: SplitResult) -> str:
    cause: BaseException = error
    while cause.__context__ is not None:  # the outer errors quote the URL with its secrets
        cause = cause.__context__
    reason = f"no connection: {type(cause).__name__}{f': {cause}' if isinstance(cause, OSError) else ''}"
    if url.port == GRPC_PORT:
        return f"{reason}. Port {GRPC_PORT} is usually for gRPC, and 4318 for HTTP"
    if isinstance(cause, SSLCertVerificationError):
        return f"{reason}. Set OTEL_EXPORTER_OTLP_CERTIFICATE to a file of certificates to trust"
    return reason


def _of_answer(answer: requests.Response) -> str:
    """Why an answer means that all spans were refused; "" if it doesn't."""
    if answer.status_code != 200:
        reason = f"HTTP {answer.status_code} {answer.reason}: {_said(answer)}".rstrip(": ")
        return (
            f"{reason}. It redirects to {shown(urlsplit(answer.headers['Location']))}" if answer.is_redirect else reason
        )
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        return "the answer is a web page, so this is not an OTLP endpoint"
    return ""


def _partial(answer: requests.Response) -> tuple[int, str]:
    """How many spans a successful answer says were refused, and why."""
    response = ExportTraceServiceResponse()
    try:
        if answer.headers.get("Content-Type", "").startswith("application/json"):
            json_format.Parse(answer.content, response, ignore_unknown_fields=True)
        else:
            response.ParseFromString(answer.content)
    except (DecodeError, json_format.ParseError, UnicodeDecodeError):
        return 0, ""  # status 200 means that they were taken
    return max(response.partial_success.rejected_spans, 0), escaped(response.partial_success.error_message)[:200]


def _said(answer: requests.Response) -> str:
    text = answer.content[:200].decode("utf-8", "replace")
    return "" if "\ufffd" in text or "<html" in text.lower() else escaped(text.strip())


# ---------------------------------------------------------------- protobuf
def parsed(file: TraceFile, sent: Sent, advance: Callable[[int], None]) -> Iterator[ExportTraceServiceRequest]:
    """The file's requests as protobuf messages."""
    for line, size in file.requests():
        document = json.loads(line)
        try:
            for found in _each_span(document):
                _leave_out_messages(found)
                _encode_ids(found)
            yield json_format.ParseDict(document, ExportTraceServiceRequest(), ignore_unknown_fields=True)
        except (json_format.ParseError, ValueError) as error:
            sent.refuse(sum(1 for _ in _each_span(document)), f"invalid OTLP: {escaped(str(error))[:200]}")
        advance(size)


def _encode_ids(span: dict[str, Any]) -> None:
    """Convert the ids of a span and its links: hex in OTLP/JSON; protobuf's JSON parser expects base64, with - and _."""
    for part in (span, *(span.get("links") or ())):
        for name in ("traceId", "spanId", "parentSpanId"):
            if part.get(name):
                part[name] = base64.urlsafe_b64encode(bytes.fromhex(part[name])).decode()


def _leave_out_messages(span: dict[str, Any]) -> None:
    """Remove messages that stay on this machine."""
    for event in span.get("events") or ():
        attributes = {each.get("key"): each for each in event.get("attributes") or ()}
        if (mark := attributes.pop(LOCAL, None)) is not None:
            attributes.pop("exception.message", None)
            if "stringValue" in (mark.get("value") or {}):
                attributes[STACK] = {"key": STACK, "value": mark["value"]}
            event["attributes"] = [*attributes.values()]


def _each_span(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in document["resourceSpans"]:
        for scope in resource.get("scopeSpans", ()):
            yield from scope.get("spans", ())


def batches(found: Iterable[ExportTraceServiceRequest], limit: int = BATCH_BYTES) -> Iterator[tuple[bytes, int]]:
    """Join small requests and split large ones, to about `limit` bytes each; with the number of spans in each."""
    batch, size, number = ExportTraceServiceRequest(), 0, 0
    for request in found:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                place = None
                around = resource.resource.ByteSize() + scope.scope.ByteSize()
                for span in scope.spans:
                    more = span.ByteSize()
                    if number and size + more + (around if place is None else 0) > limit:
                        yield batch.SerializeToString(), number
                        batch, size, number, place = ExportTraceServiceRequest(), 0, 0, None
                    if place is None:
                        outer = batch.resource_spans.add(resource=resource.resource, schema_url=resource.schema_url)
                        place = outer.scope_spans.add(scope=scope.scope, schema_url=scope.schema_url)
                        size += around
                    place.spans.append(span)
                    size, number = size + more, number + 1
    if number:
        yield batch.SerializeToString(), number
