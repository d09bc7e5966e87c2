"""Where a trace failed: each of its errors, with type, place and message, and which of them came first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from opentelemetry.util.types import AnyValue

from .frames import Frame, frames_in, users_frame
from .recorded import STACK, RecordedSpan, own_errors

__all__ = ["Failure", "failure_of", "failures", "first_way", "grouped", "way_to"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as its span tells of it: its type without the module, the frame to look at first, the message, and its stack.

    What isn't known of it is "", or None.
    """

    span: RecordedSpan
    kind: str
    at: Frame | None
    message: str
    stack: str

    @property
    def place(self) -> str:
        """The frame in short, to be read only: files of one name may be many."""
        return "" if self.at is None else self.at.place

    @property
    def causes(self) -> list[str]:
        """What it was caused by, as lines: the types, and the messages where these are known."""
        lines = self.stack.splitlines()
        return [*dropwhile(lambda line: not line.startswith("caused by "), lines)]

    @property
    def is_known(self) -> bool:
        """Is more known of it than its type?"""
        return bool(self.at or self.message)


def failure_of(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> Failure | None:
    """What a span failed with, for good or until it was tried again; None if it didn't. `by_id`: the trace's spans.

    The frame to look at first is the innermost of the user's. A time-out, say, has none: then it is where the node is written,
    and where that isn't known either, the innermost frame.
    """
    kind = span.error
    if span.status != "error" and kind is None:
        return None
    about: Mapping[str, AnyValue] = {}
    for event in span.events:
        if event.name == "exception" and (
            "exception.type" not in about or event.attributes.get("exception.type") == kind
        ):
            about = event.attributes  # the last one of its type, since a span may tell of errors that it handled
    kind = kind or _text(about, "exception.type") or "error"
    message = _text(about, "exception.message") or ("" if span.message == kind else span.message)
    stack = _text(about, STACK)
    frames = frames_in(stack)
    at = users_frame(frames) or _definition(span, by_id) or (frames[-1] if frames else None)
    return Failure(span, kind.rpartition(".")[2] or kind, at, message, stack)


def _definition(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> Frame | None:
    """Where the node is written that a span belongs to: what the span says, or the nearest above it that says so."""
    for each in reversed(way_to(span, by_id)):
        if file := _text(each.attributes, "code.file.path"):
            line = each.attributes.get("code.line.number")
            name = _text(each.attributes, "code.function.name")
            return Frame(file, line if isinstance(line, int) else 0, name, is_users=True)
    return None


def _text(attributes: Mapping[str, AnyValue], name: str) -> str:
    value = attributes.get(name)
    return value if isinstance(value, str) else ""


def failures(spans: Sequence[RecordedSpan]) -> list[Failure]:
    """The errors of these spans, that which happened first at first; one that was handed on upwards is one error."""
    by_id = {span.span_id: span for span in spans}
    failed = {span.span_id: span for span in spans if span.failed}
    own = own_errors({id: (span.parent_id, span.error) for id, span in failed.items()})
    found = [failure for id in own if (failure := failure_of(failed[id], by_id)) is not None]
    return sorted(found, key=lambda failure: failure.span.end)


def grouped(found: Sequence[Failure]) -> list[list[Failure]]:
    """Errors of one type, file and line together, in the order of each group's first; without a frame by the span's name."""
    groups: dict[tuple[str, str, int], list[Failure]] = {}
    for failure in found:
        file, line = (failure.span.name, 0) if failure.at is None else (failure.at.file, failure.at.line)
        groups.setdefault((failure.kind, file, line), []).append(failure)
    return [*groups.values()]


def way_to(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> list[RecordedSpan]:
    """The spans from the outermost one down to this one."""
    way, seen = [span], {span.span_id}
    while (above := by_id.get(way[-1].parent_id or "")) is not None and above.span_id not in seen:
        seen.add(above.span_id)
        way.append(above)
    return way[::-1]


def first_way(found: Sequence[Failure], by_id: Mapping[str, RecordedSpan]) -> list[RecordedSpan]:
    """The way down to the first error, rather one that made the whole fail than one that was dealt with; [] without errors."""
    if not found:
        return []
    ways = (way_to(failure.span, by_id) for failure in found)
    return next((way for way in ways if all(span.failed for span in way)), way_to(found[0].span, by_id))
