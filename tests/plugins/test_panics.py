"""A plugin that panics ends nothing: any exception in any hook is its own failure, logged and counted.

Exceptions are an interrupt, a cancellation and a close.
"""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.trace import SpanProcessor

import pocket_plug
from pocket_plug import Graph, Memory, Retry, SyncStore, hookimpl, node
from pocket_plug.cli import main
from pocket_plug.errors import ConfigError, PluginError, is_fault
from pocket_plug.hookspecs import Observer, Run
from pocket_plug.layers import Bounding, Logging, Metrics
from pocket_plug.plugins.pocket import Pocket, set_default_pocket
from pocket_plug.store.backend import Backend
from pocket_plug.store.layer import Layer
from pocket_plug.telemetry.logs import export_event
from pocket_plug.testing.spans import SpanCapture

PACKAGE = Path(pocket_plug.__file__).parent


class Panic(BaseException):
    """As in pyo3, which turns a panic in Rust into this exception."""

    def __str__(self) -> str:
        raise self


FAULTS = [Panic, SystemExit, ValueError]
PASSING = [KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


@node
async def plus(n: int) -> int:
    return n + 1


def panicking(kind: type[BaseException]) -> dict[str, Callable[..., object]]:
    """Observers that fail at each of their parts, by name."""

    def fail(*_: object) -> Any:
        raise kind

    @contextmanager
    def on_leaving(about: object) -> Iterator[None]:
        yield
        raise kind

    class OnEntering:
        def __enter__(self) -> None:
            raise kind

        def __exit__(self, *error: object) -> None: ...

    return {
        "hook": fail,
        **{f"{part} asked": lambda run, part=part: Observer(**{part: fail}) for part in ("run", "node", "phase", "event")},
        **{f"{part} entered": lambda run, part=part: Observer(**{part: lambda about: OnEntering()})
           for part in ("run", "node", "phase")},
        **{f"{part} left": lambda run, part=part: Observer(**{part: on_leaving}) for part in ("run", "node", "phase")},
    }  # fmt: skip


def watching(ask: Callable[..., object]) -> Pocket:
    """A Pocket with such a plugin, and with one that records how it was left."""

    class Panicking:
        @hookimpl
        def pocket_observe(self, run: Run) -> object:
            return ask(run)

    return Pocket(plugins=[Panicking()], autoload=False)


class Flaky(pocket_plug.Node[int, int], retry=Retry(attempts=2)):
    """Fails once, so that there is an event."""

    failed = False

    async def exec(self, n: int) -> int:
        if not self.failed:
            self.failed = True
            raise OSError
        return n + 1


@pytest.mark.parametrize("where", panicking(Panic))
@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_of_an_observer_is_the_plugins_failure(kind: type[BaseException], where: str) -> None:
    """The run continues, with and without a loop, and the failure is the plugin's."""
    pocket = watching(panicking(kind)[where])
    assert asyncio.run(Graph(Flaky()).run(1, pocket=pocket)) == 2
    assert Graph(Flaky()).run_sync(1, pocket=pocket) == 2
    assert sum(pocket.plugin("panicking").failures.values()) >= 2


@pytest.mark.parametrize("where", panicking(Panic))
@pytest.mark.parametrize("kind", PASSING)
def test_interrupts_are_not_caught(kind: type[BaseException], where: str) -> None:
    """An interrupt while a plugin's code runs isn't the plugin's, and the other observers are left all the same."""
    left: list[BaseException | None] = []

    class Other:
        def __enter__(self) -> None: ...

        def __exit__(self, *error: Any) -> None:
            left.append(error[1])

    class Watching:
        @hookimpl(tryfirst=True)
        def pocket_observe(self, run: Run) -> Observer:
            return Observer(run=lambda run: Other())

    pocket = watching(panicking(kind)[where])
    pocket.register(Watching())
    with pytest.raises(kind):
        Graph(Flaky()).run_sync(1, pocket=pocket)
    assert len(left) == (where != "hook")


HOOKS = [
    *("pocket_layers", "pocket_backends", "pocket_executors", "pocket_types", "pocket_commands", "pocket_configure"),
    "pocket_shutdown",
]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_in_a_hook(kind: type[BaseException], hook: str) -> None:
    """Other plugins' layers, backends and commands work, and the record says which plugin failed at what."""

    def fail(self: object) -> None:
        raise kind

    plugin = type("Panicking", (), {hook: hookimpl(fail)})()
    pocket = Pocket(plugins=[plugin], autoload=False)
    assert pocket.layer("metrics")
    assert pocket.backend("sqlite:///state.db")
    assert pocket.commands() == {}
    assert pocket.executor("threads")
    pocket.shutdown()
    record = pocket.plugin("panicking")
    assert (record.status == "failed") == (hook == "pocket_configure")
    assert (hook in record.failures) == (hook != "pocket_configure")


@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_at_import(kind: type[BaseException], install: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It can't be used, and is reported; the program continues."""
    install("pocket-plug-panics", f"""
        class Panic(BaseException):
            def __str__(self): raise self
        raise {kind.__name__}
    """)  # fmt: skip
    pocket = Pocket()
    assert pocket.plugin("panics").status == "failed"
    assert kind.__name__ in pocket.plugin("panics").reason
    with pytest.raises(PluginError):
        Pocket(required=["panics"])
    assert pocket.store.sync.get("a") is None
    assert main(["plugins"]) == 0
    set_default_pocket(None)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_in_metadata(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a distribution that a custom finder has found."""

    class Odd:
        def read_text(self, name: str) -> str:
            raise kind

    distributions = importlib.metadata.distributions
    monkeypatch.setattr("pocket_plug.plugins.discovery.distributions", lambda: [Odd(), *distributions()])
    assert Pocket().plugin("?").status == "failed"


@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_of_a_plugins_part(kind: type[BaseException]) -> None:
    """A layer's constructor and a backend's factory: an error that names layer or plugin, as for any other exception."""

    def fail(*_: object) -> Any:
        raise kind

    Panicking = type("Panicking", (Layer,), {"__post_init__": fail})

    class Offers:
        @hookimpl
        def pocket_layers(self) -> list[type[Layer]]:
            return [Panicking]

        @hookimpl
        def pocket_backends(self) -> dict[str, Callable[[str], Backend]]:
            return {"panic": fail}

    pocket = Pocket(plugins=[Offers()], autoload=False)
    with pytest.raises(ConfigError, match="panicking: "):
        pocket.layer("panicking")
    with pytest.raises(ConfigError, match=f"plugin 'offers' could not make a backend: {kind.__name__}"):
        pocket.backend("panic://")


@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_of_a_callback_of_a_store(kind: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    """on_evict, processors of log events and of spans, `redact`: the store's operations succeed."""

    def fail(*_: object, **__: object) -> Any:
        raise kind

    async def fails_later(*_: object) -> None:
        raise kind

    for on_evict in (fail, fails_later):
        for backend in (Memory(), pocket_plug.Store().stack.inner):
            store = SyncStore(backend, layers=[Bounding(max_entries=1, on_evict=on_evict)])
            store.set("a", 1)
            store.set("b", 2)
            assert store.get("b") == 2
    structlog.configure(processors=[fail])
    try:
        store = SyncStore(layers=[Logging(level="error"), Metrics()])
        store.set("a", 1)
        assert store.get("a") == 1
        assert Graph(plus, name="logged").run_sync(1) == 2
    finally:
        structlog.reset_defaults()
    for redact in (None, fail):
        with SpanCapture(capture="full", redact=redact) as capture:
            if redact is None:
                capture.tracer_provider.add_span_processor(_Panicking(kind))
            store = SyncStore(layers=["tracing"])
            store.set("a", Panic())
            assert isinstance(store.get("a"), Panic)
            assert Graph(plus, name="traced").run_sync(1) == 2


class _Panicking(SpanProcessor):
    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def on_start(self, *_: object) -> None:
        raise self._kind

    def on_end(self, *_: object) -> None:
        raise self._kind


@pytest.mark.parametrize("kind", FAULTS)
def test_a_panic_of_an_exporter_of_events(kind: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """A logger provider, and the text of a logged value."""
    assert export_event(None, "info", {"event": "a", "value": _Mute(kind)})["event"] == "a"


class _Mute:
    def __init__(self, kind: type[BaseException]) -> None:
        self._kind = kind

    def __repr__(self) -> str:
        raise self._kind


def test_exceptions_that_are_no_faults() -> None:
    """Three exceptions and their subclasses; all others are faults."""
    assert [kind for kind in (*FAULTS, *PASSING) if not is_fault(kind())] == PASSING
    assert not is_fault(type("Stop", (KeyboardInterrupt,), {})())


def test_there_is_one_definition() -> None:
    """What is a fault is decided in one place: no `except` names Exception and SystemExit together."""
    for file in PACKAGE.rglob("*.py"):
        for each in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(each, ast.ExceptHandler) and each.type is not None:
                named = {name.id for name in ast.walk(each.type) if isinstance(name, ast.Name)}
                assert not {"Exception", "SystemExit"} <= named, f"{file.name}, line {each.lineno}"
