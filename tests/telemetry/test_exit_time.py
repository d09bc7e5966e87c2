"""How long an endpoint that doesn't answer may delay the end of a process: this is a setting."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import python


@pytest.fixture
def dead_endpoint() -> Iterator[str]:
    """It accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("function", ["observe", "setup"])
def test_a_dead_endpoint_delays_the_end_as_long_as_was_asked_for(
    tmp_path: Path, dead_endpoint: str, function: str
) -> None:
    """By the argument, and by the variable, which the argument overrides; losses are logged."""
    ways = ((f"{function}(flush_timeout=0.1)", {}), (f"{function}()", {"POCKET_PLUG_FLUSH_TIMEOUT": "0.1"}),
            (f"{function}(flush_timeout=0.1)", {"POCKET_PLUG_FLUSH_TIMEOUT": "3600"}))  # fmt: skip
    for call, variables in ways:
        code = f"{call}; graph.run_sync('tea')"
        done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint, **variables)
        assert done.returncode == 0
        assert "spans were not exported; exporting didn't finish within 0.1 s" in done.stderr


def test_it_is_two_seconds_by_default(tmp_path: Path, dead_endpoint: str) -> None:
    """For everything that is open together, by a clock that moves only while an exporter is awaited, and for a flush too."""
    code = """
from pocket_plug.telemetry import wiring
now = 0.0
def waited(works, timeout):
    global now
    print(timeout)
    now += 1.5
    return True
wiring.in_time, wiring.time = waited, type("Clock", (), {"monotonic": lambda: now})
observed = observe(); setup()
observed.flush()
graph.run_sync("tea")
"""
    done = python(code, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=dead_endpoint, POCKET_PLUG_FLUSH_TIMEOUT="")
    # the flush; then the exporters of observe and setup, one after the other
    assert done.stdout.split() == ["2.0", "2.0", "0.5"]


@pytest.mark.parametrize(
    ("call", "variable", "said"),
    [
        ("setup(flush_timeout=-1)", "", "flush_timeout=-1"),
        ("observe(flush_timeout=float('nan'))", "", "flush_timeout=nan"),
        ("observe(flush_timeout='soon')", "", "flush_timeout='soon'"),
        ("observe()", "soon", "POCKET_PLUG_FLUSH_TIMEOUT is 'soon'"),
        ("setup()", "inf", "POCKET_PLUG_FLUSH_TIMEOUT is 'inf'"),
    ],
)
def test_an_invalid_time_is_refused(tmp_path: Path, call: str, variable: str, said: str) -> None:
    """By a ConfigError with its name, the given value, and what is allowed; nothing is half set up."""
    code = f"""
try:
    {call}
except pp.ConfigError as error:
    print(error)
from opentelemetry import trace
assert type(trace.get_tracer_provider()).__name__ == "ProxyTracerProvider"
"""
    done = python(code, tmp_path, POCKET_PLUG_FLUSH_TIMEOUT=variable)
    assert done.stdout == f"{said}; give seconds from 0 up, or leave it out for 2\n", done.stderr


def test_a_later_call_may_not_ask_for_another_time(tmp_path: Path) -> None:
    """As for every other argument; the same, or none, is accepted."""
    code = """
first = observe(flush_timeout=3)
assert observe() is first and observe(flush_timeout=3) is first and first.flush_timeout == 3
try:
    observe(flush_timeout=4)
except pp.ConfigError as error:
    print(error)
"""
    done = python(code, tmp_path)
    assert "flush_timeout is 4, and was 3" in done.stdout, done.stderr
