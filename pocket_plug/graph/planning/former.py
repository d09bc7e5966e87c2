"""Nodes that a notebook has defined again: a graph keeps those that it was made of."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator
from types import CodeType
from weakref import WeakKeyDictionary

from pocket_plug.primitives.cells import file_of

from .plan import Plan
from .step import Step

_looked_in: WeakKeyDictionary[Plan, object] = WeakKeyDictionary()
"""The number of the cell in which a graph was looked at last: once for each cell, however many runs it makes."""


def warn_of_former_nodes(plan: Plan) -> None:
    """Warn of the nodes whose code is another one in `__main__` by now, as after a cell was changed and run again.

    For the methods of Graph that run it, if IPython was imported: the warning is about the line that calls them.
    """
    cell = getattr(getattr(sys.modules["IPython"], "get_ipython", lambda: None)(), "execution_count", None)
    if cell is None or _looked_in.get(plan) == cell:  # None: a program that has IPython among its imports
        return
    _looked_in[plan] = cell
    for step in _steps(plan, set()):
        for function in step.functions.values():
            former, now = _code_of(function), _code_of(_in_main(function))
            if former is None or now is None:
                continue
            if now != former.replace(co_firstlineno=now.co_firstlineno):  # the same code may be in another line by now
                warnings.warn(
                    f"graph {plan.name!r} still has the former node {step.name!r}; it was defined again in {file_of(now)}, line "
                    f"{now.co_firstlineno}. Run the cell again that makes the graph",
                    stacklevel=4,
                )
                break


def _steps(plan: Plan, seen: set[int]) -> Iterator[Step]:
    """The steps of a graph, of its nested graphs, and those that items go through."""
    seen.add(id(plan))
    for step in plan.steps.values():
        yield step.passed
        inner = step.passed.inner_graph()
        if inner is not None and id(inner.plan) not in seen:
            yield from _steps(inner.plan, seen)


def _in_main(function: object) -> object:
    """What `__main__` has now in the place of a function that was defined there."""
    found: object = None
    if getattr(function, "__module__", None) == "__main__":
        found = sys.modules["__main__"]
        for name in str(getattr(function, "__qualname__", "")).split("."):
            found = getattr(found, name, None)
    return found


def _code_of(function: object) -> CodeType | None:
    try:
        code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
    except ValueError:  # it wraps itself
        return None
    return code if isinstance(code, CodeType) else None
