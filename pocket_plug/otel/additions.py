"""What plugins add to the spans that tracing makes: asked here, so that no failure of theirs leaves it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from pocket_plug.errors import is_fault
from pocket_plug.graph.observing import SpanAdditions
from pocket_plug.primitives.failures import capped

Attributes = dict[str, str | bool | int | float]
Asked = tuple[tuple[Callable[..., Any], Callable[[str, BaseException], None]], ...]


class Additions:
    """The parts of all plugins, by what they are about. A part that no plugin has is empty, which is all that it costs."""

    __slots__ = ("node", "phase", "resource", "run", "store", "value")

    def __init__(self, given: Sequence[SpanAdditions] = ()) -> None:
        def parts(name: str) -> Asked:
            return tuple((part, each.report) for each in given if (part := getattr(each, name)) is not None)

        self.run, self.node, self.phase = parts("run"), parts("node"), parts("phase")
        self.store, self.value, self.resource = parts("store"), parts("value"), parts("resource")


NONE: Final = Additions()


def added(part: str, asked: Asked, *about: object) -> Attributes:
    """What plugins add, the one that is asked first having the last word. What fails is put down to its plugin.

    >>> added("store", Additions([SpanAdditions(store=lambda own: {"team": "billing"})]).store, {})
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
    raise TypeError(f"it gave {type(value).__name__} as {name!r:.80}; an attribute is a str, a bool, an int or a float")
