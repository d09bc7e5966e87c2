"""Private names of the SDK and of servers: if a version has renamed one, this is logged, and everything else works."""

from __future__ import annotations

import asyncio
import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from pocket_plug.primitives import failures
from pocket_plug.telemetry import children
from pocket_plug.telemetry.servers import watch_servers


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "_said", set())


# ---------------------------------------------------------------- forked children
@pytest.mark.parametrize("name", ["_measurement_consumer", "_reader_storages", "_lock"])
def test_an_sdk_that_is_not_known_is_said_before_the_fork(caplog: pytest.LogCaptureFixture, name: str) -> None:
    """With the missing name. In the child nothing is raised, and other providers start at zero."""
    strange, usual = [MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False) for _ in range(2)]
    owner: Any = strange if name == "_measurement_consumer" else vars(strange)["_measurement_consumer"]
    kept = vars(owner).pop(name)
    try:
        children.count_from_zero(strange)
        children.count_from_zero(usual)
        assert "opentelemetry-sdk: it has no " in caplog.text
        assert name in caplog.text
        assert caplog.text.count("(logged once)") == 1
        [storage] = vars(usual)["_measurement_consumer"]._reader_storages.values()
        usual.get_meter("test").create_counter("things").add(1)
        assert storage._instrument_view_instrument_matches
        children._begin_anew()
        assert not storage._instrument_view_instrument_matches
        assert not hasattr(owner, name)
    finally:
        setattr(owner, name, kept)
        strange.shutdown()
        usual.shutdown()


# ---------------------------------------------------------------- servers
class Calls:
    """Calls of the servers' functions."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def watch(self) -> None:
        watch_servers(*(lambda name=name: self.heard.append(name) for name in ("sigterm", "exit", "logging")))


def test_a_uvicorn_without_what_is_watched_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`setup()` goes on."""
    monkeypatch.setitem(sys.modules, "uvicorn.server", SimpleNamespace(Server=type("Server", (), {})))
    Calls().watch()
    assert "this version of uvicorn: it has no Server.shutdown" in caplog.text


def test_a_uvicorn_that_keeps_its_signals_elsewhere_is_said_as_it_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends as usual; a version that keeps its signals in the known place notifies of a SIGTERM."""

    class Server:
        async def shutdown(self) -> None:
            calls.heard.append("ends")

    monkeypatch.setitem(sys.modules, "uvicorn.server", SimpleNamespace(Server=Server))
    calls = Calls()
    calls.watch()
    server: Any = Server()
    asyncio.run(server.shutdown())
    assert "this version of uvicorn: it has no Server._captured_signals" in caplog.text
    server._captured_signals = [signal.SIGTERM]
    asyncio.run(server.shutdown())
    assert calls.heard == ["ends", "ends", "sigterm"]


def test_a_celery_without_one_of_its_signals_is_said_and_the_other_is_heard(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`setup()` goes on."""
    connected: list[Any] = []
    known = SimpleNamespace(connect=lambda call, **_: connected.append(call))
    monkeypatch.setitem(sys.modules, "celery.signals", SimpleNamespace(after_setup_logger=known))
    calls = Calls()
    calls.watch()
    assert "this version of celery: it has no signals.worker_process_shutdown" in caplog.text
    [call] = connected
    call()
    assert calls.heard == ["logging", "logging"]


def test_each_missing_signal_of_celery_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only the first one."""
    monkeypatch.setitem(sys.modules, "celery.signals", SimpleNamespace())
    Calls().watch()
    for name in ("worker_process_shutdown", "after_setup_logger"):
        assert f"it has no signals.{name}" in caplog.text
