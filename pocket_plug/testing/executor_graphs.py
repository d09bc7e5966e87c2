"""The graphs that `ExecutorContract` runs on executors: workers import them from here."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

from opentelemetry import baggage, trace

from pocket_plug.graph.durable import idempotency_key
from pocket_plug.graph.following.reports import emit, progress
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.propagation import current_session
from pocket_plug.store.keys import Key
from pocket_plug.store.store import StoreReader, StoreWriter

PATIENCE = 30.0
"""Seconds after which an exec that waits for a file gives up."""


class OddError(Exception):
    """Of its own class, with an attribute, and with an `__init__` that takes something else than its message."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"{number} is odd")


class Unknown:
    """A class that the codec doesn't know, and can't."""

    __slots__ = ("held",)


def note(folder: str, what: object) -> int:
    """Note in a file that something was done; give how often by now."""
    file = Path(folder) / str(what)
    with file.open("a") as out:
        out.write("x")
    return file.stat().st_size


def wait_for(file: Path) -> None:
    """Until a test makes it."""
    until = time.monotonic() + PATIENCE
    while not file.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{file} has not come")
        time.sleep(0.01)  # in a worker, which nobody can wake by anything but a file


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
    """The process it runs in."""
    return os.getpid()


@node
def blocked(folder: str) -> str:
    """Waits for the file `go`."""
    note(folder, "begun")
    wait_for(Path(folder) / "go")
    return "went"


@node
def counted(at: tuple[str, int]) -> int:
    """Notes that it was begun, then waits for the file `go`."""
    folder, number = at
    note(folder, f"begun-{number}")
    wait_for(Path(folder) / "go")
    return number


@node
def stumbles(at: tuple[str, int]) -> int:
    """Notes that it was done; the last one fails the first time."""
    folder, number = at
    if note(folder, f"did-{number}") == 1 and number == 19:
        raise OddError(number)
    return number


@node
def telling(n: int) -> int:
    """Says how far it is, and what it has; then fails for an odd number."""
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
    """Fails so often, then gives how often it was called."""
    folder, failures = at
    times = note(folder, "tried")
    if times <= failures:
        raise OddError(times)
    return times


@node
def deadly(at: tuple[str, int]) -> int:
    """Kills its process so often, then gives how often it was called."""
    folder, kills = at
    times = note(folder, "killed")
    if times <= kills:
        os.kill(os.getpid(), signal.SIGKILL)
    return times


@node
def exhausted(_: object) -> int:
    """Takes the next one of nothing."""
    return next(iter(()))


@node
def unknown(_: object) -> Any:
    """What it gives can't be encoded."""
    return Unknown()


@node
def key(_: object) -> str:
    """What `idempotency_key()` gives there."""
    return idempotency_key()


@node
def context(_: object) -> tuple[str, str, str | None, str]:
    """The trace, the span, the session and the baggage there."""
    span = trace.get_current_span().get_span_context()
    return f"{span.trace_id:032x}", f"{span.span_id:016x}", current_session(), str(baggage.get_baggage("tenant"))


class Charge(Node[int, int, tuple[int, int]]):
    """A class, with phases that need the store."""

    price = Key("price", int)

    async def prep(self, store: StoreReader, amount: int) -> tuple[int, int]:
        """Here."""
        return amount, await store.get("price", 2)

    def exec(self, prepared: tuple[int, int]) -> tuple[int, int]:
        """There."""
        amount, price = prepared
        return amount * price, os.getpid()

    async def post(self, store: StoreWriter, amount: int, prepared: object, result: tuple[int, int]) -> int:
        """Here."""
        await store.set("charged", result[0])
        await store.set("pid", result[1])
        return result[0]


charge = Charge()


class Tallied(Node[int, int]):
    """Its post counts here what was done there."""

    done: ClassVar[list[int]] = []

    def exec(self, n: int) -> int:
        """There."""
        return n

    def post(self, store: object, n: int, prepared: int, result: int) -> int:
        """Here."""
        self.done.append(n)
        return result


tallied = Tallied()


class FallingBack(Node[int, Any]):
    """Its fallback gives the number of the error, and the process it is called in."""

    def exec(self, n: int) -> int:
        """There."""
        raise OddError(n)

    def fallback(self, n: int, error: Exception) -> tuple[int, int]:
        """Here."""
        return (error.number if isinstance(error, OddError) else 0), os.getpid()


EXECUTOR = "contract"
"""What the contract's Pocket calls the executor that is tested."""


def _there(of: Any, **options: Any) -> Any:
    return of.with_options(executor=EXECUTOR, **options)


halving = Graph(_there(half), name="halving")
halving_async = Graph(_there(half_async), name="halving_async")
told = Graph(_there(telling), name="told")
told_async = Graph(_there(telling_async), name="told_async")
located = Graph(_there(where), name="located")
charging = Graph(_there(charge), name="charging")
outer = Graph(Graph(_there(half), name="within") >> _there(half, name="again"), name="outer")
deep = Graph(each(Graph(_there(half), name="inside")), name="deep")
many = Graph(each(half, executor=EXECUTOR), name="many")
collecting = Graph(each(half, executor=EXECUTOR, errors="collect"), name="collecting")
stumbling = Graph(each(stumbles, concurrency=1, executor=EXECUTOR), name="stumbling")
tallying = Graph(each(tallied, executor=EXECUTOR), name="tallying")
counting = Graph(each(counted, executor=EXECUTOR), name="counting")
retried = Graph(_there(flaky, retry=Retry(attempts=3, delay=0, on=OddError)), name="retried")
killing = Graph(_there(deadly), name="killing")
killing_retried = Graph(_there(deadly, retry=Retry(attempts=2, delay=0)), name="killing_retried")
waiting = Graph(_there(blocked, timeout=1), name="waiting")
blocking = Graph(_there(blocked), name="blocking")
exhausting = Graph(_there(exhausted), name="exhausting")
unknowing = Graph(_there(unknown), name="unknowing")
keyed = Graph(_there(key), name="keyed")
falling_back = Graph(_there(FallingBack()), name="falling_back")
traced = Graph(_there(context), name="traced")
