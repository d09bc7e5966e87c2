"""Nodes that ask a question. A durable run is suspended there until it is answered; meanwhile no process is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, Literal, cast, get_args, get_origin

from typing_extensions import TypeForm, TypeVar

from pocket_plug.errors import ConfigError, RunSuspendedError
from pocket_plug.graph.nodes.chain import Next
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.options import Options
from pocket_plug.graph.observing.views import NodeCall
from pocket_plug.graph.planning.step import Step, make_step
from pocket_plug.graph.running.protocols import Asking, Running
from pocket_plug.primitives.durations import Duration, seconds
from pocket_plug.primitives.redaction import found
from pocket_plug.primitives.signatures import fault_of_question
from pocket_plug.primitives.typechecks import check_type, checker, meant_by, type_name
from pocket_plug.primitives.values import Hint, Value
from pocket_plug.store.base import MISSING, Missing
from pocket_plug.store.transaction import private

X = TypeVar("X", default=Any)  # if the question is a text, nothing gives the input's type
Y = TypeVar("Y", default=Any)


@dataclass(frozen=True)
class Answered(Generic[X, Y]):
    """The output of an `Ask`: its input, and the answer."""

    input: X
    answer: Y


class Ask(Node[X, Answered[X, Y]], Generic[X, Y]):
    """A node that suspends the run until `graph.resume(run_id, answer=…)`, here or in another process, days later.

    `answer` is the type of the answer. `question` is a text, or a function that gets the node's input and returns the question,
    a value that the codec can store. The run raises RunSuspendedError with it. Only durable runs can ask. In the items of a
    fan-out several questions may be open at once, and can be answered in any order: each has an id.

    With a `timeout`, the run continues after it without an answer: with `default` as the answer, or by the action `action`
    (`ask.on("too_late") >> other`) with the node's input. A worker does this, or `graph.resume(run_id)`.

    >>> approve = Ask[str, bool](bool, question=lambda draft: f"send {draft!r}?", name="approve")
    >>> ready = Ask[str, bool](bool, question="Ready?", timeout="2d", default=False)

    Raises ConfigError if the question is neither a text nor a function, if `answer` is no type, if `default` has another type,
    and if `timeout` is given without `default` or `action`, or one of these without it.
    """

    _takes = frozenset({"name", "trace"})

    def __init__(
        self,
        answer: TypeForm[Y],
        /,
        *,
        question: str | Callable[[X], Any],
        name: str = "ask",
        timeout: Duration | None = None,
        default: Y | Missing = MISSING,
        action: str = "",
    ) -> None:
        check_type(answer, "Ask: the type of the answer")
        self.answer, self.question = answer, _asking(question)
        self.timeout = None if timeout is None else seconds(timeout, "Ask: timeout")
        self.default, self.action = default, action
        if (self.timeout is None) != (default is MISSING and not action) or (default is not MISSING and action):
            raise ConfigError("Ask: give timeout= together with either default= or action=, or none of the three")
        if default is not MISSING and not checker(answer)(default):
            raise ConfigError(f"Ask: the default can't be {found(default)}; give {type_name(answer)}")
        self._options = Options().changed(self._takes, name=name)


def _asking(question: object) -> Callable[[Any], Any]:
    """The function that returns the question. Raises ConfigError if `question` is neither a text nor a function."""
    if isinstance(question, str) and question:
        return lambda input: question
    if not callable(question):
        raise ConfigError(
            f"Ask: question can't be {found(question)}; give a text, or a function that gets the input and returns the question"
        )
    if fault := fault_of_question(question):
        raise ConfigError(f"Ask: question {fault}; it is called with the node's input")
    return cast("Callable[[Any], Any]", question)


class AskStep(Step):
    """The step of an `Ask`."""

    asks = True

    node: Ask[Any, Any]

    def __init__(self, node: Ask[Any, Any]) -> None:
        super().__init__(node)
        self.question, self.answer_type, self.accepts = node.question, node.answer, checker(node.answer)
        if arguments := get_args(getattr(node, "__orig_class__", None)):  # as in Ask[Draft, bool](…)
            declared = arguments[0]
            if not isinstance(declared, TypeVar):
                self.input_type, self.input_class, self.fits = declared, None, checker(declared)
        answered: Any = Answered
        self.output_type = answered[self.input_type, self.answer_type]

    @property
    def carried(self) -> dict[str, Hint]:
        return {self.node.action: self.input_type} if self.node.action else {}

    async def perform(self, run: Running, call: NodeCall | None, value: object) -> Value:
        node = self.node
        assert run.ledger is not None  # `Graph._execution` refuses other runs of a graph that asks
        try:
            answer = await run.ledger.ask(
                run,
                self,
                lambda: Asking(
                    self.question(value), type_name(self.answer_type), choices(self.answer_type), node.timeout
                ),
            )
        except RunSuspendedError as suspended:
            about = {"run_id": suspended.run_id, "question": suspended.question, "question_id": suspended.question_id}
            run.event("question", call, about)
            raise
        if answer is MISSING and node.action:
            return Next(node.action, value)
        return Answered(value, private(node.default) if answer is MISSING else answer)


def choices(answer: Any) -> list[Any] | None:
    """The possible answers as plain values, for types that have only a few: bool, a Literal, an Enum. Otherwise None.

    >>> from typing import Literal
    >>> choices(bool), choices(Literal["a", "b"]), choices(int)
    ([True, False], ['a', 'b'], None)
    """
    answer = meant_by(answer)
    if answer is bool:
        return [True, False]
    if get_origin(answer) is Literal:
        return list(get_args(answer))
    if isinstance(answer, type) and issubclass(answer, Enum):
        return [each.value for each in answer]
    return None


make_step.register(Ask, AskStep)
