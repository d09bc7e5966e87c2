"""Additional attributes: those that a node declares by `trace={…}`, and those that plugins add by `pocket_span_additions`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan

import pocket_plug as pp
from pocket_plug.errors import ConfigError
from pocket_plug.hookspecs import NodeCall, PhaseCall, Run, SpanAdditions, SpanAttributes
from pocket_plug.layers import Tracing, tracing
from pocket_plug.otel.additions import NONE
from pocket_plug.plugins import set_default_pocket
from pocket_plug.primitives.default_pocket import use_default_pocket
from pocket_plug.testing.spans import SpanCapture

PRICE = pp.Key("fare:{}", int)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


@pp.node(trace={"team": "billing", "tier": 3})
async def double(n: int) -> int:
    return 2 * n


@pp.node(retry=pp.Retry(attempts=2))
async def halve(n: int) -> int:
    return n // 2


class Keep(pp.Node[int, int]):
    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int, /) -> int:
        await store.set(PRICE("eu"), n)
        return n


class Adding:
    """A plugin that adds the given attributes."""

    def __init__(self, **parts: Any) -> None:
        self.parts, self.asked = parts, 0

    @pp.hookimpl
    def pocket_span_additions(self) -> SpanAdditions:
        self.asked += 1
        return SpanAdditions(**self.parts)


def pocket_of(*plugins: object) -> pp.Pocket:
    return pp.Pocket(plugins=plugins, autoload=False)


def played(*plugins: object, chain: Any = None, runs: int = 1, **settings: Any) -> SpanCapture:
    """A run of halve and of a node that writes, observed by a Pocket with these plugins."""
    pocket = pocket_of(*plugins)
    store = pp.Store(layers=[pocket.layer("tracing")])
    graph = pp.Graph(chain or halve >> Keep(), name="g", store=store)
    with SpanCapture(**{"detail": "phase", **settings}) as capture:
        for _ in range(runs):
            asyncio.run(graph.run(4, pocket=pocket))
    return capture


# ---------------------------------------------------------------- what a node declares
def test_a_node_has_the_attributes_that_it_declares() -> None:
    """On its own span; neither on those of its phases nor on the run's."""
    capture = played(chain=double >> halve)
    having = {span.name: attributes(span).get("tier") for span in capture.spans if "team" in attributes(span)}
    assert having == {"node double": 3}


def test_the_items_of_a_fan_out_have_what_their_node_declares() -> None:
    """Each of them, also those whose spans start late; not the fan-out around them."""
    graph = pp.Graph(pp.each(double), name="g")
    with SpanCapture("node") as capture:
        graph.run_sync([*range(130)], pocket=pocket_of())
    items = [span for span in capture.spans if span.name == "item double"]
    assert len(items) > 100
    assert {attributes(span).get("team") for span in items} == {"billing"}
    assert "team" not in attributes(capture.one("node each_double"))


def test_the_shape_of_a_graph_has_the_declared_attributes() -> None:
    """By name; an `each` has the attributes of its items' node."""
    shape = pp.Graph(double >> halve, name="g").plan.shape
    assert shape.declared == {"double": {"team": "billing", "tier": 3}}
    assert pp.Graph(pp.each(double), name="g").plan.shape.declared == {"each_double": {"team": "billing", "tier": 3}}


def test_declared_attributes_are_copied() -> None:
    """If the mapping is changed later, no node changes."""
    given: dict[str, str | bool | int | float] = {"team": "billing"}
    node = halve.with_options(trace=given)
    given["team"] = "sales"
    capture = played(chain=node)
    assert attributes(capture.one("node halve"))["team"] == "billing"
    assert "team" not in attributes(played(chain=node.with_options(trace=True)).one("node halve"))


def test_declared_attributes_are_limited_in_size() -> None:
    """As every attribute."""
    node = halve.with_options(trace={"team": "ä" * 5000, "n" * 5000: True})
    own = attributes(played(chain=node).one("node halve"))
    assert len(own["team"].encode()) == 4096
    assert own["n" * 4096] is True


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pocket_plug.node.name": "x"}, "an attribute's name must be a text that doesn't begin with 'pocket_plug.'"),
        ({"": "x"}, "an attribute's name must be a text"),
        ({7: "x"}, "an attribute's name must be a text"),
        ({"team": None}, "an attribute must be a str, a bool, an int or a float"),
        ({"team": ["secret"]}, "an attribute must be a str, a bool, an int or a float"),
        ({"team": 2**63}, "doesn't fit into OTLP's 64 bits"),
        (["team"], "give True, False, or a mapping of attributes"),
    ],
)
def test_an_invalid_attribute_is_refused_when_it_is_written(given: Any, says: str) -> None:
    """The error names the node and what is allowed, without the value."""
    with pytest.raises(ConfigError, match=says) as refused:
        halve.with_options(trace=given)
    assert "'halve'" in str(refused.value)
    assert "secret" not in str(refused.value)


# ---------------------------------------------------------------- what plugins add
def test_a_plugin_adds_to_each_kind_of_span() -> None:
    """It gets the object of the span, and pocket_plug's own attributes."""

    def of_run(run: Run, own: SpanAttributes) -> SpanAttributes:
        return {"added": f"run {run.graph}", "mine": own["pocket_plug.graph.name"]}

    def of_node(call: NodeCall, own: SpanAttributes) -> SpanAttributes | None:
        return {"added": f"node {call.name}"} if own["pocket_plug.node.visit"] == 1 else None

    def of_phase(call: PhaseCall, own: SpanAttributes) -> SpanAttributes:
        return {"added": f"{own['pocket_plug.phase']} {call.node.name}"}

    def of_store(own: SpanAttributes) -> SpanAttributes:
        return {"added": str(own["db.operation.name"])}

    capture = played(Adding(run=of_run, node=of_node, phase=of_phase, store=of_store))
    assert {span.name: attributes(span).get("added") for span in capture.spans} == {
        "run g": "run g", "node halve": "node halve", "exec halve": "exec halve",
        "node keep": "node keep", "post keep": "post keep", "set fare:{}": "set",
    }  # fmt: skip
    assert attributes(capture.one("run g"))["mine"] == "g"


def test_our_attributes_and_baggage_stay_and_the_first_plugin_wins() -> None:
    """A plugin can't replace our attributes; of two plugins, the one that pluggy calls first counts."""
    first, last = (
        Adding(run=lambda run, own, name=name: {"pocket_plug.run.id": "x", "who": name, f"by {name}": True})
        for name in ("early", "late")
    )
    own = attributes(played(first, last).one("run g"))
    assert (own["who"], own["by early"], own["by late"]) == ("late", True, True)
    assert own["pocket_plug.run.id"] != "x"
    token = otel_context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        own = attributes(played(first, baggage=["tenant"]).one("run g"))
    finally:
        otel_context.detach(token)
    assert (own["tenant"], own["who"]) == ("acme", "early")


def test_a_plugin_gets_captured_text_only() -> None:
    """The text after `redact`, with the object that it belongs to; without capture it isn't called."""
    heard: list[tuple[str, str, str, str]] = []

    def of_value(call: Any, way: str, text: str, mime_type: str) -> Mapping[str, str]:
        heard.append((type(call).__name__, way, text, mime_type))
        return {f"{way}.value": text}

    played(Adding(value=of_value))
    assert heard == []
    capture = played(Adding(value=of_value), capture="full", redact=lambda path, value: "***" if value == 4 else value)
    assert attributes(capture.one("run g"))["input.value"] == '"***"'
    assert attributes(capture.one("node halve"))["output.value"] == "2"
    kinds = {(kind, way) for kind, way, _, _ in heard}
    assert kinds == {
        *((kind, way) for kind in ("Run", "NodeCall", "PhaseCall") for way in ("input", "output")),
        ("NoneType", "input"),
    }
    assert "4" not in {text for _, _, text, _ in heard}
    assert {mime for kind, _, _, mime in heard if kind == "Run"} == {"application/json"}


def test_a_plugin_is_called_once_for_a_pocket_and_again_when_plugins_change() -> None:
    """Not at each run; a plugin that is registered later is called from the next run on."""
    adding = Adding(run=lambda run, own: {"who": "first"})
    pocket = pocket_of(adding)
    graph = pp.Graph(halve, name="g")
    with SpanCapture("run") as capture:
        for _ in range(3):
            graph.run_sync(4, pocket=pocket)
        assert adding.asked == 1
        record = pocket.register(Adding(run=lambda run, own: {"who": "second"}))
        graph.run_sync(4, pocket=pocket)
        pocket.unregister(record.name)
        graph.run_sync(4, pocket=pocket)
    assert [attributes(span)["who"] for span in capture.spans] == ["first"] * 3 + ["second", "first"]


def test_two_pockets_are_independent() -> None:
    """Runs and stores have the attributes of their own Pocket's plugins."""
    one = pocket_of(Adding(run=lambda run, own: {"who": 1}, store=lambda own: {"who": 1}))
    other = pocket_of()
    with SpanCapture("run") as capture:
        for pocket in (one, other):
            pp.Graph(halve, name="g").run_sync(4, pocket=pocket)
    assert [attributes(span).get("who") for span in capture.spans] == [1, None]
    with SpanCapture("node") as capture:
        for pocket in (one, other):
            pp.SyncStore(layers=[pocket.layer("tracing")]).set("k", 1)
    assert [attributes(span).get("who") for span in capture.spans] == [1, None]


def test_layers_and_runs_without_a_pocket_use_the_default_one() -> None:
    """A layer that is created in code, and a run without a Pocket."""
    set_default_pocket(pocket_of(Adding(run=lambda run, own: {"who": "default"}, store=lambda own: {"who": "default"})))
    try:
        with SpanCapture("node") as capture:
            pp.SyncStore(layers=[Tracing()]).set("k", 1)
            pp.Graph(Keep(), name="g").run_sync(4)
    finally:
        set_default_pocket(None)
    assert [attributes(span).get("who") for span in capture.spans] == ["default", "default", None]


def test_without_a_default_pocket_nothing_is_added(caplog: pytest.LogCaptureFixture) -> None:
    """An unreadable configuration is reported to whoever needs it; spans are made all the same."""
    from pocket_plug.plugins.pocket import default_pocket

    def broken() -> Any:
        raise ConfigError("no such file")

    use_default_pocket(broken)
    try:
        with SpanCapture("node") as capture:
            pp.SyncStore(layers=[Tracing()]).set("k", 1)
        assert tracing.additions_of_default() is NONE
    finally:
        use_default_pocket(default_pocket)
    assert capture.tree() == ["set"]


# ---------------------------------------------------------------- when one fails
def failing(*_: object) -> SpanAttributes:
    raise RuntimeError("the secret")


def exits(*_: object) -> SpanAttributes:
    raise SystemExit(3)


def wrong(*_: object) -> Any:
    return {"team": ["a", "list"]}


def nothing_of_the_kind(*_: object) -> Any:
    return "team"


@pytest.mark.parametrize("broken", [failing, exits, wrong, nothing_of_the_kind], ids=lambda part: part.__name__)
@pytest.mark.parametrize("part", ["run", "node", "phase", "store", "value"])
def test_a_failing_part_costs_only_its_attributes(
    part: str, broken: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The run continues with all its spans and other plugins' attributes; the failure is logged once, without the message, and
    counted.
    """
    plugin, other = Adding(**{part: broken}), Adding(**{part: lambda *_: {"other": True}})
    pocket = pocket_of(plugin, other)
    store = pp.Store(layers=[pocket.layer("tracing")])
    graph = pp.Graph(halve >> Keep(), name="g", store=store)
    with SpanCapture("phase", capture="full") as capture, caplog.at_level(logging.WARNING, "pocket_plug"):
        for _ in range(2):
            assert asyncio.run(graph.run(4, pocket=pocket)) == 2
    assert len(capture.spans) == 12
    assert any("other" in attributes(span) for span in capture.spans)
    record = pocket.plugin("adding")
    assert record.failures[f"pocket_span_additions ({part})"] >= 2
    said = [text for text in caplog.messages if "pocket_span_additions" in text]
    assert len(said) == 1
    assert "plugin 'adding'" in said[0]
    assert "the secret" not in said[0]


def test_an_invalid_answer_is_reported_as_the_plugins_failure(caplog: pytest.LogCaptureFixture) -> None:
    """It is ignored, and logged."""

    class Odd:
        @pp.hookimpl
        def pocket_span_additions(self) -> Any:
            return {"team": "billing"}

    pocket = pocket_of(Odd())
    with SpanCapture("run") as capture, caplog.at_level(logging.WARNING, "pocket_plug"):
        pp.Graph(halve, name="g").run_sync(4, pocket=pocket)
    assert "team" not in attributes(capture.one("run g"))
    assert [text for text in caplog.messages if "it returned dict, not SpanAdditions or None" in text]


def test_nothing_is_called_without_a_provider() -> None:
    """Without a provider it costs nothing."""
    adding = Adding(run=failing)
    graph = pp.Graph(halve, name="g")
    former = tracing.configure(tracer_provider=trace.NoOpTracerProvider())
    try:
        graph.run_sync(4, pocket=pocket_of(adding))
    finally:
        tracing.use(former)
    assert adding.asked == 0


# ---------------------------------------------------------------- the option until 0.1
@pytest.mark.parametrize("given", ["openinference", ["gen_ai"]])
def test_flavours_change_nothing_and_say_what_to_install(given: Any) -> None:
    """The option is accepted until 0.3; an empty one, which asked for nothing, logs nothing."""
    before = tracing.configure(flavours=[])
    with pytest.warns(DeprecationWarning, match="pip install pocket-plug-openinference") as caught:
        tracing.configure(flavours=given)
    assert tracing.configure() == before
    assert [warning.filename for warning in caught] == [__file__], "Python shows it where the user's code is to blame"


def test_flavours_in_a_table_are_reported_when_the_pocket_is_made(tmp_path: Path) -> None:
    """The table has no line of its own."""
    (tmp_path / "pocket.toml").write_text('[plugins.tracing]\nflavours = ["openinference"]\n')
    with pytest.warns(DeprecationWarning, match="flavours has no effect any more") as caught:
        pp.Pocket(tmp_path / "pocket.toml", autoload=False)
    assert [warning.filename for warning in caught] == [__file__]
