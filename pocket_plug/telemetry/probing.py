"""Sends a test span, by the exporter that a program would use, to find out whether the collector takes traces."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.util.re import parse_env_headers

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.redaction import MASK, conceal, public_url

from .declared import Declared
from .exporters import endpoint, otlp_exporter_class, transport
from .providers import make_resource

WAYS_OUT = {
    **dict.fromkeys((401, 403), ". Set its credentials in OTEL_EXPORTER_OTLP_HEADERS"),
    **dict.fromkeys(
        (404, 405),
        ". It takes OTLP at another path: set the whole URL as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT; "
        "/v1/traces is appended to OTEL_EXPORTER_OTLP_ENDPOINT only",
    ),
}

SPAN = "pocket-plug doctor"
"""The name of the span that is sent."""


def send_test_span(seconds: float) -> str:
    """Send a span by OTLP, in one attempt of at most `seconds`; returns the URL that took it, without secrets.

    Raises ConfigError for invalid variables or a missing exporter, and ConnectionError, with the reason, if it wasn't taken.
    """
    make_exporter = otlp_exporter_class("traces")
    if transport("traces") == "grpc":
        return _send_by_grpc(make_exporter(timeout=seconds))
    import requests  # comes with the exporter

    from pocket_plug.traces.send import refusal, shown

    class Listening(requests.Session):
        """Records the outcome of a request, and stops the exporter after a failed one, so that it doesn't retry."""

        url, reason = "", ""
        stop: Callable[[], object]

        def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
            url = urlsplit(request.url or "")
            self.url = shown(url)
            outcome: requests.Response | requests.RequestException
            try:
                outcome = super().send(request, **options)
            except requests.RequestException as error:
                outcome = error
            self.reason = refusal(outcome, url)
            if self.reason:
                self.reason += WAYS_OUT.get(getattr(outcome, "status_code", 0), "")
                self.stop()
            if isinstance(outcome, requests.RequestException):
                raise outcome
            return outcome

    session = Listening()
    try:
        exporter = make_exporter(session=session, timeout=seconds)
    except ValueError as error:
        raise ConfigError(f"OpenTelemetry rejects an OTEL_* variable: {error}") from error
    session.stop = exporter.shutdown
    try:
        taken = exporter.export([_span()]) is SpanExportResult.SUCCESS
    except requests.RequestException:  # raised by older exporters
        taken = False
    if not session.reason:
        exporter.shutdown()
    if not taken or session.reason:
        said = conceal(session.reason or "the exporter failed and gave no reason", _hidden())
        raise ConnectionError(f"{session.url}: {said}" if session.url else said)
    return session.url


def send_as_declared(source: Declared) -> str:
    """Send a span by each OTLP exporter of the configuration file; returns their endpoints, without secrets.

    Raises ConnectionError if an exporter could not send it.
    """
    for name, queued in source.spans():
        if name.startswith("otlp_"):
            export = queued()
            export.on_end(_span())
            export.force_flush()
            lost = export.backlog.unsent
            export.shutdown()
            if lost:
                raise ConnectionError(f"{name} could not send it; its log says why")
    return " and ".join(map(public_url, source.endpoints("traces"))) or "the collector"


def _send_by_grpc(exporter: Any) -> str:
    url = public_url(endpoint("traces"))
    try:
        if exporter.export([_span()]) is not SpanExportResult.SUCCESS:
            raise ConnectionError(f"{url}: the exporter could not send it by gRPC; its log says why")
    finally:
        exporter.shutdown()
    return url


def _hidden() -> dict[str, str]:
    """The values of headers, to mask them: a server's answer may repeat them."""
    given = (os.environ.get(name, "") for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"))
    values = [value for text in given for value in parse_env_headers(text, liberal=True).values()]
    return {part: MASK for value in values for part in (value, *value.split()) if part}


def _span() -> ReadableSpan:
    provider = TracerProvider(sampler=ALWAYS_ON, resource=make_resource(Resource.create()), shutdown_on_exit=False)
    span = provider.get_tracer("pocket_plug.doctor").start_span(SPAN)
    span.end()
    assert isinstance(span, ReadableSpan)
    return span
