"""Nodes that ask: a durable run waits there, in no process at all, until somebody answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, get_args

from .node import Node, Options
from .plan import Step
from .typechecks import checker

if TYPE_CHECKING:
    from .hookspecs import NodeCall
    from .runner import Execution

X = TypeVar("X")
Y = TypeVar("Y")


@dataclass(frozen=True)
class Answered(Generic[X, Y]):
    """What an `Ask` leaves with: what it was handed, and the answer."""

    input: X
    answer: Y


class Ask(Node[X, Answered[X, Y]], Generic[X, Y]):
    """A node that suspends the run until `graph.resume(run_id, answer=…)`, here or in another process, days later.

    `answer` is the type that an answer must be of; `question` makes of the input what is asked, a value that the codec
    knows. The run raises RunSuspended with it. Only durable runs can ask; an item of a fan-out can't.

    >>> approve = Ask[str, bool](bool, question=lambda draft: f"send {draft!r}?", name="approve")
    """

    def __init__(self, answer: type[Y], /, *, question: Callable[[X], Any], name: str = "ask") -> None:
        self.answer, self.question = answer, question
        self._options = Options(name=name)


class AskStep(Step):
    """The step of an `Ask`."""

    asks = True

    def __init__(self, node: Ask[Any, Any]) -> None:
        super().__init__(node)
        self.question, self.answer_type, self.accepts = node.question, node.answer, checker(node.answer)
        if arguments := get_args(getattr(node, "__orig_class__", None)):  # as in Ask[Draft, bool](…)
            declared = arguments[0]
            if not isinstance(declared, TypeVar):
                self.input_type, self.input_class, self.fits = declared, None, checker(declared)
        answered: Any = Answered
        self.output_type = answered[self.input_type, self.answer_type]

    async def perform(self, execution: Execution, value: Any, call: NodeCall | None) -> Any:
        from .durable import DurableExecution

        return await cast(DurableExecution, execution).ask(self, value)
