"""Loops that no run can leave, found before the first run: else it ends with a StepLimitError, thousands of steps later.

No false alarm is allowed, so a loop counts as endless only where that is sure: each of its nodes always leaves by "default".
That is so where its function says by its return type that it gives no `Next`, or calls nothing that could make one. One that
raises may end a run too. And a loop may be meant: one with a `Sleep` or an `Ask` in it, and any in a run with a `timeout` or a
`max_steps` of its own.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from .chain import DEFAULT, Action, Next
from .phases import Function, hints
from .plan import Plan, PlannedGraph
from .sleep import SleepStep
from .step import Step

MAX_STEPS = 10_000
"""The nodes that a run may enter where its graph says nothing else."""


def endless(graph: PlannedGraph) -> list[str]:
    """Each loop of a graph, and of those within it, that no run can leave, in words."""
    is_meant = graph.timeout is not None or graph.max_steps != MAX_STEPS
    return [] if is_meant else _loops(graph.plan)


def _loops(plan: Plan, is_nested: bool = False) -> list[str]:
    steps = list(plan.steps.values())
    found = [
        f"in graph {inner.name!r}: {fault}"
        for step in steps
        if (inner := step.inner_graph()) is not None
        for fault in _loops(inner.plan, is_nested=True)
    ]
    leaving = {step for step in steps if not _always_goes_on(step, is_nested)}
    while more := {step for step in steps if step not in leaving and not leaving.isdisjoint(step.actions.values())}:
        leaving |= more
    seen = set(leaving)
    for step in steps:
        way: list[Step] = []
        at: Step | None = step
        while at is not None and at not in seen:
            seen.add(at)
            way.append(at)
            at = at.next
        if at in way:
            names = [repr(each.name) for each in (*way[way.index(at) :], at)]
            found.append(
                f"no run can leave the loop {' >> '.join(names)}: none of its nodes has another way out; let one leave by an "
                "action, or by END, or set max_steps or a timeout where it is meant"
            )
    return found


def _always_goes_on(step: Step, is_nested: bool) -> bool:
    """Is it sure that a run goes on from it by "default"?"""
    if step.next is None or _waits(step):
        return False
    if step.kind == "graph":
        return not is_nested  # else it may leave by an action that is further out
    if step.kind == "fan_out":
        return True
    called = [function for function in step.functions.values() if function is not None]
    giving = [step.functions["post"]] if step.post else [step.exec, step.fallback] if step.exec else [step.prep]
    return step.actions.keys() == {DEFAULT} and all(
        (code := _code(function)) is not None
        and not any(each.opname == "RAISE_VARARGS" for each in _instructions(code))
        and (function not in giving or _gives_no_next(function, code))
        for function in called
    )


def _waits(step: Step) -> bool:
    """May a run wait there, or within it, for an answer or a time?"""
    inner = step.inner_graph()
    return (
        step.asks
        or isinstance(step.passed, SleepStep)
        or (inner is not None and any(map(_waits, inner.plan.steps.values())))
    )


def _code(function: Function) -> CodeType | None:
    return getattr(function, "__code__", None)


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    return dis.get_instructions(code)


def _gives_no_next(function: Function, code: CodeType) -> bool:
    """Is it sure?"""
    values = getattr(function, "__globals__", {})
    if any(isinstance(value := values.get(name), Action | Next) or value is Next for name in code.co_names):
        return False
    declared = hints(function).get("return", Any)
    if declared is not Any:
        return _is_no_next(declared)
    calls = ("CALL", "BEFORE_WITH", "GET_AWAITABLE", "LOAD_ATTR", "LOAD_METHOD", "LOAD_DEREF")
    return not any(
        each.opname.startswith(calls) and not each.opname.startswith("CALL_INTRINSIC") for each in _instructions(code)
    )


def _is_no_next(hint: Any) -> bool:
    """Can no value of this type be a Next? False where it isn't clear."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return all(map(_is_no_next, get_args(hint)))
    if hint is None or origin is Literal:
        return True
    cls = origin or hint
    try:
        return isinstance(cls, type) and cls is not Any and not issubclass(Next, cls)
    except TypeError:  # a protocol
        return False
