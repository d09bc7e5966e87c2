"""Every exception that pocket_plug raises, as one tree under `PocketError`.

A message names the thing (key, node, plugin, option), what was found, what was allowed, and the way out. Where a
built-in exception says the same, the class is also that one, so `except KeyError` and `except TimeoutError` work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any


class PocketError(Exception):
    """The root: everything of ours is one of these."""


# ---------------------------------------------------------------- the store
class KeyNameError(PocketError, ValueError):
    """A key or scope name that can't be used: empty, not a string, too long, an unfilled template, the reserved prefix."""


class MissingKeyError(PocketError, KeyError):
    """`require` found no entry at a key."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class ValueTypeError(PocketError, TypeError):
    """A value is not of the type that its key or typed store declares."""


class StoreError(PocketError):
    """A backend or a layer could not do what it was asked: never to be read as 'nothing there'."""

    stack: object | None = None
    """The store's stack, where it was read within a transaction: a node may use other stores too."""


class StoreClosedError(StoreError):
    """The store was used after `close`, or before `open` where it needs one."""


class StoreBusyError(StoreError):
    """Another connection kept the store locked for longer than the time-out. It makes sense to try again."""


class ConflictError(StoreError):
    """A key's version is no longer the one expected; nothing of the write was done.

    `keys` are the names, as the backend knows them, whose version differed.
    """

    def __init__(self, keys: Iterable[str], message: str = "") -> None:
        self.keys = frozenset(map(str, keys))
        super().__init__(message or f"changed by somebody else in the meantime: {', '.join(sorted(self.keys))}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.keys, str(self))


class StoreUnreachableError(StoreError):
    """A store's server can't be reached, or doesn't answer, for as long as its backend was told to try. Nothing was done."""


class AnswerLostError(StoreError):
    """A write was sent to a server, and no answer came in time: whether it has landed is not known."""


class StoreTimeoutError(StoreError, TimeoutError):
    """A read, a check or a page of a scan took longer than the layer `timeout` allows; it says nothing of what is there."""


class ReadOnlyError(StoreError):
    """A write to a store that has the layer `readonly`; nothing of it was done."""


class WriteSizeError(StoreError):
    """A write has more changes and expectations than its backend takes (`Backend.max_changes`); nothing of it was done."""


class TransactionError(StoreError):
    """A transaction was used after its end, or by two blocks at once."""


class SyncError(PocketError, RuntimeError):
    """A call would wait for itself: a sync one for the event loop that it blocks, a cached function for its own result."""


# ---------------------------------------------------------------- the codec
class CodecError(PocketError):
    """A value can't be turned into bytes, or bytes into a value."""


class UnregisteredTypeError(CodecError, TypeError):
    """A value's type is not registered with the codec."""


class UnknownTypeError(CodecError):
    """A stored record names a type tag that nothing is registered for."""


class CorruptRecordError(CodecError, ValueError):
    """Bytes that are no record of pocket_plug, or that exceed a limit of size or depth."""


# ---------------------------------------------------------------- configuration and plugins
class ConfigError(PocketError, ValueError):
    """A configuration file, an option, or a stack is invalid."""


class UnknownStoreError(ConfigError, KeyError):
    """The configuration names no such store."""

    def __str__(self) -> str:  # as in MissingKeyError
        return str(self.args[0])


class PluginError(PocketError):
    """A plugin can't be used; names the plugin and its distribution."""


class NotConfiguredError(PocketError):
    """Raised by a plugin's `pocket_configure` to decline: the plugin is not used, and the message is the reason."""


# ---------------------------------------------------------------- nodes and graphs
class GraphError(PocketError, ValueError):
    """A graph can't run as it is; `findings` has every fault at once."""

    def __init__(self, message: str, findings: Iterable[str] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__("\n  - ".join([message, *self.findings]))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self).split("\n  - ", 1)[0], self.findings)


class PhaseError(PocketError, TypeError):
    """A phase of a node is invalid: `def` instead of `async def`, or the reverse; its signature; or what it returned."""


class InputError(PocketError, TypeError):
    """A node's input is not of the type that the node declares."""


class RouteError(PocketError, LookupError):
    """A node returned an action that has no edge; nothing that the node wrote was committed."""


class UndeclaredKeyError(PocketError, LookupError):
    """A node used a key outside its declared `reads` and `writes`."""


class StepLimitError(PocketError, RuntimeError):
    """A run took more steps than `max_steps`, or nested deeper than `max_depth`."""


class NodeTimeoutError(PocketError, TimeoutError):
    """An attempt at `exec` took longer than the node's `timeout` (seconds).

    It is a TimeoutError, hence an OSError: `Retry(on=(OSError,))` retries it.
    """


class RunTimeoutError(PocketError, TimeoutError):
    """A run took longer than its graph's `timeout` (seconds), for a durable one from its begin on, waits included."""


class WrappedStopIterationError(PocketError, RuntimeError):
    """A `def` phase raised StopIteration, which no future can carry."""


class WrappedCancelledError(PocketError, RuntimeError):
    """A phase of a durable run raised CancelledError, though nobody has cancelled the run: what it awaited was."""


# ---------------------------------------------------------------- exec elsewhere
class ExecutorError(PocketError):
    """An executor could not have an `exec` done elsewhere, or has no answer that can be read."""


class ExecutorLostError(ExecutorError, ConnectionError):
    """A worker died at it again and again, or the executor can't be reached: the `exec` may have been done, or not.

    It is a ConnectionError, hence an OSError: `Retry(on=(OSError,))` retries it.
    """


class WorkerCodeError(ExecutorError):
    """A worker lacks the code of a node, or has another version of it.

    `worker` says which one, `module` what it was to import; `expected` is what this process has, `found` what the worker has.
    """

    def __init__(self, message: str, worker: str = "", module: str = "", expected: str = "", found: str = "") -> None:
        self.worker, self.module, self.expected, self.found = worker, module, expected, found
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.worker, self.module, self.expected, self.found)


# ---------------------------------------------------------------- durable runs
class RunSuspendedError(PocketError):
    """A durable run waits for answers, or for a time: nothing has failed.

    `questions` are the open ones, by id; `question` and `question_id` are the first of them. `wake_at` is when the run goes
    on by itself, in epoch seconds, if it does.
    """

    waits: tuple[Any, ...] = ()

    def __init__(self, run_id: str, questions: Mapping[str, Any], wake_at: float | None = None) -> None:
        self.run_id, self.questions, self.wake_at = run_id, dict(questions), wake_at
        self.question_id: str = next(iter(self.questions), "")
        self.question: Any = self.questions.get(self.question_id)
        if self.questions:
            text = (
                f"run {run_id!r} waits for an answer to its `question`; resume(run_id, answer=…, "
                f"question={self.question_id!r}) goes on with it"
            )
        else:
            when = "" if wake_at is None else f" until {as_date(wake_at)}"
            text = f"run {run_id!r} sleeps{when}; a worker goes on with it then, or resume(run_id)"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run_id, self.questions, self.wake_at)


class RunFencedError(PocketError):
    """Another execution has taken over this durable run, or the run was removed: this one can write nothing any more."""


class RunBusyError(PocketError):
    """Another execution is at this durable run: who, and since when. `takeover=True` takes the run from it."""


class RunCancelledError(PocketError):
    """This durable run was cancelled. What its nodes had written by then stays; nothing goes on with it."""


class RunStateError(PocketError, ValueError):
    """A durable run is in a `state` in which it can't be cancelled, say, or tried again: somebody else may have been faster."""

    def __init__(self, run_id: str, state: str, message: str) -> None:
        self.run_id, self.state = run_id, state
        super().__init__(message)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.run_id, self.state, str(self))


class RunStuckError(PocketError):
    """Execution after execution of this durable run has ended at the same node, without an error and without progress."""


class OutcomeUnknownError(StoreError):
    """A durable run's write failed, and reading whether it was stored failed too. Nothing is lost: `resume(run_id)` finds out."""


class RecordedError(PocketError):
    """What a durable run keeps of an exception that `errors="collect"` has collected and that can't be stored as it is.

    `type` is its class's full name, `message` its text, `where` the module, file and line of the user's code that it comes
    from. Python's own exceptions, and those registered with `register_type`, are kept as they are.
    """

    def __init__(self, type: str, message: str, where: str) -> None:
        self.type, self.message, self.where = type, message, where
        super().__init__(type, message, where)

    def __str__(self) -> str:
        at = f" ({self.where})" if self.where else ""
        return f"{self.type}: {self.message}{at}"


class RunMismatchError(PocketError, ValueError):
    """A run with that id exists, but with another input, graph or scope, or it asks no such question."""


class RunChangedError(PocketError, ValueError):
    """A durable run can't go on in its graph as it is now; `differences` lists what lies ahead of it and has changed.

    `message` says why and what to do, without these.
    """

    def __init__(self, message: str, differences: Iterable[str] = ()) -> None:
        self.message, self.differences = message, tuple(differences)
        super().__init__("\n  ".join([f"{message}:" if self.differences else message, *self.differences]))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.message, self.differences)


class UnknownRunError(PocketError, LookupError):
    """No durable run has that id."""


def is_fault(error: BaseException) -> bool:
    """Is an exception a failure of the plugin that raised it? Interrupts, cancellations and a generator's close are not.

    An extension in another language panics with a BaseException of its own, and `SystemExit` is no plugin's to raise. So
    wherever a plugin's code runs, what it raises is caught as `except BaseException as error: if not is_fault(error): raise`.

    >>> is_fault(SystemExit(1)), is_fault(KeyboardInterrupt())
    (True, False)
    """
    import asyncio  # a third of what `import pocket_plug` would cost, and loaded already wherever something is cancelled

    return not isinstance(error, KeyboardInterrupt | GeneratorExit | asyncio.CancelledError)


def suggest(name: str, known: Collection[str]) -> str:
    """' Did you mean …?' where a known name is close, else nothing.

    >>> suggest("max_entires", ["max_entries", "ttl"])
    " Did you mean 'max_entries'?"
    """
    import difflib  # only what has gone wrong needs it

    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def as_date(moment: float, *, local: bool = False) -> str:
    """A moment, in epoch seconds, as messages say it: date and time in UTC, or in the zone of this machine if `local`; one that
    no calendar has as its number.

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
