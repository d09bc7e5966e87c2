"""The promises of `Runs` as tests, for a backend that several processes share: inherit `RunsContract` to get the suite."""

from __future__ import annotations

import asyncio
import os
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import pytest

from pocket_plug.codec import default_codec
from pocket_plug.errors import (
    InputError,
    PocketError,
    RunCancelledError,
    RunMismatchError,
    RunStateError,
    RunSuspendedError,
    UnknownRunError,
)
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import Answered, Ask
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.runs import Runs, RunState
from pocket_plug.store.backend import Backend
from pocket_plug.store.store import Store
from pocket_plug.store.views import StoreWriter
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.scenarios import awaited_by, die_where_it_hangs, fork

Scenario = Callable[[Store], Awaitable[None]]


class _Count(Node[Answered[str, bool], str]):
    """The node after the question. It must run once, however many processes answer and resume the run."""

    async def post(self, store: StoreWriter, input: Answered[str, bool], prepared: Any, done: Any) -> str:
        await store.update("counted", lambda counted: counted + 1, default=0)
        return f"{input.input} {input.answer}"


_ask = Ask[str, bool](bool, question=lambda word: f"{word}?", name="ask")


@node
async def _fails(word: str) -> str:
    raise RuntimeError("closed")


@node
async def _same(word: str) -> str:
    return word


def _graphs(store: Store) -> tuple[Graph[Any, Any], Graph[Any, Any], Graph[Any, Any]]:
    asking: Graph[Any, Any] = Graph(_ask >> _Count(), store=store, name="asking")
    return asking, Graph(_fails, store=store, name="failing"), Graph(_same, store=store, name="plain")


class RunsContract:
    """Tests the promises of `Runs` over your backend. Inherit it, and override one fixture:

        class TestMine(RunsContract):
            @pytest.fixture
            def make_backend(self, tmp_path):
                return lambda: Mine(tmp_path / "state")

    It is the fixture of `BackendContract`. The backend must be persistent, and shared by all processes that make one.
    """

    @pytest.fixture
    def make_backend(self) -> Callable[[], Backend]:
        """A function that makes the backend under test; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} must override the fixture make_backend")

    @pytest.fixture
    def run(self, make_backend: Callable[[], Backend]) -> Callable[[Scenario], None]:
        """Runs a scenario with a store over the backend, on a new event loop."""

        def run(scenario: Scenario) -> None:
            async def main() -> None:
                async with Store(make_backend(), clock=FakeClock()) as store:
                    await scenario(store)

            asyncio.run(main())

        return run

    # ------------------------------------------------------------ reading
    @awaited_by("run")
    async def test_pages_have_each_run_once_the_newest_first(self, store: Store) -> None:
        """For all states and graphs, and any page size."""
        ids = await _some_of_each(store)
        runs = Runs(store)
        for limit in (1, 2, 5, 100):
            seen, after = list[str](), None
            while True:
                page = await runs.list(limit=limit, after=after)
                assert len(page.runs) == limit or page.after is None
                seen += [each.run_id for each in page.runs]
                assert len(seen) <= len(ids), "a run is on two pages"
                if (after := page.after) is None:
                    break
            assert seen == ids[::-1]

    @awaited_by("run")
    async def test_lists_of_states_graphs_and_times(self, store: Store) -> None:
        """Each filter alone and combined; if nothing matches, the page is empty."""
        ids = await _some_of_each(store)
        runs = Runs(store)
        everything = (await runs.list()).runs[::-1]
        kinds: list[tuple[RunState, str]] = [("suspended", "asking"), ("failed", "failing"), ("finished", "plain")]
        for state, graph in kinds:
            wanted = [each for each in ids if each.endswith(state)]
            assert [each.run_id for each in (await runs.list(state=state)).runs] == wanted[::-1]
            assert [each.run_id for each in (await runs.list(graph=graph)).runs] == wanted[::-1]
            assert (await runs.list(state="pending", graph=graph)).runs == ()
        both = await runs.list(state={"failed", "suspended"}, since=everything[2].started, until=everything[6].started)
        assert [each.run_id for each in both.runs] == [each for each in ids[2:6] if not each.endswith("finished")][::-1]

    @awaited_by("run")
    async def test_a_failure_is_kept_and_tried_again(self, store: Store) -> None:
        """The run has the error and its place. A retry makes it pending and keeps the failure; a resume is a new execution."""
        _, failing, _ = _graphs(store)
        runs = Runs(store)
        with pytest.raises(RuntimeError, match="closed"):
            await failing.run("word", run_id="r")
        info = await runs.get("r")
        assert (info.state, info.node, info.executions) == ("failed", "_fails", 1)
        assert info.failure is not None
        assert (info.failure.type, info.failure.message, info.failure.node) == ("RuntimeError", "closed", "_fails")
        retried = await runs.retry("r")
        assert (retried.state, retried.failure) == ("pending", info.failure)
        assert (await runs.retry("r")).state == "pending"
        with pytest.raises(RuntimeError, match="closed"):
            await failing.resume("r")
        history = await runs.history("r")
        assert [(each.number, each.left) for each in history.executions] == [(1, "pending"), (2, "failed")]
        assert [each.message for each in history.failures] == ["closed", "closed"]

    # ------------------------------------------------------------ changing
    @awaited_by("run")
    async def test_a_cancelled_run_stays_so(self, store: Store) -> None:
        """It can't be resumed, answered or retried; cancelling again changes nothing; a finished run can't be cancelled."""
        asking, _, plain = _graphs(store)
        runs = Runs(store)
        with pytest.raises(RunSuspendedError):
            await asking.run("go", run_id="r")
        assert (await runs.cancel("r")).state == "cancelled"
        assert (await runs.cancel("r")).state == "cancelled"
        with pytest.raises(RunCancelledError):
            await asking.resume("r")
        for refused in (runs.answer("r", True), runs.retry("r")):
            with pytest.raises(RunStateError) as told:
                await refused
            assert told.value.state == "cancelled"
        await plain.run("x", run_id="done")
        with pytest.raises(RunStateError, match="finished"):
            await runs.cancel("done")
        with pytest.raises(UnknownRunError):
            await runs.cancel("none")

    @awaited_by("run")
    async def test_an_answer_is_for_one_question(self, store: Store) -> None:
        """It makes the run pending. The same answer may be given again, another one not, and one of a wrong type never."""
        asking, _, _ = _graphs(store)
        runs = Runs(store)
        with pytest.raises(RunSuspendedError):
            await asking.run("go", run_id="r")
        (question,) = await runs.questions("r")
        assert (question.id, question.question.load(), question.choices) == ("ask#1", "go?", (True, False))
        with pytest.raises(InputError, match="asks for True or False"):
            await runs.answer("r", 1)
        with pytest.raises(RunMismatchError, match="it has no question 'other#1'"):
            await runs.answer("r", True, question="other#1")
        assert (await runs.answer("r", True)).state == "pending"
        assert (await runs.answer("r", True, question="ask#1")).state == "pending"
        with pytest.raises(RunMismatchError, match="with another answer"):
            await runs.answer("r", False)
        assert await asking.resume("r") == "go True"
        assert await store.get("counted") == 1

    @awaited_by("run")
    async def test_nothing_is_left_of_a_removed_run(self, store: Store) -> None:
        """In any state; its id is free again, and other runs are unchanged."""
        ids = await _some_of_each(store)
        runs = Runs(store)
        for run_id in ids[1:]:
            assert await runs.remove(run_id)
            assert not await runs.remove(run_id)
        assert [each.run_id for each in (await runs.list()).runs] == ids[:1]
        assert await runs.remove(ids[0])
        left = [key async for key in store.stack.scan("pocket:run") if key != "pocket:run-indexed"]
        assert left == []

    # ------------------------------------------------------------ racing
    if hasattr(os, "fork"):

        @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
        @pytest.mark.parametrize("begun", ["suspended", "failed", "finished"])
        def test_of_eight_processes_that_race_for_a_run_the_losers_are_told(
            self, run: Callable[[Scenario], None], make_backend: Callable[[], Backend], begun: str
        ) -> None:
            """Concurrent cancel, answer, retry, resume and remove: one outcome, which all agree on, and no effect twice."""

            async def begin(store: Store) -> None:
                asking, failing, plain = _graphs(store)
                graph = {"suspended": asking, "failed": failing, "finished": plain}[begun]
                for number in range(_RACES):
                    with suppress(RunSuspendedError, RuntimeError):
                        await graph.run("go", run_id=f"r{number}")

            run(begin)
            told = _in_processes([_racer(make_backend, begun, kind) for kind in _KINDS])

            async def check(store: Store) -> None:
                counted = await store.get("counted", 0)
                finished = [any(str(each[number][1]).startswith("go ") for each in told) for number in range(_RACES)]
                assert counted == sum(finished)
                for number in range(_RACES):
                    outcomes = [(kind, *each[number]) for kind, each in zip(_KINDS, told, strict=True)]
                    final: str
                    try:
                        final = (await Runs(store).get(f"r{number}")).state
                    except UnknownRunError:
                        final = "removed"
                    _check_outcomes(final, outcomes)

            run(check)


_RACES = 12
_KINDS = ("cancel", "answer yes", "answer no", "retry", "go on", "go on", "cancel", "remove")
_SPARED: Mapping[str, Callable[[int], bool]] = {"cancel": lambda n: n % 3 == 0, "remove": lambda n: n % 4 > 0}
"""The runs that aren't cancelled, or aren't removed, so that they end in other ways."""
_Outcome = tuple[str, Any]
"""The outcome of one process for one run: "ok" or the error's name, and the state or result."""


def _racer(
    make_backend: Callable[[], Backend], begun: str, kind: str
) -> Callable[[], Coroutine[Any, Any, list[_Outcome]]]:
    async def race() -> list[_Outcome]:
        async with Store(make_backend()) as store:
            asking, failing, plain = _graphs(store)
            graph = {"suspended": asking, "failed": failing, "finished": plain}[begun]
            return [await _told(kind, Runs(store), graph, number) for number in range(_RACES)]

    return race


async def _told(kind: str, runs: Runs, graph: Graph[Any, Any], number: int) -> _Outcome:
    run_id = f"r{number}"
    if kind in _SPARED and _SPARED[kind](number):
        return "ok", "spared"
    try:
        match kind:
            case "cancel":
                return "ok", (await runs.cancel(run_id)).state
            case "answer yes" | "answer no":
                return "ok", (await runs.answer(run_id, kind == "answer yes")).state
            case "retry":
                return "ok", (await runs.retry(run_id)).state
            case "go on":
                return "ok", await _resumed(graph, run_id)
            case _:
                return "ok", await runs.remove(run_id, force=True)
    except RunStateError as error:
        return type(error).__name__, error.state
    except (PocketError, RuntimeError) as error:
        return type(error).__name__, str(error)


async def _resumed(graph: Graph[Any, Any], run_id: str) -> Any:
    """Resume a run and return its result; wait a while for the answer to its question."""
    for _ in range(20):
        with suppress(RunSuspendedError):
            return await graph.resume(run_id, takeover=True)
        await asyncio.sleep(0.002)
    return await graph.resume(run_id, takeover=True)


def _check_outcomes(final: str, outcomes: Sequence[tuple[str, str, Any]]) -> None:
    """Check that the outcomes of all processes fit one history."""
    names = Counter((kind, name) for kind, name, _ in outcomes)
    allowed = {
        "cancel": {"ok", "RunStateError", "UnknownRunError"},
        "answer yes": {"ok", "RunStateError", "RunMismatchError", "UnknownRunError"},
        "answer no": {"ok", "RunStateError", "RunMismatchError", "UnknownRunError"},
        "retry": {"ok", "RunStateError", "UnknownRunError"},
        "go on": {
            *("ok", "RunSuspendedError", "RunCancelledError", "RunFencedError", "UnknownRunError", "RuntimeError"),
        },
        "remove": {"ok"},
    }
    for kind, name, what in outcomes:
        assert name in allowed[kind], (kind, name, what, outcomes)
    results = {what for kind, name, what in outcomes if (kind, name) == ("go on", "ok")}
    assert len(results) <= 1, outcomes
    cancelled = any(kind == "cancel" and what == "cancelled" for kind, _, what in outcomes)
    assert not (results and cancelled), ("it has finished, and was cancelled", outcomes)
    assert not (names["answer yes", "ok"] and names["answer no", "ok"]), ("two answers to one question", outcomes)
    if final == "cancelled":
        assert not results, outcomes
    if final == "finished":
        assert not cancelled, outcomes


def _in_processes(works: Sequence[Callable[[], Coroutine[Any, Any, Any]]]) -> list[Any]:
    """Run each coroutine in its own process, all at once; returns their results."""
    start_out, start_in = os.pipe()
    children: list[tuple[int, int]] = []
    for work in works:
        out, into = os.pipe()
        child = fork()
        if child == 0:
            die_where_it_hangs()
            try:
                os.close(start_in)
                os.read(start_out, 1)  # until the parent closes it
                os.write(into, default_codec.encode(asyncio.run(work())))
                os._exit(0)
            except BaseException:  # noqa: BLE001 - there is nobody to raise it to
                traceback.print_exc()
                sys.stderr.flush()
            os._exit(2)
        os.close(into)
        children.append((child, out))
    os.close(start_out)
    os.close(start_in)
    found: list[Any] = []
    for child, out in children:
        with os.fdopen(out, "rb") as pipe:
            told = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code == 0, f"a process {'hung' if code < 0 else 'failed'}: {code}"
        found.append(default_codec.decode(told))
    return found


async def _some_of_each(store: Store) -> list[str]:
    """Make runs that wait, have failed or have finished, each a second after the one before; returns their ids in this order."""
    clock: Any = store.stack.clock
    asking, failing, plain = _graphs(store)
    ids: list[str] = []
    for number in range(4):
        for graph, state in ((asking, "suspended"), (failing, "failed"), (plain, "finished")):
            clock.advance(1)
            ids.append(f"{number}: {state}")
            with suppress(RunSuspendedError, RuntimeError):
                await graph.run("go", run_id=ids[-1])
    return ids
