"""Settings belong to a Pocket: its configuration applies to its own runs and stores, and to no others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import structlog
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from structlog.testing import capture_logs

import pocket_plug as pp
from pocket_plug.errors import NotConfiguredError
from pocket_plug.hookspecs import Observer, hookimpl
from pocket_plug.layers import logging, metrics, tracing
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.testing.spans import SpanCapture

USER = pp.Key("user:{}", str)


@pp.node
async def double(n: int) -> int:
    return 2 * n


@pp.node
async def fail(n: int) -> int:
    raise ValueError(f"the number {n}")


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Callable[[str], Pocket]]:
    """Creates Pockets, each from a file with this text."""
    made: list[Pocket] = []

    def make(text: str) -> Pocket:
        file = tmp_path / f"{len(made)}.toml"
        file.write_text(text)
        made.append(Pocket(file, autoload=False))
        return made[-1]

    yield make
    for pocket in made:
        pocket.__exit__()
    structlog.reset_defaults()  # `capture_logs` configures it


def run(pocket: Pocket, node: Any = double) -> None:
    """A run in a Pocket, whatever its outcome."""

    async def main() -> None:
        with suppress(ValueError):
            await pocket.run(pp.Graph(node, name="g"), 1)

    asyncio.run(main())


# ---------------------------------------------------------------- tracing
def test_each_pocket_traces_with_its_own_table(configured: Callable[[str], Pocket]) -> None:
    """Runs have the detail of their own Pocket, whichever was created last; other settings come from the process."""
    runs = configured('[plugins.tracing]\ndetail = "run"')
    phases = configured('[plugins.tracing]\ndetail = "phase"')
    plain = configured("")
    for pocket, tree in (
        (runs, ["run g"]),
        (phases, [("run g", [("node double", ["exec double"])])]),
        (plain, [("run g", ["node double"])]),
        (runs, ["run g"]),
    ):
        with SpanCapture("node") as capture:
            run(pocket)
        assert capture.tree() == tree


def test_the_stores_of_a_pocket_are_traced_with_its_table(configured: Callable[[str], Pocket]) -> None:
    """Keys are captured for the Pocket that asks for it, not for other stores, nor for a store that is created in code."""
    stores = '[store]\nlayers = ["tracing"]\n[plugins.tracing]\n'
    shows, hides = configured(stores + 'capture = "keys"'), configured(stores + 'capture = "none"')
    for store, shown in (
        (shows.store.sync, "user:17"),
        (hides.store.sync, None),
        (pp.SyncStore(layers=[tracing.Tracing()]), None),
    ):
        with SpanCapture() as capture:
            store.set(USER("17"), "Ann")
        assert (capture.one("set user:{}").attributes or {}).get("pocket_plug.store.key") == shown


def test_the_parts_of_a_pockets_store_have_spans_if_its_table_says_so(configured: Callable[[str], Pocket]) -> None:
    """At detail "debug", which is decided when a stack is built."""
    layers = '[store]\nlayers = ["tracing", { use = "bounding", max_entries = 9 }]\n'
    debugged, plain = configured(layers + '[plugins.tracing]\ndetail = "debug"'), configured(layers)
    for pocket, tree in ((debugged, [("set user:{}", ["layer bounding"])]), (plain, ["set user:{}"])):
        with SpanCapture() as capture:
            pocket.store.sync.set(USER("17"), "Ann")
        assert capture.tree() == tree


def test_a_pocket_changes_no_setting_of_the_process(configured: Callable[[str], Pocket]) -> None:
    """Of tracing, metrics or logging: reading a file changes no other runs."""
    before = tracing.configure(), metrics.configure(), logging.configure()
    configured("""
        [plugins.tracing]
        detail = "debug"
        baggage = ["tenant"]
        [plugins.metrics]
        node_duration = false
        [plugins.logging]
        events = true
        exceptions = true
    """)
    assert (tracing.configure(), metrics.configure(), logging.configure()) == before


def test_the_processs_settings_apply_if_a_table_has_none(configured: Callable[[str], Pocket]) -> None:
    """Also settings that are changed after the Pocket was created; the table's own settings stay."""
    pocket = configured('[plugins.tracing]\ncapture = "summary"')
    with SpanCapture("run") as capture:
        run(pocket)
        tracing.configure(detail="node", capture="full")
        run(pocket)
    assert capture.tree() == ["run g", ("run g", ["node double"])]
    assert {(span.attributes or {}).get("pocket_plug.run.input") for span in capture.spans[:2]} == {"int"}


@pytest.mark.parametrize(
    ("plugin", "written", "says"),
    [
        ("tracing", "tracer_provider = 1", "tracing: tracer_provider holds for the whole process, not for one Pocket"),
        ("metrics", "meter_provider = 1", "metrics: meter_provider holds for the whole process, not for one Pocket"),
        ("metrics", "node_duration = 1", "metrics: node_duration must be true or false, not int"),
        ("logging", 'events = "yes"', "logging: events must be true or false, not a str of 3 characters"),
        ("logging", "event = true", "logging has no option 'event'"),
        ("tracing", 'detail = "all"', "tracing: detail must be one of run, node, phase, debug, not 'all'"),
    ],
)
def test_other_settings_are_refused(configured: Callable[[str], Pocket], plugin: str, written: str, says: str) -> None:
    """For a setting of the process the error says so; for any other it says what is allowed."""
    record = configured(f"[plugins.{plugin}]\n{written}").plugin(plugin)
    assert record.status == "failed"
    assert says in record.reason


# ---------------------------------------------------------------- metrics and logging
def test_each_pocket_measures_with_its_own_table(configured: Callable[[str], Pocket]) -> None:
    """Whether its runs' nodes are measured."""
    without, plain = configured("[plugins.metrics]\nnode_duration = false"), configured("")
    reader = InMemoryMetricReader()
    former = metrics.configure(meter_provider=MeterProvider([reader], shutdown_on_exit=False))
    try:
        run(without)
        run(plain)
        data: Any = reader.get_metrics_data()
    finally:
        metrics.configure(meter_provider=former.meter_provider)
    found = {m.name: m for resource in data.resource_metrics for scope in resource.scope_metrics for m in scope.metrics}
    counts = {name: sum(p.count for p in found[name].data.data_points) for name in found if name.endswith(".duration")}
    assert counts == {"pocket_plug.run.duration": 2, "pocket_plug.node.duration": 1}


def test_each_pocket_logs_with_its_own_table(configured: Callable[[str], Pocket]) -> None:
    """Whether it logs, and whether exceptions are logged with messages."""
    whole = configured("[plugins.logging]\nevents = true\nexceptions = true")
    silent = configured("[plugins.logging]\nevents = false")
    short = configured("[plugins.logging]\nevents = true")
    found: list[list[str]] = []
    for pocket in (whole, silent, short):
        with capture_logs() as logs:
            run(pocket, fail)
        [*failed] = [sorted(entry) for entry in logs if entry["event"] == "pocket_plug.node.exception"]
        found += failed or [[]]
    assert ["exc_info" in fields for fields in found] == [True, False, False]
    assert ["stack" in fields for fields in found] == [False, False, True]


# ---------------------------------------------------------------- plugin classes
class Counting:
    """A plugin of which each Pocket has its own instance."""

    def __init__(self) -> None:
        self.runs: Counter[str] = Counter()

    @hookimpl
    def pocket_observe(self, run: pp.hookspecs.Run) -> Observer | None:
        self.runs[run.graph] += 1
        return None


def test_each_pocket_has_its_own_instance_of_a_class(install: Any) -> None:
    """Given in code, or named by an entry point; the instances' counts are separate."""
    install(
        "pocket-plug-made",
        """
        from pocket_plug.hookspecs import hookimpl
        from pocket_plug.store.layer import Layer

        class Mine(Layer):
            pass

        class Plugin:
            def __init__(self):
                self.options = {}

            @hookimpl
            def pocket_configure(self, options):
                self.options = options

            @hookimpl
            def pocket_layers(self):
                return [Mine]
        """,
        entry_points="made = pocket_plug_made:Plugin",
    )
    first, second = Pocket(plugins=[Counting]), Pocket(plugins=[Counting])
    run(first)
    mine = [pocket.layer("mine").plugin for pocket in (first, second)]
    assert mine[0] is not mine[1]
    assert mine[0] is first.layer("mine").plugin  # the layer's recipe knows its Pocket's instance
    assert [type(plugin).__name__ for plugin in mine] == ["Plugin", "Plugin"]
    assert first.plugin("counting").status == second.plugin("counting").status == "active"


def test_a_class_that_can_not_be_instantiated() -> None:
    """It is a failed plugin, or one that declines, as for any other reason; `register` raises."""

    class Broken:
        def __init__(self) -> None:
            raise OSError("no file")

    class Declining:
        def __init__(self) -> None:
            raise NotConfiguredError("no server")

    pocket = Pocket(plugins=[Broken, Declining], autoload=False)
    assert pocket.plugin("broken").reason == "calling the class Broken failed: OSError: no file"
    assert (pocket.plugin("declining").status, pocket.plugin("declining").reason) == ("declined", "no server")
    with pytest.raises(pp.PluginError, match="calling the class Broken failed"):
        pocket.register(Broken, name="again")


# ---------------------------------------------------------------- notifications of failures
class Told:
    """Records which plugins fail at what."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str, str]] = []

    @hookimpl
    def pocket_plugin_failed(self, plugin: Any, what: str, error: BaseException) -> None:
        self.failures.append((plugin.name, what, str(error)))
        if what == "pocket_layers":
            raise RuntimeError("told too much")


class Failing:
    """Fails in its hooks."""

    @hookimpl
    def pocket_observe(self) -> Observer:
        raise ValueError("no eyes")

    @hookimpl
    def pocket_layers(self) -> Any:
        raise ValueError("no layers")


def test_plugins_are_notified_of_a_failing_one() -> None:
    """Once for each kind of failure, in its own Pocket only; a plugin that fails at this notification isn't notified of that."""
    told, elsewhere = Told(), Told()
    pocket, other = Pocket(plugins=[told, Failing()], autoload=False), Pocket(plugins=[elsewhere], autoload=False)
    for _ in range(2):
        run(pocket)
        run(other)
    assert told.failures == [("failing", "pocket_observe", "no eyes")]
    pocket.layer("bounding")
    assert told.failures[1:] == [("failing", "pocket_layers", "no layers")]
    assert pocket.plugin("told").failures == {"pocket_plugin_failed": 1}
    assert elsewhere.failures == []


def test_a_failing_plugin_is_a_log_event_of_its_own_pocket(configured: Callable[[str], Pocket]) -> None:
    """If that Pocket logs events."""
    loud, quiet = configured("[plugins.logging]\nevents = true"), configured("[plugins.logging]\nevents = false")
    for pocket in (loud, quiet):
        pocket.register(Failing())
    with capture_logs() as logs:
        loud.layer("bounding")
        quiet.layer("bounding")
    assert [(entry["event"], entry["plugin"]) for entry in logs] == [("pocket_plug.plugin.failed", "failing")]
