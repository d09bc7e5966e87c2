"""Code that holds a lock or cleans up is protected at every place where a signal handler's exception can come."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import pocket_plug

ROOT = Path(__file__).parents[2]
PACKAGE = Path(pocket_plug.__file__).parent
PLACES = (PACKAGE, *ROOT.glob("plugins/*/src"), ROOT / "examples")
HARMLESS = {
    "Worker.run": "in asyncio.run, where an interrupt cancels the task at an `await`",
    "Subscription._live": "done by a thread of ours",
    "watch": "draws the progress of an example",
    "WriteBehind._take": "done by a thread of ours, where no signal's handler runs",
    "WriteBehind._done": "done by a thread of ours",
    "Writer._write_queued": "done by a thread of ours",
    "Writer._written_in_turn": "done by a thread of ours",
}
OTHER_CODE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.GeneratorExp)


def ends_in_a_branch(statement: ast.stmt) -> bool:
    """May it jump from its condition to what follows it?"""
    if isinstance(statement, ast.If):
        return not statement.orelse or any(map(ends_in_a_branch, (statement.body[-1], statement.orelse[-1])))
    return isinstance(statement, ast.Assert | ast.Match)


def is_open(loop: ast.AST) -> bool:
    """Does a jump back to the loop's head come directly after a condition?"""
    if isinstance(loop, ast.ListComp | ast.SetComp | ast.DictComp):
        return any(part.ifs for part in loop.generators)
    if isinstance(loop, ast.While) and not isinstance(loop.test, ast.Constant):
        return True
    return isinstance(loop, ast.While | ast.For | ast.AsyncFor) and ends_in_a_branch(loop.body[-1])


def catches_interrupts(handler: ast.ExceptHandler) -> bool:
    return handler.type is None or "BaseException" in ast.unparse(handler.type)


def protected(block: ast.AST) -> Iterable[ast.stmt]:
    """What must not be left without the block's end. A generator that `aclosing` doesn't close is closed when it is collected."""
    match block:
        case ast.With(body=body):
            return body
        case ast.AsyncWith(items=items, body=body):
            return () if all("aclosing" in ast.unparse(each) for each in items) else body
        case ast.Try(finalbody=[_, *_]):
            return [*block.body, *block.orelse, *(each for handler in block.handlers for each in handler.body)]
        case ast.Try(handlers=handlers, body=body):
            return body if any(map(catches_interrupts, handlers)) else ()
    return ()


def parts(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    for node in nodes:
        if not isinstance(node, OTHER_CODE):
            yield node
            yield from parts(ast.iter_child_nodes(node))


def functions(scope: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(scope):
        here = (
            f"{name}.{node.name}".lstrip(".")
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            else name
        )
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield here, node
        yield from functions(node, here)


def open_loops(source: str | bytes) -> dict[int, str]:
    """The lines of loops that must stand in functions of their own, each with the name of the function around it."""
    return {
        loop.lineno: name
        for name, function in functions(ast.parse(source))
        for block in parts(ast.iter_child_nodes(function))
        for loop in parts(protected(block))
        if is_open(loop) and isinstance(loop, ast.stmt | ast.expr)
    }


@pytest.mark.parametrize(
    ("loop", "is_found"),
    [
        ("while wanted(): take()", True),
        ("for each in all: take(each)", False),
        ("for each in all:\n  if each: take(each)", True),
        ("for each in all:\n  if each: break\n  take(each)", False),
        ("kept = [each for each in all if each]", True),
        ("kept = list(each for each in all if each)", False),
        ("kept = [take(each) for each in all]", False),
        ("while True:\n  if wanted(): return\n  take()", False),
    ],
)
@pytest.mark.parametrize(
    ("block", "is_protected"),
    [
        ("with lock:\n {}", True),
        ("try:\n {}\nfinally: end()", True),
        ("try:\n {}\nexcept BaseException: end()", True),
        ("try:\n {}\nexcept KeyError: end()", False),
    ],
)
def test_a_loop_whose_jump_back_follows_a_condition_is_found_within_a_block(
    loop: str, is_found: bool, block: str, is_protected: bool
) -> None:
    code = block.format(loop.replace("\n", "\n "))
    assert bool(open_loops("def f():\n " + code.replace("\n", "\n "))) is (is_found and is_protected)


def test_no_loop_jumps_back_outside_of_the_block_around_it() -> None:
    """Python 3.12 and 3.13 have no handler for a jump back that follows a condition: an interrupt there leaves a lock locked.

    So the loop stands in a function of its own, which the block around it calls. See python/cpython#130279.
    """
    found = {
        f"{path.relative_to(ROOT)}:{line} ({name})"
        for place in PLACES
        for path in (*place.rglob("*.py"), *place.rglob("*.py.tmpl"))  # of the command line, only the templates: there
        if path.suffix == ".tmpl" or not {"testing", "cli"}.intersection(path.parts)  # an interrupt ends the process
        for line, name in open_loops(path.read_bytes()).items()
        if name not in HARMLESS
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
