"""Finds store calls that a phase forgets to await, in the phase's bytecode, before the first run.

Such a call makes a coroutine that nobody runs: nothing is written, and the phase continues without an error. A check in each call
would make every write slower, so the bytecode is read instead, once for each graph. It finds statements of the phase itself, such
as `store.set(…)`, also after `scope` or `typed`. For a call in a helper, or a coroutine that is kept in a variable, Python itself
warns.
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
"""The methods that return another view, and are not awaited."""


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
    if any(each.opname.startswith(("STORE", "DELETE")) and _uses(each, store) for each in instructions):
        return []  # the phase assigns this name, so it may not be the store any more
    found: list[str] = []
    # The attributes of the store that an expression names, by the position where the expression begins.
    chains: dict[tuple[int | None, int | None], list[str]] = {}
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
            if method in _awaited_methods() and _VIEWS.issuperset(views):
                called = ".".join((store, *(f"{view}(…)" for view in views), method))
                found.append(f"calls {called}(…) without `await` in line {where.lineno}, so nothing is done there")
    return found


def _uses(instruction: dis.Instruction, name: str) -> bool:
    """Does the instruction use this variable? One instruction may use two."""
    given = instruction.argval
    return name in given if isinstance(given, tuple) else bool(given == name)


@cache
def _awaited_methods() -> frozenset[str]:
    """The names of the store's methods that must be awaited."""
    return frozenset(name for name, _ in inspect.getmembers(StoreWriter, inspect.iscoroutinefunction))
