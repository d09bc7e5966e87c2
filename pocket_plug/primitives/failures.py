"""Describes failures: their type, a capped text, their stack; and logs those after which the program continues."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from pocket_plug.errors import (
    ConfigError,
    PluginError,
    PocketError,
    RunChangedError,
    StoreError,
    StoreUnreachableError,
    is_fault,
)

from .cells import file_of
from .redaction import conceal, public_url
from .terminal import escaped

MAX_BYTES = 4096
"""The most bytes of one attribute. A single bigger one makes some backends refuse the whole batch it is in."""

MAX_FRAMES = 16
"""The most frames of a stack trace: the innermost ones."""

ON_WORKER = "on worker "
"""The beginning of the note with the traceback of an exception that was raised in another process."""

_FRAME_OF_WORKER = re.compile(r'^  File "([^"\n]+\.py|<[\w-]+>)", line (\d+), in ([\w.<>]+)$', re.MULTILINE)

_logger = logging.getLogger("pocket_plug")

_QUOTES_NOTHING = (ConfigError, PluginError, RunChangedError, StoreUnreachableError)
"""Errors whose messages name a plugin, an option, a server or nodes, and quote no keys and no values. So they may be logged."""


def capped(text: str) -> str:
    """`text` as any exporter can send it: at most 4 KiB of valid UTF-8."""
    if len(text) <= MAX_BYTES and text.isascii():
        return text
    return text.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore")


def capped_all(texts: Iterable[str]) -> list[str]:
    """As many of the texts as fit into one attribute: 4 KiB together."""
    found: list[str] = []
    room = MAX_BYTES
    for text in texts:
        text = capped(text)
        room -= len(text.encode())
        if room < 0:
            break
        found.append(text)
    return found


def error_type(error: BaseException) -> str:
    """The `error.type` of an exception: its class's full name.

    >>> error_type(ValueError("x"))
    'ValueError'
    """
    kind = type(error)
    return capped(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}")


def error_text(error: BaseException) -> str:
    """The message of an exception, capped, whatever its `__str__` does."""
    return _text_of(error, capped)


def describe(error: BaseException) -> str:
    """An exception in one line that may go to a terminal, whatever its `__str__` does."""
    text = _text_of(error, escaped)
    return text if isinstance(error, PocketError) and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def _text_of(error: BaseException, treat: Callable[[str], str]) -> str:
    try:
        return treat(str(error))
    except BaseException as failed:  # a user's exception may do anything when asked for its text
        if not is_fault(failed):
            raise
        return "(its text can't be read)"


def concealed(error: BaseException, hidden: Mapping[str, str]) -> tuple[str, BaseException | None]:
    """The text of an error without secrets, and the cause for a new error with this text.

    In the text each of the `hidden` is replaced by what may be shown for it. The cause is the error itself, but None if it,
    or an error that caused it, shows one of the `hidden`: a traceback would print it.

    >>> said, cause = concealed(ValueError("token 'hunter2' is no good"), {"hunter2": "***"})
    >>> said, cause
    ("ValueError: token '***' is no good", None)
    """
    shows = any(conceal(text, hidden) != text for each in _chain(error) for text in _texts_of(each))
    return conceal(describe(error), hidden), None if shows else error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all that a traceback of it prints: causes, and the members of groups."""
    pending, seen = [error], list[BaseException]()
    while pending:
        each = pending.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        yield each
        cause = cause_of(each)
        pending += [] if cause is None else [cause]
        is_group = issubclass(type(each), BaseExceptionGroup)
        pending += getattr(each, "exceptions", ()) if is_group else ()


def _texts_of(error: BaseException) -> Iterator[str]:
    yield describe(error)
    yield from (escaped(str(note)) for note in getattr(error, "__notes__", ()))


def stack_of(error: BaseException, message: Callable[[BaseException], str | None]) -> str:
    """The innermost frames, one of the user's too, and the causes. Reads no source file: that would cost five times as much.

    `message` returns what may be shown of an exception besides its type, or None.
    """
    lines = ["Traceback (most recent call last):", *_frames(error, MAX_FRAMES), _headline(error, message)]
    most = MAX_FRAMES
    while sum(map(len, lines)) > MAX_BYTES and most > 1:
        most //= 2  # paths are long: rather fewer frames than without the innermost ones
        lines[1:-1] = _frames(error, most)
    causes, cause = 0, cause_of(error)
    while cause is not None and causes < MAX_FRAMES:
        lines.append(f"caused by {_headline(cause, message)}")
        causes, cause = causes + 1, cause_of(cause)
    return capped("\n".join(lines))


def cause_of(error: BaseException) -> BaseException | None:
    """The error that this one was raised from, or that was being handled when it was raised, as a traceback prints it."""
    if error.__cause__ is not None or error.__suppress_context__:
        return error.__cause__
    return error.__context__


def _headline(error: BaseException, message: Callable[[BaseException], str | None]) -> str:
    text = message(error)
    return error_type(error) if text is None else f"{error_type(error)}: {text[:512]}"


def _frames(error: BaseException, most: int) -> list[str]:
    """The innermost frames; if all of them are of libraries, then before them the innermost frame of the user's code."""
    frames: list[tuple[str, int | None, str]] = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((file_of(code), trace.tb_lineno, code.co_qualname))
        trace = trace.tb_next
    for note in map(str, getattr(error, "__notes__", ())):
        if note.startswith(ON_WORKER):
            frames += [(file, int(line), name) for file, line, name in _FRAME_OF_WORKER.findall(note)]
    shown = [f'  File "{file}", line {line}, in {name}' for file, line, name in frames[-most:]]
    if len(frames) > most:
        from .own_code import is_users  # here, since few stacks are that deep

        users = next((place for place, frame in enumerate(reversed(frames)) if is_users(frame[0])), 0)
        if users >= most:
            (file, line, name), between = frames[-users - 1], users - most
            more = [f"  [{between} more]"] if between else []
            shown = [f'  File "{file}", line {line}, in {name}', *more, *shown]
    return shown


def log_failure(level: int, what: str, error: BaseException | None) -> None:
    """Log that something failed and the program continues, with the stack and without the message.

    A message may contain private data, so it is logged at level debug only, unless it is one of ours that quotes none.
    """
    stack = "" if error is None else f". {stack_of(error, loggable_text)}"
    _logger.log(level, "%s%s", what, stack)
    if error is not None:
        _logger.debug("%s", what, exc_info=error)


def loggable_text(error: BaseException) -> str | None:
    """The text of an error, if it quotes no keys and no values; else None."""
    if isinstance(error, _QUOTES_NOTHING):
        return public_url(error_text(error))
    return error.loggable if isinstance(error, StoreError) else None


class Told:
    """An exception in a log record: its text for logs on this machine, and only its `type` for records that leave it.

    For an error of ours that quotes no values, such as a PluginError, `type` is the text too.

    >>> said = Told(ValueError("no 'card 4711'"), "ValueError: no 'card 4711'")
    >>> f"it failed: {said}", said.type
    ("it failed: ValueError: no 'card 4711'", 'ValueError')
    """

    def __init__(self, error: BaseException, text: str) -> None:
        self.type = text if isinstance(error, _QUOTES_NOTHING) else error_type(error)
        self._text = text

    def __str__(self) -> str:
        return self._text


_said: set[tuple[str, str]] = set()


def say_once(what: str, error: BaseException, *, silent: bool = False) -> None:
    """Log a warning that a part of telemetry failed, once for each type of error; `silent` leaves out the message.

    Never raises.
    """
    kind = (what, error_type(error))
    if kind not in _said:
        _said.add(kind)
        text = kind[1] if silent else f"{kind[1]}: {escaped(error_text(error))}"
        _logger.warning("%s failed: %s. The program continues without it (logged once)", what, Told(error, text))
