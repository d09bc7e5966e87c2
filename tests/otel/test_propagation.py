"""A trace context as plain texts for other processes, and what isn't sent by default."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import baggage, context, trace

from pocket_plug import ConfigError, Graph, Pocket, hookimpl, node
from pocket_plug.hookspecs import Observer, Run
from pocket_plug.propagation import context_of, current_session, extract, inject, session

ELSEWHERE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@node
def double(n: int) -> int:
    return 2 * n


class Seen:
    """Records the trace context of each run at its start."""

    def __init__(self) -> None:
        self.given: list[Mapping[str, str] | None] = []

    @hookimpl
    def pocket_observe(self, run: Run) -> Observer:
        def entered(run: Run) -> None:
            self.given.append(run.traceparent)

        return Observer(run=entered)


# ---------------------------------------------------------------- carriers
def test_what_is_injected_is_extracted() -> None:
    """Span, trace state and session are the same on both sides."""
    carrier = {"traceparent": ELSEWHERE, "tracestate": "vendor=1", "session.id": "chat-17"}
    with extract(carrier):
        assert inject() == carrier
    assert inject() == {}


def test_headers_may_be_named_in_any_case() -> None:
    """As in HTTP."""
    with extract({"Traceparent": ELSEWHERE, "SESSION.ID": "chat-17"}):
        assert inject() == {"traceparent": ELSEWHERE, "session.id": "chat-17"}


def test_a_carrier_adds_to_the_current_context() -> None:
    """What it doesn't say stays, unless a context of its own is given: that has nothing of the current one."""
    with session("chat-17"), extract(ELSEWHERE):
        assert inject() == {"traceparent": ELSEWHERE, "session.id": "chat-17"}
        assert context_of({}) == context.get_current() != {}
        assert context_of({}, context.Context()) == {}


def test_a_context_ends_with_its_block() -> None:
    """Also after an error."""
    before = context.get_current()
    with pytest.raises(LookupError), session("chat-17"), extract(ELSEWHERE):
        raise LookupError
    assert context.get_current() == before
    assert current_session() is None


def test_baggage_is_propagated_only_if_it_is_named() -> None:
    """On both sides: by default it is neither sent nor used."""
    token = context.attach(baggage.set_baggage("secret", "s3cret", baggage.set_baggage("tenant", "acme, inc")))
    try:
        assert inject() == {}
        carrier = inject(baggage=["tenant", "absent"])
    finally:
        context.detach(token)
    assert carrier.keys() == {"baggage"}
    assert "s3cret" not in carrier["baggage"]
    assert baggage.get_all(context_of(carrier)) == {}
    assert baggage.get_all(context_of(carrier, baggage=["tenant"])) == {"tenant": "acme, inc"}


anything = st.text(st.characters(exclude_categories=()))  # some servers decode headers with surrogateescape


@given(
    st.one_of(
        anything,
        st.dictionaries(
            st.sampled_from(["traceparent", "tracestate", "baggage", "session.id", "x"]),
            st.one_of(anything, st.none(), st.integers()),
        ),
    )
)
@example({"session.id": "\udcff", "baggage": "tenant=\udcff"})
def test_no_carrier_can_do_harm(carrier: Any) -> None:
    """An invalid context is ignored: a message must not fail the work that it asks for."""
    with extract(carrier, baggage=["tenant"]):
        found = trace.get_current_span().get_span_context()
        assert not found.is_valid or found.is_remote
        for text in inject(baggage=["tenant"]).values():
            text.encode()


@pytest.mark.parametrize("id", [None, 5, "", "\udcff"])
def test_a_session_must_be_a_text(id: Any) -> None:
    """Otherwise its runs would silently belong to no session."""
    with pytest.raises(ConfigError, match="the id of a session must be a non-empty str"), session(id):
        pass


# ---------------------------------------------------------------- runs
@pytest.mark.parametrize("given", [ELSEWHERE, {"traceparent": ELSEWHERE}], ids=["text", "carrier"])
def test_a_run_tells_its_observers_its_origin(given: Any) -> None:
    """Async and sync, and through a Pocket; a run without an origin has none."""
    seen = Seen()
    pocket = Pocket(plugins=[seen])
    graph = Graph(double)
    assert graph.run_sync(1, pocket=pocket, traceparent=given) == 2
    assert asyncio.run(graph.run(1, pocket=pocket, traceparent=given)) == 2
    assert asyncio.run(pocket.run(graph, 1, traceparent=given)) == 2
    assert seen.given == 3 * [{"traceparent": ELSEWHERE}]
    assert graph.run_sync(1, pocket=pocket) == 2
    assert seen.given[3] is None
