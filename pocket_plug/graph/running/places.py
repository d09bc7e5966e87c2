"""Where in a run an error comes from: a note on it that says which node of which graph, and which item.

The note is written as the error leaves a node, and grows with each graph and each item of a fan-out around it: there is
one, however deep the graphs are nested, and however often the same exception is raised.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pocket_plug.errors import InputError
from pocket_plug.graph.nodes.chain import END
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.typechecks import checker, type_name

from .protocols import Running


class Place(str):
    """The note. `began` numbers the run that wrote it, `last` is the id of the step that it was last written for."""

    began: int
    last: int
    nodes: tuple[str, ...]
    """The names of the nodes, from the inmost outwards."""
    visit: int
    """Of the inmost."""
    item: int | None = None
    """The position of the inmost item that it comes from."""
    attempts: int = 1
    """How many attempts the inmost has taken."""


def note_node(error: BaseException, run: Running, step: Step) -> None:
    """An error leaves a node; an interrupt is none. Never raises: what the exception makes of it is its own affair."""
    if not isinstance(error, Exception):
        return
    with suppress(Exception):
        is_around = step.perform is not None  # of other nodes, which may have written it as the error left them
        known = _known(error, run, is_around)
        if known is None or not is_around or not (step.is_item or known.last == id(step)):
            visit = "" if step.is_item else f" of graph {run.run.graph!r} (visit {run.visit_of(step)})"
            place = _write(error, run, step, known, f"node {step.name!r}{visit}")
            if known is None and step.retry is not None:
                place.attempts = getattr(run, "attempts", 1)


def note_item(error: Exception, run: Running, step: Step, position: int) -> None:
    """An error leaves an item of a fan-out, counted from 0. Never raises."""
    with suppress(Exception):
        text = f"item {position} of node {step.name!r} of graph {run.run.graph!r} (visit {run.visit_of(step)})"
        place = _write(error, run, step, _known(error, run, True), text)
        place.item = position if place.item is None else place.item


def name_giver(error: InputError, giver: Step, taker: Step, value: object) -> None:
    """A node was refused its input: say which node gave that, since the fault is that one's, mostly."""
    while taker.kind == "graph":
        taker = taker.inner_graph().plan.start
    if taker.fits is None or taker.fits(value):
        return  # the error is another one, from within the node
    text = f"{error}: node {giver.name!r} returned it"
    if giver.output_type is not Any and not checker(giver.output_type)(value):
        text += f", though it declares {type_name(giver.output_type)}"
        text += "; does it lack a `return`?" if value is None else ""
    if isinstance(value, str) and value in {*giver.actions, *giver.carried, END.name}:
        text += f". It is the name of an action: to leave by that, return Next({value!r}, output), or call the Action"
    error.args = (text,)


def place_of(error: BaseException) -> Place | None:
    """What has been noted on an error."""
    return next((note for note in getattr(error, "__notes__", ()) if isinstance(note, Place)), None)


def _known(error: Exception, run: Running, is_around: bool) -> Place | None:
    """What has been written as the error came here; None where it was raised here, whatever was written some other time."""
    known, began = place_of(error), run.began
    return known if known is not None and (known.began > began or (is_around and known.began == began)) else None


def _write(error: Exception, run: Running, step: Step, known: Place | None, text: str) -> Place:
    place = Place(f"at {text}" if known is None else f"{known}, in {text}")
    place.began, place.last = run.began, id(step)
    if known is None:
        place.nodes, place.visit = (step.name,), run.visit_of(step)
    else:
        place.nodes = known.nodes if known.last == id(step) else (*known.nodes, step.name)
        place.visit, place.item, place.attempts = known.visit, known.item, known.attempts
    notes = getattr(error, "__notes__", [])
    for position, note in enumerate(notes):
        if isinstance(note, Place):
            notes[position] = place
            return place
    error.add_note(place)
    return place
