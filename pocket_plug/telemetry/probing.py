"""Does a span arrive where the environment sends traces? One is sent, by the exporter that a program would have."""

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
    **dict.fromkeys((401, 403), ". OTEL_EXPORTER_OTLP_HEADERS is for what it wants to know"),
    **dict.fromkeys(
        (404, 405),
        ". Its path for OTLP is another one: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT names the whole URL, and to "
        "OTEL_EXPORTER_OTLP_ENDPOINT /v1/traces is appended",
    ),
}

SPAN = "pocket-plug doctor"
"""The name of the span that is sent."""


def send_test_span(seconds: float) -> str:
    """Send a span by OTLP, in one attempt; gives the URL that has taken it, without secrets.

    Raises ConfigError for variables that can't be followed, and ConnectionError, with the reason, where it wasn't taken.
    """
    make_exporter = otlp_exporter_class("traces")  # what is missing, if it is, is said here
    if transport("traces") == "grpc":
        return _send_by_grpc(make_exporter(timeout=seconds))
    import requests  # comes with the exporter

    from pocket_plug.traces.send import refusal, shown

    class Listening(requests.Session):
        """Notes what became of a request; after one that has failed nothing is tried again."""

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
        raise ConfigError(f"OpenTelemetry can't follow its OTEL_* variables: {error}") from error
    session.stop = exporter.shutdown
    try:
        taken = exporter.export([_span()]) is SpanExportResult.SUCCESS
    except requests.RequestException:  # as older exporters raise it
        taken = False
    if not session.reason:
        exporter.shutdown()
    if not taken or session.reason:
        said = conceal(session.reason or "the exporter has refused it, and says nothing more", _hidden())
        raise ConnectionError(f"{session.url}: {said}" if session.url else said)
    return session.url


def send_as_declared(source: Declared) -> str:
    """Send a span by each OTLP exporter of the file, as a program would; gives their addresses, without secrets.

    Raises ConnectionError for one that has not sent it.
    """
    for name, queued in source.spans():
        if name.startswith("otlp_"):
            export = queued()
            export.on_end(_span())
            export.force_flush()
            lost = export.backlog.unsent
            export.shutdown()
            if lost:
                raise ConnectionError(f"{name} has not sent it, and says why in its log")
    return " and ".join(map(public_url, source.endpoints("traces"))) or "the collector"


def _send_by_grpc(exporter: Any) -> str:
    url = public_url(endpoint("traces"))
    try:
        if exporter.export([_span()]) is not SpanExportResult.SUCCESS:
            raise ConnectionError(f"{url}: the exporter has sent it by gRPC, and says what came of it in its log")
    finally:
        exporter.shutdown()
    return url


def _hidden() -> dict[str, str]:
    """What headers hold: an answer may repeat it."""
    given = (os.environ.get(name, "") for name in ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"))
    values = [value for text in given for value in parse_env_headers(text, liberal=True).values()]
    return {part: MASK for value in values for part in (value, *value.split()) if part}


def _span() -> ReadableSpan:
    provider = TracerProvider(sampler=ALWAYS_ON, resource=make_resource(Resource.create()), shutdown_on_exit=False)
    span = provider.get_tracer("pocket_plug.doctor").start_span(SPAN)
    span.end()
    assert isinstance(span, ReadableSpan)
    return span
