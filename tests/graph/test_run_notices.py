"""Plugins are notified of changes of durable runs, and logs show them, once they are recorded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from pocket_plug import (
    Ask,
    ConfigError,
    Graph,
    Pocket,
    RunCancelledError,
    Runs,
    RunSuspendedError,
    RunTimeoutError,
    Store,
    each,
    fan_out,
    hookimpl,
    node,
)
from pocket_plug.hookspecs import Run, RunNotice
from pocket_plug.plugins import set_default_pocket
from pocket_plug.testing.clock import FakeClock
from pocket_plug.testing.isolation import fresh_pocket

MESSAGE = "the customer's number"


class Told:
    """A plugin that records its notifications, with the run's state at that moment."""

    def __init__(self) -> None:
        self.notices: list[RunNotice] = []

    @hookimpl
    def pocket_run_notice(self, notice: RunNotice) -> None:
        self.notices.append(notice)

    def said(self) -> list[tuple[str, dict[str, Any]]]:
        return [(each.what, dict(each.attributes)) for each in self.notices]


class Counting:
    """A plugin that records the graphs of the runs that it observes."""

    def __init__(self) -> None:
        self.graphs: list[str] = []

    @hookimpl
    def pocket_observe(self, run: Run) -> None:
        self.graphs.append(run.graph)


def store_in(folder: Path, clock: FakeClock | None = None) -> Store:
    return Store(f"sqlite:///{folder}/state.db?durability=process", clock=clock or FakeClock())


@node
async def same(n: int) -> int:
    return n


@node
async def fail(n: int) -> int:
    if n:
        raise ValueError(MESSAGE)
    return n


def asking(store: Store) -> Graph[Any, Any]:
    return Graph(Ask[int, bool](bool, question="Really?"), store=store, name="asking")


def test_a_failure_is_notified_once_it_is_recorded(tmp_path: Path) -> None:
    """By its type and place, without its message; a plugin that reads the run finds it failed."""
    told, states = Told(), list[str]()

    class Looking:
        @hookimpl
        def pocket_run_notice(self, notice: RunNotice) -> None:
            states.append(store.sync.stack.run(Runs(store).get(notice.run_id)).state)

    async def main() -> None:
        pocket = Pocket(plugins=[told, Looking()], autoload=False)
        async with store:
            inner = Graph(same >> fail, name="inner")
            with pytest.raises(ValueError, match=MESSAGE):
                await Graph(inner, store=store, name="outer").run(1, run_id="a", pocket=pocket)

    store = store_in(tmp_path)
    asyncio.run(main())
    assert told.said() == [("failed", {"error_type": "ValueError", "node": "inner/fail", "visit": 1, "attempts": 1})]
    assert (told.notices[0].run_id, told.notices[0].graph) == ("a", "outer")
    assert states == ["failed"]
    assert MESSAGE not in repr(told.notices)


def test_an_item_that_fails_its_run_is_named(tmp_path: Path) -> None:
    """By its position."""
    told = Told()

    async def main() -> None:
        async with store_in(tmp_path) as store:
            with pytest.raises(ValueError, match=MESSAGE):
                await Graph(each(fail), store=store).run(
                    [0, 0, 1], run_id="a", pocket=Pocket(plugins=[told], autoload=False)
                )

    asyncio.run(main())
    ((what, about),) = told.said()
    assert (what, about["item"]) == ("failed", 2)


def test_other_ends_of_an_execution_are_not_notified_as_failures(tmp_path: Path) -> None:
    """It waits, it continues, it is finished, or its program stops it: then it is still `running`."""
    told = Told()

    async def main() -> None:
        pocket = Pocket(plugins=[told], autoload=False)
        async with store_in(tmp_path) as store:
            with pytest.raises(RunSuspendedError):
                await asking(store).run(1, run_id="a", pocket=pocket)
            await asking(store).resume("a", answer=True, pocket=pocket)
            entered = asyncio.Event()

            @node
            async def wait(n: int) -> int:
                entered.set()
                await asyncio.Event().wait()
                return n

            run = asyncio.create_task(Graph(wait, store=store).run(1, run_id="b", pocket=pocket))
            await entered.wait()
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
            with pytest.raises(ValueError, match=MESSAGE):
                await Graph(fail).run(1, pocket=pocket)  # no durable run

    asyncio.run(main())
    assert told.said() == []


def test_a_library_with_a_pocket_of_its_own_needs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs, and their cancellation, are notified to its own plugins. The program's default Pocket isn't made."""
    monkeypatch.setenv("POCKET_PLUG_CONFIG", str(tmp_path / "missing.toml"))  # the default Pocket would raise
    told, observed = Told(), Counting()

    async def main() -> None:
        own = Pocket(plugins=[told, observed], autoload=False)
        async with Store(own.backend(f"sqlite:///{tmp_path}/state.db")) as store:
            await Graph(same, name="plain").submit(1, run_id="a", store=store, pocket=own)
            with pytest.raises(ConfigError):
                await Runs(store).cancel("a")
            assert (await Runs(store).get("a")).state == "pending"  # refused before it was recorded
            assert (await Runs(store, pocket=own).cancel("a")).state == "cancelled"
            assert await fan_out(same, [1, 2], store=store, pocket=own) == [1, 2]

    with fresh_pocket():
        asyncio.run(main())
    assert [(each.what, each.run_id) for each in told.notices] == [("submitted", "a"), ("cancelled", "a")]
    assert observed.graphs == ["each_same"]


def test_a_cancellation_is_notified_by_the_process_that_records_it(tmp_path: Path) -> None:
    """By the operator if no execution is running, otherwise by the execution; once, however often it is cancelled."""
    told = Told()

    async def main() -> None:
        pocket = Pocket(plugins=[told], autoload=False)
        set_default_pocket(pocket)
        async with store_in(tmp_path) as store:
            runs = Runs(store)
            await Graph(same, store=store, name="plain").submit(1, run_id="a")
            told.notices.clear()
            await runs.cancel("a")
            await runs.cancel("a")
            assert [(each.what, each.run_id, each.graph) for each in told.notices] == [("cancelled", "a", "plain")]
            told.notices.clear()
            entered = asyncio.Event()

            @node
            async def wait(n: int) -> int:
                entered.set()
                await asyncio.Event().wait()
                return n

            run = asyncio.create_task(Graph(wait, store=store, name="long").run(1, run_id="b"))
            await entered.wait()
            await runs.cancel("b")
            with pytest.raises(RunCancelledError):
                await run
            assert [(each.what, each.run_id, each.graph) for each in told.notices] == [("cancelled", "b", "long")]

    try:
        asyncio.run(main())
    finally:
        set_default_pocket(None)


def test_logs_tell_of_failed_and_cancelled_runs(tmp_path: Path) -> None:
    """A failure at level warning, with its type and place; a cancellation at info; neither with a value."""
    (tmp_path / "pocket.toml").write_text("[plugins.logging]\nevents = true\n")

    async def main() -> None:
        set_default_pocket(Pocket(tmp_path / "pocket.toml", autoload=False))
        clock = FakeClock()
        async with store_in(tmp_path, clock) as store:
            with pytest.raises(ValueError, match=MESSAGE):
                await Graph(fail, store=store, name="failing").run(1, run_id="a")
            with pytest.raises(RunSuspendedError):
                await asking(store).run(1, run_id="b")
            await Runs(store).cancel("b")
            late = Graph(Ask[int, bool](bool, question="Really?"), store=store, name="late", timeout=1)
            with pytest.raises(RunSuspendedError):
                await late.run(1, run_id="c")
            clock.advance(2)
            with pytest.raises(RunTimeoutError):
                await late.resume("c")

    try:
        with structlog.testing.capture_logs() as logs:
            asyncio.run(main())
    finally:
        set_default_pocket(None)
        structlog.reset_defaults()  # `capture_logs` configures it
    told = [each for each in logs if each["event"] in ("pocket_plug.run.failed", "pocket_plug.run.cancelled")]
    assert told == [
        {
            "event": "pocket_plug.run.failed",
            "log_level": "warning",
            "run_id": "a",
            "graph": "failing",
            "error_type": "ValueError",
            "node": "fail",
            "visit": 1,
            "attempts": 1,
        },
        {"event": "pocket_plug.run.cancelled", "log_level": "info", "run_id": "b", "graph": "asking"},
        {
            "event": "pocket_plug.run.failed",
            "log_level": "warning",
            "run_id": "c",
            "graph": "late",
            "error_type": "pocket_plug.errors.RunTimeoutError",
        },
    ]
    assert MESSAGE not in repr(told)
