"""Exceptions as values of durable runs: Python's own are restored, of others the type, text and place are kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug.codec import Codec, default_codec, register_type
from pocket_plug.codec.error_values import BUILT_IN, storable
from pocket_plug.errors import RecordedError


class Refused(Exception):
    """A user's exception with more state than its text."""

    def __init__(self, code: int) -> None:
        super().__init__(f"refused with {code}")
        self.code = code


class Textless(ValueError):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Ours(Exception):
    """An exception that its program has registered."""


register_type(Ours, tag="test_error_values.Ours", encode=str, decode=Ours)


def through_a_record(error: Exception) -> Any:
    return default_codec.decode(default_codec.encode(storable(error)))


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - whichever
        return caught


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "UnicodeDecodeError": ("utf-8", b"\xff", 0, 1, "bad"), "UnicodeEncodeError": ("utf-8", "x", 0, 1, "bad"),
    "UnicodeTranslateError": ("x", 0, 1, "bad"), "ExceptionGroup": ("several", [ValueError(1), KeyError("k")]),
    "OSError": (5, "no disk", "/a"), "FileNotFoundError": (2, "no such file", "/a"),
    **dict.fromkeys(("SyntaxError", "IndentationError", "TabError"), ("odd", ("file", 1, 2, "text"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", BUILT_IN, ids=lambda kind: kind.__name__)
def test_pythons_own_come_back_as_they_were(kind: type[Exception]) -> None:
    """Class, arguments, attributes and notes; none of them has to be registered."""
    error = kind(*ARGUMENTS.get(kind.__name__, ("text", (17, b"x"))))
    error.add_note("while packing")
    error.order = [17]  # type: ignore[attr-defined]
    assert storable(error) is error
    back = through_a_record(error)
    assert type(back) is type(error)
    assert (str(back), repr(back), back.__notes__, back.order) == (str(error), repr(error), ["while packing"], [17])
    if isinstance(error, OSError):
        assert (back.errno, back.filename) == (error.errno, error.filename)


def test_of_others_type_text_place_and_notes_are_kept() -> None:
    """As a RecordedError: no class is looked up by a name from data."""
    error = raised(Refused(402))
    error.add_note("order 17")
    back = through_a_record(error)
    assert type(back) is RecordedError
    assert (back.type, back.message) == (f"{__name__}.Refused", "refused with 402")
    module, _, line = back.where.partition(", ")
    assert module == __name__
    assert line.startswith(f"{__file__}:")
    assert back.__notes__ == ["order 17"]
    assert str(back) == f"{__name__}.Refused: refused with 402 ({back.where})"


def test_where_from_is_the_users_line_not_the_librarys() -> None:
    """An error that the standard library raises points to the caller's line."""
    try:
        json.loads("{")
    except json.JSONDecodeError as error:
        kept: Any = storable(error)
    assert kept.type == "json.decoder.JSONDecodeError"
    assert __file__ in kept.where


def test_where_from_is_the_users_line_not_ours() -> None:
    """An error that pocket_plug raises points to the caller's line; if no user's code has called it, no place is recorded."""
    with pytest.raises(pp.ValueTypeError) as called:
        pp.Key("n", int).checked("one")
    kept: Any = storable(called.value)
    assert kept.where.startswith(f"{__name__}, {__file__}:")

    class Late(pp.Node[int, int], timeout="1ms"):
        async def exec(self, number: int) -> int:
            await asyncio.sleep(10)
            return number

    graph = pp.Graph(pp.each(Late(), errors="collect"))
    (late,) = graph.run_sync([1])
    assert isinstance(late, pp.NodeTimeoutError)
    kept = storable(late)
    assert kept.where == ""


def test_of_a_group_member_by_member() -> None:
    """A group is restored as a group, with what can be kept of each member."""
    group = ExceptionGroup("several", [Refused(1), ValueError(2), ExceptionGroup("inner", [Ours("x")])])
    group.add_note("all at once")
    back = through_a_record(group)
    assert type(back) is ExceptionGroup
    assert [type(member) for member in back.exceptions] == [RecordedError, ValueError, ExceptionGroup]
    assert repr(back.exceptions[2].exceptions[0]) == "Ours('x')"
    assert back.__notes__ == ["all at once"]


@pytest.mark.parametrize("error", [
    ValueError(object()), ValueError("\ud800"), Textless(), KeyError({1: object}), Refused(1),
    ValueError("x" * 10**5, object()),
], ids=range(6))  # fmt: skip
def test_something_of_every_exception_is_kept(error: Exception) -> None:
    """Arguments that can't be stored, texts that can't be read or written: never an error of pocket_plug."""
    error.add_note("\ud800")
    back = through_a_record(error)
    assert type(back) is RecordedError
    assert len(back.message) <= 4096
    assert len(back.__notes__) == 1


def _groups(depth: int, innermost: Exception) -> Exception:
    return innermost if depth == 0 else ExceptionGroup("around", [_groups(depth - 1, innermost)])


def _lists(depth: int) -> list[Any]:
    return [] if depth == 0 else [_lists(depth - 1)]


@pytest.mark.parametrize("error", [
    _groups(150, ValueError(1)), _groups(25, Refused(1)), _groups(10, ValueError(_lists(70))), ValueError(_lists(95)),
], ids=range(4))  # fmt: skip
def test_what_is_nested_too_deep_for_a_record_is_kept_in_part(error: Exception) -> None:
    """Results are nested in a record themselves, and may be collected by an outer `each`."""
    kept = {"results": [[storable(error)], [storable(error)]]}
    assert repr(default_codec.decode(default_codec.encode(kept))) == repr(kept)


def test_a_form_that_the_program_gives_holds() -> None:
    """A registered exception is stored by the program's functions, also one of Python's own."""
    assert repr(through_a_record(Ours("x"))) == "Ours('x')"


def test_hostile_records_of_exceptions_are_refused() -> None:
    """Arguments that a class doesn't accept, attributes that it doesn't have: an error of pocket_plug."""
    for parts in (1, ((1,),), ((1, 2), 3), ((), {"__class__": 1}), (1, {}), ((), {1: 2}), ((), {"__traceback__": 1})):
        codec = Codec()
        codec.register(ValueError, tag="builtins.ValueError", encode=lambda _, parts=parts: parts, decode=ValueError)
        with pytest.raises(pp.CodecError):
            default_codec.decode(codec.encode(ValueError()))


def test_a_durable_run_hands_on_the_same_before_and_after_a_crash(tmp_path: Path) -> None:
    """Results of `errors="collect"`: the next node gets the same before and after, and so do the nodes
    that it passes them on to.
    """
    seen: list[list[str]] = []

    @pp.node
    def check(n: int) -> int:
        if n == 1:
            raise Refused(n)
        if n == 2:
            raise ExceptionGroup("both", [Refused(n), OSError(2, "gone")])
        if n == 3:
            raise Ours("registered")
        return 1 // n

    @pp.node
    def sort(results: list[Any]) -> dict[str, Any]:
        seen.append([repr(result) for result in results])
        if len(seen) == 1:
            raise RuntimeError("no power")
        return {"failed": [result for result in results if isinstance(result, Exception)]}

    @pp.node
    def report(sorted: dict[str, Any]) -> list[str]:
        return [type(error).__name__ for error in sorted["failed"]]

    with pp.SyncStore(f"sqlite:///{tmp_path}/state.db?durability=process") as store:
        graph = pp.Graph(pp.each(check, errors="collect") >> sort >> report, store=store, name="g")
        with pytest.raises(RuntimeError):
            graph.run_sync([0, 1, 2, 3, 4], run_id="r")
        wanted = ["ZeroDivisionError", "RecordedError", "ExceptionGroup", "Ours"]
        assert graph.run_sync([0, 1, 2, 3, 4], run_id="r") == wanted
    assert seen[0] == seen[1]
