"""Every exception that pocket_plug raises, as one tree under `PocketError`.

A message names the thing (key, node, plugin, option), what was found, what is allowed, and how to fix it. If a built-in
exception has the same meaning, it is a base class too, so that `except KeyError` and `except TimeoutError` work.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

_OURS = __file__.removesuffix("errors.py")


def hide_own_frames(error: BaseException | None = None) -> None:
    """Let IPython leave out our frames: of twenty-five between a cell and a node none helps, and printing them takes a second.

    These are the frames of the callers, and those of the error's traceback and of its causes. IPython leaves out a frame that has
    a true local variable `__tracebackhide__`.
    """
    if "IPython" not in sys.modules:
        return
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # `inspect` takes long to import
    frames = [frame]
    while frame.f_back is not None:
        frames.append(frame := frame.f_back)
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    for frame in frames:
        if frame.f_code.co_filename.startswith(_OURS):
            frame.f_locals["__tracebackhide__"] = True


class PocketError(Exception):
    """The base class of all exceptions of pocket_plug."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        hide_own_frames()


# ---------------------------------------------------------------- the store
class KeyNameError(PocketError, ValueError):
    """A key or scope name is invalid: empty, not a string, too long, an unfilled template, or with the reserved prefix."""


class MissingKeyError(PocketError, KeyError):
    """`require` found no entry at a key."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class ValueTypeError(PocketError, TypeError):
    """A value is not of the type that its key or typed store declares."""


class StoreError(PocketError):
    """A backend or a layer failed. It doesn't mean that an entry is missing."""

    stack: object | None = None
    """The stack of the store that was read in a transaction: a node may use several stores."""
    loggable: str | None = None
    """What of its text may be logged, since it quotes no keys, no values and no text of others: "state.db: the disk is full"."""


class StoreClosedError(StoreError):
    """The store was used after `close`, after its file was deleted or replaced, or before `open` if it must be opened.

    It can be used once it is opened, or opened again.
    """


class StoreBusyError(StoreError):
    """Another connection kept the store locked for longer than the timeout. A retry may succeed."""


class ConflictError(StoreError):
    """A key's version is not the expected one; nothing was written.

    `keys` are the names of the keys whose version differed, as the backend knows them.
    """

    def __init__(self, keys: Iterable[str], message: str = "") -> None:
        self.keys = frozenset(map(str, keys))
        super().__init__(message or f"changed by another write in the meantime: {', '.join(sorted(self.keys))}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.keys, str(self))


class StoreUnreachableError(StoreError):
    """A store's server could not be reached, or didn't answer, within the backend's `patience`. Nothing was done."""


class AnswerLostError(StoreError):
    """A write was sent to a server, and no answer came in time: it may have been stored, or not."""


class StoreTimeoutError(StoreError, TimeoutError):
    """A read, a check or a page of a scan took longer than the layer `timeout` allows. The entry may exist or not."""


class ReadOnlyError(StoreError):
    """A write to a store with the layer `readonly`; nothing was written."""


class WriteSizeError(StoreError):
    """A write has more changes and expectations than the backend allows (`Backend.max_changes`); nothing was written."""


class TransactionError(StoreError):
    """A transaction was used after its end, or by two blocks at once."""


class SyncError(PocketError, RuntimeError):
    """A call would wait for itself: a sync call for the event loop that it blocks, or a cached function for its own result."""


# ---------------------------------------------------------------- the codec
class CodecError(PocketError):
    """A value can't be encoded to bytes, or bytes can't be decoded to a value."""


class UnregisteredTypeError(CodecError, TypeError):
    """A value's type is not registered with the codec."""


class UnknownTypeError(CodecError):
    """A stored record names a type tag that nothing is registered for."""


class UnreadableRecordError(StoreError, CodecError):
    """A layer can't read an undamaged record: the encryption key isn't given, or a package that it needs isn't installed."""


class CorruptRecordError(CodecError, ValueError):
    """Bytes that are not a record of pocket_plug, or that exceed a limit of size or depth."""


# ---------------------------------------------------------------- configuration and plugins
class ConfigError(PocketError, ValueError):
    """A configuration file, an option, or a stack is invalid."""


class UnknownStoreError(ConfigError, KeyError):
    """The configuration has no store of this name."""

    def __str__(self) -> str:  # as in MissingKeyError
        return str(self.args[0])


class PluginError(PocketError):
    """A plugin can't be used; the message names the plugin and its distribution."""


class NotConfiguredError(PocketError):
    """Raised by a plugin's `pocket_configure` to decline: the plugin is not used, and the message is the reason."""


# ---------------------------------------------------------------- nodes and graphs
class GraphError(PocketError, ValueError):
    """A graph is invalid; `findings` lists everything that is wrong with it."""

    def __init__(self, message: str, findings: Iterable[str] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__("\n  - ".join([message, *self.findings]))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self).split("\n  - ", 1)[0], self.findings)


class PhaseError(PocketError, TypeError):
    """A phase of a node is invalid: `def` instead of `async def` or vice versa, its signature, or what it returned."""


class InputError(PocketError, TypeError):
    """A node's input is not of the type that the node declares."""


class RouteError(PocketError, LookupError):
    """A node returned an action that has no edge; none of the node's writes was committed."""


class UndeclaredKeyError(PocketError, LookupError):
    """A node used a key outside its declared `reads` and `writes`."""


class StepLimitError(PocketError, RuntimeError):
    """A run took more steps than `max_steps`, or nested deeper than `max_depth`."""


class NodeTimeoutError(PocketError, TimeoutError):
    """An attempt at `exec` took longer than the node's `timeout` (seconds).

    It is a TimeoutError, hence an OSError: `Retry(on=(OSError,))` retries it.
    """


class RunTimeoutError(PocketError, TimeoutError):
    """A run took longer than its graph's `timeout` (seconds), for a durable run from its start on, waits included."""


class WrappedStopIterationError(PocketError, RuntimeError):
    """A `def` phase raised StopIteration, which a future can't pass on."""


class WrappedCancelledError(PocketError, RuntimeError):
    """A phase of a durable run raised CancelledError, but the run was not cancelled: what the phase awaited was cancelled."""


class WrappedSystemExitError(PocketError, RuntimeError):
    """A node of a run that a worker executes raised SystemExit: the run has failed, and the worker continues."""


# ---------------------------------------------------------------- exec elsewhere
class ExecutorError(PocketError):
    """An executor could not run an `exec` elsewhere, or its answer can't be read."""


class ExecutorLostError(ExecutorError, ConnectionError):
    """Workers died repeatedly while they ran an `exec`, or the executor can't be reached: the `exec` may have run, or not.

    It is a ConnectionError, hence an OSError: `Retry(on=(OSError,))` retries it. `workers_died` is True if workers died: then the
    work itself may be what kills them.
    """

    def __init__(self, message: str = "", *, workers_died: bool = False) -> None:
        self.workers_died = workers_died
        super().__init__(message)


class WorkerCodeError(ExecutorError):
    """A worker lacks the code of a node, or has another version of it.

    `worker` names the worker, `module` the module that it imports; `expected` is what this process has, `found` what the
    worker has.
    """

    def __init__(self, message: str, worker: str = "", module: str = "", expected: str = "", found: str = "") -> None:
        self.worker, self.module, self.expected, self.found = worker, module, expected, found
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.worker, self.module, self.expected, self.found)


# ---------------------------------------------------------------- durable runs
class RunSuspendedError(PocketError):
    """A durable run waits for answers or for a time. This is not a failure.

    `questions` are the open questions, by id; `question` and `question_id` are the first of them. `wake_at` is the time at
    which the run can resume without an answer, in epoch seconds, or None.
    """

    waits: tuple[Any, ...] = ()

    def __init__(self, run_id: str, questions: Mapping[str, Any], wake_at: float | None = None) -> None:
        self.run_id, self.questions, self.wake_at = run_id, dict(questions), wake_at
        self.question_id: str = next(iter(self.questions), "")
        self.question: Any = self.questions.get(self.question_id)
        if self.questions:
            text = (
                f"run {run_id!r} waits for an answer to its `question`; to answer it: "
                f"resume(run_id, answer=…, question={self.question_id!r})"
            )
        else:
            when = "" if wake_at is None else f" until {as_date(wake_at)}"
            text = f"run {run_id!r} sleeps{when}; a worker resumes it then, or resume(run_id)"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run_id, self.questions, self.wake_at)


class RunFencedError(PocketError):
    """Another execution has taken this durable run over, or it was removed: this execution can't write any more."""


class RunBusyError(PocketError):
    """Another process is executing this durable run; the message says which, and since when. `takeover=True` takes it over."""


class RunCancelledError(PocketError):
    """This durable run was cancelled and can't resume. What its nodes have written stays."""


class OtherRunError(PocketError):
    """A phase of a durable run's node has raised the error of another run, such as one that waits or was cancelled (`__cause__`).

    The node's own run has failed. To wait together with the other run, make its graph a node of this one's graph.
    """


class RunStateError(PocketError, ValueError):
    """A durable run's `state` doesn't allow the operation, such as cancel or retry: another process may have been faster."""

    def __init__(self, run_id: str, state: str, message: str) -> None:
        self.run_id, self.state = run_id, state
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run_id, self.state, str(self))


class RunStuckError(PocketError):
    """Several executions of this durable run have ended at the same node, without an error and without progress."""


class OutcomeUnknownError(StoreError):
    """A durable run's write failed, and it is unknown whether it was stored. Nothing is lost: `resume(run_id)` finds out."""


class RecordedError(PocketError):
    """Stands for an exception that a durable run has collected (`errors="collect"`) and that can't be stored as it is.

    `type` is the full name of its class, `message` its text, `where` the module, file and line of the user's code that raised
    it. Python's built-in exceptions, and those registered with `register_type`, are stored as they are.
    """

    def __init__(self, type: str, message: str, where: str) -> None:
        self.type, self.message, self.where = type, message, where
        super().__init__(type, message, where)

    def __str__(self) -> str:
        at = f" ({self.where})" if self.where else ""
        return f"{self.type}: {self.message}{at}"


class RunMismatchError(PocketError, ValueError):
    """The run with this id has another input, graph or scope, or doesn't ask this question."""


class RunChangedError(PocketError, ValueError):
    """A durable run can't resume in the changed graph; `differences` lists what has changed ahead of it.

    `message` says why and what to do, without the differences.
    """

    def __init__(self, message: str, differences: Iterable[str] = ()) -> None:
        self.message, self.differences = message, tuple(differences)
        super().__init__("\n  ".join([f"{message}:" if self.differences else message, *self.differences]))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.differences)


class UnknownRunError(PocketError, LookupError):
    """There is no durable run with this id."""


def is_fault(error: BaseException) -> bool:
    """Is an exception a failure of the plugin that raised it? Interrupts, cancellations and a generator's close are not.

    An extension in another language panics with a BaseException of its own, and a plugin must not raise `SystemExit`. So
    wherever a plugin's code runs, its errors are caught by `except BaseException as error: if not is_fault(error): raise`.

    >>> is_fault(SystemExit(1)), is_fault(KeyboardInterrupt())
    (True, False)
    """
    import asyncio  # a third of what `import pocket_plug` would cost, and loaded already wherever something is cancelled

    return not isinstance(error, KeyboardInterrupt | GeneratorExit | asyncio.CancelledError)


def suggest(name: str, known: Collection[str]) -> str:
    """' Did you mean …?' if a known name is similar, else "".

    >>> suggest("max_entires", ["max_entries", "ttl"])
    " Did you mean 'max_entries'?"
    """
    import difflib  # needed for errors only

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def as_date(moment: float, *, local: bool = False) -> str:
    """A moment, in epoch seconds, as text for messages: date and time in UTC, or in this machine's time zone if `local`. A moment
    outside of the calendar is shown as its number.

    >>> as_date(1_795_927_650), as_date(1e20)
    ('2026-11-29 04:47:30+00:00', '1e+20 (epoch seconds)')
    """
    from datetime import UTC, datetime  # a tenth of what `import pocket_plug` takes

    try:
        return datetime.fromtimestamp(moment, UTC).astimezone(None if local else UTC).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return f"{moment:g} (epoch seconds)"


if not TYPE_CHECKING:  # type checkers would take any misspelt name for an old one

    def __getattr__(name: str) -> object:
        from .renamed import EXCEPTIONS, renamed

        return renamed(__name__, name, EXCEPTIONS)
