"""The events of a run that is followed: one class for each kind of event.

`match event: case NodeLeft(node="charge", output=output): …` selects them; `kind` is a name for each kind, such as for JSON.
An event holds the objects that the run itself uses: read them, don't change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal
from urllib.parse import unquote

from typing_extensions import TypeVar

from pocket_plug.graph.durable.states import RunFailure, RunState
from pocket_plug.graph.observing.views import NodeOutcome
from pocket_plug.primitives.names import escaped
from pocket_plug.primitives.values import Value
from pocket_plug.store.store import MISSING

O = TypeVar("O", covariant=True)  # noqa: E741 - output


@dataclass(frozen=True, slots=True, repr=False)
class NodePlace:
    """The place of an event: which visit of which node, in which graph, and which item of a fan-out.

    Its text, `str(place)`, is the same in each execution of a durable run.

    >>> review = NodePlace("each_review", positions=(3,))
    >>> ask = NodePlace("ask", visit=2, within=review)
    >>> str(ask), ask.path, ask.item
    ('each_review#1[3]/ask#2', ('each_review', 'ask'), 3)
    """

    node: str
    """The node's name; for an item, the name of its fan-out."""
    visit: int = 1
    """1 on the node's first visit in its graph's run."""
    positions: tuple[int, ...] = ()
    """For an item of a fan-out, its position, from 0. More than one if its fan-out is itself an item of another fan-out."""
    within: NodePlace | None = None
    """The place of the nested graph that contains the node; None in the outermost graph."""

    @classmethod
    def parse(cls, text: str) -> NodePlace:
        """The place with this text, such as a question's id. Raises ValueError for another text.

        >>> NodePlace.parse("each_review#1[3]/ask#2").item
        3
        """
        place: NodePlace | None = None
        for each in text.split("/"):
            node, _, rest = each.rpartition("#")
            visit, *positions = rest.replace("]", "").split("[")
            place = cls(unquote(node), int(visit), tuple(map(int, positions)), place)
        assert place is not None  # split() returns at least one part
        return place

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the nodes that contain it, the outermost first, and its own name."""
        return (self.node,) if self.within is None else (*self.within.path, self.node)

    @property
    def item(self) -> int | None:
        """The position of the innermost item that it is or is in; None outside of fan-outs."""
        if self.positions:
            return self.positions[-1]
        return None if self.within is None else self.within.item

    def __repr__(self) -> str:
        return f"<{self}>"

    def __str__(self) -> str:
        around = "" if self.within is None else f"{self.within}/"
        items = "".join(f"[{position}]" for position in self.positions)
        return f"{around}{escaped(self.node, '/#[')}#{self.visit}{items}"


@dataclass(frozen=True, slots=True)
class _AtNode:
    place: NodePlace

    @property
    def node(self) -> str:
        """The node's name; for an item, the name of its fan-out."""
        return self.place.node

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the nodes that contain it, the outermost first, and its own name."""
        return self.place.path

    @property
    def visit(self) -> int:
        """1 on the node's first visit."""
        return self.place.visit

    @property
    def item(self) -> int | None:
        """The position of the innermost item that it is or is in; None outside of fan-outs."""
        return self.place.item


@dataclass(frozen=True, slots=True)
class NodeEntered(_AtNode):
    """The run has entered a node. If a node has waited for an answer, this comes again when the answer is there."""

    kind: ClassVar[Literal["node_entered"]] = "node_entered"
    type: Literal["node", "graph", "fan_out"]


@dataclass(frozen=True, slots=True)
class NodeLeft(_AtNode):
    """The run has left a node, and the node's writes are committed; or the node has failed, and nothing is committed.

    When the run begins to wait for an answer, it doesn't leave the node that asks.
    """

    kind: ClassVar[Literal["node_left"]] = "node_left"
    output: Value = MISSING
    """The node's output; MISSING if it has failed. `Runs.follow` always has MISSING here, since outputs are not recorded."""
    outcome: NodeOutcome = "ok"
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ItemDone(_AtNode):
    """An item of a fan-out has ended: `item` is its position. With `errors="collect"` the run continues after an error."""

    kind: ClassVar[Literal["item_done"]] = "item_done"
    output: Value = MISSING
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class NodeRetried(_AtNode):
    """An attempt at a node's `exec` has failed; the next one begins in `delay` seconds. It may emit the same values again."""

    kind: ClassVar[Literal["node_retried"]] = "node_retried"
    attempt: int
    """The number of the failed attempt, from 1."""
    delay: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Progressed(_AtNode):
    """The progress that a node has reported by `progress(done, total)`. If several are unread, only the newest is kept."""

    kind: ClassVar[Literal["progressed"]] = "progressed"
    done: float
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Emitted(_AtNode):
    """A value that a node has reported by `emit(value)`."""

    kind: ClassVar[Literal["emitted"]] = "emitted"
    value: Value


@dataclass(frozen=True, slots=True)
class Asked(_AtNode):
    """A node asks, and waits for an answer: `graph.resume(run_id, answer=…, question=str(event.place))`."""

    kind: ClassVar[Literal["asked"]] = "asked"
    run_id: str
    question: Value


@dataclass(frozen=True, slots=True)
class Suspended:
    """The run waits for answers or for a time; no process has to run meanwhile. This is not a failure.

    It is the last event of `Graph.stream`; `Runs.follow` continues after it.
    """

    kind: ClassVar[Literal["suspended"]] = "suspended"
    run_id: str
    questions: Mapping[str, Value]
    """The open questions by id. An id is the text of the question's place."""
    wake_at: float | None
    """When the run continues by itself, in epoch seconds; None if it only waits for answers."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state of a durable run has changed. Only `Runs.follow` has this event. With "failed" or "cancelled" it is the last."""

    kind: ClassVar[Literal["state_changed"]] = "state_changed"
    state: RunState
    failure: RunFailure | None = None
    """The error, if the state is "failed"."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[O]):
    """The run has finished; it is the last event."""

    kind: ClassVar[Literal["finished"]] = "finished"
    output: O


RunEvent = NodeEntered | NodeLeft | ItemDone | NodeRetried | Progressed | Emitted | Asked | Suspended | Finished[O]
"""Any event of `Graph.stream`, for a run whose output is an `O`."""
FollowedEvent = NodeEntered | NodeLeft | ItemDone | Asked | Suspended | StateChanged | Finished[Any]
"""Any event of `Runs.follow`."""
