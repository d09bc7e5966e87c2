"""Code that holds a lock or cleans up is protected at every place where a signal handler's exception can come."""

from __future__ import annotations

import ast
import dis
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pocket_plug

PACKAGE = Path(pocket_plug.__file__).parent
HARMLESS = {
    "WriteBehind._take": "done by a thread of ours, where no signal's handler runs",
    "WriteBehind._done": "done by a thread of ours",
    "Writer._write_queued": "done by a thread of ours",
    "Writer._written_in_turn": "done by a thread of ours",
    "Transaction.scan": "its `except` is for StoreError only, which no interrupt is",
}


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def unguarded(code: CodeType) -> list[int]:
    """The lines from which a loop jumps back outside of a `with` or `try` that is around the loop, in the bytecode."""
    found = dis.Bytecode(code)
    opnames = {step.offset: step.opname for step in found}

    def around(offset: int) -> set[int]:
        """The handlers of `with` and `try`, from the innermost outwards; those of comprehensions and generators don't count."""
        handlers: set[int] = set()
        while target := next(
            (entry.target for entry in found.exception_entries if entry.start <= offset < entry.end), 0
        ):
            if opnames[target] == "PUSH_EXC_INFO":
                handlers.add(target)
            offset = target
        return handlers

    lines: list[int] = []
    before = (
        0  # the last step that isn't a jump: if it is in the same `with` as the loop's head, the jump should be, too
    )
    for step in found:
        if "JUMP" not in step.opname:
            before = step.offset
        elif opnames[before] == "CLEANUP_THROW":
            continue  # in 3.12, after an `await` that got an exception and returned all the same: no source code can avoid it
        elif "BACKWARD" not in step.opname or step.opname.endswith("NO_INTERRUPT"):
            continue
        elif around(before) & around(step.argval) - around(step.offset):
            lines.append((step.positions and step.positions.lineno) or 0)
    return lines


def test_no_loop_jumps_back_outside_of_the_block_around_it() -> None:
    """Python 3.13 has no handler for the jump back of an `if` that ends a loop: an interrupt there leaves a lock locked."""
    found = {
        f"{path.relative_to(PACKAGE)}:{line} ({code.co_qualname})"
        for path in PACKAGE.rglob("*.py")
        if not {"testing", "cli"}.intersection(path.parts)  # in the command line an interrupt ends the process
        for code in codes(compile(path.read_bytes(), str(path), "exec"))
        if code.co_qualname not in HARMLESS
        for line in unguarded(code)
    }
    assert found == set(), "put the loop into a function of its own"


def test_locks_used_with_with_survive_interrupts() -> None:
    """Python 3.14's own locks may stay locked, and an Event's in any Python; `primitives.locks` has others. A waiter's lock is in
    no `with`.
    """
    found = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).as_posix() not in ("primitives/locks.py", "primitives/waiting.py")
        and "testing" not in path.parts
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("threading.Lock", "threading.RLock", "threading.Event")
    }
    assert found == set(), "take a lock or a Flag of primitives.locks, or a Waiter"
