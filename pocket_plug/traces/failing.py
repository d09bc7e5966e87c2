"""The errors of a trace, with type, place and message, and which of them came first."""

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
    """An error as its span records it: its type without the module, the frame to look at first, the message, and the stack.

    An unknown text is "", an unknown frame None.
    """

    span: RecordedSpan
    kind: str
    at: Frame | None
    message: str
    stack: str

    @property
    def place(self) -> str:
        """The frame's file name and line, for people: several files may have this name."""
        return "" if self.at is None else self.at.place

    @property
    def causes(self) -> list[str]:
        """The causes, a line each: the type, and the message if it is known."""
        lines = self.stack.splitlines()
        return [*dropwhile(lambda line: not line.startswith("caused by "), lines)]

    @property
    def is_known(self) -> bool:
        """Is more known than the type?"""
        return bool(self.at or self.message)


def failure_of(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> Failure | None:
    """The error of a span, also if it was retried; None if the span didn't fail. `by_id`: the trace's spans.

    The frame to look at first is the user's innermost one. If there is none, as for a timeout, it is the place where the node is
    defined, or if that is unknown, the innermost frame.
    """
    kind = span.error
    if span.status != "error" and kind is None:
        return None
    about: Mapping[str, AnyValue] = {}
    for event in span.events:
        if event.name == "exception" and (
            "exception.type" not in about or event.attributes.get("exception.type") == kind
        ):
            about = event.attributes  # the last one of its type: a span may also record errors that it handled
    kind = kind or _text(about, "exception.type") or "error"
    message = _text(about, "exception.message") or ("" if span.message == kind else span.message)
    stack = _text(about, STACK)
    frames = frames_in(stack)
    at = users_frame(frames) or _definition(span, by_id) or (frames[-1] if frames else None)
    return Failure(span, kind.rpartition(".")[2] or kind, at, message, stack)


def _definition(span: RecordedSpan, by_id: Mapping[str, RecordedSpan]) -> Frame | None:
    """Where the span's node is defined, by attributes of the span or of the nearest one above that has them."""
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
    """The errors of these spans, the earliest first. An error that propagated through several spans is one error."""
    by_id = {span.span_id: span for span in spans}
    failed = {span.span_id: span for span in spans if span.failed}
    own = own_errors({id: (span.parent_id, span.error) for id, span in failed.items()})
    found = [failure for id in own if (failure := failure_of(failed[id], by_id)) is not None]
    return sorted(found, key=lambda failure: failure.span.end)


def grouped(found: Sequence[Failure]) -> list[list[Failure]]:
    """Errors grouped by type, file and line (by the span's name without a frame), in the order of the first one of each group."""
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
    """The spans down to the first error that made the whole trace fail, or else to the first one; [] without errors."""
    if not found:
        return []
    ways = (way_to(failure.span, by_id) for failure in found)
    return next((way for way in ways if all(span.failed for span in way)), way_to(found[0].span, by_id))
