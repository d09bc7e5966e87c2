"""The promises of an executor as tests: inherit `ExecutorContract` to get the whole suite.

The graphs are in `executor_graphs`, from which workers import them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry import context as otel_context

from pocket_plug.errors import (
    CodecError,
    ConfigError,
    ExecutorLostError,
    GraphError,
    NodeTimeoutError,
    PocketError,
    UnregisteredTypeError,
    WorkerCodeError,
    WrappedStopIterationError,
)
from pocket_plug.graph.following.events import Emitted, Progressed
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import each
from pocket_plug.hookspecs import hookimpl
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.propagation import session
from pocket_plug.remote import Executor, perform
from pocket_plug.remote.failures import put_together
from pocket_plug.remote.wire import FORMAT, Chunk, Item, Node, answers_of, to_bytes
from pocket_plug.store.store import Store
from pocket_plug.testing import executor_graphs as graphs
from pocket_plug.testing.scenarios import works_in_a_child
from pocket_plug.testing.spans import SpanCapture

HANGS = 60.0
"""Seconds after which a test counts as hanging; a passing test doesn't wait."""

MANY = 1_000


class Offering:
    """A plugin that offers the executor under test."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    @hookimpl
    def pocket_executors(self) -> dict[str, Callable[[str], Executor]]:
        """The executor, by the name that the graphs use."""
        return {graphs.EXECUTOR: lambda url: self.executor}


async def has(file: Path) -> None:
    """Wait until a worker has made the file."""
    there = file.exists  # on a local disk, so it doesn't block
    while not there():  # noqa: ASYNC110 - another process makes the file
        await asyncio.sleep(0.01)


class ExecutorContract:
    """Tests every promise of an Executor. Inherit it, and override the fixture `executor`, with any scope, which closes it."""

    @pytest.fixture
    def executor(self) -> Executor:
        """The executor under test; to be overridden."""
        raise NotImplementedError

    @pytest.fixture
    def pocket(self, executor: Executor) -> Pocket:
        """A Pocket that has the executor by the graphs' name for it. It isn't closed, since that would close the executor."""
        return Pocket(plugins=[Offering(executor)], autoload=False)

    def run(self, working: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine on a new event loop, with a time limit."""

        async def in_time() -> Any:
            async with asyncio.timeout(HANGS):
                return await working

        return asyncio.run(in_time())

    # ------------------------------------------------------------ results
    @pytest.mark.parametrize("graph", [graphs.halving, graphs.halving_async], ids=["def", "async def"])
    def test_exec_gives_what_it_gives_here(self, pocket: Pocket, graph: Graph[int, int]) -> None:
        """With an event loop and without one."""
        assert self.run(graph.run(42, pocket=pocket)) == 21
        assert graph.run_sync(44, pocket=pocket) == 22

    def test_exec_runs_elsewhere(self, pocket: Pocket, executor: Executor) -> None:
        """In another process, unless the executor works in this one."""
        assert (self.run(graphs.located.run(0, pocket=pocket)) == os.getpid()) is executor.in_process

    def test_prep_and_post_and_the_store_stay_here(self, pocket: Pocket, executor: Executor) -> None:
        """Only exec runs elsewhere; the writes of post are committed as usual."""
        store = Store()

        async def use() -> tuple[int, Any, Any]:
            await store.set("price", 3)
            charged = await graphs.charging.run(7, pocket=pocket, store=store)
            return charged, await store.get("charged"), await store.get("pid")

        charged, written, pid = self.run(use())
        assert (charged, written) == (21, 21)
        assert (pid == os.getpid()) is executor.in_process

    def test_nested_graphs_are_found(self, pocket: Pocket) -> None:
        """A worker finds a node by its path. A nested graph that isn't a global of a module is found through the outer graph."""
        assert self.run(graphs.outer.run(12, pocket=pocket)) == 3
        assert self.run(graphs.deep.run([2, 4, 6], pocket=pocket)) == [1, 2, 3]

    @pytest.mark.parametrize("graph", [graphs.told, graphs.told_async], ids=["def", "async def"])
    @pytest.mark.parametrize("n", [8, 7], ids=["it ends", "it fails"])
    def test_what_exec_reports_arrives(self, pocket: Pocket, graph: Graph[int, int], n: int) -> None:
        """Before the result or the error at the latest, and with the node's place in the run."""
        events: list[Any] = []
        note = events.append  # kept also if an error follows

        async def follow() -> None:
            async for event in graph.stream(n, pocket=pocket):
                note(event)

        with pytest.raises(graphs.OddError) if n % 2 else nullcontext():
            self.run(follow())
        (emitted,) = [event for event in events if isinstance(event, Emitted)]
        *_, last = [event for event in events if isinstance(event, Progressed)]
        assert (emitted.value, emitted.node) == ({"n": n}, graph.name.replace("told", "telling"))
        assert (last.done, last.total, last.place) == (3, 3, emitted.place)

    # ------------------------------------------------------------ errors
    @pytest.mark.parametrize("graph", [graphs.halving, graphs.halving_async], ids=["def", "async def"])
    def test_errors_come_back_by_their_type(self, pocket: Pocket, graph: Graph[int, int]) -> None:
        """With their attributes and text, and a note with their place in the run."""
        with pytest.raises(graphs.OddError) as failed:
            self.run(graph.run(41, pocket=pocket))
        assert (str(failed.value), failed.value.number) == ("41 is odd", 41)
        assert any("at node 'half" in note for note in failed.value.__notes__)

    def test_the_traceback_of_a_worker_is_a_note(self, pocket: Pocket, executor: Executor) -> None:
        """It shows the line and the worker."""
        with pytest.raises(graphs.OddError) as failed:
            self.run(graphs.halving.run(41, pocket=pocket))
        notes = "\n".join(failed.value.__notes__)
        assert executor.in_process or ("on worker" in notes and "raise OddError(n)" in notes)

    def test_a_stop_iteration_is_an_error_as_here(self, pocket: Pocket) -> None:
        """No coroutine can raise StopIteration: Python's own error for that would not name the phase."""
        with pytest.raises(WrappedStopIterationError) as failed:
            self.run(graphs.exhausting.run(None, pocket=pocket))
        assert any("at node 'exhausted'" in note for note in failed.value.__notes__)

    def test_a_retry_is_done_for_its_errors(self, pocket: Pocket, tmp_path: Path) -> None:
        """`Retry(on=…)` matches the class of an error that was raised by a worker."""
        assert self.run(graphs.retried.run((str(tmp_path), 2), pocket=pocket)) == 3

    def test_a_retry_ends_as_here(self, pocket: Pocket, tmp_path: Path) -> None:
        """After the last attempt, its error is raised."""
        with pytest.raises(graphs.OddError) as failed:
            self.run(graphs.retried.run((str(tmp_path), 5), pocket=pocket))
        assert failed.value.number == 3

    def test_a_fallback_answers_here(self, pocket: Pocket) -> None:
        """The fallback runs in this process, and gets the worker's error."""
        assert self.run(graphs.falling_back.run(43, pocket=pocket)) == (43, os.getpid())

    def test_what_cannot_be_sent_is_an_error_that_names_the_node(self, pocket: Pocket, executor: Executor) -> None:
        """It is raised before anything is sent."""
        if executor.in_process:
            assert self.run(graphs.located.run(graphs.Unknown(), pocket=pocket)) == os.getpid()
            return
        with pytest.raises(UnregisteredTypeError, match=r"node 'where'.*Unknown"):
            self.run(graphs.located.run(graphs.Unknown(), pocket=pocket))

    def test_what_cannot_be_sent_back_is_an_error_that_names_the_node(self, pocket: Pocket, executor: Executor) -> None:
        """The codec doesn't know the type of exec's result."""
        if executor.in_process:
            assert isinstance(self.run(graphs.unknowing.run(0, pocket=pocket)), graphs.Unknown)
            return
        with pytest.raises(CodecError, match=r"node 'unknown'.*Unknown"):
            self.run(graphs.unknowing.run(0, pocket=pocket))

    # ------------------------------------------------------------ time
    @pytest.mark.parametrize("with_loop", [True, False], ids=["run", "run_sync"])
    def test_a_time_out_is_raised_here_in_time(self, pocket: Pocket, tmp_path: Path, with_loop: bool) -> None:
        """While exec still waits on a worker; after that, the executor does other work."""

        def wait() -> object:
            if with_loop:
                return self.run(graphs.waiting.run(str(tmp_path), pocket=pocket))
            return graphs.waiting.run_sync(str(tmp_path), pocket=pocket)

        try:
            with pytest.raises(NodeTimeoutError, match="timeout=1 seconds"):
                wait()
        finally:
            (tmp_path / "go").touch()
        assert self.run(graphs.halving.run(2, pocket=pocket)) == 1

    def test_a_cancelled_run_begins_nothing_more(self, pocket: Pocket, tmp_path: Path) -> None:
        """Work that is still queued is not begun."""

        async def cancel() -> None:
            running = asyncio.create_task(graphs.counting.run([(str(tmp_path), n) for n in range(MANY)], pocket=pocket))
            await has(tmp_path / "begun-0")
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        self.run(cancel())
        (tmp_path / "go").touch()
        assert self.run(graphs.halving.run(2, pocket=pocket)) == 1
        assert len([*tmp_path.glob("begun-*")]) < MANY

    # ------------------------------------------------------------ fan-outs
    def test_items_keep_their_order(self, pocket: Pocket) -> None:
        """In whatever batches they were sent."""
        assert self.run(graphs.many.run(range(0, 2 * MANY, 2), pocket=pocket)) == [*range(MANY)]
        assert graphs.many.run_sync(range(0, 20, 2), pocket=pocket) == [*range(10)]

    def test_each_item_has_its_own_error(self, pocket: Pocket) -> None:
        """A failing item doesn't stop others, also not those in its chunk; each error has its own notes."""
        found = self.run(graphs.collecting.run(range(200), pocket=pocket))
        assert [each for each in found if isinstance(each, int)] == [*range(100)]
        errors = [each for each in found if isinstance(each, graphs.OddError)]
        assert [error.number for error in errors] == [*range(1, 200, 2)]
        assert all(sum("in item" in note for note in error.__notes__) == 1 for error in errors)

    def test_an_iterator_is_drawn_as_there_is_room(self, pocket: Pocket, executor: Executor) -> None:
        """Only a limited number of items are queued or being executed; further ones aren't drawn yet."""
        end, done, under_way = 3 * executor.room, graphs.Tallied.done, list[int]()
        done.clear()

        def draw() -> Iterator[int]:
            for n in range(end):
                under_way.append(n + 1 - len(done))
                yield n

        assert self.run(graphs.tallying.run(draw(), pocket=pocket)) == [*range(end)]
        assert max(under_way) <= executor.room + 1

    def test_a_durable_fan_out_is_kept_item_by_item(self, pocket: Pocket, tmp_path: Path) -> None:
        """Recorded items of a failed run aren't executed again: each is executed once, except the one that failed."""
        store = Store(f"sqlite:///{tmp_path}/state.db")
        items = [(str(tmp_path), n) for n in range(20)]

        def did() -> int:
            return sum(file.stat().st_size for file in tmp_path.glob("did-*"))

        async def use() -> tuple[list[int], list[int]]:
            async with store:
                with pytest.raises(graphs.OddError):
                    await graphs.stumbling.run(items, pocket=pocket, store=store, run_id="r-1")
                before = did()
                done = await graphs.stumbling.run(items, pocket=pocket, store=store, run_id="r-1")
                again = await graphs.stumbling.run(items, pocket=pocket, store=store, run_id="r-1")
                assert again == done
                return done, [before, did()]

        done, (before, after) = self.run(use())
        assert done == [*range(20)]
        assert (before, after) == (20, 21)

    # ------------------------------------------------------------ context
    def test_the_trace_goes_on_there(self, pocket: Pocket) -> None:
        """On the worker, exec's span is the current one, and session and baggage are those of the run."""
        with SpanCapture() as capture, session("chat-17"):
            token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
            try:
                trace_id, span_id, there, tenant = self.run(graphs.traced.run(0, pocket=pocket))
            finally:
                otel_context.detach(token)
        span = capture.one("exec context").get_span_context()
        assert span is not None
        assert (trace_id, span_id) == (f"{span.trace_id:032x}", f"{span.span_id:016x}")
        assert (there, tenant) == ("chat-17", "acme")

    def test_the_idempotency_key_is_known_there(self, pocket: Pocket, tmp_path: Path) -> None:
        """It is that of the run, node and visit; without a durable run, the error is the same as here."""
        store = Store(f"sqlite:///{tmp_path}/state.db")

        async def use() -> str:
            async with store:
                key: str = await graphs.keyed.run(0, pocket=pocket, store=store, run_id="r-1")
                return key

        assert self.run(use()) == "r-1/key#1"
        with pytest.raises(PocketError, match="no durable run"):
            self.run(graphs.keyed.run(0, pocket=pocket))

    # ------------------------------------------------------------ loops, threads, ends
    def test_any_loop_and_any_thread_may_use_it(self, pocket: Pocket) -> None:
        """One after the other, and concurrently."""
        found: list[int] = []

        def use() -> None:
            found.extend(asyncio.run(graphs.halving.run(8, pocket=pocket)) for _ in range(3))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [4] * 12

    def test_it_begins_anew_after_a_close(self, pocket: Pocket, executor: Executor) -> None:
        """After its Pocket has closed it, it can be used again; closing twice is allowed."""
        assert self.run(graphs.halving.run(2, pocket=pocket)) == 1
        pocket.shutdown()
        executor.close()
        assert self.run(graphs.halving.run(4, pocket=pocket)) == 2

    def test_a_forked_child_begins_anew(self, pocket: Pocket) -> None:
        """A child uses its own workers, and doesn't affect its parent's, also when it ends."""
        assert self.run(graphs.halving.run(2, pocket=pocket)) == 1

        async def use() -> None:
            assert await graphs.halving.run(4, pocket=pocket) == 2
            pocket.shutdown()

        assert works_in_a_child(use)
        assert self.run(graphs.halving.run(6, pocket=pocket)) == 3

    def test_a_killed_worker_is_replaced(self, pocket: Pocket, executor: Executor, tmp_path: Path) -> None:
        """Its work is executed again by another worker."""
        if not executor.in_process:
            assert self.run(graphs.killing.run((str(tmp_path), 1), pocket=pocket)) == 2

    def test_work_that_kills_its_workers_is_given_up(self, pocket: Pocket, executor: Executor, tmp_path: Path) -> None:
        """It raises ExecutorLostError, which a retry may handle; other work is still done."""
        if executor.in_process:
            return
        with pytest.raises(ExecutorLostError, match="node 'deadly'"):
            self.run(graphs.killing.run((str(tmp_path), 100), pocket=pocket))
        assert self.run(graphs.halving.run(2, pocket=pocket)) == 1

    # ------------------------------------------------------------ the code
    @pytest.mark.parametrize(
        ("node", "found"),
        [
            (Node("half", "no_such_module:graph", ("half",), 1, ""), "ModuleNotFoundError"),
            (Node("half", f"{graphs.__name__}:no_such_graph", ("half",), 1, ""), "no graph"),
            (Node("half", f"{graphs.__name__}:halving", ("third",), 1, ""), "no node 'third'"),
            (Node("half", f"{graphs.__name__}:halving", ("half",), 2, "3.0:0"), "version 1"),
        ],
        ids=["module", "graph", "node", "version"],
    )
    def test_a_worker_without_the_code_says_so(self, executor: Executor, node: Node, found: str) -> None:
        """The error has the worker, the module, what was found there and what was expected."""
        if executor.in_process:
            return
        request = to_bytes(Chunk(FORMAT, [node], [Item(0, b"", {}, None, None)]))
        answers = answers_of(executor.submit(perform, request).result(HANGS))
        failure = answers.answers[0].failure
        assert failure is not None
        error = put_together(failure, answers.worker)
        assert isinstance(error, WorkerCodeError)
        assert answers.worker in str(error)
        assert found in error.found
        assert f"version {node.version}" in error.expected
        assert error.module == node.reference.partition(":")[0]

    def test_late_work_is_not_begun(self, executor: Executor) -> None:
        """A worker doesn't begin work for which no time is left."""
        if executor.in_process:
            return
        node = Node("half", f"{graphs.__name__}:halving", ("half",), 1, "0.0:")
        request = to_bytes(Chunk(FORMAT, [node], [Item(0, b"", {}, 0.0, None)]))
        answer = answers_of(executor.submit(perform, request).result(HANGS)).answers[0]
        assert (answer.value, answer.failure) == (None, None)

    def test_a_graph_without_a_name_is_found_before_the_run(self, pocket: Pocket, executor: Executor) -> None:
        """The error says what to do. An executor of this process needs no such name."""
        graph = Graph(graphs.Charge().with_options(executor=graphs.EXECUTOR))
        if executor.in_process:
            graph.validate(pocket=pocket)
            return
        with pytest.raises(GraphError, match="top level of a module"):
            graph.validate(pocket=pocket)
        with pytest.raises(GraphError, match="top level of a module"):
            self.run(graph.run(1, pocket=pocket))

    def test_a_node_with_a_name_needs_no_graph_with_one(self, pocket: Pocket) -> None:
        """If a node is a global of a module, it can be used by `fan_out` and in graphs that are made within functions."""
        assert self.run(Graph(each(graphs.half, executor=graphs.EXECUTOR)).run([2, 4], pocket=pocket)) == [1, 2]

    def test_an_unknown_executor_is_found_before_the_run(self, pocket: Pocket) -> None:
        """The error has the known names."""
        graph = Graph(graphs.half.with_options(executor="contrac"))
        with pytest.raises(GraphError, match="Did you mean 'contract'"):
            graph.validate(pocket=pocket)
        with pytest.raises(ConfigError, match="there is: contract"):
            pocket.executor("nowhere://")
