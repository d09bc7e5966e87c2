"""One value through several branches at the same time: `gather`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import pocket_plug as pp
from pocket_plug import Action, Graph, Next, Node, gather, node
from pocket_plug.errors import ConfigError, GraphError, InputError, RunSuspendedError
from pocket_plug.testing.clock import run_virtual


@node
def double(n: int) -> int:
    return 2 * n


@node
def text(n: int) -> str:
    return f"<{n}>"


@node
def length(word: str) -> int:
    return len(word)


@node
def joined(found: tuple[int, str]) -> str:
    return f"{found[0]} {found[1]}"


def slow(seconds: float, name: str) -> Node[int, float]:
    async def wait(n: int) -> float:
        await asyncio.sleep(seconds)
        return asyncio.get_running_loop().time()

    return node(wait, name=name)


# ---------------------------------------------------------------- results
def test_the_outputs_are_a_tuple_in_the_order_of_the_branches() -> None:
    """A branch is a node, a chain, or a graph; and the next node takes the tuple."""
    graph = Graph(gather(text >> length, double, Graph(double >> text, name="inner")))
    assert graph.run_sync(7) == (3, 14, "<14>")
    assert asyncio.run(graph.run(7)) == (3, 14, "<14>")
    assert Graph(double >> gather(double, text) >> joined).run_sync(1) == "4 <2>"


def test_all_branches_run_at_the_same_time() -> None:
    """Twelve that take 1 to 12 seconds take 12 in all, not 78."""
    graph = Graph(gather(*(slow(12 - n, f"wait_{n}") for n in range(12))))

    async def timed() -> tuple[float, ...]:
        began = asyncio.get_running_loop().time()
        return tuple(round(ended - began, 3) for ended in await graph.run(0))

    assert run_virtual(timed()) == tuple(range(12, 0, -1))


def test_run_sync_takes_one_branch_after_the_other() -> None:
    seen: list[str] = []

    def noting(name: str) -> Node[int, int]:
        def note(n: int) -> int:
            seen.append(name)
            return n

        return node(note, name=name)

    assert Graph(gather(noting("c") >> noting("d"), noting("a"), noting("b"))).run_sync(1) == (1, 1, 1)
    assert seen == ["c", "d", "a", "b"]


def test_observers_are_shown_the_branches_only() -> None:
    """A picture of a run begins with the first node of each branch, not with a node that nobody wrote."""
    shape = Graph(gather(text >> length, double)).plan.shape
    branches = shape.within["gather_text_double"]
    assert branches.nodes == {"text": "node", "double": "node", "length": "node"}
    assert branches.edges == (("text", "default", "length"),)


def test_one_node_may_be_several_branches() -> None:
    assert Graph(gather(double, double)).run_sync(2) == (4, 4)


def test_a_node_that_leads_elsewhere_in_another_branch_is_refused() -> None:
    """Each of the branches would take the edges of both: `double` alone would go on to `text`."""
    for branches in ((double >> text, double), (double, double >> text), (double >> text, slow(1, "wait") >> double)):
        with pytest.raises(ConfigError) as refused:
            gather(*branches)
        assert str(refused.value).startswith(
            "gather: node 'double' is in several branches, and doesn't lead to the same"
        )
        assert str(refused.value).endswith(": double.with_options(name='double_2')")
    assert Graph(gather(double >> text, double.with_options(name="double_2"))).run_sync(7) == ("<14>", 14)
    assert Graph(gather(double >> text, text.with_options(name="word") >> length >> double >> text)).run_sync(7) == (
        "<14>",
        "<6>",
    )


def test_a_node_of_a_branch_may_have_any_name() -> None:
    assert Graph(gather(double.with_options(name="begin"), text.with_options(name="branches"))).run_sync(7) == (
        14,
        "<7>",
    )


def test_a_branch_that_goes_on_by_an_action_has_the_type_of_its_end() -> None:
    """As for a graph: which actions a node leaves by, only the program knows."""

    class Choosing(Node[int, int, Next[int]]):
        other = Action[int]()

        def exec(self, n: int) -> Next[int]:
            return self.other(n)

    choosing = Choosing()

    @node
    def pair(found: tuple[str, int]) -> str:
        return f"{found[0]} {found[1]}"

    assert Graph(gather(choosing.other >> text, double) >> pair).run_sync(7) == "<7> 14"


def test_branches_within_branches_and_for_each_item() -> None:
    both = gather(double, text, name="both")
    assert Graph(gather(both, double, name="outer")).run_sync(1) == ((2, "<1>"), 2)
    assert Graph(pp.each(both)).run_sync([1, 2]) == [(2, "<1>"), (4, "<2>")]


# ---------------------------------------------------------------- errors
class Failing(Node[int, int]):
    async def exec(self, n: int) -> int:
        raise LookupError("nothing there")


def test_the_first_error_cancels_the_other_branches_and_names_its_place() -> None:
    async def never(n: int) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(n)
        return n

    ended: list[int] = []
    with pytest.raises(LookupError) as caught:
        asyncio.run(Graph(gather(node(never), Failing()), name="page").run(5))
    assert ended == [5]
    assert caught.value.__notes__ == [
        "at node 'failing' of graph 'branches' (visit 1), in item 1 of node 'gather_never_failing' of graph 'page' (visit 1)"
    ]


def test_a_branch_has_its_own_retry_and_fallback() -> None:
    class Careful(Failing, retry=pp.Retry(attempts=3)):
        async def fallback(self, prepared: object, error: Exception) -> int:
            return -1

    assert asyncio.run(Graph(gather(Careful(), double)).run(1)) == (-1, 2)


def test_fewer_than_two_branches_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"two branches or more, each as an argument of its own, as in gather\(a, b\); it got 1"
    ):
        gather(double)
    with pytest.raises(TypeError, match="is neither a node nor a chain of nodes; put @node before the function"):
        gather(double, lambda n: n)  # type: ignore[arg-type,misc]  # what is under test


def test_what_does_not_fit_is_found_before_the_first_run() -> None:
    """The input of each branch, the tuple, and an action without an edge."""
    other = Graph(text >> gather(double, length) >> joined, name="words")

    class Choosing(Node[int, int]):
        other = Action[int]()

        async def post(self, store: pp.StoreWriter, n: int, prepared: object, result: object) -> Next[int]:
            return Next("other", n)

    with pytest.raises(GraphError) as caught:
        other.validate()
    assert list(caught.value.findings) == [
        "node 'text' leaves with str, but 'double' takes int",
        "node 'gather_double_length' leaves with tuple[int, int], but 'joined' takes tuple[int, str]",
    ]
    with pytest.raises(
        GraphError, match=r"in graph 'branches': node 'choosing' declares the action 'other', but has no edge"
    ):
        Graph(gather(double, Choosing())).validate()


def test_a_wrong_input_names_the_node_that_returned_it() -> None:
    """The node before the branches, if they all take the same; never the one that begins them."""

    @node
    def wrong(n: int) -> Any:
        return "three"

    for first, message in (
        (double, "node 'both' of graph 'g' takes int, not str: node 'wrong' returned it"),
        (length, "node 'text' of graph 'branches' takes int, not str"),
    ):
        with pytest.raises(InputError) as caught:
            Graph(wrong >> gather(first, text, name="both"), name="g").run_sync(1)
        assert str(caught.value).partition(". ")[0] == message


def test_the_input_is_checked_as_the_branches_check_it() -> None:
    """By the type that all of them take, before a durable run is submitted; but items of an `each` one by one."""

    @node
    def anything(value: object) -> object:
        return value

    @node
    def untyped(value):  # type: ignore[no-untyped-def]
        return value

    for branches in ((untyped, double), (anything, double), (double, anything)):
        with pytest.raises(InputError, match="node 'both' of graph 'g' takes int, not str"):
            Graph(gather(*branches, name="both"), name="g").run_sync("x")
    collecting = pp.each(double, errors="collect")
    (error, two), other = Graph(gather(collecting, collecting)).run_sync(["x", 1])
    assert (type(error), two, type(other[0])) == (InputError, 2, InputError)


# ---------------------------------------------------------------- durable runs
class Counting(Node[int, int]):
    """Counts its visits, and fails as long as it is told to."""

    fails = False

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    async def exec(self, n: int) -> int:
        self.seen.append(pp.idempotency_key())
        if self.fails:
            raise ConnectionError("down")
        return n

    async def post(self, store: pp.StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.update("sum", lambda old: old + n, default=0)
        return n


def test_a_finished_branch_of_a_durable_run_is_not_done_again(tmp_path: Path) -> None:
    """Nor are the finished nodes of one that failed."""
    seen: list[str] = []
    first, second, third = (Counting(seen).with_options(name=name) for name in ("first", "second", "third"))
    third.fails = True
    with pp.SyncStore(f"sqlite:///{tmp_path / 'state.db'}") as store:
        graph = Graph(gather(first, second >> third, name="both") >> node(sum), store=store, name="g")
        with pytest.raises(ConnectionError):
            asyncio.run(graph.run(5, run_id="r"))
        third.fails = False
        assert asyncio.run(graph.run(5, run_id="r")) == 5 + 5
        assert store.get("sum") == 15
    assert sorted(seen) == [
        "r/both#1[0]/first#1",
        "r/both#1[1]/second#1",
        "r/both#1[1]/third#1",
        "r/both#1[1]/third#1",
    ]


def test_a_question_in_a_branch_waits_for_its_answer_when_the_others_have_ended(tmp_path: Path) -> None:
    seen: list[str] = []
    approve = pp.Ask(str, question="Is it right?", name="approve")
    with pp.SyncStore(f"sqlite:///{tmp_path / 'state.db'}") as store:
        graph = Graph(gather(Counting(seen), approve), store=store, name="g")
        with pytest.raises(RunSuspendedError):
            asyncio.run(graph.run(5, run_id="r"))
        assert asyncio.run(graph.resume("r", answer="yes", question=approve)) == (5, pp.Answered(5, "yes"))
    assert seen == ["r/gather_counting_approve#1[0]/counting#1"]


# ---------------------------------------------------------------- tests of users
def test_a_node_in_a_branch_can_be_replaced() -> None:
    """By its name alone, also in a chain, and together with nodes outside; the original is unchanged."""
    graph = Graph(double >> gather(double.with_options(name="twice"), text >> length) >> node(sum), name="g")

    @node
    def long(n: int) -> str:
        return "x" * 100

    @node
    def nought(n: int) -> int:
        return 0

    assert graph.replace(text=long, double=nought).run_sync(4) == 100
    assert graph.run_sync(4) == 16 + 3
    with pytest.raises(GraphError, match=r"there is no node 'txt'; the graph has: .*Did you mean 'text'\?"):
        graph.replace(txt=long)
    with pytest.raises(GraphError, match=r"the old one returns str, the new one int"):
        graph.replace(text=nought)


def test_only_the_nodes_of_the_program_are_seen() -> None:
    """The node that begins the branches, and their graph, are neither among the events of a run nor can they be replaced."""
    graph = Graph(double.with_options(name="branches") >> gather(double, text), name="g")

    async def visited() -> list[str]:
        async with graph.stream(1) as stream:
            return [str(event.place) async for event in stream if isinstance(event, pp.NodeEntered)]

    assert sorted(asyncio.run(visited())) == [
        "branches#1",
        "gather_double_text#1",
        "gather_double_text#1[0]/double#1",
        "gather_double_text#1[1]/text#1",
    ]
    assert graph.replace(branches=node(lambda n: n, name="same")).run_sync(1) == (2, "<1>")
    with pytest.raises(GraphError, match="there is no node 'begun'; the graph has: branches, double, text, gather_"):
        graph.replace(begun=double)


def test_branches_run_elsewhere() -> None:
    """A worker process finds the node of a branch by its name in a module."""
    graph = Graph(gather(double.with_options(executor="processes"), text), name="g")
    assert asyncio.run(graph.run(4)) == (8, "<4>")
