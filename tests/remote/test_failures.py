"""How an exception is sent back from a worker, as far as the contract of executors doesn't test it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from pocket_plug import MissingKeyError, RecordedError, WorkerCodeError
from pocket_plug.remote.failures import put_together, taken_apart
from pocket_plug.remote.wire import failure_of, to_bytes
from pocket_plug.testing.executor_graphs import OddError, Unknown


def there_and_back(error: BaseException) -> Exception:
    return put_together(taken_apart(error), "far:1")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - whichever it is
        return caught


class Status(OSError):
    """An exception of a class in C, with an attribute."""

    def __init__(self, number: int, text: str, url: str) -> None:
        super().__init__(number, text)
        self.url = url


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 3),
        KeyError("k"),
        OSError(2, "not there", "file"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        OddError(5),
        MissingKeyError("no entry at 'a'"),
        WorkerCodeError("lacks it", "far:2", "app", "1", "2"),
        Status(5, "busy", "/a"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_exception_is_restored(error: Exception) -> None:
    """Class, arguments, attributes, text and notes."""
    error.add_note("a note")
    found = there_and_back(raised(error))
    assert type(found) is type(error)
    assert (str(found), found.args) == (str(error), error.args)
    ours, theirs = vars(found) | {"__notes__": 0}, vars(error) | {"__notes__": 0}
    assert ours == theirs
    assert found.__notes__[0] == "a note"
    assert "on worker far:1: " in found.__notes__[-1]


def test_the_note_has_the_tracebacks_of_the_causes_too() -> None:
    """The node may have raised its own exception from the one that says what happened."""
    error = OddError(3)
    error.__cause__ = raised(KeyError("the cause"))
    note = there_and_back(raised(error)).__notes__[-1]
    assert "KeyError: 'the cause'\n\nThe above exception was the direct cause of" in note
    assert note.endswith("OddError: 3 is odd")


def test_a_group_is_restored_member_by_member() -> None:
    """So a retry sees the classes of all members."""
    found = there_and_back(raised(ExceptionGroup("two", [OddError(1), ExceptionGroup("one", [KeyError("k")])])))
    assert isinstance(found, ExceptionGroup)
    first, second = found.exceptions
    assert (type(first), first.args) == (OddError, ("1 is odd",))
    assert isinstance(second, ExceptionGroup)
    assert type(second.exceptions[0]) is KeyError


def test_attributes_that_cannot_be_encoded_are_left_out_and_named() -> None:
    """The class is kept, so a retry for it works."""
    error = OddError(3)
    error.held = Unknown()  # type: ignore[attr-defined]
    found = there_and_back(error)
    assert isinstance(found, OddError)
    assert found.number == 3
    assert not hasattr(found, "held")
    assert any("left out" in note and "held" in note for note in found.__notes__)
    plain = there_and_back(OddErrorWith(Unknown()))
    assert type(plain) is OddErrorWith
    assert str(plain) == "(a text)"


class OddErrorWith(Exception):
    """Its argument can't be encoded."""

    def __str__(self) -> str:
        return "(a text)"


def test_a_class_that_is_not_loaded_here_is_a_recorded_error() -> None:
    """No module is imported for it."""
    failure = taken_apart(OddError(1))
    elsewhere = type(failure)(
        module="xml.dom.expatbuilder",
        name="ParseEscape",
        text="gone",
        where="app:3",
        arguments=failure.arguments,
        notes=[],
    )
    assert "xml.dom.expatbuilder" not in sys.modules
    found = put_together(elsewhere, "far:1")
    assert isinstance(found, RecordedError)
    assert (found.type, found.message, found.where) == ("xml.dom.expatbuilder.ParseEscape", "gone", "app:3")
    assert "xml.dom.expatbuilder" not in sys.modules


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit(), BaseException("bare")])
def test_an_exit_exception_is_a_recorded_error(error: BaseException) -> None:
    """It must end neither this process nor a task in it."""
    assert isinstance(there_and_back(error), RecordedError)


@pytest.mark.parametrize(("module", "name"), [("builtins", "print"), ("os", "system"), ("subprocess", "Popen")])
def test_only_exceptions_are_looked_up(module: str, name: str) -> None:
    """Whatever class a worker's answer names."""
    failure = taken_apart(OddError(1))
    other = type(failure)(module=module, name=name, text="x", where="", arguments=failure.arguments)
    assert isinstance(put_together(other, "far:1"), RecordedError)


def test_an_exception_that_can_not_be_created_is_a_recorded_error() -> None:
    """Its `__new__` may do anything; a note says that the exception can't be created. The last one is still the traceback."""
    found = there_and_back(raised(Choosy("a", really=True)))
    assert isinstance(found, RecordedError)
    why, where = found.__notes__
    assert "can't be recreated here: TypeError" in why
    assert where.startswith("on worker far:1: Traceback")


class Choosy(Exception):
    """Its `__new__` needs more than its arguments."""

    def __new__(cls, text: str, *, really: bool) -> Choosy:
        return super().__new__(cls, text)

    def __init__(self, text: str, *, really: bool) -> None:
        super().__init__(text)


class Quits(Exception):
    """Reading its text ends the process."""

    def __str__(self) -> str:
        sys.exit(3)


def test_an_exception_whose_text_raises_system_exit_is_a_recorded_error() -> None:
    """Otherwise it would end the thread that receives all workers' answers."""
    found = there_and_back(raised(Quits()))
    assert isinstance(found, RecordedError)
    assert found.type.endswith("Quits")


def held(name: object, value: object) -> Exception:
    error = OddError(3)
    vars(error)[name] = value  # type: ignore[index]  # which no str is
    return error


def nested(depth: int) -> Exception:
    error: Exception = OddError(3)
    for _ in range(depth):
        error = ExceptionGroup("a group", [error])
    return error


@pytest.mark.parametrize(
    "error",
    [held("__notes__", 5), held("__notes__", [Quits()]), held(5, 5), held("\udcff", 5), nested(5_000)],
    ids=["notes", "note", "number", "surrogate", "deep"],
)
def test_an_exception_that_cannot_be_sent_is_a_recorded_error_that_can(error: Exception) -> None:
    """It doesn't fail its whole chunk, with items that have succeeded."""
    failure = taken_apart(raised(error))
    found = put_together(failure_of(to_bytes(failure)), "far:1")
    assert isinstance(found, RecordedError)
    assert found.type.endswith(type(error).__name__)
    assert any("can't be sent as it is" in note for note in found.__notes__)


@pytest.mark.parametrize(
    "made", [lambda: ValueError("x"), lambda: OddError(3), lambda: ExceptionGroup("\udcff", [OddError(3)])]
)
def test_a_note_with_a_surrogate_does_not_lose_the_class(made: Callable[[], Exception]) -> None:
    """Names of files may contain one; a retry depends on the class."""
    error = made()
    error.add_note("no such file: \udcff")
    found = put_together(failure_of(to_bytes(taken_apart(raised(error)))), "far:1")
    assert type(found) is type(error)
    assert found.__notes__[0] == "no such file: ?"
