"""Fixtures of several test files: distributions that are installed for one test, and stores of every kind."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import os
import signal
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import none

from pocket_plug import Memory, Store, StoreReader, SyncStore, TypedReader
from pocket_plug.backends.sqlite import SQLite
from pocket_plug.plugins.pocket import set_default_pocket
from pocket_plug.primitives.waiting import Waiter, wake
from pocket_plug.store.backend import NO_EXPECTATIONS, Backend, Change, Entry
from pocket_plug.testing.layer_contract import FaultyMemory

# A shell starts its background jobs with Ctrl-C ignored. Child processes inherit this, so tests that start and
# interrupt processes would never end; a handler of Python's isn't inherited.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests that start pytest: this plugin of it, which comes with LangGraph, warns with Python 3.14 when it is imported.
os.environ["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} -p no:langsmith_plugin"

# A busy machine must not fail a test. In CI the examples are the same each time, so that a failure comes from the
# change; elsewhere they vary.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("patient"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "patient")


# The terminal and the telemetry variables of the shell that starts the tests must not matter.
for _name in [*os.environ]:
    if _name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR") or _name.startswith(("OTEL_", "POCKET_PLUG_")):
        del os.environ[_name]

# An installed plugin adds to spans if no Pocket is named. Tests of spans run without it; its own tests name a Pocket
# with it.
os.environ["POCKET_PLUG_DISABLE"] = "openinference"


@given(none())
def _first(_: None) -> None:
    """Before its first test, Hypothesis asks the garbage collector who refers to numpy's random generator."""


def pytest_collection_finish() -> None:
    """What exists now stays until the end. The garbage collector need not go through it, which takes a quarter of a second."""
    _first()
    gc.collect()
    gc.freeze()


class Install(Protocol):
    def __call__(
        self, name: str, source: str, /, *, entry_points: str = ..., requires: tuple[str, ...] = ..., version: str = ...
    ) -> Path: ...


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder for the test, with a default Pocket of its own."""
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.chdir(place)
    set_default_pocket(None)
    yield place
    set_default_pocket(None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution with one module, as an installer would: `install("pocket-plug-x", "…source…")`.

    Its module is `pocket_plug_x`, and its entry point `x = pocket_plug_x` unless given otherwise.
    """
    site = tmp_path / "site-packages"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(
        name: str,
        source: str,
        /,
        *,
        entry_points: str | None = None,
        requires: tuple[str, ...] = (),
        version: str = "1.0",
    ) -> Path:
        module = name.replace("-", "_")
        (site / f"{module}.py").write_text(dedent(source))
        info = site / f"{module}-{version}.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        if entry_points is None:
            entry_points = f"{name.removeprefix('pocket-plug-')} = {module}"
        (info / "entry_points.txt").write_text(f"[pocket_plug]\n{entry_points}\n")
        importlib.invalidate_caches()
        return site

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(site)):
            del sys.modules[name]


@pytest.fixture
def new_threads() -> Callable[[], list[threading.Thread]]:
    """Returns the threads that have started since the test has, and are still alive; except the heartbeat of durable runs, which
    may end.

    Threads of earlier tests may end at any time, so their total number says nothing.
    """
    before = {*threading.enumerate()}

    def new_threads() -> list[threading.Thread]:
        return [each for each in threading.enumerate() if each not in before and each.name != "pocket_plug heartbeat"]

    return new_threads


@pytest.fixture
def peak_of() -> Callable[[Callable[[], object]], int]:
    """Returns the most bytes that a call, which can be repeated, has allocated at once.

    tracemalloc counts what all threads allocate, also that of pytest-xdist, which takes a megabyte to hand 1,600 tests over to
    another worker. This happens by chance, but what the call itself allocates is there each time: so the least of a few
    measurements counts.
    """

    def measured(call: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            call()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return lambda call: min(measured(call) for _ in range(5))


# ---------------------------------------------------------------- stores of every kind
class ThreadedMemory(Memory):
    """A Memory that suspends in each operation until another thread wakes it: like SQLite, it needs no event loop."""

    inline_read = inline_write = False

    async def _elsewhere(self) -> None:
        waiter: Waiter[None] = Waiter()
        waking = threading.Thread(target=wake, args=([waiter.give(None)],))
        waking.start()
        await waiter
        waking.join()  # it has nothing more to do; but a test might end before it does

    async def read(self, key: str) -> Entry | None:
        await self._elsewhere()
        return await super().read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await self._elsewhere()
        version = await super().write(changes, expect)
        await self._elsewhere()
        return version

    async def scan(
        self, prefix: str = "", *, after: str = "", reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]:
        async for key in super().scan(prefix, after=after, reverse=reverse, limit=limit):
            await self._elsewhere()
            yield key


class Awaited:
    """A store with `await`, used as one without: each call is run to its end on the test's event loop."""

    def __init__(self, view: Any, run: Callable[[Any], Any]) -> None:
        self._view, self._run = view, run

    def __getattr__(self, name: str) -> Any:
        member = getattr(self._view, name)
        if name == "transaction":
            return self._transaction
        return self._called(member) if callable(member) else member

    def _called(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = method(*arguments, **options)
            if inspect.iscoroutine(result):
                return self._run(result)
            if inspect.isasyncgen(result):
                return iter(self._run(_listed(result)))
            return Awaited(result, self._run) if isinstance(result, StoreReader | TypedReader) else result

        return call

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        opened = self._view.transaction()
        view = self._run(opened.__aenter__())
        try:
            yield Awaited(view, self._run)
        except BaseException as error:
            self._run(opened.__aexit__(type(error), error, None))
            raise
        self._run(opened.__aexit__(None, None, None))


async def _listed(items: AsyncIterator[str]) -> list[str]:
    return [item async for item in items]


KINDS: dict[str, tuple[type[Backend], bool]] = {
    "memory": (Memory, False),
    "memory, sync": (Memory, True),
    "suspending": (FaultyMemory, False),
    "suspending, sync": (FaultyMemory, True),
    "threaded, sync": (ThreadedMemory, True),
    "sqlite": (SQLite, False),
}


@pytest.fixture(params=KINDS)
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a store for one test: with and without `await`, over backends that suspend or don't.

    `open_store(clock=…, layers=…)`; every call on what it gives is written as on a SyncStore.
    """
    kind, is_sync = KINDS[request.param]
    with ExitStack() as stack:

        def open_store(**options: Any) -> Any:
            backend = SQLite(tmp_path / "state.db", durability="process") if kind is SQLite else kind()
            if is_sync:
                return stack.enter_context(SyncStore(backend, **options))
            run = stack.enter_context(asyncio.Runner()).run
            store = Store(backend, **options)
            run(store.open())
            stack.callback(lambda: run(store.close()))
            return Awaited(store, run)

        yield open_store


@pytest.fixture
def threaded() -> type[Backend]:
    """The kind of backend that suspends and needs no event loop."""
    return ThreadedMemory
