"""How an exception comes back from a worker: with its own class, so that `Retry(on=…)` and `except` work as in one process.

Exceptions that the codec knows come back as they were. The class of any other one is looked up among the modules that are loaded
here; no module is imported for it. The exception is restored as pickle would do it, without a call of its `__init__`, which may
take any arguments. If the class isn't loaded here, it becomes a RecordedError.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from pocket_plug.codec import default_codec
from pocket_plug.codec.error_values import storable
from pocket_plug.errors import CodecError, RecordedError, is_fault
from pocket_plug.primitives.failures import MAX_FRAMES, ON_WORKER, capped, describe, error_text, error_type
from pocket_plug.primitives.values import Value

from .wire import Failure, failure_of, to_bytes

_OURS = f"{Path(__file__).parent}{os.sep}"


# ---------------------------------------------------------------- the far side
def taken_apart(error: BaseException) -> Failure:
    """An exception as it is sent back, with its traceback as a note. It is encoded here to see whether it can be: its chunk
    would fail otherwise."""
    try:
        failure = _taken_apart(error, [capped(_traceback(error))])
        failure_of(to_bytes(failure))
    except BaseException as broken:  # an exception may hold anything, and its class may do anything
        if not is_fault(broken):
            raise
        plain = RecordedError(error_type(error), error_text(error), "")
        return _taken_apart(plain, [f"this exception can't be sent as it is: {describe(broken)}"])
    return failure


def _taken_apart(error: BaseException, trace: list[str]) -> Failure:
    kind, where = type(error), ""
    record: bytes | None = None
    members: list[Failure] | None = None
    if type(error) is ExceptionGroup:
        members = [_taken_apart(member, []) for member in error.exceptions]
    elif isinstance(error, Exception):
        kept = storable(error)
        record = default_codec.encode(kept) if kept is error else None
        where = kept.where if isinstance(kept, RecordedError) and kept is not error else ""
    held: Value = error
    arguments, state, left_out = None, dict[str, bytes](), list[str]()
    if record is None:
        arguments = _record_of(list(_built_in(kind).__reduce__(error)[1]))
        left_out += [] if arguments is not None else ["args"]
        for name, value in held.__dict__.items():
            if name == "__notes__":
                continue
            encoded = _record_of(value)
            if encoded is None:
                left_out.append(name)
            else:
                state[name] = encoded
    return Failure(
        module=kind.__module__,
        name=kind.__qualname__,
        text=_as_text(error.message) if isinstance(error, ExceptionGroup) else error_text(error),
        where=where,
        record=record,
        arguments=arguments,
        state=state,
        left_out=left_out,
        notes=([] if record is not None else [_as_text(str(note)) for note in getattr(held, "__notes__", ())]) + trace,
        members=members,
    )


def _as_text(text: str) -> str:
    """Without lone surrogates, which names of files may have."""
    return text.encode("utf-8", "replace").decode()


def _record_of(value: Value) -> bytes | None:
    try:
        return default_codec.encode(value)
    except Exception:  # noqa: BLE001 - an exception may hold anything; a note says what is left out
        return None


def _traceback(error: BaseException) -> str:
    """The innermost frames, without ours, and those of its causes."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    frames = traceback.TracebackException(type(error), error, trace, limit=-MAX_FRAMES, compact=True)
    return "".join(frames.format(chain=True)).rstrip()


# ---------------------------------------------------------------- this side
def put_together(failure: Failure, worker: str) -> Exception:
    """The exception, with a note that says where it was raised."""
    error = _put_together(failure)
    for note in failure.notes[:-1]:
        error.add_note(note)
    if failure.left_out:
        error.add_note(f"left out, since the codec doesn't know their types: {', '.join(failure.left_out)}")
    if failure.notes:
        error.add_note(f"{ON_WORKER}{worker}: {failure.notes[-1]}")
    return error


def _put_together(failure: Failure) -> Exception:
    if failure.members is not None:
        return ExceptionGroup(failure.text, [_put_together(member) for member in failure.members])
    try:
        if failure.record is not None:
            error: Value = default_codec.decode(failure.record)
            if isinstance(error, Exception):
                return error
        elif (kind := _loaded(failure.module, failure.name)) is not None:
            return _made(kind, failure)
    except BaseException as broken:  # its class may do anything; then it becomes a RecordedError
        if not is_fault(broken):
            raise
        failure.notes.insert(0, f"this exception can't be recreated here: {type(broken).__name__}")
    return RecordedError(_title(failure), failure.text, failure.where)


def _title(failure: Failure) -> str:
    return failure.name if failure.module == "builtins" else f"{failure.module}.{failure.name}"


def _loaded(module: str, name: str) -> type[Exception] | None:
    """The class of that name, if its module is loaded here. A worker has our script as `__mp_main__`."""
    found: Value = sys.modules.get("__main__" if module == "__mp_main__" else module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _made(kind: type[Exception], failure: Failure) -> Exception:
    arguments = (failure.text,) if failure.arguments is None else tuple(default_codec.decode(failure.arguments))
    error = kind.__new__(kind, *arguments)
    _built_in(kind).__init__(error, *arguments)  # it sets its own attributes, such as errno
    _state(error).update({name: default_codec.decode(record) for name, record in failure.state.items()})
    str(error)
    return error


def _built_in(kind: type[BaseException]) -> Value:
    """The built-in exception class that it is derived from."""
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def _state(error: Exception) -> dict[str, Value]:
    state: Mapping[str, Value] = error.__dict__
    if not isinstance(state, dict):
        raise CodecError("it has no attributes")
    return state
