"""Exceptions as values: `errors="collect"` puts them among the results of a durable run, which are stored.

Python's own are restored as they were: class, arguments, attributes and notes. Any other becomes a `RecordedError`, since no
class is looked up by a name in data. Tracebacks and causes are not kept.
"""

from __future__ import annotations

import asyncio
import builtins
import sysconfig
from pathlib import Path

from pocket_plug.errors import RecordedError
from pocket_plug.primitives.cells import file_of
from pocket_plug.primitives.failures import capped, error_text, error_type
from pocket_plug.primitives.values import Value

from .codec import default_codec, register_type

BUILT_IN: tuple[type[Exception], ...] = tuple(
    {
        kind: None
        for kind in vars(builtins).values()
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and kind.__module__ == "builtins"
        and not kind.__name__.startswith("_")
    }
)
"""Python's own exceptions: the only ones that are restored from what is stored."""

_AROUND = 20  # how deep in containers an exception may be that is stored

_OURS = tuple(f"{folder}/" for folder in (Path(__file__).parent.parent, Path(asyncio.__file__).parent))
_LIBRARIES = tuple({f"{path}/" for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "stdlib"))})


def storable(error: Exception) -> Exception:
    """The exception itself if it can be restored as it was, else a `RecordedError`; in a group, each member so."""
    kept = error
    if type(error) is ExceptionGroup:
        members = [storable(member) for member in error.exceptions]
        if any(kept is not member for kept, member in zip(members, error.exceptions, strict=True)):
            kept = _with_notes(error.derive(members), error)
    if _is_restored(kept):
        return kept
    return _with_notes(RecordedError(error_type(error), error_text(error), capped(_origin(error))), error)


def _is_restored(error: Exception) -> bool:
    """Is it restored as it was? This is tried out, since an exception may hold anything, and its class may do anything.

    It is tried within some lists, since a result may be nested in others, and a codec limits how deep.
    """
    nested: Value = error
    for _ in range(_AROUND):
        nested = [nested]
    try:
        nested = default_codec.decode(default_codec.encode(nested))
    except Exception:  # noqa: BLE001 - then it isn't
        return False
    for _ in range(_AROUND):
        nested = nested[0]
    return type(nested) is type(error)


def _with_notes(kept: Exception, error: Exception) -> Exception:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, str):
            kept.add_note(capped(note))
    return kept


def _origin(error: Exception) -> str:
    """Where the user's code raised it, or called the library that did: `module, file:line`. "" where that isn't known."""
    found, is_own, trace = "", False, error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        file = code.co_filename
        is_library = file.startswith((*_LIBRARIES, "<frozen "))
        if not file.startswith(_OURS) and not (is_own and is_library):
            found = f"{trace.tb_frame.f_globals.get('__name__', '?')}, {file_of(code)}:{trace.tb_lineno}"
            is_own = not is_library
        trace = trace.tb_next
    return found


def _taken_apart(error: Exception) -> tuple[object, object]:
    """Its arguments and its attributes, as it would be pickled."""
    parts: Value = error.__reduce__()
    state = dict(parts[2]) if len(parts) > 2 else {}
    if "__notes__" in state:
        state["__notes__"] = [str(note) for note in state["__notes__"]]
    return parts[1], state


def _maker(kind: type[Exception]) -> Value:
    def made(parts: tuple[tuple[Value, ...], dict[str, Value]]) -> Exception:
        arguments, state = parts
        error = kind(*arguments)
        error.__setstate__(state)
        return error

    return made


for _kind in BUILT_IN:
    if not default_codec.knows(_kind):  # the user's own registration has priority
        register_type(_kind, tag=f"builtins.{_kind.__name__}", encode=_taken_apart, decode=_maker(_kind))
register_type(
    RecordedError,
    tag="pocket_plug.RecordedError",
    encode=lambda error: (error.type, error.message, error.where, list(map(str, getattr(error, "__notes__", ())))),
    decode=lambda parts: _recorded(*parts),
)


def _recorded(type: str, message: str, where: str, notes: list[str]) -> RecordedError:
    error = RecordedError(type, message, where)
    for note in notes:
        error.add_note(note)
    return error
