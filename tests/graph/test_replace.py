"""`graph.replace`: a copy of a graph with other nodes of fitting types. And a phase that is patched too late is reported."""

from __future__ import annotations

from functools import partialmethod
from typing import Any

import pytest

from pocket_plug import Action, GraphError, Node, Store, StoreWriter, each, gather, node
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.planning.plan import validation


@node
def parse(line: str) -> int:
    return int(line)


class Charge(Node[int, str]):
    declined = Action[str]()

    async def exec(self, amount: int) -> str:
        raise ConnectionError("no network here")


@node
def note(receipt: str) -> str:
    return f"noted: {receipt}"


@node
def apologise(reason: str) -> str:
    return f"sorry: {reason}"


charge = Charge()
shop = Graph(parse >> charge >> note, charge.declined >> apologise, name="shop")


class Fake(Node[int, str]):
    declined = Action[str]()

    async def post(self, store: StoreWriter, amount: int, prepared: int, result: int) -> Any:
        await store.set("charged", amount)
        return self.declined("no cover") if amount > 100 else f"receipt for {amount}"


def test_a_fake_gets_the_edges_of_the_node():
    """Edges of other actions too; what the fake writes is stored."""
    store = Store()
    faked = shop.replace(charge=Fake())
    assert faked.run_sync("7", store=store) == "noted: receipt for 7"
    assert store.sync.get("charged") == 7
    assert faked.run_sync("700") == "sorry: no cover"


def test_the_original_graph_is_unchanged():
    """It fails as before; the copy has the same shape, by which traces and durable runs identify it."""
    faked = shop.replace(charge=Fake())
    with pytest.raises(ConnectionError):
        shop.run_sync("7")
    assert faked.plan.shape.version == shop.plan.shape.version
    assert (faked.name, repr(faked)) == (shop.name, repr(shop))


def test_a_function_or_a_graph_can_replace_a_node():
    """Any node of fitting types; a graph is left by its last node."""

    @node
    def receipt(amount: int) -> str:
        return f"receipt for {amount}"

    assert shop.replace(charge=receipt).run_sync("7") == "noted: receipt for 7"
    assert shop.replace(charge=Graph(receipt, name="other")).run_sync("7") == "noted: receipt for 7"


def test_several_nodes_are_replaced_at_once():
    """A fake that replaces two nodes becomes one node for each."""

    @node
    def same(text: str) -> str:
        return f"<{text}>"

    @node
    def first(line: str) -> int:
        return 9

    faked = shop.replace(parse=first, charge=Fake(), note=same, apologise=same)
    assert faked.run_sync("7") == "<receipt for 9>"
    assert [*faked.plan.shape.nodes] == [*shop.plan.shape.nodes]


def test_a_node_that_stands_in_several_chains_is_replaced_in_all():
    """A loop leads back to the fake."""

    @node
    def count(number: int) -> int:
        return number + 1

    class Enough(Node[int, int]):
        again = Action[int]()

        async def post(self, store: StoreWriter, number: int, prepared: int, result: int) -> Any:
            return number if number >= 10 else self.again(number)

    @node
    def by_five(number: int) -> int:
        return number + 5

    enough = Enough()
    loop = Graph(count >> enough, enough.again >> count, name="loop")
    assert loop.run_sync(1) == 10
    assert loop.replace(count=by_five).run_sync(1) == 11


def test_the_node_of_an_each_is_replaced():
    """By its own name; a node of the graph with that name has priority."""

    @node
    def double(number: int) -> int:
        return 2 * number

    @node
    def triple(number: int) -> int:
        return 3 * number

    assert Graph(each(double)).replace(double=triple).run_sync([1, 2]) == [3, 6]


def test_a_node_and_what_it_contains_are_not_both_replaced():
    """One of the two replacements would be lost."""

    @node
    def double(n: int) -> int:
        return 2 * n

    @node
    def all_of(items: list[int]) -> list[int]:
        return items

    with pytest.raises(GraphError, match="'each_double' contains 'double'; replace only one of them"):
        Graph(each(double)).replace(double=double, each_double=all_of)
    branches = gather(double, double.with_options(name="twice") >> double.with_options(name="last"))
    with pytest.raises(GraphError, match="'gather_double_twice' contains 'double', 'last'; replace only one of them"):
        Graph(branches).replace(gather_double_twice=gather(double, double), double=double, last=double)


def test_a_nested_graphs_node_is_replaced_in_that():
    """The copy of the inner graph replaces it in the outer one."""
    outer = Graph(shop, name="outer")
    assert outer.replace(shop=shop.replace(charge=Fake())).run_sync("7") == "noted: receipt for 7"


def test_a_nested_graph_can_be_replaced_by_a_node_that_returns_what_the_graph_may_return():
    """What it returns is known in part only: validate() leaves out the None of one of its ends, and what a node ends it with."""

    @node
    def keep(receipt: str) -> None:
        return None

    @node
    def nothing(amount: int) -> str | None:
        return None

    @node
    def shown(receipt: str | None) -> str:
        return f"shown: {receipt}"

    till = Graph(charge >> note, charge.declined >> keep, name="till")
    outer = Graph(till >> shown, name="outer")
    assert outer.replace(till=nothing).run_sync(7) == "shown: None"


def test_a_copy_has_a_store_of_its_own():
    """If no store is named: each has its own store in memory."""

    @node
    async def visit(number: int) -> int:
        return number

    class Count(Node[int, int]):
        async def post(self, store: StoreWriter, number: int, prepared: int, result: int) -> int:
            return await store.update("visits", lambda visits: visits + 1, default=0)

    counting = Graph(visit >> Count(), name="counting")
    assert [counting.run_sync(0), counting.run_sync(0)] == [1, 2]
    assert counting.replace(visit=visit).run_sync(0) == 1


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        ("takes", "'charge' (Charge) by 'takes' (takes): the old one takes int, the new one str"),
        ("gives", "'charge' (Charge) by 'gives' (gives): the old one returns str, the new one int"),
        (
            "carries",
            "'charge' (Charge) by 'carries' (Carries): by 'declined' the old one returns str, the new one int",
        ),
    ],
)
def test_types_that_do_not_fit_are_refused(fake, said):
    """The error names both nodes and both types."""

    @node
    def takes(text: str) -> str:
        return text

    @node
    def gives(number: int) -> int:
        return number

    class Carries(Node[int, str]):
        declined = Action[int]()

        async def exec(self, number: int) -> str:
            return ""

    with pytest.raises(GraphError) as refused:
        shop.replace(charge={"takes": takes, "gives": gives, "carries": Carries()}[fake])
    assert said in str(refused.value)


def test_a_node_with_a_wider_input_and_a_narrower_output_fits():
    """As one function can replace another; a type that isn't annotated is accepted."""

    @node
    def wide(number: int | str) -> str:
        return "wide"

    @node
    def silent(number):
        return "silent"

    assert shop.replace(charge=wide).run_sync("7") == "noted: wide"
    assert shop.replace(charge=silent).run_sync("7") == "noted: silent"


def test_a_name_that_several_nodes_have_is_refused():
    """An item's node may have the name of another node: a fake for only one of them would let the other one run."""

    @node
    def fetch(url: str) -> str:
        raise ConnectionError("no network here")

    again = fetch.with_options(trace=False)
    for graph in (Graph(each(fetch) >> each(again).with_options(name="second")), Graph(again >> each(fetch))):
        graph.validate()
        with pytest.raises(GraphError, match="several nodes have the name 'fetch'"):
            graph.replace(fetch=node(lambda url: url))
    same = Graph(each(fetch) >> each(fetch).with_options(name="second"))
    assert same.replace(fetch=node(lambda url: url)).run_sync(["a"]) == ["a"]


def test_unknown_names_are_refused_all_at_once():
    """With the existing names."""
    with pytest.raises(GraphError) as refused:
        shop.replace(chrge=Fake(), notes=note)
    said = str(refused.value)
    assert "there is no node 'chrge'; the graph has: parse, charge, note, apologise. Did you mean 'charge'?" in said
    assert "there is no node 'notes'" in said


def test_a_node_of_a_nested_graph_is_refused_with_the_way_to_it():
    """Also if it is the node of an `each`."""
    inner = Graph(note, name="inner")
    for outer in (Graph(inner, name="outer"), Graph(each(inner), name="outer")):
        with pytest.raises(
            GraphError, match=r"no node 'note'.* nested graph '(\w+)' has that node; .*: \1=\1.replace\(note=…\)"
        ):
            outer.replace(note=note)


@pytest.mark.parametrize(("other", "said"), [(lambda n: "", "put @node before"), (Fake, "make an instance of it")])
def test_anything_but_a_node_is_refused(other, said):
    """The error says what to write."""
    with pytest.raises(TypeError, match=said):
        shop.replace(charge=other)


def test_a_chain_is_refused():
    """Only its first node would be used."""
    with pytest.raises(TypeError, match="make a graph of the chain"):
        shop.replace(charge=Fake() >> note)


# ---------------------------------------------------------------- patched too late
@pytest.fixture
def each_run_is_validated(monkeypatch):
    """As the testing kit's fixtures do."""
    monkeypatch.setattr(validation, "is_kept", False)


@pytest.mark.parametrize("target", ["class", "object"])
@pytest.mark.parametrize("phase", ["exec", "prep", "on_success"])
def test_a_phase_that_is_patched_too_late_is_reported(each_run_is_validated, monkeypatch, target, phase):
    """The graph has looked its phases up, and would call the old ones. Also a phase that the node didn't have."""

    class Pay(Node[int, int]):
        async def exec(self, amount: int) -> int:
            return amount

        async def prep(self, store: object, amount: int) -> int:
            return amount

    pay = Pay()
    graph = Graph(pay, name="paying")
    assert graph.run_sync(7) == 7
    monkeypatch.setattr(Pay if target == "class" else pay, phase, lambda *_: 0)
    with pytest.raises(GraphError, match=rf"Pay\.{phase} was changed after the graph was made.*graph\.replace\(pay="):
        graph.run_sync(7)
    with pytest.raises(GraphError, match=rf"Pay\.{phase} was changed"):
        graph.validate()
    monkeypatch.undo()
    assert graph.run_sync(7) == 7


def test_without_the_kit_it_is_reported_by_the_first_run_and_by_validate(monkeypatch):
    """A run of a validated graph does no further check, for speed."""

    class Pay(Node[int, int]):
        async def exec(self, amount: int) -> int:
            return amount

    early, late = Graph(Pay(), name="early"), Graph(Pay(), name="late")
    assert early.run_sync(7) == 7
    monkeypatch.setattr(Pay, "exec", lambda self, amount: 0)
    assert early.run_sync(7) == 7
    for refuse in (early.validate, lambda: late.run_sync(7)):
        with pytest.raises(GraphError, match=r"Pay\.exec was changed"):
            refuse()


def test_a_phase_that_is_patched_before_is_called(each_run_is_validated, monkeypatch):
    """Of the class, or of the object."""

    class Pay(Node[int, int]):
        async def exec(self, amount: int) -> int:
            return amount

    pay = Pay()
    monkeypatch.setattr(pay, "exec", lambda amount: 1)
    assert Graph(pay).run_sync(7) == 1
    monkeypatch.setattr(Pay, "exec", lambda self, amount: 2)
    assert Graph(Pay()).run_sync(7) == 2


def test_a_phase_that_is_a_new_object_at_each_lookup_is_no_patch(each_run_is_validated):
    """A partialmethod, for example, is another object at each lookup."""

    class Times(Node[int, int]):
        def times(self, factor: int, number: int) -> int:
            return factor * number

        exec = partialmethod(times, 3)  # type: ignore[assignment]

    graph = Graph(Times(), name="times")
    assert [graph.run_sync(2), graph.run_sync(2)] == [6, 6]
