"""What a run tells whoever follows it, as values: one class for each kind of event.

`match event: case NodeLeft(node="charge", output=output): …` takes them apart; `kind` is a name for each, for JSON and the like.
An event holds the objects that the run works with: read them, don't change them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal
from urllib.parse import unquote

from typing_extensions import TypeVar

from pocket_plug.graph.observing.views import NodeOutcome
from pocket_plug.primitives.names import escaped
from pocket_plug.primitives.values import Value
from pocket_plug.store.store import MISSING

if TYPE_CHECKING:
    from pocket_plug.graph.durable.states import RunFailure, RunState

O = TypeVar("O", covariant=True)  # noqa: E741 - output


@dataclass(frozen=True, slots=True, repr=False)
class NodePlace:
    """Which visit of which node, in which graph, and which item of a fan-out.

    Its text is the same in each execution of a durable run.

    >>> review = NodePlace("each_review", positions=(3,))
    >>> ask = NodePlace("ask", visit=2, within=review)
    >>> str(ask), ask.path, ask.item
    ('each_review#1[3]/ask#2', ('each_review', 'ask'), 3)
    """

    node: str
    """The node's name; of an item that of its fan-out."""
    visit: int = 1
    """1 on the node's first visit in its graph's run."""
    positions: tuple[int, ...] = ()
    """Of an item of a fan-out: which one, from 0. More than one where a fan-out is itself the item of one."""
    within: NodePlace | None = None
    """The place of the graph that the node is in, where that is a node itself."""

    @classmethod
    def parse(cls, text: str) -> NodePlace:
        """The place of which this is the text, such as a question's id. Raises ValueError.

        >>> NodePlace.parse("each_review#1[3]/ask#2").item
        3
        """
        place: NodePlace | None = None
        for each in text.split("/"):
            node, _, rest = each.rpartition("#")
            visit, *positions = rest.replace("]", "").split("[")
            place = cls(unquote(node), int(visit), tuple(map(int, positions)), place)
        assert place is not None  # a text has a part at least
        return place

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the graphs' nodes around it, from the outermost in, and its own."""
        return (self.node,) if self.within is None else (*self.within.path, self.node)

    @property
    def item(self) -> int | None:
        """The position of the innermost item that it is, or is part of; None outside of fan-outs."""
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
        """The node's name; of an item that of its fan-out."""
        return self.place.node

    @property
    def path(self) -> tuple[str, ...]:
        """The names of the graphs' nodes around it, from the outermost in, and its own."""
        return self.place.path

    @property
    def visit(self) -> int:
        """1 on the node's first visit."""
        return self.place.visit

    @property
    def item(self) -> int | None:
        """The position of the innermost item of a fan-out that it is, or is part of; else None."""
        return self.place.item


@dataclass(frozen=True, slots=True)
class NodeEntered(_AtNode):
    """The run has entered a node; if a node has waited for an answer, again when the answer is there."""

    kind: ClassVar[Literal["node_entered"]] = "node_entered"
    type: Literal["node", "graph", "fan_out"]


@dataclass(frozen=True, slots=True)
class NodeLeft(_AtNode):
    """The run has left a node, and the node's writes are committed; or the node has failed, and none is.

    A node at which the run waits for an answer isn't left.
    """

    kind: ClassVar[Literal["node_left"]] = "node_left"
    output: Value = MISSING
    """What it left with; MISSING where it has failed, or is not recorded: only `Runs.follow` doesn't know."""
    outcome: NodeOutcome = "ok"
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class ItemDone(_AtNode):
    """An item of a fan-out is done: `item` is its position. With `errors="collect"` the run goes on after an error."""

    kind: ClassVar[Literal["item_done"]] = "item_done"
    output: Value = MISSING
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class NodeRetried(_AtNode):
    """An attempt at a node's `exec` has failed; the next one begins in `delay` seconds. What it emitted may come again."""

    kind: ClassVar[Literal["node_retried"]] = "node_retried"
    attempt: int
    """The one that failed, from 1."""
    delay: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Progressed(_AtNode):
    """How far a node says it is, by `progress(done, total)`. Only the newest that nobody has read yet is kept."""

    kind: ClassVar[Literal["progressed"]] = "progressed"
    done: float
    total: float | None = None


@dataclass(frozen=True, slots=True)
class Emitted(_AtNode):
    """What a node has reported by `emit(value)`."""

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
    """The run waits for answers or for a time; no process has to run meanwhile. This is not a failure. It is the last event."""

    kind: ClassVar[Literal["suspended"]] = "suspended"
    run_id: str
    questions: Mapping[str, Value]
    """The open ones, by id: the text of the place of each."""
    wake_at: float | None
    """When the run goes on by itself, in epoch seconds, if it does."""


@dataclass(frozen=True, slots=True)
class StateChanged:
    """A durable run has come into another state: told by `Runs.follow` only. "failed" and "cancelled" are the last event."""

    kind: ClassVar[Literal["state_changed"]] = "state_changed"
    state: RunState
    failure: RunFailure | None = None
    """Of a failed one."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[O]):
    """The run has finished; it is the last event."""

    kind: ClassVar[Literal["finished"]] = "finished"
    output: O


RunEvent = NodeEntered | NodeLeft | ItemDone | NodeRetried | Progressed | Emitted | Asked | Suspended | Finished[O]
"""Any event of a run whose output is an `O`."""
FollowedEvent = NodeEntered | NodeLeft | ItemDone | Asked | Suspended | StateChanged | Finished[Any]
"""Any event of a run that is followed by what is recorded of it."""
