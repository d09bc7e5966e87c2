"""The graphs that `ExecutorContract` runs on executors: workers import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

from opentelemetry import baggage, trace

from pocket_plug.graph.following.reports import emit, progress
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.graph.running.context import idempotency_key
from pocket_plug.propagation import current_session
from pocket_plug.store.keys import Key
from pocket_plug.store.store import StoreReader, StoreWriter

PATIENCE = 60.0
"""Seconds after which an exec that waits for a file gives up."""


class OddError(Exception):
    """An exception with an attribute, and with an `__init__` that doesn't take the message."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"{number} is odd")


class Unknown:
    """A class that the codec can't encode."""

    __slots__ = ("held",)


def note(folder: str, what: object) -> int:
    """Record in a file that something was done; returns how often so far."""
    file = Path(folder) / str(what)
    with file.open("a", encoding="utf-8") as out:
        out.write("x")
    return file.stat().st_size


def wait_for(file: Path) -> None:
    """Wait until a test makes a file."""
    until = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{file} was not created")
        time.sleep(0.01)  # in a worker process, which only sees the file


@node
def half(n: int) -> int:
    """Half of an even number."""
    if n % 2:
        raise OddError(n)
    return n // 2


@node
async def half_async(n: int) -> int:
    """The same, `async def`."""
    if n % 2:
        raise OddError(n)
    return n // 2


@node
def where(_: object) -> int:
    """The id of the process that it runs in."""
    return os.getpid()


@node
def blocked(folder: str) -> str:
    """Waits for the file `go`."""
    note(folder, "begun")
    wait_for(Path(folder) / "go")
    return "went"


@node
def counted(at: tuple[str, int]) -> int:
    """Records that it was begun, then waits for the file `go`."""
    folder, number = at
    note(folder, f"begun-{number}")
    wait_for(Path(folder) / "go")
    return number


@node
def stumbles(at: tuple[str, int]) -> int:
    """Records that it was executed; the last item fails the first time."""
    folder, number = at
    if note(folder, f"did-{number}") == 1 and number == 19:
        raise OddError(number)
    return number


@node
def telling(n: int) -> int:
    """Reports its progress and a value; then fails for an odd number."""
    progress(1, 3)
    progress(2, 3)
    emit({"n": n})
    progress(3, 3)
    return half(n)


@node
async def telling_async(n: int) -> int:
    """The same, `async def`."""
    progress(1, 3)
    progress(2, 3)
    await emit({"n": n})
    progress(3, 3)
    return half(n)


@node
def flaky(at: tuple[str, int]) -> int:
    """Fails a number of times, then returns how often it was called."""
    folder, failures = at
    times = note(folder, "tried")
    if times <= failures:
        raise OddError(times)
    return times


@node
def deadly(at: tuple[str, int]) -> int:
    """Kills its process a number of times, then returns how often it was called."""
    folder, kills = at
    times = note(folder, "killed")
    if times <= kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return times


@node
def exhausted(_: object) -> int:
    """Raises StopIteration."""
    return next(iter(()))


@node
def unknown(_: object) -> Any:
    """Its result can't be encoded."""
    return Unknown()


@node
def key(_: object) -> str:
    """The `idempotency_key()` on the worker."""
    return idempotency_key()


@node
def context(_: object) -> tuple[str, str, str | None, str]:
    """The ids of trace and span, the session and the baggage on the worker."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}", f"{span.span_id:016x}", current_session(), str(baggage.get_baggage("tenant"))


class Charge(Node[int, int, tuple[int, int]]):
    """A node class with phases that use the store."""

    price = Key("price", int)

    async def prep(self, store: StoreReader, amount: int) -> tuple[int, int]:
        """Runs in the main process."""
        return amount, await store.get("price", 2)

    def exec(self, prepared: tuple[int, int]) -> tuple[int, int]:
        """Runs on the worker."""
        amount, price = prepared
        return amount * price, os.getpid()

    async def post(self, store: StoreWriter, amount: int, prepared: object, result: tuple[int, int]) -> int:
        """Runs in the main process."""
        await store.set("charged", result[0])
        await store.set("pid", result[1])
        return result[0]


charge = Charge()


class Tallied(Node[int, int]):
    """Its post records in the main process which items the workers have done."""

    done: ClassVar[list[int]] = []

    def exec(self, n: int) -> int:
        """Runs on the worker."""
        return n

    def post(self, store: object, n: int, prepared: int, result: int) -> int:
        """Runs in the main process."""
        self.done.append(n)
        return result


tallied = Tallied()


class FallingBack(Node[int, Any]):
    """Its fallback returns the number of the error, and the id of the process that it runs in."""

    def exec(self, n: int) -> int:
        """Runs on the worker."""
        raise OddError(n)

    def fallback(self, n: int, error: Exception) -> tuple[int, int]:
        """Runs in the main process."""
        return (error.number if isinstance(error, OddError) else 0), os.getpid()


EXECUTOR = "contract"
"""The name of the executor under test in the contract's Pocket."""


def _elsewhere(of: Any, **options: Any) -> Any:
    return of.with_options(executor=EXECUTOR, **options)


halving = Graph(_elsewhere(half), name="halving")
halving_async = Graph(_elsewhere(half_async), name="halving_async")
told = Graph(_elsewhere(telling), name="told")
told_async = Graph(_elsewhere(telling_async), name="told_async")
located = Graph(_elsewhere(where), name="located")
charging = Graph(_elsewhere(charge), name="charging")
outer = Graph(Graph(_elsewhere(half), name="within") >> _elsewhere(half, name="again"), name="outer")
deep = Graph(each(Graph(_elsewhere(half), name="inside")), name="deep")
many = Graph(each(half, executor=EXECUTOR), name="many")
collecting = Graph(each(half, executor=EXECUTOR, errors="collect"), name="collecting")
stumbling = Graph(each(stumbles, concurrency=1, executor=EXECUTOR), name="stumbling")
tallying = Graph(each(tallied, executor=EXECUTOR), name="tallying")
counting = Graph(each(counted, executor=EXECUTOR), name="counting")
retried = Graph(_elsewhere(flaky, retry=Retry(attempts=3, delay=0, on=OddError)), name="retried")
killing = Graph(_elsewhere(deadly), name="killing")
waiting = Graph(_elsewhere(blocked, timeout=1), name="waiting")
blocking = Graph(_elsewhere(blocked), name="blocking")
exhausting = Graph(_elsewhere(exhausted), name="exhausting")
unknowing = Graph(_elsewhere(unknown), name="unknowing")
keyed = Graph(_elsewhere(key), name="keyed")
falling_back = Graph(_elsewhere(FallingBack()), name="falling_back")
traced = Graph(_elsewhere(context), name="traced")
