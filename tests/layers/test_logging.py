"""Logging: events with ids and templates, never with keys or values, and none unless a program asks for them."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

import pocket_plug as pp
from pocket_plug import Store, SyncStore
from pocket_plug.errors import ConfigError, StoreError
from pocket_plug.hookspecs import Observer, Run
from pocket_plug.layers import logging as pocket_logging
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.logging import Logging, add_ids
from pocket_plug.layers.tracing import Tracing
from pocket_plug.otel import open_runs
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Reason
from pocket_plug.store.layer import Layer
from pocket_plug.testing.spans import SpanCapture

GUEST = pp.Key("guest:{}", str)


@pytest.fixture
def logs() -> Iterator[LogCapture]:
    """The events of the program's structlog, at every level."""
    capture = LogCapture()
    configured(capture, "debug")
    yield capture
    structlog.reset_defaults()


def configured(capture: LogCapture, level: str) -> None:
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture],
                        wrapper_class=structlog.make_filtering_bound_logger(pocket_logging.LEVELS[level]),
                        cache_logger_on_first_use=False)  # fmt: skip


def shown(capture: LogCapture, *fields: str) -> list[tuple[Any, ...]]:
    return [(entry["log_level"], entry["event"], *[entry.get(field) for field in fields]) for entry in capture.entries]


def test_store_operations_are_logged_by_template(logs: LogCapture) -> None:
    """op, template, hit, size and duration; no key and no value."""
    store = SyncStore(layers=[Logging()])
    store.set(GUEST("secret-1"), "secret-2")
    store.get(GUEST("secret-1"))
    store.get("secret-3")
    store.get_many(["secret-3", GUEST("secret-1")])
    store.set_many({"secret-4": "secret-5", "secret-6": 1})
    store.delete(GUEST("secret-1"))
    assert shown(logs, "op", "template", "hit", "size") == [
        ("debug", "pocket_plug.store", "set", "guest:{}", None, None),
        ("debug", "pocket_plug.store", "get", "guest:{}", True, None),
        ("debug", "pocket_plug.store", "get", "", False, None),
        ("debug", "pocket_plug.store", "get_many", None, None, 2),
        ("debug", "pocket_plug.store", "write", None, None, 2),
        ("debug", "pocket_plug.store", "get", "guest:{}", True, None),
        ("debug", "pocket_plug.store", "delete", "guest:{}", None, None),
    ]
    assert all(entry["duration"] >= 0 for entry in logs.entries)
    assert "secret" not in repr(logs.entries)


def test_a_failing_backend_is_logged_with_its_type_and_still_raised(logs: LogCapture) -> None:
    """The layer logs a line and changes nothing."""

    class Broken(pp.Memory):
        async def read(self, key: str) -> pp.Entry | None:
            raise StoreError("secret")

    with pytest.raises(StoreError, match="secret"):
        SyncStore(Broken(), layers=[Logging(level="warning")]).get("k")
    assert shown(logs, "op", "error_type") == [("warning", "pocket_plug.store", "get", "pocket_plug.errors.StoreError")]
    assert "secret" not in repr(logs.entries)


def test_a_filtered_level_logs_nothing_and_a_changed_level_applies_later(logs: LogCapture) -> None:
    """The level is read when a stack is built or opened, and when a logged run starts."""
    configured(logs, "info")
    store = Store(layers=[Logging()])

    async def get() -> None:
        await store.get("k")

    asyncio.run(get())
    assert logs.entries == []
    configured(logs, "debug")
    asyncio.run(store.open())
    asyncio.run(get())
    assert len(logs.entries) == 1


def test_a_processor_that_raises_does_not_fail_the_store(caplog: pytest.LogCaptureFixture, logs: LogCapture) -> None:
    """This is logged once."""

    def broken(logger: Any, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        raise RuntimeError("processor")

    structlog.configure(processors=[broken])
    store = SyncStore(layers=[Logging()])
    store.set("k", 1)
    assert store.get("k") == 1
    assert [record.getMessage().split(". ")[0] for record in caplog.records] == [
        "logging a store operation failed: RuntimeError"]  # fmt: skip


def test_a_run_whose_beginning_cannot_be_logged_goes_on(caplog: pytest.LogCaptureFixture, logs: LogCapture) -> None:
    """And it is not kept as open: nobody would note its end."""

    def broken(logger: object, method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        raise ValueError("no such renderer")

    structlog.configure(processors=[broken])
    graph = pp.Graph(pp.node(lambda number: number, name="same"), name="shop")
    left = {*open_runs._open}  # by an earlier test
    pocket = pp.Pocket(autoload=False)  # of its own, since a Pocket logs only the first error of each plugin
    assert graph.run_sync(1, pocket=pocket) == 1
    gc.collect()
    assert {*open_runs._open} <= left
    assert re.search(
        r"failed at pocket_observe \(enter\): ValueError at test_logging\.py:\d+ \(logged once", caplog.text
    )
    assert "no such renderer" not in caplog.text


def test_a_run_that_was_interrupted_before_its_end_was_noted_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may come between any two steps, and in a notebook the process goes on."""

    def interrupted(part: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(open_runs, "ended", interrupted)
    graph = pp.Graph(pp.node(lambda number: number, name="same"), name="shop")
    left = {*open_runs._open}  # by an earlier test
    with pytest.raises(KeyboardInterrupt):
        graph.run_sync(1)
    gc.collect()
    assert {*open_runs._open} <= left


def test_an_unknown_level_is_refused() -> None:
    """The error says what is allowed."""
    with pytest.raises(ConfigError, match=r"level 'warn' is not one of debug, info, warning.* Did you mean 'warning'"):
        Logging(level="warn")


def test_runs_and_nodes_are_logged_with_their_ids(logs: LogCapture) -> None:
    """Started, finished, retries; and the user's events inside have run, graph and node."""
    tries = iter([OSError("secret"), None])
    own = structlog.get_logger()

    @pp.node(retry=pp.Retry(attempts=2))
    async def flaky(n: int) -> int:
        if error := next(tries):
            raise error
        own.info("mine")
        return n

    async def main() -> None:
        await pp.Graph(flaky, name="shop").run(1)
        own.info("outside")

    with SpanCapture() as capture:
        asyncio.run(main())
    assert shown(logs, "graph", "node") == [
        ("info", "pocket_plug.run.started", "shop", None),
        ("warning", "pocket_plug.node.retry", "shop", "flaky"),
        ("info", "mine", "shop", "flaky"),
        ("info", "pocket_plug.run.finished", "shop", None),
        ("info", "outside", None, None),
    ]
    started, retry, mine, finished, outside = logs.entries
    assert retry["error_type"] == "OSError"
    assert retry["attempt"] == 1
    assert (finished["outcome"], finished["steps"]) == ("success", 1)
    assert started["run_id"] == retry["run_id"] == mine["run_id"] == finished["run_id"]
    assert "run_id" not in outside
    context = capture.one("run shop").get_span_context()
    assert context is not None
    assert started["trace_id"] == retry["trace_id"] == f"{context.trace_id:032x}"
    assert started["span_id"] == f"{context.span_id:016x}"
    assert "secret" not in repr(logs.entries)


def test_a_run_that_waits_is_suspended_and_then_resumed(logs: LogCapture, tmp_path: Path) -> None:
    """Neither is a warning: nothing has failed."""
    ask = pp.Ask[str, bool](bool, question=lambda text: f"{text}?", name="approve")
    with SyncStore(f"sqlite:///{tmp_path}/state.db") as store:
        graph = pp.Graph(ask, store=store, name="shop")
        with pytest.raises(pp.RunSuspendedError):
            graph.run_sync("send", run_id="mail")
        graph.resume_sync("mail", answer=True)
    assert shown(logs, "graph", "steps", "outcome", "run_id") == [
        ("info", "pocket_plug.run.started", "shop", None, None, "mail"),
        ("info", "pocket_plug.run.suspended", "shop", 1, None, "mail"),
        ("info", "pocket_plug.run.resumed", "shop", None, None, "mail"),
        ("info", "pocket_plug.run.finished", "shop", 1, "success", "mail"),
    ]


def test_events_after_a_nested_run_have_the_outer_runs_ids(logs: LogCapture) -> None:
    """The inner run's id and graph end with it."""
    own = structlog.get_logger()

    @pp.node
    async def inside(n: int) -> int:
        own.info("inside")
        return n

    @pp.node
    async def after(n: int) -> int:
        own.info("after")
        return n

    asyncio.run(pp.Graph(pp.Graph(inside, name="inner") >> after, name="outer").run(1))
    own_events = [entry for entry in shown(logs, "graph", "node") if not entry[1].startswith("pocket_plug")]
    assert own_events == [("info", "inside", "inner", "inside"), ("info", "after", "outer", "after")]


def test_events_inside_nested_runs_have_the_id_of_the_outermost_run(logs: LogCapture) -> None:
    """A search for a durable run's id finds the events of its nested graphs too, own ones and pocket_plug's."""
    own = structlog.get_logger()

    @pp.node(retry=pp.Retry(attempts=2))
    async def inside(n: int) -> int:
        own.info("inside")
        raise ValueError

    middle = pp.Graph(pp.each(pp.Graph(inside, name="inner"), errors="collect"), name="middle")
    asyncio.run(pp.Graph(middle, name="outer").run([1]))
    events = {entry["event"]: entry for entry in logs.entries if entry.get("graph") == "inner"}
    run_id = logs.entries[0]["run_id"]
    assert {entry["outer_run_id"] for entry in events.values()} == {run_id}
    assert {
        "inside",
        *(f"pocket_plug.{name}" for name in ("run.started", "run.finished", "node.retry", "node.exception")),
    } == {*events}
    assert [entry.get("outer_run_id") for entry in logs.entries if entry["graph"] == "outer"] == [None, None]
    assert pocket_logging.attributes_of("", {"outer_run_id": run_id}) == {"pocket_plug.run.outer_id": run_id}


def test_an_error_is_logged_once_by_the_node_that_raised_it(logs: LogCapture) -> None:
    """Not again by the graph and the fan-out around it; the run's end is a warning with the outcome."""

    @pp.node
    async def fail(n: int) -> int:
        raise ValueError("no funds")

    graph = pp.Graph(pp.each(pp.Graph(fail, name="inner")), name="outer")
    with pytest.raises(ValueError, match="no funds"):
        asyncio.run(graph.run([1]))
    assert shown(logs, "graph", "node", "outcome", "error_type")[2:] == [
        ("error", "pocket_plug.node.exception", "inner", "fail", None, "ValueError"),
        ("warning", "pocket_plug.run.finished", "inner", "inner", "failure", "ValueError"),
        ("warning", "pocket_plug.run.finished", "outer", None, "failure", "ValueError"),
    ]
    assert logs.entries[2]["stack"].splitlines()[-1] == "ValueError"
    assert ", in test_an_error_is_logged_once" in logs.entries[2]["stack"]
    assert "no funds" not in repr(logs.entries)


def test_an_exception_is_logged_with_its_message_only_on_request(logs: LogCapture) -> None:
    """exceptions=True: as exc_info, with its message, which may contain secrets."""

    @pp.node
    async def fail(n: int) -> int:
        raise ValueError("no funds")

    former = pocket_logging.configure(exceptions=True)
    try:
        with pytest.raises(ValueError, match="no funds"):
            asyncio.run(pp.Graph(fail).run(1))
    finally:
        pocket_logging.configure(exceptions=former.exceptions)
    (escaped,) = [entry for entry in logs.entries if entry["event"] == "pocket_plug.node.exception"]
    assert isinstance(escaped["exc_info"], ValueError)
    assert "stack" not in escaped


def test_a_missing_edge_has_an_event_of_its_own(logs: LogCapture) -> None:
    """An error, once, in place of the exception's; the action's name may be anything, and isn't logged."""

    @pp.node.post
    def leave(store: pp.SyncWriter, n: int) -> pp.Next[int]:
        return pp.Next("secret", n)

    with pytest.raises(pp.RouteError):
        asyncio.run(pp.Graph(leave, name="shop").run(1))
    assert shown(logs, "node", "error_type")[1:] == [
        ("error", "pocket_plug.route.missing", "leave", "pocket_plug.errors.RouteError"),
        ("warning", "pocket_plug.run.finished", None, "pocket_plug.errors.RouteError"),
    ]
    assert "secret" not in repr(logs.entries)


def test_a_plugin_that_fails_is_logged_once(logs: LogCapture, caplog: pytest.LogCaptureFixture) -> None:
    """With its name, the part that failed and the exception's type."""

    class Broken:
        @pp.hookimpl
        def pocket_observe(self, run: Run) -> Observer:
            return Observer(node=lambda call: 1 / 0)  # type: ignore[arg-type, return-value]

    @pp.node
    async def work(n: int) -> int:
        return n

    with pp.Pocket(plugins=[Broken()]) as pocket:
        for _ in range(2):
            assert pp.Graph(work).run_sync(1, pocket=pocket) == 1
    failed = [entry for entry in logs.entries if entry["event"] == "pocket_plug.plugin.failed"]
    assert [(entry["log_level"], entry["plugin"], entry["part"], entry["error_type"]) for entry in failed] == [
        ("warning", "broken", "pocket_observe (enter)", "ZeroDivisionError")]  # fmt: skip
    assert [record.name for record in caplog.records] == ["pocket_plug"]


def test_evictions_are_logged_at_debug_by_reason(logs: LogCapture) -> None:
    """Their number, after the write that caused them; never the keys."""
    store = SyncStore(layers=[Logging(), Bounding(max_entries=2)])
    for number in range(4):
        store.set(f"secret-{number}", number)
    assert shown(logs, "reason", "entries") == [
        ("debug", "pocket_plug.store", None, None), ("debug", "pocket_plug.store", None, None),
        ("debug", "pocket_plug.store", None, None), ("debug", "pocket_plug.store.evicted", "size", 1),
        ("debug", "pocket_plug.store", None, None), ("debug", "pocket_plug.store.evicted", "size", 1),
    ]  # fmt: skip
    assert "secret" not in repr(logs.entries)


def test_two_layers_of_a_stack_are_distinguished_by_label(logs: LogCapture) -> None:
    """Each event has the label of the layer that logs it, if it has one."""
    SyncStore(layers=[Logging(label="outer"), Bounding(max_entries=1), Logging(label="inner")]).set("a", 1)
    assert [entry["label"] for entry in logs.entries] == ["inner", "outer"]
    SyncStore(layers=[Logging()]).set("a", 1)
    assert "label" not in logs.entries[-1]


class Forgetful(Layer):
    """Another plugin's layer that evicts, as bounding does: pocket_plug knows only the protocol `Keeper` of it."""

    def on_build(self) -> None:
        self.entries = 0
        self.evictions: dict[Reason, int] = {"size": 0}

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        self.evictions["size"] += 1
        return await self.inner.write(changes, expect)


def test_evictions_of_any_layer_are_logged(logs: LogCapture) -> None:
    """Logging doesn't depend on bounding."""
    SyncStore(layers=[Logging(), Forgetful()]).set("a", 1)
    assert ("debug", "pocket_plug.store.evicted", "size", 1) in shown(logs, "reason", "entries")


def test_fallbacks_and_timeouts_are_warnings(logs: LogCapture) -> None:
    """An operator looks for them."""

    class Slow(pp.Node[int, int], timeout=0.01):
        async def exec(self, n: int, /) -> int:
            await asyncio.Event().wait()
            return n

        async def fallback(self, n: int, error: Exception, /) -> int:
            return -n

    assert asyncio.run(pp.Graph(Slow(), name="g").run(1)) == -1
    warnings = [entry["event"] for entry in logs.entries if entry["log_level"] == "warning"]
    assert warnings == ["pocket_plug.node.timeout", "pocket_plug.node.fallback"]


def test_nothing_is_printed_unless_structlog_is_configured_or_it_is_asked_for() -> None:
    """A library prints nothing by default; `events=True` lets structlog's own defaults print."""
    code = """
import asyncio, pocket_plug as pp
from pocket_plug.layers import logging
@pp.node
async def work(n: int) -> int: return n
graph = pp.Graph(work, name="g")
graph.run_sync(1)
import structlog
graph.run_sync(1)
logging.configure(events=True)
print("---")
graph.run_sync(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    quiet, loud = done.stdout.split("---\n")
    assert quiet == ""
    assert "pocket_plug.run.started" in loud
    assert "pocket_plug.run.finished" in loud


BY_LOGGING = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(name)s %(message)s")
import pocket_plug as pp
tries = iter([OSError("secret"), None])
@pp.node(retry=pp.Retry(attempts=2))
async def flaky(n: int) -> int:
    if error := next(tries, ValueError("secret")):
        raise error
    return n
graph = pp.Graph(flaky, name="shop")
graph.run_sync(1)
"""


def by_logging(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", BY_LOGGING + code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def test_a_program_with_logging_only_sees_events_on_the_logger_pocket_plug() -> None:
    """Each once, at its level, with its ids and without messages; structlog isn't even imported."""
    said = by_logging("""
try:
    graph.run_sync(2)
except ValueError:
    print("structlog" in sys.modules)
""").splitlines()
    own = [line.split(" run_id=")[0] for line in said if " run_id=" in line]
    assert own == [
        "INFO pocket_plug pocket_plug.run.started",
        "WARNING pocket_plug pocket_plug.node.retry",
        "INFO pocket_plug pocket_plug.run.finished",
        "INFO pocket_plug pocket_plug.run.started",
        "WARNING pocket_plug pocket_plug.node.retry",
        "ERROR pocket_plug pocket_plug.node.exception",
        "WARNING pocket_plug pocket_plug.run.finished",
    ]
    assert " graph='shop' node='flaky' visit=1 attempt=1 " in said[1]
    assert said[1].endswith(" error_type='OSError'")
    assert said[-1] == "False"
    assert not [line for line in said if "secret" in line]


def test_a_run_without_enabled_events_is_not_observed() -> None:
    """The level is read when the run starts: at "critical" the run has no observer, and costs nothing more."""
    said = by_logging("""
from pocket_plug.hookspecs import Run
from pocket_plug.layers.logging import LoggingPlugin
for level in ("ERROR", "CRITICAL"):
    logging.getLogger("pocket_plug").setLevel(level)
    print(LoggingPlugin().pocket_observe(Run("1", "shop")) is None)
""").splitlines()
    assert said[-2:] == ["False", "True"]


def test_a_program_that_configures_structlog_sees_events_there_only() -> None:
    """Also if structlog writes by logging: no event is logged twice."""
    said = by_logging("""
import structlog
print("---")
structlog.configure(processors=[structlog.stdlib.render_to_log_kwargs], logger_factory=structlog.stdlib.LoggerFactory(),
                    wrapper_class=structlog.stdlib.BoundLogger)
tries = iter([None])
graph.run_sync(1)
""").split("---\n")[1]
    assert said.splitlines() == [
        "INFO pocket_plug pocket_plug.run.started",
        "INFO pocket_plug pocket_plug.run.finished",
    ]


def test_on_a_record_of_logging_fields_have_the_names_of_attributes(caplog: pytest.LogCaptureFixture) -> None:
    """Those of the conventions and prefixed ones, so that a handler which exports records gives them the right names."""

    @pp.node
    async def fail(n: int) -> int:
        raise ValueError("secret")

    with SpanCapture() as capture, pytest.raises(ValueError, match="secret"):
        pp.Graph(fail, name="shop").run_sync(1)
    failed, finished = (vars(record) for record in caplog.records)
    for record, name in ((failed, "node fail"), (finished, "run shop")):
        span = capture.one(name).context
        assert span is not None
        assert (record["trace_id"], record["span_id"]) == (f"{span.trace_id:032x}", f"{span.span_id:016x}")
    assert failed["exception.type"] == failed["error.type"] == "ValueError"
    assert failed["exception.stacktrace"].endswith("ValueError")
    assert failed["pocket_plug.node.name"] == "fail"
    assert (finished["pocket_plug.run.outcome"], finished["pocket_plug.run.steps"]) == ("failure", 1)
    assert "secret" not in caplog.text


def test_events_can_be_switched_off(logs: LogCapture) -> None:
    """Whether structlog is configured or not."""
    former = pocket_logging.configure(events=False)
    try:
        assert pocket_logging.LoggingPlugin().pocket_observe(Run("r", "g")) is None
    finally:
        pocket_logging.configure(events=former.events)


def test_the_processor_adds_the_ids_of_the_current_span() -> None:
    """For the program's own events; without a span it adds nothing."""
    assert add_ids(None, "info", {"event": "e"}) == {"event": "e"}
    with SpanCapture() as capture, capture.tracer_provider.get_tracer("t").start_as_current_span("s") as span:
        event = add_ids(None, "info", {"event": "e"})
    assert event["span_id"] == f"{span.get_span_context().span_id:016x}"


def test_logged_operations_carry_the_ids_of_their_span(logs: LogCapture) -> None:
    """tracing > logging: a log line leads to its trace."""
    tracer_store = Store(layers=[Tracing(), Logging()])
    with SpanCapture() as capture, capture.tracer_provider.get_tracer("t").start_as_current_span("s"):
        asyncio.run(tracer_store.get("k"))
    context = capture.one("s").get_span_context()
    assert context is not None
    assert logs.entries[0]["trace_id"] == f"{context.trace_id:032x}"


def test_options_are_checked() -> None:
    """An invalid option is refused; the error says what is allowed."""
    with pytest.raises(ConfigError, match=r"no option 'event'.* Did you mean 'events'"):
        pocket_logging.configure(event=True)  # type: ignore[call-arg]
