"""What plugins see of a run, in which order and context; and nothing they do changes what the run does."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from pocket_plug import (
    Action,
    Graph,
    InputError,
    Next,
    Node,
    NodeTimeoutError,
    Retry,
    StepLimitError,
    each,
    hookimpl,
    node,
)
from pocket_plug.hookspecs import SILENT, NodeCall, Observer, PhaseCall, Run
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.memory import Memory
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.layer_contract import FaultyMemory


class Plugin:
    """Returns one observer for every run."""

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer | None:
        return Observer(**self.parts)


def a_pocket(*plugins: object) -> Pocket:
    return Pocket(plugins=plugins, autoload=False, block=["tracing", "logging", "metrics"])


class Journal:
    """Records all its notifications, as lines."""

    def __init__(self, name: str = "", *, parts: str = "run node phase event", **more: Any) -> None:
        self.name, self.lines = name, []
        self.calls: list[NodeCall] = []
        given: dict[str, Any] = {"run": self.run, "node": self.node, "phase": self.phase, "event": self.event}
        self.parts = {part: given[part] for part in parts.split()} | more
        self.lines: list[str] = []

    @hookimpl
    def pocket_observe(self) -> Observer:
        return Observer(**self.parts)

    @contextmanager
    def _around(self, what: str) -> Any:
        self.lines.append(f"{self.name}> {what}")
        try:
            yield
        except BaseException as error:
            self.lines.append(f"{self.name}< {what}: {type(error).__name__}")
            raise
        else:
            self.lines.append(f"{self.name}< {what}")

    def run(self, run: Run) -> AbstractContextManager[None]:
        return self._around(f"run {run.graph}")  # type: ignore[no-any-return]

    def node(self, call: NodeCall) -> AbstractContextManager[None]:
        self.calls.append(call)
        return self._around(f"node {call.name}")  # type: ignore[no-any-return]

    def phase(self, phase: PhaseCall) -> AbstractContextManager[None]:
        return self._around(f"{phase.phase} {phase.node.name} {phase.attempt}")  # type: ignore[no-any-return]

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        self.lines.append(f"{self.name}! {name} {call.name} {sorted(attributes)}")


@node
def plus(n: int) -> int:
    return n + 1


class Full(Node[int, int]):
    low = Action[int]()

    async def prep(self, store: StoreReader, n: int) -> int:
        return n

    async def exec(self, n: int) -> int:
        return n

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int | Next[int]:
        return self.low(n) if n < 0 else n


# ---------------------------------------------------------------- notifications
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_run_nodes_and_phases_nest(sync: bool) -> None:
    """Each is entered before and left after; only phases that a node overrides are reported."""
    journal = Journal()
    full = Full()
    graph = Graph(full >> plus, full.low >> plus, name="g")
    pocket = a_pocket(journal)
    assert (graph.run_sync(1, pocket=pocket) if sync else asyncio.run(graph.run(1, pocket=pocket))) == 2
    assert journal.lines == [
        "> run g",
        "> node full", "> prep full 1", "< prep full 1", "> exec full 1", "< exec full 1", "> post full 1", "< post full 1",
        "< node full",
        "> node plus", "> exec plus 1", "< exec plus 1", "< node plus",
        "< run g"]  # fmt: skip


@pytest.mark.parametrize("parts", ["run node phase event", "node"])
def test_what_a_call_holds(parts: str) -> None:
    """Name, kind, visit, input and output, action and next node, attempts, outcome, phases: complete when it is left."""
    journal = Journal(parts=parts)
    full = Full()
    inner = Graph(plus, name="inner")

    class Many(Node[int, list[int]]):
        def exec(self, n: int) -> list[int]:
            return [n, n]

    graph = Graph(full >> inner >> Many() >> each(plus.with_options(name="item")), full.low >> full)
    assert graph.run_sync(1, pocket=a_pocket(journal)) == [3, 3]
    seen = [(call.name, call.type, call.visit, call.input, call.output, call.action, call.next, call.attempts, call.outcome)
            for call in journal.calls]  # fmt: skip
    assert seen == [
        ("full", "node", 1, 1, 1, "default", "inner", 1, "ok"),
        ("inner", "graph", 1, 1, 2, "default", "many", 0, "ok"),
        ("plus", "node", 1, 1, 2, "default", None, 1, "ok"),
        ("many", "node", 1, 2, [2, 2], "default", "each_item", 1, "ok"),
        ("each_item", "fan_out", 1, [2, 2], [3, 3], "default", None, 0, "ok"),
        ("item", "node", 1, 2, 3, "default", None, 1, "ok"),
        ("item", "node", 2, 2, 3, "default", None, 1, "ok"),
    ]
    assert journal.calls[0].phases == ("prep", "exec", "post")
    assert all(call.error is None and call.trace and not call.guarded for call in journal.calls)


def test_visits_are_counted_for_each_run() -> None:
    """A loop's second visit is 2; the next run starts with 1 again; `action` is the action taken."""
    journal = Journal()

    class Loop(Node[int, int]):
        again = Action[int]("one-more")

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Any:
            return self.again(n - 1) if n else 0

    loop = Loop()
    graph = Graph(loop, loop.again >> loop)
    for _ in range(2):
        graph.run_sync(2, pocket=a_pocket(journal))
    assert [(call.visit, call.action, call.next) for call in journal.calls] == 2 * [
        (1, "one-more", "loop"), (2, "one-more", "loop"), (3, "default", None)]  # fmt: skip


def test_a_run_and_its_parents() -> None:
    """A nested run has the outer one as parent, a depth, and an id of its own; each counts its own steps."""
    runs: list[Run] = []

    def keep(run: Run) -> None:
        assert run.outcome is None
        runs.append(run)

    inner = Graph(plus >> plus.with_options(name="more"), name="inner")
    graph = Graph(plus >> Graph(inner, name="middle"), name="outer")
    graph.run_sync(1, pocket=a_pocket(Plugin(run=keep, node=lambda call: None)))
    outer, middle, inmost = runs
    assert [run.graph for run in runs] == ["outer", "middle", "inner"]
    assert (outer.parent, middle.parent, inmost.parent) == (None, outer, middle)
    assert [run.depth for run in runs] == [0, 1, 2]
    assert [run.steps for run in runs] == [2, 1, 2]
    assert len({run.id for run in runs}) == 3
    assert [(run.input, run.output, run.outcome, run.error) for run in runs] == [
        (1, 4, "success", None), (2, 4, "success", None), (2, 4, "success", None)]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "outcome", "node_outcome"),
    [(ValueError("x"), "failure", "failed"), (KeyboardInterrupt(), "failure", "failed"),
     (asyncio.CancelledError(), "cancelled", "cancelled"), (NodeTimeoutError("x"), "timeout", "failed"),
     (TimeoutError(), "failure", "failed")],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)  # fmt: skip
@pytest.mark.parametrize("parts", ["run node phase event", "run node"])
def test_outcomes_of_failures(error: BaseException, outcome: str, node_outcome: str, parts: str) -> None:
    """Node and run have the same outcome, and the error that is raised."""
    runs: list[Run] = []

    @node
    async def fails(n: int) -> int:
        raise error

    journal = Journal(parts=parts)
    del journal.parts["event" if "event" in parts else "run"]
    pocket = a_pocket(journal, Plugin(run=runs.append))
    with pytest.raises(type(error)):
        asyncio.run(Graph(fails).run(1, pocket=pocket))
    (call,), (run,) = journal.calls, runs
    assert (call.outcome, call.error) == (node_outcome, error)
    assert (run.outcome, run.error, run.output) == (outcome, error, None)
    name = type(error).__name__
    expected = ["> run graph", "> node fails", "> exec fails 1", f"< exec fails 1: {name}", f"< node fails: {name}",
                f"< run graph: {name}"]  # fmt: skip
    assert journal.lines == [line for line in expected if any(part in line for part in journal.parts)
                             or ("exec" in line and "phase" in parts)]  # fmt: skip


def test_a_wrong_input_and_a_missing_edge_are_seen_at_the_node() -> None:
    """Both happen within the node's context manager; the step limit within the run's."""
    journal = Journal(parts="run node")

    class Lost(Node[Any, Any]):
        def post(self, store: SyncWriter, n: Any, prepared: Any, result: Any) -> Any:
            return Next("nowhere", n)

    pocket = a_pocket(journal)
    with pytest.raises(InputError):
        Graph(plus).run_sync("x", pocket=pocket)  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        Graph(Lost()).run_sync(1, pocket=pocket)
    with pytest.raises(StepLimitError):
        Graph(plus >> plus, max_steps=1).run_sync(1, pocket=pocket)
    assert [line for line in journal.lines if ":" in line] == [
        "< node plus: InputError", "< run graph: InputError", "< node lost: RouteError", "< run graph: RouteError",
        "< run graph: StepLimitError"]  # fmt: skip


def test_a_retry_is_decided_before_the_attempt_is_left() -> None:
    """`will_retry` and `delay` are set when the context manager exits, and the event follows."""
    left: list[tuple[Any, ...]] = []

    @contextmanager
    def phase(about: PhaseCall) -> Any:
        assert not about.will_retry
        try:
            yield
        except OSError:
            raise
        finally:
            left.append((about.phase, about.attempt, about.will_retry, about.delay, about.timeout))

    class Flaky(Node[int, int], retry=Retry(attempts=3, delay=2, backoff=2), timeout=60):
        async def exec(self, n: int) -> int:
            raise OSError

        def fallback(self, n: int, error: Exception) -> int:
            return -n

    journal = Journal(parts="node event")
    assert run_virtual(Graph(Flaky()).run(1, pocket=a_pocket(Plugin(phase=phase), journal))) == -1
    assert left == [("exec", 1, True, 2.0, 60.0), ("exec", 2, True, 4.0, 60.0), ("exec", 3, False, None, 60.0),
                    ("fallback", 1, False, None, None)]  # fmt: skip
    assert journal.lines == [
        "> node flaky", "! retry flaky ['attempt', 'delay', 'error']", "! retry flaky ['attempt', 'delay', 'error']",
        "! fallback flaky ['error']", "< node flaky"]  # fmt: skip
    (call,) = journal.calls
    assert (call.attempts, call.outcome, call.guarded) == (3, "fallback", True)


@pytest.mark.parametrize("parts", ["node", "node phase"])
def test_durations_by_phase(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds for each phase that ran, the sum of all attempts, without the pauses between them."""
    clock = FakeClock()
    monkeypatch.setattr("pocket_plug.graph.running.execution.time.perf_counter", lambda: clock.elapsed)

    class Slow(Node[int, int], retry=Retry(attempts=2, delay=100)):
        failed = False

        async def prep(self, store: StoreReader, n: int) -> int:
            await asyncio.sleep(1)
            return n

        async def exec(self, n: int) -> int:
            await asyncio.sleep(2)
            if not self.failed:
                self.failed = True
                raise OSError
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await asyncio.sleep(8)
            return n

    class Plain(Slow):
        failed = True

    journal = Journal(parts=parts)
    plain = Plain().with_options(retry=Retry(attempts=1))
    run_virtual(Graph(Slow() >> plain).run(1, pocket=a_pocket(journal)), clock)
    slow, quick = journal.calls
    assert slow.durations == pytest.approx({"prep": 1, "exec": 4, "post": 8})
    assert quick.durations == pytest.approx({"prep": 1, "exec": 2, "post": 8})


@pytest.mark.parametrize("parts", ["node", "node phase"])
def test_durations_of_a_plain_node(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a node with retries, whichever parts are observed."""
    clock = FakeClock()
    monkeypatch.setattr("pocket_plug.graph.running.execution.time.perf_counter", lambda: clock.elapsed)

    class Simple(Full):
        async def exec(self, n: int) -> int:
            await asyncio.sleep(2)
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await asyncio.sleep(1)
            return n

    journal = Journal(parts=parts)
    simple = Simple()
    run_virtual(Graph(simple, simple.low >> plus).run(1, pocket=a_pocket(journal)), clock)
    assert journal.calls[0].durations == pytest.approx({"prep": 0, "exec": 2, "post": 1})


@pytest.mark.parametrize("at", ["prep", "exec", "post"])
@pytest.mark.parametrize("parts", ["node", "node phase"])
@pytest.mark.parametrize("hooked", [False, True])
def test_a_phase_that_fails_is_measured_too(at: str, parts: str, hooked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to its error, in each way of executing a node; later phases have no duration."""
    clock = FakeClock()
    monkeypatch.setattr("pocket_plug.graph.running.execution.time.perf_counter", lambda: clock.elapsed)

    class Slow(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            return await self.take(1, "prep")

        async def exec(self, n: int) -> int:
            return await self.take(2, "exec")

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            return await self.take(3, "post")

        async def take(self, seconds: int, phase: str) -> int:
            await asyncio.sleep(seconds)
            if phase == at:
                raise LookupError
            return seconds

    class Hooked(Slow):
        async def on_failure(self, store: StoreWriter, error: Exception) -> None:
            await asyncio.sleep(10)

    journal = Journal(parts=parts)
    with pytest.raises(LookupError):
        run_virtual(Graph((Hooked if hooked else Slow)()).run(1, pocket=a_pocket(journal)), clock)
    (call,) = journal.calls
    everything = {"prep": 1, "exec": 2, "post": 3}
    begun = list(everything)[: list(everything).index(at) + 1]
    assert call.durations == pytest.approx({phase: everything[phase] for phase in begun})
    assert call.attempts == (0 if at == "prep" else 1)


def test_input_and_output_of_phases() -> None:
    """prep and post have the node's input, exec and fallback the result of prep; a failed phase has no output."""

    class All(Node[int, int]):
        def prep(self, store: SyncReader, n: int) -> int:
            return n + 1

        def exec(self, n: int) -> int:
            raise LookupError

        def fallback(self, n: int, error: Exception) -> int:
            return n + 10

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            return n + 100

    seen: list[PhaseCall] = []

    def keep(call: PhaseCall) -> None:
        seen.append(call)

    assert Graph(All()).run_sync(1, pocket=a_pocket(Plugin(phase=keep))) == 101
    assert [(call.phase, call.input, call.output) for call in seen] == [
        ("prep", 1, 2), ("exec", 2, None), ("fallback", 2, 12), ("post", 1, 101)]  # fmt: skip


def test_conflicts_and_failing_hooks_are_events(caplog: pytest.LogCaptureFixture) -> None:
    """Each is reported with its node."""
    store = SyncStore()

    class Add(Node[int, int]):
        tries = 0

        async def post(self, inside: StoreWriter, n: int, prepared: int, result: int) -> int:
            self.tries += 1
            await inside.get("k")
            if self.tries == 1:
                store.set("k", 1)
            await inside.set("k", 2)
            return n

        async def on_complete(self, store: StoreWriter) -> None:
            raise RuntimeError("broken hook")

    journal = Journal(parts="node event")
    assert Graph(Add(), store=store).run_sync(1, pocket=a_pocket(journal)) == 1
    assert journal.lines == [
        "> node add", "! conflict add ['tries']", "! clean_up_failed add ['error', 'hook']", "< node add"]  # fmt: skip
    assert "Add.on_complete failed" in caplog.text


def test_hooks_run_within_the_nodes_context_manager() -> None:
    """So what they log or write is below the node in a trace."""
    journal = Journal(parts="node")

    class Hooked(Node[int, int]):
        async def on_success(self, store: StoreWriter, output: int) -> None:
            journal.lines.append("on_success")

        async def on_complete(self, store: StoreWriter) -> None:
            journal.lines.append("on_complete")

    asyncio.run(Graph(Hooked()).run(1, pocket=a_pocket(journal)))
    assert journal.lines == ["> node hooked", "on_success", "on_complete", "< node hooked"]


# ---------------------------------------------------------------- order, context, cost
def test_the_outermost_observer_comes_first() -> None:
    """It is entered before the others and left after them; of the others, the plugin that was registered last comes first."""
    lines: list[str] = []

    def named(name: str, **more: Any) -> Journal:
        journal = Journal(name, parts="run node", **more)
        journal.lines = lines
        return journal

    pocket = a_pocket(named("tracing", outermost=True), named("b"), named("a"))
    Graph(plus, name="g").run_sync(1, pocket=pocket)
    assert lines == [
        "tracing> run g", "a> run g", "b> run g",
        "tracing> node plus", "a> node plus", "b> node plus", "b< node plus", "a< node plus", "tracing< node plus",
        "b< run g", "a< run g", "tracing< run g"]  # fmt: skip


def test_a_plugin_can_skip_a_run() -> None:
    """None from `pocket_observe`, or from a part, means that it gets nothing more."""
    asked: list[str] = []

    class Choosy:
        @hookimpl
        def pocket_observe(self, run: Run) -> Observer | None:
            asked.append(run.graph)
            return None if run.graph == "quiet" else Observer(node=lambda call: None)

    pocket = a_pocket(Choosy())
    assert Graph(plus, name="quiet").run_sync(1, pocket=pocket) == 2
    assert Graph(plus, name="loud").run_sync(1, pocket=pocket) == 2
    assert asked == ["quiet", "loud"]


class Erring(Node[int, int]):
    """A node without a retry that fails, after one that succeeds, and after one that is retried."""

    async def exec(self, n: int) -> int:
        raise LookupError


class Twice(Node[int, int], retry=Retry(attempts=2)):
    failed = False

    async def exec(self, n: int) -> int:
        if not self.failed:
            self.failed = True
            raise OSError
        return n


@pytest.mark.parametrize("others", [True, False], ids=["with another", "alone"])
def test_a_plugin_that_wants_failures_only_sees_no_other_visits(others: bool) -> None:
    """Its node manager is entered when a visit has failed; retries are reported as usual. Beside a plugin
    that observes all, too.
    """
    journal, other = Journal(parts="run node event", failures_only=True), Journal("other")
    pocket = a_pocket(journal, *([other] if others else []))
    with pytest.raises(LookupError):
        Graph(plus >> Twice() >> Erring(), name="g").run_sync(1, pocket=pocket)
    assert journal.lines == [
        "> run g", *(["> node plus", "< node plus"] if others else []),
        "> node twice", "! retry twice ['attempt', 'delay', 'error']", "< node twice",
        "> node erring", "< node erring: LookupError", "< run g: LookupError"]  # fmt: skip
    call = journal.calls[-1]
    assert (call.name, call.visit, call.input, call.outcome) == ("erring", 1, 2, "failed")
    assert (type(call.error), call.run.steps) == (LookupError, 3)


def test_a_plugin_that_wants_failures_only_gets_the_number_of_the_visit() -> None:
    """The visits that it doesn't see count: of a loop, and of a fan-out with the item's position."""

    class UntilThree(Node[int, int]):
        again = Action[int]()

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Next[int]:
            if n == 3:
                raise LookupError
            return self.again(n + 1)

    until = UntilThree()
    looped, items = Journal(parts="node", failures_only=True), Journal(parts="node", failures_only=True)
    with pytest.raises(LookupError):
        asyncio.run(Graph(until, until.again >> until).run(1, pocket=a_pocket(looped)))
    assert [call.visit for call in looped.calls] == [3]
    with pytest.raises(LookupError):
        Graph(each(Erring())).run_sync([5], pocket=a_pocket(items))
    assert [(call.name, call.is_item, call.position) for call in items.calls] == [
        ("erring", True, 0), ("each_erring", False, None)]  # fmt: skip


@pytest.mark.parametrize("others", [True, False], ids=["with another", "alone"])
def test_a_plugin_can_skip_the_rest_of_a_run_when_it_is_entered(others: bool) -> None:
    """A run manager that returns SILENT is left as usual; it gets nothing else of that run, retries and failures included."""
    left: list[str | None] = []

    class Unsampled:
        def __init__(self, run: Run) -> None:
            self.run = run

        def __enter__(self) -> object:
            return SILENT

        def __exit__(self, *_: object) -> None:
            left.append(self.run.outcome)

    class Flaky(Node[int, int], retry=Retry(attempts=2)):
        def exec(self, n: int) -> int:
            raise LookupError

    silent, other = Journal("silent", run=Unsampled), Journal("other")
    pocket = a_pocket(silent, *([other] if others else []))
    with pytest.raises(LookupError):
        Graph(plus >> Flaky()).run_sync(1, pocket=pocket)
    assert (silent.lines, left) == ([], ["failure"])
    alone = Journal("other")
    with pytest.raises(LookupError):
        Graph(plus >> Flaky()).run_sync(1, pocket=a_pocket(alone))
    assert other.lines == (alone.lines if others else [])


@pytest.mark.parametrize("colour", ["def", "async"])
def test_run_sync_asks_once(colour: str) -> None:
    """One run calls `pocket_observe` once, whether it needs an event loop or not."""
    asked: list[str] = []

    class Asks:
        @hookimpl
        def pocket_observe(self, run: Run) -> None:
            asked.append(run.id)

    @node
    async def later(n: int) -> int:
        return n

    graph = Graph(plus if colour == "def" else later)
    graph.run_sync(1, pocket=a_pocket(Asks()))
    assert len(asked) == 1


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
@pytest.mark.parametrize("part", ["run", "node", "phase"])
def test_what_an_observer_sets_in_a_context_variable_is_seen_in_the_nodes_code(part: str, sync: bool) -> None:
    """In async and def phases, threads, items and hooks; it is reset in the context in which it was set."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")
    seen: list[tuple[str, str]] = []

    @contextmanager
    def inside(about: Any) -> Any:
        token = variable.set("inside")
        yield
        variable.reset(token)  # raises in another context than that of the set

    def see(where: str) -> None:
        seen.append((where, variable.get()))

    class Sees(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            see("prep")
            return n

        def exec(self, n: int) -> int:
            see("exec")
            return n

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            see("post")
            return n

        async def on_complete(self, store: StoreWriter) -> None:
            see("on_complete")

    pocket = a_pocket(Plugin(**{part: inside}))
    graph: Graph[Any, Any] = Graph(each(Sees(), concurrency=2))

    async def main() -> None:
        await graph.run([1, 2, 3], pocket=pocket)
        assert variable.get() == "outside"

    if sync:
        graph.run_sync([1, 2, 3], pocket=pocket)
    else:
        asyncio.run(main())
    assert sorted(where for where, _ in seen) == sorted(3 * ["prep", "exec", "post", "on_complete"])
    expected = {"inside"} if part != "phase" else {"inside", "outside"}
    assert {value for _, value in seen} == expected
    assert all(value == "inside" for where, value in seen if where != "on_complete")


def test_observers_do_not_change_what_a_run_does() -> None:
    """The same results, errors, texts and writes, with observers of all parts, of some, or without observers."""

    class Odd(Node[int, int], retry=Retry(attempts=2)):
        async def prep(self, store: StoreReader, n: int) -> int:
            return n + int(await store.require("base")) if n != 4 else int(await store.require("nothing"))

        async def exec(self, n: int) -> int:
            if n == 11:
                raise OSError("eleven")
            return n

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> Any:
            store.set(f"odd:{n}", result)
            return Next("gone", n) if n == 3 else result

    class Plain(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            return n + int(await store.require("base")) if n != 4 else int(await store.require("nothing"))

        async def exec(self, n: int) -> int:
            if n == 11:
                raise OSError("eleven")
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Any:
            await store.set(f"odd:{n}", result)
            return Next("gone", n) if n == 3 else result

    def outcome(kind: type[Node[int, int]], backend: Any, pocket: Pocket, n: Any, sync: bool) -> Any:
        async def prepared() -> Store:
            store = Store(backend())
            await store.set("base", 10)
            return store

        async def main() -> Any:
            store = await prepared()
            result = await _caught(Graph(kind() >> plus, store=store).run(n, pocket=pocket))
            return result, await store.get_many(["base", "odd:1", "odd:2", "odd:3", "odd:4"])

        if not sync:
            return asyncio.run(main())
        store = SyncStore()
        store.set("base", 10)
        try:
            result: Any = Graph(kind() >> plus, store=store).run_sync(n, pocket=pocket)
        except Exception as error:  # noqa: BLE001
            result = type(error), str(error)
        return result, store.get_many(["base", "odd:1", "odd:2", "odd:3", "odd:4"])

    silent = a_pocket()
    pockets = [a_pocket(Journal(parts=parts)) for parts in ("run node phase event", "node", "phase", "run", "event")]
    for kind in (Odd, Plain):
        for backend, sync in ((Memory, False), (FaultyMemory, False), (Memory, True)):
            for n in (1, 2, 3, 4, "x"):
                plain = outcome(kind, backend, silent, n, sync)
                for pocket in pockets:
                    assert outcome(kind, backend, pocket, n, sync) == plain, (kind, backend, n)


async def _caught(run: Any) -> Any:
    try:
        return await run
    except Exception as error:  # noqa: BLE001
        return type(error), str(error)


# ---------------------------------------------------------------- observers that fail
class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def boom(*_: Any) -> Any:
    raise ZeroDivisionError("observer is broken")


class Manager:
    """A context manager that does what it is told."""

    def __init__(self, enter: Callable[[], Any] = lambda: None, leave: Callable[[], Any] = lambda: None) -> None:
        self.enter, self.leave = enter, leave

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, *_: object) -> Any:
        return self.leave()


FAULTS: dict[str, Callable[[Any], Any]] = {
    "raises when asked": boom,
    "raises on enter": lambda about: Manager(enter=boom),
    "raises on exit": lambda about: Manager(leave=boom),
    "gives garbage": lambda about: 42,
    "exits the program": lambda about: Manager(leave=lambda: exit(3)),
}


@pytest.mark.parametrize("fails", [False, True], ids=["ok", "failing"])
@pytest.mark.parametrize("part", ["run", "node", "phase"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_observer_changes_nothing(
    fault: str, part: str, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Result and error are unchanged; the failure is logged once with the plugin's name; other observers are entered and left as
    usual.
    """
    journal = Journal(parts="run node phase")
    after = Journal(parts="run node phase")
    broken = Plugin(**{part: FAULTS[fault]})

    @node
    async def work(n: int) -> int:
        if fails:
            raise ValueError("the node's own")
        return n

    graph = Graph(work >> work.with_options(name="again"))
    pocket = a_pocket(journal, broken, after)
    with caplog.at_level(logging.WARNING, "pocket_plug"):
        for _ in range(2):
            if fails:
                with pytest.raises(ValueError, match="the node's own"):
                    asyncio.run(graph.run(1, pocket=pocket))
            else:
                assert asyncio.run(graph.run(1, pocket=pocket)) == 1
    assert journal.lines == after.lines
    assert len([line for line in journal.lines if line.startswith(">")]) == len(journal.lines) / 2
    (record,) = caplog.records
    assert "plugin 'plugin'" in record.getMessage()
    assert "pocket_observe" in record.getMessage()


@pytest.mark.parametrize("part", ["run", "node", "phase"])
def test_no_observer_can_swallow_an_error(part: str) -> None:
    """The return value of `__exit__` is ignored, and so is an error that it raises in place of the node's."""

    def instead() -> Any:
        raise RuntimeError("instead")

    @node
    async def fails(n: int) -> int:
        raise ValueError("the node's own")

    for leave in (lambda: True, instead):
        pocket = a_pocket(Plugin(**{part: lambda about, leave=leave: Manager(leave=leave)}))
        for run in (lambda p=pocket: asyncio.run(Graph(fails).run(1, pocket=p)),
                    lambda p=pocket: Graph(fails).run_sync(1, pocket=p)):  # fmt: skip
            with pytest.raises(ValueError, match="the node's own") as caught:
                run()
            assert not isinstance(caught.value.__context__, RuntimeError)


def test_a_failing_event_or_hook_is_logged_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Events and `pocket_observe` itself, with an exception that can't even be printed."""

    def unprintable(*_: Any) -> None:
        raise Unprintable

    class Worse:
        @hookimpl
        def pocket_observe(self, run: Run) -> Observer:
            raise Unprintable

    class Garbage:
        @hookimpl
        def pocket_observe(self, run: Run) -> Any:
            return "an observer"

    class Flaky(Node[int, int], retry=Retry(attempts=9)):
        tries = 0

        async def exec(self, n: int) -> int:
            self.tries += 1
            if self.tries < 5:
                raise OSError
            return n

    pocket = a_pocket(Plugin(event=unprintable), Worse(), Garbage())
    with caplog.at_level(logging.WARNING, "pocket_plug"):
        for _ in range(3):
            assert asyncio.run(Graph(Flaky()).run(1, pocket=pocket)) == 1
    assert [record.getMessage().partition(" failed at ")[0] for record in caplog.records] == [
        "plugin 'garbage'", "plugin 'worse'", "plugin 'plugin'"]  # fmt: skip
    assert pocket.plugin("plugin").failures == {"pocket_observe (event)": 4 * 3}
    assert pocket.plugin("worse").failures == {"pocket_observe": 3}


def test_a_failing_node_manager_of_one_plugin_leaves_the_others_entered() -> None:
    """The failing one is not left; the others are, in reverse order."""
    left: list[str] = []
    plugins = [
        Plugin(node=lambda call: Manager(leave=lambda: left.append("first"))),
        Plugin(node=lambda call: Manager(enter=boom, leave=lambda: left.append("never"))),
        Plugin(node=lambda call: Manager(leave=lambda: left.append("last"))),
    ]
    assert Graph(plus).run_sync(1, pocket=a_pocket(*plugins)) == 2
    assert left == ["first", "last"]
