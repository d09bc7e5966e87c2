"""Every exception that pocket_plug raises, as one tree under `PocketError`.

A message names the thing (key, node, plugin, option), what was found, what was allowed, and the way out. Where a
built-in exception says the same, the class is also that one, so `except KeyError` and `except TimeoutError` work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any


class PocketError(Exception):
    """The root: everything of ours is one of these."""


# ---------------------------------------------------------------- the store
class KeyNameError(PocketError, ValueError):
    """A key or scope name that can't be used: empty, not a string, an unfilled template, the reserved prefix."""


class MissingKeyError(PocketError, KeyError):
    """`require` found nothing."""

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
    """Somebody else held the store for longer than the time-out. Trying again is sensible."""


class ConflictError(StoreError):
    """A key's version is no longer the one expected; nothing of the write was done.

    `keys` are the names, as the backend knows them, whose version differed.
    """

    def __init__(self, keys: Iterable[str], message: str = "") -> None:
        self.keys = frozenset(map(str, keys))
        super().__init__(message or f"changed by somebody else in the meantime: {', '.join(sorted(self.keys))}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.keys, str(self))


class TransactionError(StoreError):
    """A transaction was used after its end."""


class SyncError(PocketError, RuntimeError):
    """A sync call would have to wait for the very event loop that it blocks."""


# ---------------------------------------------------------------- the codec
class CodecError(PocketError):
    """A value can't be turned into bytes, or bytes into a value."""


class UnregisteredTypeError(CodecError, TypeError):
    """A value's type is not registered with the codec."""


class UnknownTypeError(CodecError):
    """A stored record names a type tag that nothing is registered for."""


class CorruptRecordError(CodecError, ValueError):
    """Bytes that are no record of ours, or that break a limit of size or depth."""


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
    """Raised by a plugin's `pocket_configure` to step back; the message says why."""


# ---------------------------------------------------------------- nodes and graphs
class GraphError(PocketError, ValueError):
    """A graph can't run as it is; `findings` has every fault at once."""

    def __init__(self, message: str, findings: Iterable[str] = ()) -> None:
        self.findings = tuple(findings)
        super().__init__("\n  - ".join([message, *self.findings]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self).split("\n  - ", 1)[0], self.findings)


class PhaseError(PocketError, TypeError):
    """A node's phase is of the wrong kind: its colour, its signature, or what it returned."""


class InputError(PocketError, TypeError):
    """A node was handed something else than it declares."""


class RouteError(PocketError, LookupError):
    """A node left by an action that leads nowhere; nothing of it was committed."""


class UndeclaredKeyError(PocketError, LookupError):
    """A node used a key outside its declared `reads` and `writes`."""


class StepLimitError(PocketError, RuntimeError):
    """A run took more steps than `max_steps`, or nested deeper than `max_depth`."""


class NodeTimeoutError(PocketError, TimeoutError):
    """An attempt at `exec` took longer than the node's `timeout` (seconds).

    It is a TimeoutError, hence an OSError: `Retry(on=(OSError,))` retries it.
    """


class WrappedStopIterationError(PocketError, RuntimeError):
    """A `def` phase raised StopIteration, which no future can carry."""


# ---------------------------------------------------------------- durable runs
class RunSuspendedError(PocketError):
    """A durable run waits for an answer: `graph.resume(run_id, answer=…)`. Nothing has failed."""

    def __init__(self, run_id: str, question: Any) -> None:
        self.run_id, self.question = run_id, question
        super().__init__(
            f"run {run_id!r} waits for an answer to its `question`; resume(run_id, answer=…) goes on with it"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.run_id, self.question)


class RunFencedError(PocketError):
    """Another execution has taken over this durable run, or it was removed; nothing of this one lands any more."""


class OutcomeUnknownError(StoreError):
    """A durable run's write failed, and so did the look whether it landed. Nothing is lost: `resume(run_id)` finds out."""


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
    """A run of that id is there, but with another input, of another graph or scope, or without that question."""


class RunChangedError(PocketError, ValueError):
    """A durable run was begun by another form of the graph; `differences` says what has changed."""

    def __init__(self, message: str, differences: Iterable[str] = ()) -> None:
        self.differences = tuple(differences)
        super().__init__("\n  ".join([message, *self.differences]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self).split("\n  ", 1)[0], self.differences)


class UnknownRunError(PocketError, LookupError):
    """No durable run has that id."""


def is_fault(error: BaseException) -> bool:
    """Is what a plugin raised its own failure? All is, but what somebody wants to pass: an interrupt, a cancellation, a close.

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


def __getattr__(name: str) -> Any:
    from .renamed import EXCEPTIONS, renamed

    return renamed(__name__, name, EXCEPTIONS)
