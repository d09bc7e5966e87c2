"""If a node refuses its input, the error names the node that gave it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pocket_plug.errors import InputError
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.chain import Action
from pocket_plug.graph.nodes.node import Node
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.store.sync import SyncStore


@node
def inc(x: int) -> int:
    return x + 1


@node
def bad(x: int) -> int:
    return "seven"  # type: ignore[return-value]  # that is the fault


@node.post
def forgets(store: Any, x: int) -> int:  # type: ignore[return]  # that is the fault
    store.set("a", x)


@node
def untyped(x):  # type: ignore[no-untyped-def]  # it says nothing of its types
    return [x]


class Decides(Node[int, Any]):
    again = Action[int]()

    def exec(self, n: int) -> Any:
        return "again"


def refused(*chains: Any) -> str:
    """The message of the error that ends a run; the same with and without observers, with and without `await`."""
    graph: Any = Graph(*chains, name="g", store=SyncStore())
    with pytest.raises(InputError) as error:
        graph.run_sync(1)
    with pytest.raises(InputError) as again:
        asyncio.run(graph.run(1))
    assert str(error.value) == str(again.value)
    return str(error.value)


def test_a_refused_input_names_the_node_that_gave_it() -> None:
    """With its declared type, if that differs; also if a nested graph's first node refuses it."""
    takes = "node 'inc' of graph 'g' takes int, not "
    assert refused(bad >> inc) == f"{takes}str: node 'bad' returned it, though it declares int"
    assert refused(forgets >> inc) == (
        f"{takes}NoneType: node 'forgets' returned it, though it declares int; does it lack a `return`?"
    )
    assert refused(untyped >> inc) == f"{takes}list[int]: node 'untyped' returned it"
    assert refused(bad >> Graph(Graph(inc, name="g"), name="outer")) == (
        f"{takes}str: node 'bad' returned it, though it declares int"
    )


def test_a_nested_graph_that_gave_it_is_said_to_declare_nothing() -> None:
    """One of its ends returns an int, as declared, and another one None, as declared too."""

    @node
    def nothing(x: int) -> None:
        return None

    class Part(Node[int, int]):
        off = Action[int]()

        def post(self, store: Any, x: int, prepared: int, result: int) -> Any:
            return self.off(x)

    part = Part()
    inner = Graph(part >> inc.with_options(name="other"), part.off >> nothing, name="inner")
    assert refused(inner >> inc) == "node 'inc' of graph 'g' takes int, not NoneType: node 'inner' returned it"


def test_a_text_that_is_an_actions_name_gets_a_hint() -> None:
    """A newcomer returns the name of an action as a text, and gets a hint; the value itself stands in no other message."""
    decides = Decides()
    message = refused(decides >> inc, decides.again >> inc)
    assert message.endswith(
        "It is the name of an action: to leave by that, return Next('again', output), or call the Action"
    )
    assert "seven" not in refused(bad >> inc)


def test_an_error_from_within_a_node_is_unchanged() -> None:
    """An InputError of another run that a node executes, and one of the run's own input."""

    @node
    def drives(x: int) -> int:
        return Graph(inc, name="other").run_sync("a")  # type: ignore[arg-type]  # that is the fault

    assert refused(inc >> drives) == "node 'inc' of graph 'other' takes int, not str"
    with pytest.raises(InputError) as error:
        Graph(inc, name="g").run_sync("a")  # type: ignore[arg-type]  # that is the fault
    assert str(error.value) == "node 'inc' of graph 'g' takes int, not str"
