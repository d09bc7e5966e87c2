"""Nodes that ask: a durable run waits there, in no process at all, until somebody answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, cast, get_args

from typing_extensions import TypeForm, TypeVar

from pocket_plug.errors import ConfigError, RunSuspendedError
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.signatures import fault_of_question
from pocket_plug.primitives.typechecks import check_type, checker
from pocket_plug.primitives.values import Value

from .node import Node
from .observing import NodeCall
from .options import Options
from .running import Running
from .step import Step, make_step

X = TypeVar("X", default=Any)  # a question that is a text says nothing of the input
Y = TypeVar("Y", default=Any)


@dataclass(frozen=True)
class Answered(Generic[X, Y]):
    """What an `Ask` leaves with: what it was handed, and the answer."""

    input: X
    answer: Y


class Ask(Node[X, Answered[X, Y]], Generic[X, Y]):
    """A node that suspends the run until `graph.resume(run_id, answer=…)`, here or in another process, days later.

    `answer` is the type that an answer must be of; `question` is a text, or a function that makes of the input what is
    asked, a value that the codec knows. The run raises RunSuspendedError with it. Only durable runs can ask; an item of a
    fan-out can't.

    >>> approve = Ask[str, bool](bool, question=lambda draft: f"send {draft!r}?", name="approve")
    >>> ready = Ask[str, bool](bool, question="Ready?")

    Raises ConfigError for a question that is neither, and for an answer that is no type.
    """

    _takes = frozenset({"name", "trace"})

    def __init__(self, answer: TypeForm[Y], /, *, question: str | Callable[[X], Any], name: str = "ask") -> None:
        check_type(answer, "Ask: the type of the answer")
        self.answer, self.question = answer, _asking(question)
        self._options = Options().changed(self._takes, name=name)


def _asking(question: object) -> Callable[[Any], Any]:
    """The function that gives the question, of what was given for it."""
    if isinstance(question, str) and question:
        return lambda input: question
    if not callable(question):
        raise ConfigError(
            f"Ask: question can't be {found(question)}; give a text, or a function that makes one of the input"
        )
    if fault := fault_of_question(question):
        raise ConfigError(f"Ask: question {fault}; it is called with the node's input")
    return cast("Callable[[Any], Any]", question)


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

    async def perform(self, run: Running, call: NodeCall | None, value: object) -> Value:
        question = self.question(value)
        try:
            return Answered(value, await run.ask(self, question))
        except RunSuspendedError as suspended:
            run.event("question", call, {"run_id": suspended.run_id, "question": question})
            raise


make_step.register(Ask, AskStep)
