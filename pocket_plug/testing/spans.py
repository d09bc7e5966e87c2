"""`SpanCapture`: captures the spans of a block, without a global provider or an exporter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from typing_extensions import Unpack

from pocket_plug.layers import tracing

Tree = str | tuple[str, "list[Tree]"]
"""A span's name, or if it has children, its name and their trees."""


class SpanCapture(SpanProcessor):
    """Captures the spans that pocket_plug makes in a block; the process's settings of tracing are restored after it.

    Spans that a test makes with `capture.tracer_provider` are in the same tree. Other settings of tracing can be given, as in
    `SpanCapture(capture="full")`; by default they have their default values.

    >>> from pocket_plug import Key, SyncStore
    >>> from pocket_plug.layers.tracing import Tracing
    >>> GUEST = Key("guest:{}", str)
    >>> with SpanCapture() as capture:
    ...     SyncStore(layers=[Tracing()]).set(GUEST("17"), "Alice")
    >>> capture.tree()
    ['set guest:{}']
    """

    def __init__(self, detail: tracing.Detail = "phase", **others: Unpack[tracing.Besides]) -> None:
        self.tracer_provider = TracerProvider(shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(self)
        self._settings: tracing.Changes = {"tracer_provider": self.tracer_provider, **others, "detail": detail}
        self._began: dict[int, int] = {}  # the order of starts, by span id
        self._ended: list[ReadableSpan] = []

    def __enter__(self) -> Self:
        self._former = tracing.use(tracing.Settings())
        tracing.configure(**self._settings)
        return self

    def __exit__(self, *_: object) -> None:
        tracing.use(self._former)

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Called by the SDK."""
        self._began[span.get_span_context().span_id] = len(self._began)

    def on_end(self, span: ReadableSpan) -> None:
        """Called by the SDK."""
        self._ended.append(span)

    @property
    def open(self) -> int:
        """The number of open spans."""
        return len(self._began) - len(self._ended)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The ended spans, in the order of their starts."""
        return sorted(self._ended, key=lambda span: self._began[_id(span)])

    def one(self, name: str) -> ReadableSpan:
        """The only span with this name. Raises AssertionError, with the names of all spans, if there is none or several."""
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            names = ", ".join(span.name for span in self.spans) or "none"
            raise AssertionError(f"{len(found)} spans are named {name!r}; the spans are: {names}")
        return found[0]

    def tree(self) -> list[Tree]:
        """The names of all spans as a tree, in the order of their starts: `[("run g", ["node a", "node b"])]`."""
        spans = self.spans
        ids = {_id(span) for span in spans}
        children: dict[int | None, list[ReadableSpan]] = {}
        for span in spans:
            parent = span.parent.span_id if span.parent is not None and span.parent.span_id in ids else None
            children.setdefault(parent, []).append(span)

        def names(parent: int | None) -> list[Tree]:
            found: list[Tree] = []
            for span in children.get(parent, ()):
                below = names(_id(span))
                found.append((span.name, below) if below else span.name)
            return found

        return names(None)


def _id(span: ReadableSpan) -> int:
    context = span.get_span_context()
    return context.span_id if context is not None else 0
