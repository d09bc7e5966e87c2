"""Calls of a store that a phase forgets to await, found in its code before the first run.

Such a call makes a coroutine that is dropped at once: nothing is written, and the phase goes on as if it were. To count at
each call what begins would make every write dearer, so the code is read instead, once for each graph. What is found is one of the
phase's own statements, `store.set(…)`, also of a `scope` or `typed`. A call in a helper, or one whose coroutine is kept
in a variable, is left to Python, which warns of it.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from types import CodeType

from pocket_plug.store.views import StoreWriter

_VIEWS = frozenset({"scope", "typed"})
"""What gives another such view, at once."""


def unawaited_calls(function: Callable[..., object]) -> list[str]:
    """The statements of an `async def` phase that call a method of its store, the first parameter, and don't await it."""
    code: CodeType | None = getattr(function, "__code__", None)
    if code is None:
        return []
    place = 1 if inspect.ismethod(function) else 0
    if place >= code.co_argcount:
        return []
    store = code.co_varnames[place]
    instructions = list(dis.get_instructions(code))
    if any(each.opname.startswith(("STORE", "DELETE")) and _names(each, store) for each in instructions):
        return []  # it is something else from there on
    found: list[str] = []
    chains: dict[
        tuple[int | None, int | None], list[str]
    ] = {}  # attributes of the store, by where the expression begins
    for instruction, after in pairwise(instructions):
        where = instruction.positions
        if where is None or where.col_offset is None:
            continue
        begin = where.lineno, where.col_offset
        if instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF")) and instruction.argval == store:
            chains[begin] = []
        elif begin not in chains:
            continue
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chains[begin].append(instruction.argval)
        elif instruction.opname.startswith("CALL") and after.opname == "POP_TOP":
            *views, method = chains[begin] or [""]
            if method in _coroutines() and _VIEWS.issuperset(views):
                called = ".".join((store, *(f"{view}(…)" for view in views), method))
                found.append(f"calls {called}(…) without `await` in line {where.lineno}, so nothing is done there")
    return found


def _names(instruction: dis.Instruction, name: str) -> bool:
    """Is it about this variable? One instruction may be about two."""
    given = instruction.argval
    return name in given if isinstance(given, tuple) else bool(given == name)


@cache
def _coroutines() -> frozenset[str]:
    """The methods of a store that are awaited."""
    return frozenset(name for name, _ in inspect.getmembers(StoreWriter, inspect.iscoroutinefunction))
