"""Traces as one HTML file, to look at, keep and send. The page loads nothing else.

The page is written by hand in the folder `viewer`, without a build; this module only fills in the data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from opentelemetry.util.types import AnyValue

from .failing import Failure, failure_of, failures
from .frames import Frame, frames_in
from .recorded import LOCAL, STACK, RecordedSpan, Trace

__all__ = ["page"]

SCRIPTS = (
    "texts.js",
    "trace.js",
    "marks.js",
    "errors.js",
    "graph.js",
    "matching.js",
    "rows.js",
    "critical.js",
    "waterfall.js",
    "names.js",
    "views.js",
    "llm.js",
    "details.js",
    "theme.js",
    "ways.js",
    "page.js",
)
"""Joined in this order, they are the page's only script."""

EXACT = 2**53
"""Up to here JavaScript represents integers exactly."""

STATUS = {"unset": 0, "ok": 1, "error": 2}


SIMPLE = frozenset((str, int, float, bool))
"""Types whose equal values are the same to the page. Most values have one of these, so they are compared without JSON."""


def page(traces: Sequence[Trace]) -> str:
    """The HTML of a page for these traces; it opens with the one that began last.

    A trace is untrusted data. So nothing in it becomes markup or script, and the page's Content-Security-Policy lets the browser
    run only the page's own script and fetch nothing.

    >>> span = RecordedSpan("0" * 31 + "1", "0" * 15 + "2", None, "run <b>", 1, "pocket_plug.graph", 0, 5, {})
    >>> html = page([Trace(span.trace_id, (span,))])
    >>> html.startswith("<!doctype html>"), "run <b>" in html
    (True, False)
    """
    style = _file("page.css")
    script = "\n".join(_file(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": _data(traces)}
    # in one pass, so that `{{…}}` in the data isn't filled in
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], _file("page.html"))


def _file(name: str) -> str:
    return files("pocket_plug.traces").joinpath("viewer", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# ---------------------------------------------------------------- the data
def _data(traces: Sequence[Trace]) -> str:
    """JSON for a script element: no character in it can end the element or a line."""
    encoder = _Encoder()
    data = {
        "traces": [encoder.trace(trace) for trace in traces],
        "frames": encoder.frames(),
        "resources": encoder.resources,
        "texts": encoder.texts,
        "pairs": encoder.pairs,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


class _Encoder:
    """Encodes traces for the page: spans as columns, which a browser reads fastest; repeated texts and attributes by number.

    `trace.js` reads these columns.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pairs: list[tuple[int, object]] = []  # attributes: the number of the name, and the value
        self._texts: dict[str, int] = {}
        self._pairs: dict[tuple[int, bool, str], int] = {}
        self._known: dict[tuple[str, type, AnyValue], int] = {}  # the numbers of attributes with simple values
        self.resources: list[list[int]] = []
        self._resources: dict[tuple[int, ...], int] = {}
        self._latest: tuple[Mapping[str, AnyValue], int] | None = None

    def trace(self, trace: Trace) -> dict[str, object]:
        """The columns of a trace. Times are nanoseconds since its start, which is a text: as a number it would be rounded."""
        start = min((span.start for span in trace.spans), default=0)
        spans = trace.spans
        numbers = {span.span_id: number for number, span in enumerate(spans)}
        by_id = {span.span_id: span for span in spans}
        own = {failure.span.span_id: failure for failure in failures(spans)}
        more = {number: found for number, span in enumerate(spans) if (found := self._more(span, start))}
        for number, span in enumerate(spans):
            if span.status == "error" and (failure := own.get(span.span_id) or failure_of(span, by_id)) is not None:
                more.setdefault(number, {})["error"] = self._error(failure, span.span_id in own)
        return {
            "id": str(trace.id),
            "start": str(start),
            "ids": [str(span.span_id) for span in spans],
            # the parent's number, or its id if it isn't in the trace
            "parents": [numbers.get(span.parent_id, span.parent_id) if span.parent_id else None for span in spans],
            "names": [self._text(span.name) for span in spans],
            "scopes": [self._text(span.scope) for span in spans],
            "kinds": [span.kind for span in spans],
            "starts": [span.start - start for span in spans],
            "took": [span.duration if span.end else -1 for span in spans],  # -1: still open
            "status": [STATUS[span.status] for span in spans],
            "attributes": [self._attributes(span.attributes) for span in spans],
            "resources": [self._resource(span.resource) for span in spans],
            "more": more,
        }

    def frames(self) -> dict[int, list[tuple[int, int, int, bool]]]:
        """The frames of each stack, by the attribute's number, outermost first, and which of them are the user's."""
        stack = self._texts.get(STACK)
        found: dict[int, list[tuple[int, int, int, bool]]] = {}
        known: dict[tuple[Frame, ...], list[tuple[int, int, int, bool]]] = {}  # many stacks are equal
        for number, (name, value) in enumerate(self.pairs):
            if name != stack or not isinstance(value, str):
                continue
            frames = frames_in(value)
            if frames not in known:
                known[frames] = [self._frame(frame) for frame in frames]
            found[number] = known[frames]
        return found

    def _frame(self, frame: Frame) -> tuple[int, int, int, bool]:
        return self._text(frame.file), frame.line, self._text(frame.function), frame.is_users

    def _error(self, failure: Failure, is_own: bool) -> dict[str, object]:
        """The error of a span, as the terminal shows it too. `own`: it failed finally, with an error that was raised in it."""
        error: dict[str, object] = {"type": str(failure.kind), "message": str(failure.message), "own": is_own}
        if failure.at is not None:
            error["at"] = self._frame(failure.at)
        if failure.stack:  # the number of the stack's attribute
            error["stack"] = self._attributes({STACK: failure.stack})[0]
        return error

    def _more(self, span: RecordedSpan, start: int) -> dict[str, object]:
        """Message, events and links, which most spans don't have."""
        more: dict[str, object] = {}
        if span.message:
            more["message"] = str(span.message)
        if span.events:
            more["events"] = [
                [
                    str(each.name),
                    max(each.time - start, 0),
                    self._attributes({name: value for name, value in each.attributes.items() if name != LOCAL}),
                ]
                for each in span.events
            ]
        if span.links:
            more["links"] = [[each.trace_id, each.span_id, self._attributes(each.attributes)] for each in span.links]
        return more

    def _text(self, text: str) -> int:
        number = self._texts.setdefault(str(text), len(self.texts))
        if number == len(self.texts):
            self.texts.append(str(text))
        return number

    def _resource(self, resource: Mapping[str, AnyValue]) -> int:
        if self._latest is None or self._latest[0] is not resource:  # usually the same as for the span before
            numbers = self._attributes(resource)
            number = self._resources.setdefault(tuple(numbers), len(self.resources))
            if number == len(self.resources):
                self.resources.append(numbers)
            self._latest = resource, number
        return self._latest[1]

    def _attributes(self, attributes: Mapping[str, AnyValue]) -> list[int]:
        numbers: list[int] = []
        for name, value in attributes.items():
            kind = type(value)
            if kind not in SIMPLE:
                number = self._pair(self._text(name), _plain(value))
            elif (number := self._known.get((name, kind, value), -1)) < 0:
                number = self._known[name, kind, value] = self._pair(self._text(name), _plain(value))
            numbers.append(number)
        return numbers

    def _pair(self, name: int, value: object) -> int:
        # as JSON, since 1, 1.0 and True are not the same
        text = value if isinstance(value, str) else json.dumps(value)
        same = name, isinstance(value, str), text
        number = self._pairs.setdefault(same, len(self.pairs))
        if number == len(self.pairs):
            self.pairs.append((name, value))
        return number


def _plain(value: AnyValue) -> object:
    """The value if JSON can express it and JavaScript doesn't round it, or else its text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if abs(value) < EXACT else str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return str(value)
