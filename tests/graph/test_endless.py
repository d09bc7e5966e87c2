"""A loop that no run can leave is found by `validate()`, and no other one is."""

from __future__ import annotations

from typing import Any

import pytest

from pocket_plug.errors import GraphError
from pocket_plug.graph.ask import Ask
from pocket_plug.graph.chain import END, Action, AnyNext, Next
from pocket_plug.graph.each import each
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.node import Node
from pocket_plug.graph.node_functions import node
from pocket_plug.graph.sleep import Sleep


@node
def inc(x: int) -> int:
    return max(x, 0) + 1


@node
async def nop(x):  # type: ignore[no-untyped-def]  # it says nothing of its types
    return x


class Keep(Node[int, int]):
    """Does nothing that could end a run."""

    async def exec(self, n: int) -> int:
        return n


def findings(*chains: Any, **options: Any) -> tuple[str, ...]:
    """What `validate()` has against the loops of a graph."""
    try:
        Graph(*chains, name="g", **options).validate()
    except GraphError as error:
        return error.findings
    return ()


@pytest.mark.parametrize(
    ("chains", "loop"),
    [((inc >> inc,), "'inc' >> 'inc'"),
     ((inc >> nop, nop >> inc), "'inc' >> 'nop' >> 'inc'"),
     ((nop >> Keep() >> inc >> (k := Keep().with_options(name="k")), k >> inc), "'inc' >> 'k' >> 'inc'"),
     ((Graph(inc, name="inner") >> nop >> (again := each(inc)), again >> again), "'each_inc' >> 'each_inc'")],
    ids=["itself", "each other", "behind others", "a fan-out"],
)  # fmt: skip
def test_a_loop_without_a_way_out_is_a_finding(chains: tuple[Any, ...], loop: str) -> None:
    """It names the loop and the ways out."""
    (found,) = findings(*chains)
    assert found.startswith(f"no run can leave the loop {loop}: none of its nodes has another way out")
    assert "END" in found
    assert "max_steps" in found


def test_a_nested_loop_is_a_finding() -> None:
    """Of a graph within it, of one that an item goes through, and of graphs that follow each other."""
    inner = Graph(inc >> inc, name="inner")
    assert findings(inner)[0].startswith("in graph 'inner': no run can leave the loop 'inc' >> 'inc'")
    assert findings(each(inner))[0].startswith("in graph 'inner': no run can leave")
    once = Graph(inc, name="once")
    assert findings(once >> once)[0].startswith("no run can leave the loop 'once' >> 'once'")


@node
def by_end(x: int) -> Any:
    return END(x) if x else x


@node
def by_a_helper(x):  # type: ignore[no-untyped-def]  # it says nothing of its types
    return helper(x)


def helper(x: int) -> object:
    return Next("END", x)


@node
def as_declared(x: int) -> int | AnyNext:
    return x


@node
def lies(x: int) -> int:
    return END(x)  # type: ignore[return-value]  # a run heeds it all the same


@node
def raises(x: int) -> int:
    if x > 3:
        raise RuntimeError
    return x


class Leaves(Node[int, int]):
    more = Action[int]()

    def exec(self, n: int) -> int:
        return n

    def post(self, store: Any, input: int, prepared: Any, result: Any) -> Any:
        return self.more(n) if (n := result) else n


def a_loop_by_an_action() -> tuple[Any, ...]:
    leaves = Leaves()
    return leaves.more >> leaves, leaves >> inc


def a_loop_that_leaves_by_an_action() -> tuple[Any, ...]:
    leaves = Leaves()
    return leaves >> inc >> leaves, leaves.more >> nop


def a_graph_that_leaves_by_an_action() -> tuple[Any, ...]:
    leaves = Leaves()
    inner: Any = Graph(leaves >> leaves, name="inner")
    return inner >> inner, inner.on("more") >> inc


def a_nested_graph_that_leaves_further_out() -> tuple[Any, ...]:
    leaf: Any = Graph(Leaves(), name="leaf")
    middle: Any = Graph(leaf >> leaf, name="middle")
    return middle >> nop, middle.on("more") >> inc


@pytest.mark.parametrize(
    "chains",
    [(by_end >> by_end,), (by_a_helper >> by_a_helper,), (as_declared >> inc >> as_declared,), (lies >> lies,),
     (raises >> inc >> raises,), a_loop_by_an_action(), a_loop_that_leaves_by_an_action(),
     a_graph_that_leaves_by_an_action(), a_nested_graph_that_leaves_further_out()],
)  # fmt: skip
def test_a_loop_that_a_run_may_leave_is_none(chains: tuple[Any, ...]) -> None:
    """By END, also made in a helper; as the type says; by an error; by an action, of a nested graph too."""
    assert findings(*chains) == ()


def test_a_loop_may_be_meant() -> None:
    """One that sleeps, asks, or has such a node within it, and any in a graph with a limit of its own."""
    tick: Any = Sleep("1m")
    ask: Any = Ask[int, bool](bool, question="Ready?")
    waits: Any = Graph(Sleep("1m") >> nop, name="waits")
    fan: Any = each(Graph(ask, name="asks"))
    assert findings(inc >> tick >> inc) == ()
    assert findings(ask >> nop >> ask) == ()
    assert findings(inc >> waits >> inc) == ()
    assert findings(fan >> nop >> fan) == ()
    assert findings(inc >> inc, max_steps=50) == ()
    assert findings(inc >> inc, timeout=5) == ()
    assert findings(Graph(inc >> inc, name="inner"), max_steps=50) == ()
