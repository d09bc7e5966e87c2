"""Notes on an error where in a run it was raised: which node of which graph, and which item.

The note is written when the error leaves a node, and extended by each graph and each item of a fan-out around it. So an error
has one note, however deep the graphs are nested, and however often the same exception is raised.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pocket_plug.errors import InputError, PhaseError, hide_own_frames
from pocket_plug.graph.nodes.chain import END, Action, Out
from pocket_plug.graph.planning.step import Step
from pocket_plug.primitives.typechecks import checker, type_name

from .protocols import Running

ACTIONS: tuple[type[Any], ...] = (Out, Action)
"""`return self.declined` without a call returns one of them; a check of each node's output would make each node slower."""


class Place(str):
    """The note. `began` is the number of the run that wrote it, `last` the id of the step that it was last written for."""

    began: int
    last: int
    nodes: tuple[str, ...]
    """The names of the nodes, from the innermost outwards."""
    visit: int
    """The number of the innermost node's visit, from 1."""
    item: int | None = None
    """The position of the innermost item in which it was raised."""
    attempts: int = 1
    """How many attempts the innermost node took."""


def note_node(error: BaseException, run: Running, step: Step) -> None:
    """Note that an error leaves a node; other interrupts than SystemExit get no note, for nobody records them.

    Never raises, even if the exception can't take a note.
    """
    if not isinstance(error, Exception | SystemExit):
        return
    with suppress(Exception):
        is_around = step.perform is not None  # other nodes are inside, which may have written the note already
        known = _known(error, run, is_around)
        if known is None or not is_around or not (step.is_item or known.last == id(step)):
            visit = "" if step.is_item else f" of graph {run.run.graph!r} (visit {run.visit_of(step)})"
            place = _write(error, run, step, known, f"node {step.name!r}{visit}")
            if known is None and step.retry is not None:
                place.attempts = getattr(run, "attempts", 1)


def note_item(error: Exception, run: Running, step: Step, position: int) -> None:
    """Note that an error leaves an item of a fan-out, counted from 0. Never raises."""
    hide_own_frames(error)  # it may be collected: then it doesn't leave the run
    with suppress(Exception):
        text = f"item {position} of node {step.name!r} of graph {run.run.graph!r} (visit {run.visit_of(step)})"
        place = _write(error, run, step, _known(error, run, True), text)
        place.item = position if place.item is None else place.item


def name_source(error: InputError, source: Step, target: Step, value: object) -> None:
    """Add to an InputError which node has returned the refused value, since the mistake is mostly in that node."""
    while target.kind == "graph":
        target = target.inner_graph().plan.start
    if target.fits is None or target.fits(value) or source.returns_input:
        return  # the error is another one, from inside the node; or the source has passed on what it was given
    text = f"{error}: node {source.name!r} returned it"
    is_declared = source.inner_graph() is None and source.output_type is not Any
    if is_declared and not checker(source.output_type)(value):
        text += f", though it declares {type_name(source.output_type)}"
        text += "; does it lack a `return`?" if value is None else ""
    if isinstance(value, str) and value in {*source.actions, *source.carried, END.name}:
        text += f". It is the name of an action: to leave by that, return Next({value!r}, output), or call the Action"
    if isinstance(value, ACTIONS):
        text += f"; {_call_of(value)}"
    error.args = (text,)


def uncalled(run: Running, step: Step, action: object) -> PhaseError:
    """The error for a node that has returned an action itself, as `return self.declined` does without a call."""
    return PhaseError(f"node {step.name!r} of graph {run.run.graph!r} returned an action itself; {_call_of(action)}")


def _call_of(action: Any) -> str:
    """How to call an action that a node has returned."""
    name = action.name if isinstance(action, Action) else action.action
    return f"call it with the output: return {'' if name == END.name else 'self.'}{name}(output)"


def place_of(error: BaseException) -> Place | None:
    """The note on an error, if it has one."""
    return next((note for note in getattr(error, "__notes__", ()) if isinstance(note, Place)), None)


def _known(error: BaseException, run: Running, is_around: bool) -> Place | None:
    """The note from inside this node; None if the error was raised here. Notes from earlier runs and nodes don't count."""
    known, began = place_of(error), run.began
    return known if known is not None and (known.began > began or (is_around and known.began == began)) else None


def _write(error: BaseException, run: Running, step: Step, known: Place | None, text: str) -> Place:
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
