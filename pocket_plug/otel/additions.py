"""What plugins add to the spans that tracing makes: asked here, so that no failure of theirs leaves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pocket_plug.errors import is_fault
from pocket_plug.graph.observing.views import NodeCall, PhaseCall, Run
from pocket_plug.primitives.failures import capped
from pocket_plug.primitives.values import SpanAttributes

Attributes = dict[str, str | bool | int | float]
Report = Callable[[str, BaseException], None]
"""Puts a failure of one of its parts down to its plugin."""
Parts = tuple[tuple[Callable[..., Any], Report], ...]
"""What is asked for one kind of span, of each plugin that has something to add."""


Way = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class SpanAdditions:
    """The attributes that a plugin adds to the spans of runs, nodes, phases and store operations.

    Each part is called as a span begins, in the context that the span is to be in, with what the span is of and with the
    attributes that it has by itself, which are not to be changed. It gives those that come on top, or None; where a name
    is ours, ours stays. A part left None costs nothing.

    `value` is called where something is captured: with what it belongs to (None: a store operation), "input" or "output",
    the text that may be shown, and its MIME type. `resource` is put on the process's resource where pocket_plug makes it,
    unless the environment says otherwise: by `observe()` and `setup()`, which ask the plugins of the default Pocket.

    Whatever a part raises is caught and said once; the span goes without what it would have added.
    """

    run: Callable[[Run, SpanAttributes], SpanAttributes | None] | None = None
    node: Callable[[NodeCall, SpanAttributes], SpanAttributes | None] | None = None
    phase: Callable[[PhaseCall, SpanAttributes], SpanAttributes | None] | None = None
    store: Callable[[SpanAttributes], SpanAttributes | None] | None = None
    value: Callable[[Run | NodeCall | PhaseCall | None, Way, str, str], SpanAttributes | None] | None = None
    resource: Callable[[SpanAttributes], SpanAttributes | None] | None = None


class Additions:
    """The parts of all plugins, by what they are about. A part that no plugin has is empty, which is all that it costs."""

    __slots__ = ("node", "phase", "resource", "run", "store", "value")

    def __init__(self, given: Sequence[tuple[SpanAdditions, Report]] = ()) -> None:
        def parts(name: str) -> Parts:
            return tuple((part, report) for each, report in given if (part := getattr(each, name)) is not None)

        self.run, self.node, self.phase = parts("run"), parts("node"), parts("phase")
        self.store, self.value, self.resource = parts("store"), parts("value"), parts("resource")


NONE: Final = Additions()


def added(part: str, asked: Parts, *about: object) -> Attributes:
    """What plugins add, the one that is asked first having the last word. What fails is put down to its plugin.

    >>> billing = SpanAdditions(store=lambda own: {"team": "billing"})
    >>> added("store", Additions([(billing, lambda what, error: None)]).store, {})
    {'team': 'billing'}
    """
    found: Attributes = {}
    for ask, report in reversed(asked):
        try:
            given = ask(*about)
            if given is not None:
                found |= {capped(name): _shown(name, value) for name, value in given.items()}
        except BaseException as error:
            if not is_fault(error):
                raise
            report(f"pocket_span_additions ({part})", error)
    return found


def _shown(name: str, value: object) -> str | bool | int | float:
    if isinstance(value, str):
        return capped(value)
    if isinstance(value, bool | int | float):
        return value
    raise TypeError(
        f"it returned {type(value).__name__} as {name!r:.80}; an attribute is a str, a bool, an int or a float"
    )
