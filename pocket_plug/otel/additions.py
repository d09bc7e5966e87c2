"""Attributes that plugins add to spans. Errors of plugins are caught and reported here."""

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
"""Reports an error of a part, with the name of its plugin."""
Parts = tuple[tuple[Callable[..., Any], Report], ...]
"""The functions for one kind of span, one from each plugin that has such a part, each with its Report."""


Way = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class SpanAdditions:
    """The attributes that a plugin adds to the spans of runs, nodes, phases and store operations.

    Each part is called when a span begins, in the span's context. Its arguments are the run, node or phase that the span is
    for (none for `store`) and pocket_plug's own attributes, which it must not change. It returns further attributes, or None.
    pocket_plug's own attributes can't be replaced. A part that is None costs nothing.

    `value` is called when a value is captured: with its run, node or phase (None for a store operation), "input" or "output",
    the text that may be shown, and its MIME type. `resource` adds to the process's resource if `observe()` or `setup()` makes
    it, by the plugins of the default Pocket; attributes that the environment sets stay.

    An exception of a part is caught and logged once; the span doesn't get the part's attributes.
    """

    run: Callable[[Run, SpanAttributes], SpanAttributes | None] | None = None
    node: Callable[[NodeCall, SpanAttributes], SpanAttributes | None] | None = None
    phase: Callable[[PhaseCall, SpanAttributes], SpanAttributes | None] | None = None
    store: Callable[[SpanAttributes], SpanAttributes | None] | None = None
    value: Callable[[Run | NodeCall | PhaseCall | None, Way, str, str], SpanAttributes | None] | None = None
    resource: Callable[[SpanAttributes], SpanAttributes | None] | None = None


class Additions:
    """The parts of all plugins, by the kind of span. For a kind that no plugin has, the tuple is empty and costs nothing."""

    __slots__ = ("node", "phase", "resource", "run", "store", "value")

    def __init__(self, given: Sequence[tuple[SpanAdditions, Report]] = ()) -> None:
        def parts(name: str) -> Parts:
            return tuple((part, report) for each, report in given if (part := getattr(each, name)) is not None)

        self.run, self.node, self.phase = parts("run"), parts("node"), parts("phase")
        self.store, self.value, self.resource = parts("store"), parts("value"), parts("resource")


NONE: Final = Additions()


def added(part: str, asked: Parts, *about: object) -> Attributes:
    """The attributes that plugins add; if two add the same name, the first plugin wins. An error is reported with its plugin.

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
