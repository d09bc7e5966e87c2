"""The reference workflow as a collector receives it: exact trees. Read them to learn what a trace of pocket_plug looks like.

A line is a span: its name, its unusual attributes, `error.type`, `!events`, `~links`, and ERROR if that is its status. Everything
else is asserted by `checked`, so no attribute can come or go unnoticed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, NamedTuple, get_args

import pytest
import reference_workflow
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from otlp_sink import Sink, Span
from reference_workflow import DURABLE_RUN, Scene

from pocket_plug.layers import tracing
from pocket_plug.layers.tracing.settings import Detail
from pocket_plug.otel.reporting import SCHEMA_URL, own_version

SCRIPT = Path(reference_workflow.__file__)

OURS = "pocket_plug."
SHOWN: Mapping[str, Callable[[Any], str]] = {  # what is drawn, in this order, and how; usual values are left out
    "node.type": lambda value: "" if value == "node" else value,
    "fan_out.index": lambda value: f"[{value}]",
    "node.visit": lambda value: "" if value == 1 else f"visit {value}",
    "node.attempts": lambda value: "" if value in (0, 1) else f"{value} attempts",
    "node.outcome": lambda value: "" if value == "ok" else value,
    "node.action": lambda value: "" if value == "default" else f"by {value}",
    "node.next": lambda value: f"-> {value}",
    "run.outcome": lambda value: value,
    "run.steps": lambda value: f"in {value} steps",
    "run.retries": lambda value: f"{value} retries",
    "fan_out.items": lambda value: f"of {value} items",
    "fan_out.failed": lambda value: f"{value} failed" if value else "",
    "fan_out.retried": lambda value: f"{value} retried" if value else "",
    "fan_out.suppressed": lambda value: f"{value} suppressed" if value else "",
    "run.resumed": lambda value: "resumed" if value else "",
    "attempt": lambda value: "" if value == 1 else f"#{value}",
    "timeout": lambda value: f"within {value:g} s",
    "attempt.will_retry": lambda value: "will retry" if value else "won't retry",
    "retry.delay": lambda value: f"in {value:g} s",
    "store.hit": lambda value: "hit" if value else "miss",
    "db.operation.batch.size": lambda value: f"of {value}",
    "store.size": lambda value: f"of {value}",
    "db.response.returned_rows": lambda value: f"found {value}",
}
PHASES = ("prep", "exec", "post", "fallback")


def checked(span: Span, spans: Mapping[str, Span]) -> dict[str, Any]:
    """A span's attributes that are drawn. The attributes that all spans of its kind have are asserted here."""
    own = {name.removeprefix(OURS): value for name, value in span.attributes.items()}
    if not span.scope.name.startswith(OURS):
        return own
    called = "CLIENT" if own.get("db.system.name") == "sqlite" else "INTERNAL"
    assert (span.scope.version, span.scope.schema_url, span.kind) == (own_version(), SCHEMA_URL, called)
    assert span.start <= span.end
    kind, _, rest = span.name.partition(" ")
    if kind == "run":
        assert span.scope.name == "pocket_plug.graph"
        assert own.pop("graph.name") == rest
        assert re.fullmatch("[0-9a-f]{12}", own.pop("graph.version"))
        own.pop("run.id"), own.pop("run.parent_id", ""), own.pop("session.id", ""), own.pop("graph.nodes", ())
        for source, action, target in (edge.split("\t") for edge in own.pop("graph.edges", ())):
            assert source, (action, target)
    elif kind in ("node", "item"):
        run = span
        while not run.name.startswith("run "):
            run = spans[run.parent_id]
        assert span.scope.name == "pocket_plug.graph"
        assert [own.pop(name) for name in ("node.name", "graph.name")] == [rest, run["pocket_plug.graph.name"]]
        assert own.pop("run.id") == run["pocket_plug.run.id"]
        for phase in PHASES:
            assert own.pop(f"node.{phase}.duration", 0) >= 0
        assert own.pop("node.retries", 0) <= max(own["node.attempts"] - 1, 0)
        figures = [own.pop(f"fan_out.duration.{name}", 0) for name in ("min", "median", "p95", "max")]
        assert figures == sorted(figures)
        if own["node.type"] == "node" and rest != "approve":  # a question is no code of the program's
            assert own.pop("code.function.name").startswith(("reference_workflow.", "__main__."))
            assert own.pop("code.file.path") == str(SCRIPT)
            assert own.pop("code.line.number") > 0
        if kind == "item":
            assert own.pop("node.visit") == own["fan_out.index"] + 1
    elif kind in PHASES:
        assert span.scope.name == "pocket_plug.phase"
        assert [own.pop(name) for name in ("phase", "node.name")] == [kind, rest]
    else:
        assert span.scope.name == "pocket_plug.store"
        assert own.pop("db.system.name") in ("memory", "sqlite")
        assert own.pop("db.operation.name") == kind
    return own


def drawn(found: Sequence[Span]) -> str:
    """The trees. Every parent must exist."""
    spans = {span.span_id: span for span in found}
    assert len(spans) == len(found), "a span came twice"
    assert {span.parent_id for span in found} - {"", *spans} == set(), "orphans"
    children: dict[str, list[Span]] = {}
    for span in found:
        children.setdefault(span.parent_id, []).append(span)
        assert not span.parent_id or span.trace_id == spans[span.parent_id].trace_id

    def draw(parent: str) -> str:
        text = ""
        for span in children.get(parent, ()):
            own = checked(span, spans)
            error = own.pop("error.type", None)
            words = [span.name, *(show(own.pop(name)) for name, show in SHOWN.items() if name in own)]
            words += [f"{name}={value}" for name, value in sorted(own.items())]
            words += [error] if error is not None else []
            words += [f"!{event.name}" for event in span.events]
            words += [f"~{spans[link.span_id].name if link.span_id in spans else 'elsewhere'}" for link in span.links]
            words += [span.status] if span.status != "UNSET" else []
            text += " ".join(filter(None, words)) + "\n" + indent(draw(span.span_id), "  ")
        return text

    return draw("")


def assert_drawn(found: Sequence[Span], expected: str) -> None:
    assert drawn(found).splitlines() == dedent(expected).strip().splitlines()


# ---------------------------------------------------------------- playing the workflow
Play = Callable[..., Sequence[Span]]


@pytest.fixture
def play(otlp_sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Plays parts of the workflow at a detail, and returns what the collector received from the real exporter."""
    provider = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{otlp_sink.url}/v1/traces")))
    monkeypatch.setattr(reference_workflow, "tracer", provider.get_tracer("shop"))
    former = tracing.configure(tracer_provider=provider)

    def play(detail: Detail, *parts: str) -> Sequence[Span]:
        tracing.configure(detail=detail)
        otlp_sink.clear()
        Scene("tea", str(tmp_path / "reference.db")).play(*parts)
        assert provider.force_flush()
        return otlp_sink.spans

    yield play
    tracing.configure(detail=former.detail, tracer_provider=former.tracer_provider)
    provider.shutdown()


class Tree(NamedTuple):
    node: str
    phase: str


LATE = "pocket_plug.errors.NodeTimeoutError"
CANCELLED = "asyncio.exceptions.CancelledError"

TREES: dict[str, Tree] = {
    # A graph as a node has a run of its own. A retried attempt has failed, its node has not; nor has a node with a
    # fallback, nor a fan-out that collects its items' errors.
    "nested": Tree(
        node=f"""
        run shop success in 7 steps 2 retries
          node checkout graph -> hurry
            run checkout success in 3 steps
              node fetch 3 attempts -> price
                exec fetch will retry in 0 s OSError !exception ERROR
                exec fetch #2 will retry in 0 s OSError !exception ERROR
                exec fetch #3
              node price by again -> price
                get price:{{}} miss
                set price:{{}}
              node price visit 2
                get price:{{}} hit
                get sold:{{}} miss
                set sold:{{}}
          node hurry fallback -> split
            exec hurry within 0.01 s won't retry {LATE} !exception ERROR
          node split -> each_pack
          node each_pack fan_out of 3 items 1 failed
            item pack [0]
            item pack [1] failed LookupError !exception ERROR
            item pack [2]
        """,
        phase=f"""
        run shop success in 7 steps 2 retries
          node checkout graph -> hurry
            run checkout success in 3 steps
              node fetch 3 attempts -> price
                exec fetch will retry in 0 s OSError !exception ERROR
                exec fetch #2 will retry in 0 s OSError !exception ERROR
                exec fetch #3
              node price by again -> price
                prep price
                  get price:{{}} miss
                exec price
                post price
                set price:{{}}
              node price visit 2
                prep price
                  get price:{{}} hit
                exec price
                post price
                  get sold:{{}} miss
                set sold:{{}}
          node hurry fallback -> split
            exec hurry within 0.01 s won't retry {LATE} !exception ERROR
            fallback hurry
          node split -> each_pack
            exec split
          node each_pack fan_out of 3 items 1 failed
            item pack [0]
              exec pack
            item pack [1] failed LookupError ERROR
              exec pack won't retry LookupError !exception ERROR
            item pack [2]
              exec pack
        """,
    ),
    # The exception is an event once, where it happened, and ERROR on every span that it passed.
    "failed": Tree(
        node="""
        run failing failure in 2 steps ExceptionGroup ERROR
          node draft -> within
          node within graph failed ExceptionGroup ERROR
            run within failure in 1 steps ExceptionGroup ERROR
              node refuse failed ExceptionGroup !exception ERROR
        """,
        phase="""
        run failing failure in 2 steps ExceptionGroup ERROR
          node draft -> within
            exec draft
          node within graph failed ExceptionGroup ERROR
            run within failure in 1 steps ExceptionGroup ERROR
              node refuse failed ExceptionGroup ERROR
                exec refuse won't retry ExceptionGroup !exception ERROR
        """,
    ),
    # A cancellation is no failure: a type, but no status and no event.
    "cancelled": Tree(
        node=f"""
        run stopped cancelled in 2 steps {CANCELLED}
          node draft -> wait
          node wait cancelled {CANCELLED}
        """,
        phase=f"""
        run stopped cancelled in 2 steps {CANCELLED}
          node draft -> wait
            exec draft
          node wait cancelled {CANCELLED}
            exec wait won't retry {CANCELLED}
        """,
    ),
    # Nor is a conflict: post is run again. The other caller's write is below post, which calls it.
    "conflict": Tree(
        node="""
        run stocktaking success in 1 steps
          node stock !pocket_plug.conflict
            get sold:{} miss
            set sold:{}
            set sold:{} pocket_plug.errors.ConflictError
            get sold:{} hit
            set sold:{}
        """,
        phase="""
        run stocktaking success in 1 steps
          node stock !pocket_plug.conflict
            post stock
              get sold:{} miss
              set sold:{}
            set sold:{} pocket_plug.errors.ConflictError
            post stock
              get sold:{} hit
            set sold:{}
        """,
    ),
    # A failing clean-up undoes nothing.
    "untidy": Tree(
        node="""
        run untidy success in 1 steps
          node untidy !pocket_plug.clean_up_failed
            set price:{}
            get price:{} hit
        """,
        phase="""
        run untidy success in 1 steps
          node untidy !pocket_plug.clean_up_failed
            post untidy
            set price:{}
            get price:{} hit
        """,
    ),
    # The user's own spans, around and inside, in threads and tasks.
    "threads": Tree(
        node="""
        request
          run foreign success in 2 steps
            node weigh -> hand_on
              own work in a thread
            node hand_on
              own work
                own work in a task
              own work by to_thread
        """,
        phase="""
        request
          run foreign success in 2 steps
            node weigh -> hand_on
              exec weigh
                own work in a thread
            node hand_on
              exec hand_on
                own work
                  own work in a task
                own work by to_thread
        """,
    ),
    # The same without an event loop.
    "sync": Tree(
        node="""
        run sync success in 2 steps
          node weigh -> count
            own work in a thread
          node count
            get sold:{} miss
            set sold:{}
        """,
        phase="""
        run sync success in 2 steps
          node weigh -> count
            exec weigh
              own work in a thread
          node count
            prep count
              get sold:{} miss
            post count
            set sold:{}
        """,
    ),
    # A durable run is claimed before it starts, when it is not known to be a new one: that makes no spans. Its
    # checkpoints are written with the node's writes: one write for all.
    "suspended": Tree(
        node="""
        run approval suspended in 2 steps
          node draft -> approve
            write checkpoint of 2
          node approve suspended
            write checkpoint of 4
        """,
        phase="""
        run approval suspended in 2 steps
          node draft -> approve
            exec draft
            write checkpoint of 2
          node approve suspended
            write checkpoint of 4
        """,
    ),
}

RESUMED = Tree(
    node="""
    run approval success in 2 steps resumed ~elsewhere
      node approve -> send
        get checkpoint hit
        write checkpoint of 2
      node send
        write checkpoint of 5
    """,
    phase="""
    run approval success in 2 steps resumed ~elsewhere
      node approve -> send
        get checkpoint hit
        write checkpoint of 2
      node send
        post send
        write checkpoint of 5
    """,
)


@pytest.mark.parametrize("part", TREES)
@pytest.mark.parametrize("detail", ["node", "phase"])
def test_a_collector_gets_exactly_this_tree(play: Play, detail: Detail, part: str) -> None:
    """Names, parents, attributes, statuses, events, at the two usual details; no orphans, one trace."""
    spans = play(detail, part)
    assert_drawn(spans, getattr(TREES[part], detail))
    assert len({span.trace_id for span in spans}) == 1
    assert {span.resource["service.name"] for span in spans} == {"shop"}


def resumed_elsewhere(sink: Sink, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Plays "resumed" in a process of its own, which observes at detail "phase"."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "POCKET_PLUG_"))}
    command = [sys.executable, "-W", "error", SCRIPT, "tea", folder / "reference.db", "resumed"]
    return subprocess.run(
        command,
        cwd=folder,
        env=kept | {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.url, "POCKET_PLUG_DISABLE": "openinference"} | environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )


def root_of(spans: Sequence[Span]) -> Span:
    """The run's own span in one trace."""
    (root,) = (span for span in spans if not span.parent_id and span.name.startswith("run "))
    return root


def test_a_run_that_is_resumed_elsewhere_is_a_trace_with_a_link(play: Play, otlp_sink: Sink, tmp_path: Path) -> None:
    """In another process: a new trace, linked to the span of the suspended run; run and session are the same."""
    former = root_of(play("phase", "suspended"))
    otlp_sink.clear()
    done = resumed_elsewhere(otlp_sink, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert_drawn(otlp_sink.spans, RESUMED.phase)
    root = root_of(otlp_sink.spans)
    assert root.trace_id != former.trace_id
    assert [(link.trace_id, link.span_id) for link in root.links] == [(former.trace_id, former.span_id)]
    assert root.links[0].attributes == {"pocket_plug.link": "former_execution"}
    assert former["pocket_plug.run.id"] == root["pocket_plug.run.id"] == DURABLE_RUN
    assert former["session.id"] == root["session.id"] == DURABLE_RUN
    assert (former["pocket_plug.run.resumed"], root["pocket_plug.run.resumed"]) == (False, True)


@pytest.mark.parametrize("detail", ["node", "phase"])
def test_within_one_process_a_resumed_run_is_linked_as_well(play: Play, detail: Detail) -> None:
    """A trace of its own, with a link to the first."""
    former = root_of(play(detail, "suspended"))
    spans = play(detail, "resumed")
    assert_drawn(spans, getattr(RESUMED, detail))
    root = root_of(spans)
    assert root.trace_id != former.trace_id
    assert [(link.trace_id, link.span_id) for link in root.links] == [(former.trace_id, former.span_id)]
    assert root.links[0].attributes == {"pocket_plug.link": "former_execution"}


def test_every_run_has_its_parent_and_its_graph(play: Play) -> None:
    """At "phase" the graph's edges are on the run, also those not taken; a nested run names the outer one."""
    spans = play("phase", "nested", "nested")
    first, second = (span for span in spans if span.name == "run shop")
    inner = next(span for span in spans if span.name == "run checkout")
    assert inner["pocket_plug.run.parent_id"] == first["pocket_plug.run.id"] != second["pocket_plug.run.id"]
    assert (
        first["pocket_plug.graph.version"] == second["pocket_plug.graph.version"] != inner["pocket_plug.graph.version"]
    )
    assert first["pocket_plug.run.parent_id"] is None
    assert first["session.id"] is None
    assert set(inner["pocket_plug.graph.nodes"]) == {"fetch\tnode", "price\tnode"}
    assert set(inner["pocket_plug.graph.edges"]) == {"fetch\tdefault\tprice", "price\tagain\tprice"}
    assert set(first["pocket_plug.graph.nodes"]) == {
        "checkout\tgraph",
        "hurry\tnode",
        "split\tnode",
        "each_pack\tfan_out",
    }


def test_durations_of_phases_are_on_the_node_if_phases_have_no_spans(play: Play) -> None:
    """At "node" for each phase that the node overrides; at "phase" the phases have spans."""
    for detail in ("node", "phase"):
        for span in play(detail, "nested"):
            found = {phase for phase in PHASES if f"pocket_plug.node.{phase}.duration" in span.attributes}
            wanted = {
                "node fetch": {"exec"},
                "node price": {"prep", "exec", "post"},
                "node hurry": {"exec", "fallback"},
                "node split": {"exec"},
                "item pack": {"exec"},
            }
            assert found == (wanted.get(span.name, set()) if detail == "node" else set()), span.name


def test_exceptions_have_their_type_and_where_they_happened(play: Play) -> None:
    """The event has the frames of the user's code, without any message; the status has the type."""
    spans = play("phase", "failed")
    (event,) = (event for span in spans for event in span.events)
    assert set(event.attributes) == {"exception.type", "exception.stacktrace"}
    assert event.attributes["exception.type"] == "ExceptionGroup"
    assert f'File "{SCRIPT}"' in event.attributes["exception.stacktrace"]
    assert {span.message for span in spans if span.status == "ERROR"} == {"ExceptionGroup"}


@pytest.mark.parametrize("detail", get_args(Detail))
def test_there_is_no_orphan_at_any_detail(play: Play, detail: Detail) -> None:
    """All parts together, at every detail: each parent exists; a trace for each part, and for a durable run's claim."""
    spans = play(detail)
    ids = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_id and span.parent_id not in ids] == []
    roots = [span.name for span in spans if not span.parent_id]
    assert roots == ["run shop", "run failing", "run stopped", "run stocktaking", "run untidy", "request", "run sync",
                     "run approval", "run approval"]  # fmt: skip
    assert len({span.trace_id for span in spans if span.name.startswith(("run ", "request"))}) == len(roots)
