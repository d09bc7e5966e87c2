"""One visit of a node: retries, timeouts, fallback, hooks, what its transaction guarantees, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from pocket_plug import Node, Retry, node
from pocket_plug.errors import (
    ConflictError,
    MissingKeyError,
    NodeTimeoutError,
    PhaseError,
    TransactionError,
    UndeclaredKeyError,
)
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.chain import Action, Next
from pocket_plug.graph.running.execution import Execution
from pocket_plug.hookspecs import Run
from pocket_plug.store.backend import Backend, Entry
from pocket_plug.store.keys import Key, template_of
from pocket_plug.store.memory import Memory
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter
from pocket_plug.store.transaction import Transaction
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.layer_contract import FaultyMemory

BACKENDS = pytest.mark.parametrize("backend", [Memory, FaultyMemory], ids=["memory", "suspending"])


class Flaky(Node[int, int]):
    """Fails with each of the errors in turn, then succeeds."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.attempts = 0

    async def exec(self, n: int) -> int:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return n


class FlakyDef(Flaky):
    def exec(self, n: int) -> int:  # type: ignore[override]
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return n


# ---------------------------------------------------------------- retry and fallback
@pytest.mark.parametrize("flaky", [Flaky, FlakyDef])
def test_exec_is_retried_after_its_pauses(flaky: type[Flaky]) -> None:
    """As often as needed, with the pauses of the Retry between the attempts."""
    clock = FakeClock()
    charge = flaky(OSError(), OSError(), OSError())
    patient = charge.with_options(retry=Retry(attempts=4, delay=1, backoff=2))
    assert run_virtual(Graph(patient).run(7), clock) == 7
    assert patient.attempts == 4
    assert clock.elapsed == pytest.approx(1 + 2 + 4)


@pytest.mark.parametrize("flaky", [Flaky, FlakyDef])
def test_run_sync_pauses_too(flaky: type[Flaky], monkeypatch: pytest.MonkeyPatch) -> None:
    """On its own loop, or by sleeping if there is none."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    charge = flaky(OSError(), OSError()).with_options(retry=Retry(delay=60))
    assert Graph(charge).run_sync(7) == 7
    assert slept == [60, 60]


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_the_last_error_is_the_nodes_own(sync: bool) -> None:
    """The error of the last attempt is raised itself, after exactly this many attempts."""
    last = OSError("third")
    charge = Flaky(OSError("first"), OSError("second"), last, OSError("never")).with_options(retry=Retry(attempts=3))
    with pytest.raises(OSError, match="third") as caught:
        Graph(charge).run_sync(1) if sync else asyncio.run(Graph(charge).run(1))
    assert caught.value is last
    assert charge.attempts == 3


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(ConnectionError(), 3), (ValueError(), 1), (ExceptionGroup("g", [OSError(), ConnectionError()]), 3),
     (ExceptionGroup("g", [OSError(), ValueError()]), 1)],
)  # fmt: skip
def test_only_errors_of_on_are_retried(error: Exception, attempts: int) -> None:
    """`on` decides; all leaves of a group must qualify."""
    charge = Flaky(*[error] * 9).with_options(retry=Retry(attempts=3, on=(OSError,)))
    with pytest.raises(type(error)):
        asyncio.run(Graph(charge).run(1))
    assert charge.attempts == attempts


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_interrupts_are_neither_retried_nor_handled_by_the_fallback(error: BaseException) -> None:
    """Whatever `on` says: they are no errors of the work."""
    called: list[str] = []

    class Answer(Flaky, retry=Retry(attempts=3, on=(BaseException,))):
        async def fallback(self, n: int, error: Exception) -> int:
            called.append("fallback")
            return n

    charge = Answer(error)
    with pytest.raises(type(error)):
        asyncio.run(Graph(charge).run(1))
    assert (charge.attempts, called) == (1, [])


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_the_fallback_replaces_an_exec_that_is_out_of_attempts(sync: bool) -> None:
    """It gets the result of prep and the last error; post gets its result."""
    store = SyncStore()

    class Charge(Node[int, Any], retry=Retry(attempts=2)):
        def prep(self, store: SyncReader, n: int) -> str:
            return f"prepared {n}"

        async def exec(self, prepared: str) -> str:
            raise OSError("down")

        def fallback(self, prepared: str, error: Exception) -> tuple[str, str]:
            return prepared, str(error)

        async def post(self, store: StoreWriter, n: int, prepared: str, result: Any) -> Any:
            await store.set("result", result)
            return result

    graph = Graph(Charge(), store=store)
    expected = ("prepared 1", "down")
    assert (graph.run_sync(1) if sync else asyncio.run(graph.run(1))) == expected
    assert store.get("result") == expected


def test_a_fallback_without_a_retry_handles_the_first_error_and_may_raise() -> None:
    """Its own error is then the node's, with the original error as context."""

    class Answer(Flaky):
        async def fallback(self, n: int, error: Exception) -> int:
            if n < 0:
                raise RuntimeError("no answer either")
            return -1

    assert asyncio.run(Graph(Answer(OSError())).run(1)) == -1
    with pytest.raises(RuntimeError, match="no answer") as caught:
        asyncio.run(Graph(Answer(OSError("down"))).run(-1))
    assert isinstance(caught.value.__context__, OSError)


# ---------------------------------------------------------------- timeouts
class Slow(Node[int, int], timeout=10):
    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    async def exec(self, n: int) -> int:
        await asyncio.sleep(self.seconds.pop(0))
        return n


def test_a_timeout_is_per_attempt() -> None:
    """Two attempts that take too long and one that doesn't: each has the full time, and pauses don't count."""
    clock = FakeClock()
    slow = Slow(11, 999, 9).with_options(retry=Retry(attempts=3, delay=5))
    assert run_virtual(Graph(slow).run(1), clock) == 1
    assert clock.elapsed == pytest.approx(10 + 5 + 10 + 5 + 9)


def test_a_node_timeout_is_a_timeout_error_that_names_node_and_limit() -> None:
    """NodeTimeoutError is a TimeoutError, hence an OSError."""
    with pytest.raises(NodeTimeoutError, match="node 'slow': exec took longer than timeout=10 seconds") as caught:
        run_virtual(Graph(Slow(11)).run(1))
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, OSError)


def test_a_timeout_error_raised_by_exec_is_unchanged() -> None:
    """A TimeoutError that the work raised is not the node's."""

    class Own(Node[int, int], timeout=10):
        async def exec(self, n: int) -> int:
            async with asyncio.timeout(1):
                await asyncio.sleep(5)
            return n

    with pytest.raises(TimeoutError) as caught:
        run_virtual(Graph(Own()).run(1))
    assert not isinstance(caught.value, NodeTimeoutError)


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_a_def_exec_is_timed_out_and_its_late_result_dropped(sync: bool) -> None:
    """Its thread continues; its result is ignored."""
    started, release, finished = threading.Event(), threading.Event(), threading.Event()
    store = SyncStore()

    class Stuck(Node[int, int], timeout=0.05):
        def exec(self, n: int) -> int:
            started.set()
            release.wait()
            finished.set()
            return n

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            store.set("posted", n)
            return n

    graph = Graph(Stuck(), store=store)

    async def main() -> None:
        task = asyncio.create_task(graph.run(1))
        while not started.is_set():
            await asyncio.sleep(0)  # this doesn't move the virtual time
        await task

    try:
        with pytest.raises(NodeTimeoutError):
            graph.run_sync(1) if sync else run_virtual(main())
    finally:
        release.set()
    assert finished.wait(10) or not started.is_set()
    assert store.get("posted") is None


def test_a_def_exec_in_time_gives_its_result() -> None:
    """A timeout that is not reached changes nothing, with and without a loop."""

    class Quick(Node[int, int], timeout=600):
        def exec(self, n: int) -> int:
            return n + 1

    assert Graph(Quick()).run_sync(1) == 2
    assert asyncio.run(Graph(Quick()).run(1)) == 2


def test_cancelling_a_node_with_a_timeout_is_no_timeout() -> None:
    """The canceller gets a cancellation, and a TimeoutError only for its own deadline."""

    async def main() -> None:
        task = asyncio.create_task(Graph(Slow(5)).run(1))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(2):
                await Graph(Slow(5)).run(1)
        assert not isinstance(caught.value, NodeTimeoutError)

    run_virtual(main())


# ---------------------------------------------------------------- hooks
class Hooked(Node[int, int]):
    """Records its hooks, and raises in the phase that it is told to."""

    def __init__(self, where: str = "", error: BaseException | None = None) -> None:
        self.where, self.error = where, error
        self.calls: list[tuple[Any, ...]] = []

    def _at(self, phase: str) -> None:
        if phase == self.where and self.error is not None:
            raise self.error

    async def prep(self, store: StoreReader, n: int) -> int:
        self._at("prep")
        return n

    async def exec(self, n: int) -> int:
        self._at("exec")
        return n + 1

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("posted", result)
        self._at("post")
        return result

    async def on_success(self, store: StoreWriter, output: int) -> None:
        await store.set("on_success", output)
        self.calls.append(("on_success", output, await store.get("posted")))
        self._at("on_success")

    async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
        await store.set("on_failure", True)
        self.calls.append(("on_failure", error, await store.get("posted")))
        self._at("on_failure")

    async def on_complete(self, store: StoreWriter) -> None:
        await store.update("completed", lambda times: times + 1, default=0)
        self.calls.append(("on_complete",))
        self._at("on_complete")


class HookedDef(Node[int, int]):
    """The same as `def`, without an error of its own."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def exec(self, n: int) -> int:
        if n < 0:
            raise ValueError(n)
        return n + 1

    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
        store.set("posted", result)
        return result

    def on_success(self, store: SyncWriter, output: int) -> None:
        self.calls.append(("on_success", output, store.get("posted")))

    def on_failure(self, store: SyncWriter, error: BaseException) -> None:
        self.calls.append(("on_failure", type(error), store.get("posted")))

    def on_complete(self, store: SyncWriter) -> None:
        store.set("completed", True)
        self.calls.append(("on_complete",))


@BACKENDS
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_hooks_run_after_the_commit_in_order(backend: type[Backend], sync: bool) -> None:
    """on_success(output), then on_complete(), each with a store that sees the commit; their writes are stored."""
    store = SyncStore(backend())
    hooked = Hooked()
    graph = Graph(hooked, store=store)
    assert (graph.run_sync(1) if sync else asyncio.run(graph.run(1))) == 2
    assert hooked.calls == [("on_success", 2, 2), ("on_complete",)]
    if backend is Memory or sync:
        assert (store.get("on_success"), store.get("completed")) == (2, 1)
    store.close() if sync else None


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
@pytest.mark.parametrize("phase", ["prep", "exec", "post"])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError()],
                         ids=lambda error: type(error).__name__)  # fmt: skip
def test_hooks_run_whatever_a_phase_raises(sync: bool, phase: str, error: BaseException) -> None:
    """on_failure(error), then on_complete(); the node's writes are rolled back, the hooks' own are stored,
    the error is raised.
    """
    store = SyncStore()
    hooked = Hooked(phase, error)
    graph = Graph(hooked, store=store)
    with pytest.raises(type(error)) as caught:
        graph.run_sync(1) if sync else asyncio.run(graph.run(1))
    if not isinstance(error, asyncio.CancelledError):  # a task makes a new one of it
        assert caught.value is error
    assert hooked.calls == [("on_failure", error, None), ("on_complete",)]
    assert (store.get("posted"), store.get("on_failure"), store.get("completed")) == (None, True, 1)


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_def_hooks_work_the_same(sync: bool) -> None:
    """With a sync store, with `run` and `run_sync`."""
    hooked, store = HookedDef(), SyncStore()
    graph = Graph(hooked, store=store)

    def run(n: int) -> int:
        return graph.run_sync(n) if sync else asyncio.run(graph.run(n))

    assert run(1) == 2
    with pytest.raises(ValueError, match="-1"):
        run(-1)
    assert hooked.calls == [("on_success", 2, 2), ("on_complete",), ("on_failure", ValueError, 2), ("on_complete",)]
    assert store.get("completed") is True


def test_hooks_run_for_timeouts_and_missing_edges_but_not_for_wrong_inputs() -> None:
    """A timeout and a missing edge are failures of the node; an input that it can't accept is no visit."""

    class Lost(Hooked, timeout=5):
        async def exec(self, n: int) -> int:
            await asyncio.sleep(n)
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Any:
            await store.set("posted", 1)
            return Next("nowhere", n)

    for seconds, kind in ((9, NodeTimeoutError), (1, LookupError)):
        lost = Lost()
        with pytest.raises(kind):
            run_virtual(Graph(lost).run(seconds))
        assert [call[0] for call in lost.calls] == ["on_failure", "on_complete"]
        assert isinstance(lost.calls[0][1], kind)
    lost = Lost()
    with pytest.raises(TypeError):
        asyncio.run(Graph(lost).run("x"))  # type: ignore[arg-type]
    assert lost.calls == []


@pytest.mark.parametrize("hook", ["on_success", "on_complete"])
def test_a_failing_hook_does_not_fail_a_committed_node(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is reported with the node's name; the other hook runs; the failing hook's writes are rolled back."""
    store = SyncStore()
    hooked = Hooked(hook, RuntimeError("hook is broken"))
    with caplog.at_level(logging.DEBUG, "pocket_plug"):
        assert asyncio.run(Graph(hooked, store=store).run(1)) == 2
    assert [call[0] for call in hooked.calls] == ["on_success", "on_complete"]
    record, whole = (record for record in caplog.records if record.levelno in (logging.ERROR, logging.DEBUG))
    assert f"Hooked.{hook}" in record.getMessage()
    assert "RuntimeError" in record.getMessage()
    # a message may contain anything: it is only for those who ask for it
    assert "hook is broken" not in caplog.messages[0]
    assert (record.exc_info, whole.levelno) == (None, logging.DEBUG)
    assert whole.exc_info
    assert whole.exc_info[1] is hooked.error
    assert store.get("posted") == 2
    assert store.get("on_success" if hook == "on_success" else "completed") is None


@pytest.mark.parametrize("hook", ["on_failure", "on_complete"])
def test_a_failing_hook_never_hides_the_nodes_error(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """The node's error is raised, the hook's is reported, and the other hook runs."""

    class Both(Hooked):
        async def exec(self, n: int) -> int:
            raise ValueError("the node's own")

    hooked = Both(hook, RuntimeError("hook is broken"))
    with pytest.raises(ValueError, match="the node's own"), caplog.at_level(logging.ERROR, "pocket_plug"):
        asyncio.run(Graph(hooked).run(1))
    assert [call[0] for call in hooked.calls] == ["on_failure", "on_complete"]
    assert [record.getMessage().split(" failed; ")[0].split(" run_id=")[0] for record in caplog.records] == [
        f"Both.{hook}",
        "pocket_plug.node.exception",
    ]


def test_a_hook_has_a_grace_period_once_the_run_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """It may continue for `clean_up_grace` seconds after the cancellation, then it is cancelled and reported; not before."""
    clock, ends = FakeClock(), []

    class Tidy(Node[int, int]):
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def exec(self, n: int) -> int:
            return n

        async def on_success(self, store: StoreWriter, output: int) -> None:
            await asyncio.sleep(self.seconds)
            ends.append(clock.elapsed)

    async def cancelled_at(seconds: float, graph: Graph[int, int]) -> None:
        task = asyncio.create_task(graph.run(1))
        await asyncio.sleep(seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        with caplog.at_level(logging.ERROR, "pocket_plug"):
            assert await Graph(Tidy(100), clean_up_grace=7).run(1) == 1  # no cancellation, no limit
            assert ends == [100]
            await cancelled_at(1, Graph(Tidy(5), clean_up_grace="7s"))
            assert (ends, clock.elapsed) == ([100, 105], 105)
            assert caplog.records == []
            await cancelled_at(1, Graph(Tidy(50), clean_up_grace=7))
            assert (ends, clock.elapsed) == ([100, 105], 105 + 1 + 7)
            assert "Tidy.on_success" in caplog.text

    run_virtual(main(), clock)


# ---------------------------------------------------------------- the transaction of a node
@BACKENDS
def test_post_reads_its_own_writes_and_all_are_committed_at_once(backend: type[Backend]) -> None:
    """Before the commit nobody else sees any of it, afterwards everything."""

    async def main() -> None:
        store = Store(backend())
        await store.set("a", 1)

        class Write(Node[int, Any]):
            async def post(self, inside: StoreWriter, n: int, prepared: int, result: int) -> Any:
                await inside.set("a", 2)
                await inside.set("b", 3)
                await inside.delete("a")
                await inside.update("b", lambda b: b + 1)
                outside = await store.get_many(["a", "b"])
                return outside, await inside.get("a"), await inside.get("b"), [key async for key in inside.keys()]

        assert await Graph(Write(), store=store).run(1) == ({"a": 1}, None, 4, ["b"])
        assert await store.get_many(["a", "b"]) == {"b": 4}

    asyncio.run(main())


@BACKENDS
def test_a_raise_in_post_rolls_everything_back(backend: type[Backend]) -> None:
    """None of the node's writes is stored; earlier nodes' writes stay."""

    class First(Node[int, int]):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.set("first", n)
            return n

    async def main() -> None:
        store = Store(backend())
        with pytest.raises(ValueError, match="late"):
            await Graph(First() >> Hooked("post", ValueError("late")), store=store).run(1)
        assert (await store.get("first"), await store.get("posted")) == (1, None)

    asyncio.run(main())


class Counting(Node[int, int]):
    """Counts the calls of its phases, and lets another caller write in between."""

    def __init__(self, between: Callable[[], Any]) -> None:
        self.between = between
        self.calls = {"prep": 0, "exec": 0, "post": 0}

    async def exec(self, prepared: int) -> int:
        self.calls["exec"] += 1
        if self.calls["exec"] == 1:
            self.between()
        return prepared


@pytest.mark.parametrize("colour", ["async", "def"])
@pytest.mark.parametrize("watched", [False, True])
def test_a_key_that_prep_read_and_post_writes_must_be_unchanged(colour: str, watched: bool) -> None:
    """Otherwise the node runs again from prep: no update is lost."""
    store = SyncStore()
    store.set("n", 10)

    class Add(Counting):
        async def prep(self, store: StoreReader, n: int) -> int:
            self.calls["prep"] += 1
            return n + int(await store.require("n"))

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            self.calls["post"] += 1
            await store.set("n", result)
            return result

    class AddDef(Counting):
        def prep(self, store: SyncReader, n: int) -> int:
            self.calls["prep"] += 1
            return n + int(store.require("n"))

        def exec(self, prepared: int) -> int:  # type: ignore[override]
            self.calls["exec"] += 1
            if self.calls["exec"] == 1:
                self.between()
            return prepared

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            self.calls["post"] += 1
            store.set("n", result)
            return result

    add = (Add if colour == "async" else AddDef)(lambda: store.set("n", 100))
    node_ = add.with_options(retry=Retry()) if watched else add
    assert Graph(node_, store=store).run_sync(1) == 101
    assert store.get("n") == 101
    assert node_.calls == {"prep": 2, "exec": 2, "post": 2}


def test_a_conflict_on_what_only_post_read_runs_post_alone_again() -> None:
    """exec, which has the side effects, is not repeated for it."""
    store = SyncStore()

    class Total(Counting):
        async def post(self, inside: StoreWriter, n: int, prepared: int, result: int) -> int:
            self.calls["post"] += 1
            total = int(await inside.get("total", 0)) + n
            if self.calls["post"] == 1:
                store.set("total", 100)
            await inside.set("total", total)
            return total

    total = Total(lambda: None)
    assert Graph(total, store=store).run_sync(1) == 101
    assert total.calls == {"prep": 0, "exec": 1, "post": 2}


def test_a_repeated_post_gets_the_original_values_of_prep() -> None:
    """A list of prep's result that the failed try has changed in place is not changed twice."""
    store = SyncStore()
    store.set("list", [1])

    class Append(Counting):
        async def prep(self, store: StoreReader, n: int) -> int:
            self.calls["prep"] += 1
            return len(await store.require("list"))

        async def post(self, inside: StoreWriter, n: int, prepared: int, result: int) -> Any:
            self.calls["post"] += 1
            items = await inside.require("list")
            await inside.get("other")
            if self.calls["post"] == 1:
                store.set("other", 1)
            items.append(n)
            await inside.set("list", items)
            return items

    append = Append(lambda: None)
    assert Graph(append, store=store).run_sync(2) == [1, 2]
    assert store.get("list") == [1, 2]
    assert append.calls["post"] == 2


@pytest.mark.parametrize("changes_it", [True, False])
def test_values_that_prep_passes_to_post_are_not_changed_twice(changes_it: bool) -> None:
    """If the failed try has changed the list that prep read and returned, it is read again; otherwise only post runs again."""
    store = SyncStore()
    store.set("list", [1])

    class Append(Counting):
        async def prep(self, store: StoreReader, n: int) -> Any:
            self.calls["prep"] += 1
            return await store.require("list")

        async def post(self, inside: StoreWriter, n: int, prepared: Any, result: Any) -> Any:
            self.calls["post"] += 1
            await inside.get("other")
            if self.calls["post"] == 1:
                store.set("other", 1)
            if changes_it:
                prepared.append(n)
            else:
                prepared = [*prepared, n]
            await inside.set("list", prepared)
            return prepared

    append = Append(lambda: None)
    assert Graph(append, store=store).run_sync(2) == [1, 2]
    assert store.get("list") == [1, 2]
    assert append.calls == {"prep": 1 + changes_it, "exec": 1 + changes_it, "post": 2}


def test_a_key_that_prep_only_reads_may_change() -> None:
    """By default it is no conflict; with isolation="serializable" the node runs again."""
    store = SyncStore()

    class Quote(Counting):
        async def prep(self, store: StoreReader, n: int) -> int:
            self.calls["prep"] += 1
            return int(await store.get("price", 0)) + int(await store.get("tax", 0))

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            self.calls["post"] += 1
            await store.set("quote", result)
            return result

    class Report(Quote):
        post = Node.post  # writes nothing at all

    for kind, quote_again in ((Quote, (7, 2)), (Report, (7, 2))):
        for isolation, (price, preps) in (("default", (1, 1)), ("serializable", quote_again)):
            store.set_many({"price": 1, "tax": 0})
            quote = kind(lambda: store.set("price", 7)).with_options(isolation=isolation)
            assert Graph(quote, store=store).run_sync(1) == price, (kind, isolation)
            assert quote.calls["prep"] == preps


@BACKENDS
@pytest.mark.parametrize("in_prep", [True, False], ids=["read in prep", "read in post"])
def test_contended_runs_lose_nothing_with_few_tries(backend: type[Backend], in_prep: bool) -> None:
    """50 concurrent runs add to one key: the sum is exact, and there are a few tries per run, not one per pair of runs."""
    tries = 0

    class Add(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            return n + int(await store.get("sum", 0)) if in_prep else n

        async def exec(self, n: int) -> int:
            await asyncio.sleep(0)
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            nonlocal tries
            tries += 1
            new = result if in_prep else int(await store.get("sum", 0)) + n
            await asyncio.sleep(0)
            await store.set("sum", new)
            return n

    async def main() -> None:
        store = Store(backend())
        graph = Graph(Add(), store=store)
        assert await asyncio.gather(*(graph.run(n) for n in range(50))) == list(range(50))
        assert await store.get("sum") == sum(range(50))

    asyncio.run(main())
    assert tries <= 50 * 6


def test_a_key_that_always_conflicts_is_an_error() -> None:
    """After 20 tries, as the reference says, ConflictError is raised with the key; hooks see it as a failure."""
    failed: list[BaseException] = []
    posts: list[int] = []

    class Racing(Memory):
        """Another caller is always faster."""

        async def read(self, key: str) -> Entry | None:
            entry = await super().read(key)
            await super().write([_touch(key)])
            return entry

    class Add(Node[int, int]):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            posts.append(n)
            await store.set("n", (await store.get("n", 0)) + 1)
            return n

        async def on_failure(self, store: StoreWriter, error: BaseException) -> None:
            failed.append(error)

    with pytest.raises(ConflictError) as caught:
        asyncio.run(Graph(Add(), store=Store(Racing())).run(1))
    assert caught.value.keys == {"n"}
    assert failed == [caught.value]
    assert len(posts) == 20


def test_a_hook_whose_key_always_conflicts_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """After 20 tries; the run itself has succeeded, and is not undone."""
    calls: list[int] = []

    class Racing(Memory):
        async def read(self, key: str) -> Entry | None:
            entry = await super().read(key)
            await super().write([_touch(key)])
            return entry

    class Add(Node[int, int]):
        async def on_success(self, store: StoreWriter, output: int) -> None:
            calls.append(output)
            await store.set("n", (await store.get("n", 0)) + 1)

    assert asyncio.run(Graph(Add(), store=Store(Racing())).run(1)) == 1
    assert len(calls) == 20
    assert [record.levelname for record in caplog.records if "on_success" in record.getMessage()] == ["ERROR"]


def _touch(key: str) -> Any:
    from pocket_plug.store.backend import Put

    return Put(key, 0)


@pytest.mark.parametrize("ending", ["ok", "raise in post", "nowhere", "raise in exec"])
@pytest.mark.parametrize("options", [{}, {"retry": Retry()}], ids=["plain", "guarded"])
def test_a_store_used_after_its_node_raises(ending: str, options: Any) -> None:
    """Whatever the node's outcome is: nothing can be read from it, or buffered without a commit."""
    kept: list[Any] = []

    class Keep(Node[int, Any]):
        async def prep(self, store: StoreReader, n: int) -> int:
            kept.append(store)
            return n

        async def exec(self, n: int) -> int:
            if ending == "raise in exec":
                raise ValueError
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Any:
            kept.append(store)
            if ending == "raise in post":
                raise ValueError
            return Next("nowhere", n) if ending == "nowhere" else n

    async def main() -> None:
        try:
            await Graph(Keep().with_options(**options)).run(1)
        except (ValueError, LookupError):
            assert ending != "ok"
        if ending == "raise in exec":
            return
        reader, writer = kept
        with pytest.raises(TransactionError, match=r"'k'.*ended"):
            await writer.set("k", 1)
        with pytest.raises(TransactionError, match=r"'s:k'.*ended"):
            await writer.scope("s").get("k")
        with pytest.raises(TransactionError, match=r"'k'.*ended"):
            await reader.get("k")

    asyncio.run(main())


# ---------------------------------------------------------------- declared keys
PRICE, ORDER, TAX = Key("price", int), Key("order:{}", int), Key("tax", int)


class Declared(Node[Any, Any], reads=(PRICE, TAX), writes=(ORDER,)):
    def __init__(self, use: Callable[[Any], Any]) -> None:
        self.use = use

    async def post(self, store: StoreWriter, n: Any, prepared: Any, result: Any) -> Any:
        return await self.use(store)


@pytest.mark.parametrize(
    "use",
    [lambda s: s.get(PRICE), lambda s: s.get("price"), lambda s: s.set(ORDER(1), 2), lambda s: s.get(ORDER(1)),
     lambda s: s.update(ORDER("x"), lambda n: n + 1, default=0), lambda s: s.delete("order:9"),
     lambda s: s.scope("order").set("7", 1), lambda s: s.get_many(["price", "tax"])],
)  # fmt: skip
def test_declared_keys_may_be_used(use: Callable[[Any], Any]) -> None:
    """A key in `writes` may be read too; by Key, by plain name, and through a scope."""
    asyncio.run(Graph(Declared(use)).run(None))
    asyncio.run(Graph(Declared(use), scope="deep").run(None))


@pytest.mark.parametrize(
    ("use", "says"),
    [(lambda s: s.get("other"), "node 'declared' reads 'other', which its reads= and writes= do not declare; it has"),
     (lambda s: s.delete("other"), "reads 'other', which its reads= and writes= do not declare; it has: price, tax"),
     (lambda s: s.set(PRICE, 1), "node 'declared' writes 'price', which its writes= does not declare; it has: order:{}"),
     (lambda s: s.set("order:1:2", 1), "writes 'order:1:2'"),
     (lambda s: s.scope("sub").get(PRICE), "reads 'sub:price'"),
     (lambda s: s.scope("order:1").set("x", 1), "writes 'order:1:x'"),
     (lambda s: s.get_many(["price", "nope"]), "reads 'nope'"),
     (lambda s: s.set_many({ORDER(1): 1, "nope": 1}), "writes 'nope'"),
     (lambda s: s.delete_many(["price"]), "writes 'price'")],
)  # fmt: skip
@pytest.mark.parametrize("scope", [None, "deep"])
def test_other_keys_are_refused(use: Callable[[Any], Any], says: str, scope: str | None) -> None:
    """UndeclaredKeyError names the node, the key, the option and what it has; nothing is written."""
    store = SyncStore()
    with pytest.raises(UndeclaredKeyError) as caught:
        asyncio.run(Graph(Declared(use), store=store, scope=scope).run(None))
    assert says in str(caught.value)
    assert list(store.keys()) == []


def test_declared_keys_apply_to_prep_and_hooks_too() -> None:
    """Each of a node's stores checks them."""
    problems: list[BaseException] = []

    class Strict(Node[int, int], reads=(PRICE,)):
        def prep(self, store: SyncReader, n: int) -> int:
            store.get("nope")
            return n

        def on_failure(self, store: SyncWriter, error: BaseException) -> None:
            try:
                store.set("nope", 1)
            except UndeclaredKeyError as refused:
                problems.append(refused)

    with pytest.raises(UndeclaredKeyError, match="reads 'nope'"):
        Graph(Strict()).run_sync(1)
    assert "it has: nothing" in str(problems[0])


@pytest.mark.parametrize("phase", ["prep", "post"])
def test_declared_reads_are_read_together(phase: str) -> None:
    """Plain keys, not templates, by one `read_many`, for the first phase that has a store; telemetry may show them."""
    batches: list[list[str]] = []
    shown: list[str] = []
    singles: list[str] = []

    class Noting(Memory):
        async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
            batches.append(sorted(keys := list(keys)))
            shown.extend(sorted(map(template_of, keys)))
            return {key: entry for key in keys if (entry := await Memory.read(self, key)) is not None}

        async def read(self, key: str) -> Entry | None:
            singles.append(key)
            return await super().read(key)

    async def use(store: Any) -> int:
        return int(await store.get(PRICE, 0)) + int(await store.get(TAX, 0))

    class Prep(Node[int, int], reads=(PRICE, TAX, ORDER)):
        async def prep(self, store: StoreReader, n: int) -> int:
            return await use(store)

    class Post(Node[int, int], reads=(PRICE, TAX, ORDER)):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            return await use(store)

    store = Store(Noting())
    asyncio.run(Graph(Prep() if phase == "prep" else Post(), store=store, scope="s").run(1))
    assert batches == [["s:price", "s:tax"]]
    assert shown == ["price", "tax"]
    assert singles == []


@pytest.mark.parametrize("options", [{}, {"retry": Retry(attempts=1)}], ids=["plain", "guarded"])
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_a_missing_key_names_the_node_that_needs_it(options: Any, sync: bool) -> None:
    """Key, scope, node and phase; once, though the error passes nested graphs; functions by their own name."""

    class Charge(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            return int(await store.require("config:pricing"))

    def look(store: SyncReader, n: int) -> int:
        return int(store.require("limit"))

    def work(n: int) -> int:
        return int(SyncStore().require("in exec"))

    def run(graph: Graph[Any, Any]) -> str:
        with pytest.raises(MissingKeyError) as caught:
            graph.run_sync(1) if sync else asyncio.run(graph.run(1))
        return str(caught.value)

    charge = Charge().with_options(**options)
    assert run(Graph(charge, scope="tenant:7")) == (
        "nothing at 'config:pricing' (scope 'tenant:7:'), needed by Charge.prep")  # fmt: skip
    assert run(Graph(Graph(charge, name="inner"))) == "nothing at 'config:pricing', needed by Charge.prep"
    assert run(Graph(node.of(prep=look, exec=work, **options))) == "nothing at 'limit', needed by work.prep"
    assert run(Graph(node(work, **options))) == "nothing at 'in exec', needed by work.exec"  # type: ignore[call-overload]


# ---------------------------------------------------------------- what a run leaves behind
def test_context_variables_of_a_run_do_not_reach_the_caller() -> None:
    """Its context is its own, with `run` and `run_sync`, after success and failure; within it, later nodes
    see earlier changes.
    """
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    class SetIt(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            variable.set("set inside")
            return n

    class SetDef(Node[int, int]):
        def prep(self, store: SyncReader, n: int) -> int:
            variable.set("set inside")
            return n

    @node
    async def see(n: int) -> str:
        if n < 0:
            raise ValueError(n)
        return variable.get()

    @node
    def see_def(n: int) -> str:
        return variable.get()

    async def main() -> None:
        assert await Graph(SetIt() >> see).run(1) == "set inside"
        assert variable.get() == "unset"
        with pytest.raises(ValueError, match="-1"):
            await Graph(SetIt() >> see).run(-1)
        assert variable.get() == "unset"
        variable.set("the caller's")
        assert await Graph(see).run(1) == "the caller's"
        assert await Graph(see_def).run(1) == "the caller's"

    asyncio.run(main())
    assert Graph(SetDef() >> see_def).run_sync(1) == "set inside"
    assert Graph(SetIt() >> see).run_sync(1) == "set inside"
    assert variable.get() == "unset"


def test_a_run_is_executed_in_the_callers_task() -> None:
    """So `asyncio.timeout` and cancellation reach the node itself."""

    @node
    async def who(n: int) -> Any:
        return asyncio.current_task()

    async def main() -> None:
        assert await Graph(who).run(1) is asyncio.current_task()

    asyncio.run(main())


def alive() -> dict[int, object]:
    gc.collect()
    return {
        id(each): each for each in gc.get_objects() if isinstance(each, Run | Transaction | Execution | asyncio.Task)
    }


def test_ten_thousand_runs_leave_nothing_behind(new_threads: Callable[[], list[threading.Thread]]) -> None:
    """With errors, cancellations, conflicts, hooks and timeouts: no thread, task, run or transaction is left."""

    class Mixed(Node[int, int], timeout=5):
        async def prep(self, store: StoreReader, n: int) -> int:
            await asyncio.sleep(0)
            return n

        async def exec(self, n: int) -> int:
            if n % 4 == 1:
                raise ValueError(n)
            if n % 4 == 2:
                await asyncio.sleep(100)
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.update("n", lambda total: total + 1, default=0)
            return n

        async def on_complete(self, store: StoreWriter) -> None:
            await store.set("last", 1)

    class Quick(Node[int, int]):
        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            if n % 4 == 1:
                raise ValueError(n)
            await store.set("n", n)
            return n

    async def batch(graph: Graph[int, int], first: int, count: int) -> None:
        tasks = [asyncio.create_task(graph.run(n)) for n in range(first, first + count)]
        await asyncio.sleep(0)
        for task in tasks[3::4]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes) >= count // 8
        assert sum(isinstance(outcome, ValueError) for outcome in outcomes) == count // 4

    async def main() -> None:
        mixed, quick = Graph(Mixed()), Graph(Quick())
        await batch(mixed, 0, 100)
        await batch_quick(quick, 100)
        await asyncio.sleep(0)
        context = len(contextvars.copy_context())
        before = alive()  # those of earlier tests, which stay: a new one can't have the same id
        for _ in range(20):
            await batch(mixed, 0, 100)
        await batch_quick(quick, 8_000)
        await asyncio.sleep(0)
        assert alive().keys() == before.keys()
        assert new_threads() == []
        assert len(contextvars.copy_context()) == context

    async def batch_quick(graph: Graph[int, int], count: int) -> None:
        for n in range(count):
            try:
                await graph.run(n)
            except ValueError:
                assert n % 4 == 1

    run_virtual(main())


def test_a_run_that_never_suspends_yields_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tasks make progress meanwhile, and a deadline around an endless run is kept."""
    monkeypatch.setattr("pocket_plug.graph.running.execution.TURN", 0.0)

    @node
    async def spin(n: int) -> int:
        return n

    inner = Graph(spin, name="inner")
    endless = Graph(spin >> spin, max_steps=10**12)
    nested = Graph(inner >> inner, max_steps=10**12)

    async def main(graph: Graph[int, int]) -> None:
        beside = 0

        async def other() -> None:
            nonlocal beside
            while beside < 100:
                beside += 1
                await asyncio.sleep(0)
            task.cancel()

        task = asyncio.create_task(graph.run(1))
        await asyncio.gather(other(), return_exceptions=True)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert beside == 100

    for graph in (endless, nested):
        asyncio.run(main(graph))


def test_a_deadline_ends_an_endless_run() -> None:
    """`asyncio.timeout` fires though no node ever suspends, with any number of steps."""

    @node
    async def spin(n: int) -> int:
        return n

    chain: Any = spin.with_options(name="n0")
    for number in range(1, 15):
        chain = chain >> spin.with_options(name=f"n{number}")
    fifteen = Graph(chain, name="fifteen")  # with the graph's own step it is exactly the runner's interval

    async def main(graph: Graph[int, int]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await graph.run(1)

    for graph in (Graph(spin >> spin, max_steps=10**12), Graph(fifteen >> fifteen, max_steps=10**12)):
        asyncio.run(main(graph))


def test_phase_errors_are_never_retried() -> None:
    """A missing `await` is a bug, which waiting doesn't fix, and the fallback doesn't handle it."""
    attempts = 0

    class Forgets(Node[int, Any], retry=Retry(attempts=5)):
        done = Action[int]()

        def exec(self, n: int) -> Any:
            nonlocal attempts
            attempts += 1
            return asyncio.sleep(0)

        def fallback(self, n: int, error: Exception) -> int:
            raise AssertionError("not for this")

    forgets = Forgets()
    with pytest.raises(PhaseError):
        asyncio.run(Graph(forgets, forgets.done >> forgets).run(1))
    assert attempts == 1
