"""Graphs: the path of a run, faults found before it starts, nested graphs, the picture, and running without await."""

from __future__ import annotations

import asyncio
import inspect
import re
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, NewType, Union

import pytest

from pocket_plug import Node, node
from pocket_plug.errors import ConfigError, GraphError, InputError, PhaseError, RouteError, StepLimitError, SyncError
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.ask import Answered, Ask
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.kinds.sleep import Sleep
from pocket_plug.graph.nodes.chain import END, Action, Next
from pocket_plug.graph.nodes.phases import hints
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.primitives.typechecks import type_name
from pocket_plug.store.backend import NO_EXPECTATIONS, Change, Entry
from pocket_plug.store.keys import Key
from pocket_plug.store.layer import Layer
from pocket_plug.store.memory import Memory
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter

if TYPE_CHECKING:
    from nowhere import Absent  # type: ignore[import-not-found]

UserId = NewType("UserId", int)


@node
def plus(n: int) -> int:
    return n + 1


@node
def double(n: int) -> int:
    return 2 * n


class Leave(Node[Any, Any]):
    """Leaves by the Next that it gets, and notes that it was called."""

    def post(self, store: SyncWriter, n: Any, prepared: Any, result: Any) -> Any:
        store.set("was here", n)
        return n


@node
def str_of(answered: Answered[int, bool]) -> str:
    return str(answered.answer)


@node
def text_of(text: str) -> str:
    return text


class Fork(Node[int, int]):
    act = Action[int]()
    stop = Action[int]()

    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int | Next[int]:
        return self.act(n) if n > 0 else self.stop(n)


# ---------------------------------------------------------------- routing
def test_default_without_an_edge_ends_the_run() -> None:
    """The last node's output is the graph's."""
    assert Graph(plus >> double).run_sync(1) == 4
    assert Graph(plus).run_sync(1) == 2


def test_what_an_action_carries_is_the_next_nodes_input() -> None:
    """Each action leads where its edge says, with its own output."""
    fork = Fork()
    graph = Graph(fork, fork.act >> plus, fork.stop >> double)
    assert (graph.run_sync(5), graph.run_sync(-5)) == (6, -10)


def test_next_default_is_the_default_way() -> None:
    """`Next("default", x)` means the same as returning x."""
    leave = Leave()
    assert Graph(leave >> plus).run_sync(Next("default", 1)) == 2
    assert Graph(leave).run_sync(Next("default", 1)) == 1


def test_end_ends_from_anywhere() -> None:
    """`END(x)` ends the run with x; following nodes are skipped."""
    store = SyncStore()
    assert Graph(double >> Leave() >> plus, store=store).run_sync(1) == 3
    assert Graph(Leave() >> plus, store=store).run_sync(END("out")) == "out"
    assert store.get("was here") == END("out")


@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
@pytest.mark.parametrize("colour", ["async", "def"])
def test_an_action_without_an_edge_is_an_error_and_nothing_is_committed(sync: bool, colour: str) -> None:
    """RouteError names node, graph, the existing actions, and a suggestion; the node's writes are rolled back."""

    class Think(Node[int, int]):
        act = Action[int]()

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> Next[int]:
            await store.set("thought", n)
            return Next("atc", n)

    class ThinkDef(Node[int, int], name="think"):
        act = Action[int]()

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> Next[int]:
            store.set("thought", n)
            return Next("atc", n)

    store = SyncStore()
    think = Think() if colour == "async" else ThinkDef()
    graph = Graph(think, think.act >> plus, store=store, name="agent")
    with pytest.raises(RouteError) as caught:
        graph.run_sync(1) if sync else asyncio.run(graph.run(1))
    assert str(caught.value) == (
        "node 'think' of graph 'agent' left by 'atc'; it has: act, default. Did you mean 'act'?")  # fmt: skip
    assert store.get("thought") is None


def test_a_loop_runs_until_it_is_left() -> None:
    """An edge back is an edge like any other; each visit commits."""

    class Count(Node[int, int]):
        again = Action[int]()

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int | Next[int]:
            store.update("visits", lambda visits: visits + 1, default=0)
            return self.again(n - 1) if n else 0

    store, count = SyncStore(), Count()
    assert Graph(count, count.again >> count, store=store).run_sync(100) == 0
    assert store.get("visits") == 101


def test_max_steps_stops_a_loop_that_never_ends() -> None:
    """StepLimitError names the setting and the node; exactly this many nodes were entered."""
    store = SyncStore()

    @node.post
    def tick(store: SyncWriter, n: int) -> int:
        store.update("ticks", lambda ticks: ticks + 1, default=0)
        return n

    graph = Graph(tick >> tick, store=store, name="clock", max_steps=25)
    for run in (lambda: graph.run_sync(1), lambda: asyncio.run(graph.run(1))):
        store.set("ticks", 0)
        with pytest.raises(StepLimitError, match=r"graph 'clock' is about to enter 'tick' as step 26.*max_steps"):
            run()
        assert store.get("ticks") == 25
    assert Graph(plus >> double, max_steps=2).run_sync(1) == 4


# ---------------------------------------------------------------- validate
def findings(graph: Graph[Any, Any]) -> tuple[str, ...]:
    with pytest.raises(GraphError) as caught:
        graph.validate()
    assert all(finding in str(caught.value) for finding in caught.value.findings)
    return caught.value.findings


def test_every_fault_is_found_at_once() -> None:
    """A graph with three faults reports three, each once, and doesn't run."""
    fork = Fork()

    @node
    def text(n: int) -> str:
        return str(n)

    lone = plus.with_options(name="lone")
    graph = Graph(text >> double, fork.act >> plus, lone >> plus, name="g")
    found = findings(graph)
    assert sorted(found) == sorted([
        "node 'text' leaves with str, but 'double' takes int",
        "node 'fork' declares the action 'stop', but has no edge for it; add node.stop >> other",
        "node 'fork' can't be reached from 'text'",
        "node 'plus' can't be reached from 'text'",
        "node 'lone' can't be reached from 'text'",
    ])  # fmt: skip
    with pytest.raises(GraphError):
        graph.run_sync(1)


def test_three_faults_are_three_findings() -> None:
    """A type mismatch, an action without an edge, two nodes with one name: each is reported once, with the way out."""
    fork = Fork()
    other = double.with_options(name="plus")

    @node
    def text(n: int) -> str:
        return str(n)

    graph = Graph(fork, fork.act >> plus >> text >> other)
    misfit, unrouted, twice = sorted(findings(graph), key=lambda found: "two nodes" in found or "takes" not in found)
    assert misfit == "node 'text' leaves with str, but 'plus' takes int"
    assert "stop" in unrouted + twice
    assert "with_options(name=…)" in unrouted + twice


def test_two_nodes_of_one_name_are_a_finding_that_shows_both() -> None:
    """Nodes are addressed by name, so names must differ within a graph; the same node twice is no fault."""
    other = double.with_options(name="plus")
    (found,) = findings(Graph(plus >> other))
    assert re.match(
        r"two nodes have the name 'plus': <node plus> \(line \d+\) and <node plus> \(line \d+\); rename one of them with with_",
        found,
    )
    first: Any = node(lambda n: n + 1)
    second: Any = node(lambda n: n + 2)
    (found,) = findings(Graph(first >> second))
    line = inspect.getsourcelines(first.__wrapped__)[1]
    assert found == (
        f"two nodes have the name '<lambda>': <node <lambda>> (line {line}) and <node <lambda>> (line {line + 1}); "
        "rename one of them with node(name=…)"
    )
    Graph(plus >> double, plus.on("again") >> plus).validate()


def test_an_edge_given_twice_is_a_finding_unless_it_is_the_same() -> None:
    """Two targets for one action are an error that names both; the same edge twice is accepted."""
    (found,) = findings(Graph(plus >> double, plus >> plus))
    assert found == (
        "node 'plus' has two edges for 'default': to 'double' and to 'plus'; to take both, join it to gather(double, plus)"
    )
    assert Graph(plus >> double, plus >> double).run_sync(1) == 4


@pytest.mark.parametrize(
    ("given", "wanted", "fit"),
    [(int, int, True), (int, float, True), (bool, int, True), (int, str, False), (int, int | str, True),
     (int | str, int, False), (list[int], list[int], True), (list[int], Sequence[int], True), (list[str], list[int], False),
     (None, str, False), (Any, str, True), (int, Any, True), (int, object, True), (UserId, int, True),
     (dict[str, int], Mapping[str, int], True)],
)  # fmt: skip
def test_types_along_an_edge_must_fit(given: Any, wanted: Any, fit: bool) -> None:
    """The same rules as a type checker's; a missing or unclear type fits everything."""

    def source(n: int) -> Any: ...

    def target(value: Any) -> int: ...

    source.__annotations__["return"] = given
    target.__annotations__["value"] = wanted
    graph = Graph(node(source) >> node(target))
    if fit:
        graph.validate()
    else:
        assert "leaves with" in findings(graph)[0]


def test_what_an_action_carries_must_fit_too() -> None:
    """A declared action is checked against the node that it leads to."""

    class Split(Node[int, int]):
        words = Action[str]()

    split = Split()
    (found,) = findings(Graph(split >> plus, split.words >> double))
    assert found == "node 'split' leaves by 'words' with str, but 'double' takes int"


def test_the_items_of_an_each_must_fit_too() -> None:
    """What comes before an `each` gives items for its node, and what comes after takes a list of its outputs."""

    @node
    def words(text: str) -> list[str]:
        return text.split()

    @node
    def length(word: str) -> int:
        return len(word)

    @node
    def joined(found: list[str]) -> str:
        return "".join(found)

    (found,) = findings(Graph(words >> each(length) >> joined))
    assert found == "node 'each_length' leaves with list[int], but 'joined' takes list[str]"
    (found,) = findings(Graph(words >> each(double)))
    assert found == "node 'words' leaves with list[str], but 'each_double' takes Iterable[int]"
    Graph(words >> each(length) >> each(double)).validate()


def test_collected_errors_are_among_the_items_of_the_list() -> None:
    """A reduce that doesn't expect them would fail with the first item. Which errors there are, only the program knows."""

    @node
    def total(found: list[int]) -> int:
        return sum(found)

    @node
    def good(found: list[int | Exception]) -> int:
        return len(found)

    @node
    def known(found: list[int | OSError]) -> int:
        return len(found)

    @node
    def typed(found: list[str | Exception]) -> int:
        return len(found)

    @node
    def untyped(found) -> Any:  # type: ignore[no-untyped-def]
        return found

    collected = each(double, errors="collect")
    (found,) = findings(Graph(collected >> total))
    assert found == "node 'each_double' leaves with list[int | Exception], but 'total' takes list[int]"
    (found,) = findings(Graph(collected >> typed))
    assert found == "node 'each_double' leaves with list[int | Exception], but 'typed' takes list[str | Exception]"
    for reduce in (good, known, untyped):
        Graph(collected >> reduce).validate()
        Graph(each(untyped, errors="collect") >> reduce).validate()


def test_what_passes_through_a_sleep_must_fit_the_node_behind_it() -> None:
    """Otherwise it would be found when the time has come, days later; also if several sleeps lead to each other."""

    @node
    def shout(text: str) -> str:
        return text.upper()

    first, second = Sleep[Any]("1d"), Sleep[Any]("2d", name="again")
    (found,) = findings(Graph(plus >> first >> second >> shout))
    assert found == "node 'plus' leaves with int, but 'shout' takes str"
    Graph(plus >> first >> second >> double).validate()
    Graph(plus >> first >> second >> first).validate()

    class Named(Sleep[Any]):
        def post(self, store: SyncWriter, input: Any, prepared: Any, result: Any) -> Any:
            return str(input)

    class Prepared(Sleep[Any]):
        def prep(self, store: SyncReader, input: Any) -> Any:
            return str(input)

    Graph(plus >> Named("1d") >> shout).validate()
    Graph(plus >> Prepared("1d") >> shout).validate()


def test_a_node_shows_its_class_and_name() -> None:
    """In messages, and where it is printed."""
    (found,) = findings(Graph(each(plus) >> each(plus)))
    assert found == (
        "two nodes have the name 'each_plus': <Each each_plus> and <Each each_plus>; rename one of them with "
        "with_options(name=…)"
    )
    assert [repr(each) for each in (plus, Fork(), Sleep("1s"))] == ["<node plus>", "<Fork fork>", "<Sleep sleep>"]


def test_a_node_without_phases_between_different_types_is_a_finding() -> None:
    """It could only pass on its input; between equal types that is fine."""

    class Idle(Node[int, str]):
        pass

    class Pass(Node[int, int]):
        pass

    (found,) = findings(Graph(Idle()))
    assert found == "node 'idle' overrides no phase, so it can't turn int into str"
    assert Graph(Pass()).run_sync(3) == 3


def test_an_async_store_in_a_def_phase_and_a_sync_store_in_an_async_one_are_findings() -> None:
    """`def` with an async store, `async def` with a sync one: in prep, post and hooks, each with the way out."""

    class Charge(Node[int, int]):
        def prep(self, store: StoreReader, n: int) -> int:
            return n

        async def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            return n

        def on_complete(self, store: StoreWriter) -> None: ...

    assert findings(Graph(Charge())) == (
        "Charge.prep is `def` but takes StoreReader (async); annotate SyncReader or write `async def prep`",
        "Charge.post is `async def` but takes SyncWriter (sync); annotate StoreWriter or write `def post`",
        "Charge.on_complete is `def` but takes StoreWriter (async); annotate SyncWriter or write `async def on_complete`",
    )

    @node.post  # type: ignore[arg-type]
    def keep(store: StoreWriter, n: int) -> int:
        return n

    (found,) = findings(Graph(keep))
    assert found.startswith("post of 'keep' is `def` but takes StoreWriter (async)")


def test_a_generator_is_a_finding() -> None:
    """A phase returns one value; a `yield` in it would never run."""

    class Streams(Node[int, Any]):
        def exec(self, n: int) -> Iterable[int]:
            yield n

        async def post(self, store: StoreWriter, n: int, prepared: Any, result: Any) -> AsyncIterator[int]:
            yield n

    assert findings(Graph(Streams())) == (
        "Streams.exec is a generator; a phase returns one value: a list, say. To show values while it works, call emit(value)",
        "Streams.post is a generator; a phase returns one value: a list, say. To show values while it works, call emit(value)",
    )


@pytest.mark.parametrize(
    "options", [{"retry": Retry()}, {"timeout": 3}, {"reads": [Key("a")]}, {"writes": [Key("a")]},
                {"isolation": "serializable"}],
)  # fmt: skip
def test_options_for_an_exec_are_refused_where_there_is_none(options: Any) -> None:
    """On a graph, an `each` and an `Ask`: the error names the option, and the allowed ones."""
    (option,) = options
    nodes = {"inner": Graph(plus, name="inner"), "each_plus": each(plus), "ask": Ask[int, bool](bool, question="Sure?")}
    for name, made in nodes.items():
        with pytest.raises(ConfigError, match=f"node '{name}' takes no {option}: its options are name, trace"):
            made.with_options(**options)
        assert made.with_options(name="other", trace=False) is not made
    with pytest.raises(ConfigError, match=f"takes no {option}"):
        type("Sub", (Graph,), {}, **options)


def test_faults_of_nested_graphs_and_items_are_found_from_outside() -> None:
    """With the path to the node; an action for which the outer graph has an edge is no fault."""
    fork = Fork()
    inner = Graph(fork, fork.act >> plus, name="inner")
    (found,) = findings(Graph(inner >> double))
    assert (
        found
        == "in graph 'inner': node 'fork' declares the action 'stop', but has no edge for it; add node.stop >> other"
    )
    Graph(inner >> double, inner.on("stop") >> plus).validate()
    (found,) = findings(Graph(each(inner)))
    assert found.startswith("in 'each_inner': in graph 'inner': node 'fork' declares the action 'stop'")
    assert [found for found in findings(Graph(each(fork))) if "each(Graph" in found]


def test_what_a_nested_graph_leaves_by_an_action_with_must_fit() -> None:
    """As a node's own actions: also from two graphs deep, and from several nodes of one graph by the same action."""

    @node
    def shout(text: str) -> str:
        return text.upper()

    class Other(Node[int, int]):
        stop = Action[str]()

    fork, other = Fork(), Other()
    inner = Graph(fork, fork.act >> plus, name="inner")
    outer = Graph(inner, name="outer")
    (found,) = findings(Graph(outer, outer.on("stop") >> shout))
    assert found == "node 'outer' leaves by 'stop' with int, but 'shout' takes str"
    both = Graph(fork, fork.act >> other, name="both")
    (found,) = findings(Graph(both, both.on("stop") >> shout))
    assert found == f"node 'both' leaves by 'stop' with {type_name(Union[int, str])}, but 'shout' takes str"  # noqa: UP007 - so it is shown


def test_what_a_nested_graph_returns_must_fit() -> None:
    """What each of its ends returns, also two graphs deep, and of the items of an `each`."""

    @node
    def shout(text: str) -> str:
        return text.upper()

    @node
    def joined(found: list[str]) -> str:
        return "".join(found)

    @node
    def spelt(number: int) -> str:
        return str(number)

    fork = Fork()
    inner = Graph(double >> plus, name="inner")
    (found,) = findings(Graph(inner >> shout))
    assert found == "node 'inner' leaves with int, but 'shout' takes str"
    (found,) = findings(Graph(Graph(inner, name="outer") >> shout))
    assert found == "node 'outer' leaves with int, but 'shout' takes str"
    (found,) = findings(Graph(each(inner) >> joined))
    assert found == "node 'each_inner' leaves with list[int], but 'joined' takes list[str]"
    several = Graph(fork >> spelt, fork.act >> double, fork.stop >> plus, name="several")
    (found,) = findings(Graph(several >> shout))
    assert found == f"node 'several' leaves with {type_name(Union[str, int])}, but 'shout' takes str"  # noqa: UP007 - so it is shown
    Graph(inner >> double).validate()
    Graph(Graph(double >> spelt, name="speaks") >> shout).validate()


def test_what_may_never_be_returned_by_a_nested_graph_is_no_finding() -> None:
    """A program that works is not refused: a node that leaves by its actions only, or always raises, returns nothing."""

    @node
    def shout(text: str) -> str:
        return text.upper()

    @node
    def reject(number: int) -> None:
        raise ValueError(number)

    @node
    def spelt(number: int) -> str:
        return str(number)

    fork = Fork()
    Graph(
        Graph(fork.act >> spelt, fork.stop >> spelt.with_options(name="other"), name="by actions") >> shout
    ).validate()
    outer = Graph(fork, name="forks")
    Graph(outer >> shout, outer.on("act") >> double, outer.on("stop") >> plus).validate()
    Graph(Graph(fork >> spelt, fork.act >> reject, fork.stop >> spelt, name="rejects") >> shout).validate()
    (found,) = findings(Graph(Graph(double >> reject, name="returns nothing") >> shout))
    assert found == "node 'returns nothing' leaves with NoneType, but 'shout' takes str"


def test_an_ask_without_an_edge_for_its_action_is_a_finding() -> None:
    """Otherwise it would be found when the question's time is over, days later."""
    ask = Ask[int, bool](bool, question="Really?", timeout="2d", action="too_late")
    (found,) = findings(Graph(ask >> str_of))
    assert (
        found == "node 'ask' declares the action 'too_late', but has no edge for it; add node.on('too_late') >> other"
    )
    (found,) = findings(Graph(each(ask)))
    assert found.endswith("give a graph: each(Graph(…))")
    (found,) = findings(Graph(ask >> str_of, ask.on("too_late") >> text_of))
    assert found == "node 'ask' leaves by 'too_late' with int, but 'text_of' takes str"
    Graph(ask >> str_of, ask.on("too_late") >> plus).validate()
    inner = Graph(ask >> str_of, name="inner")
    Graph(inner, inner.on("too_late") >> plus).validate()
    Graph(Ask[int, bool](bool, question="Really?", timeout="2d", action="END")).validate()


def test_of_hints_that_cannot_be_resolved_the_others_are_known() -> None:
    """One name that can't be resolved doesn't affect the others: hints that aren't strings are checked as before."""

    def work(n: int) -> str:
        return str(n)

    work.__annotations__ = {"n": int, "return": "Nowhere"}
    assert hints(work) == {"n": int}
    with pytest.raises(InputError, match="int"):
        Graph(node(work)).run_sync("x")


def test_hints_that_cannot_be_resolved_are_unchecked() -> None:
    """Names that exist for type checkers only, or not at all, are never an error."""

    class Gather(Node["Absent", "list[Absent]"]):
        def exec(self, value: Absent) -> list[Absent]:
            return [value]

    @node
    def guess(value: Absent) -> Absent:
        return value

    class Nested(Node[list["Absent"], int]):
        def exec(self, values: list[Absent]) -> int:
            return len(values)

    assert Graph(guess >> Gather() >> Nested()).run_sync(1) == 1
    assert Graph(guess >> plus).run_sync(1) == 2


# ---------------------------------------------------------------- at run time
def test_an_input_of_another_type_is_an_error_that_names_the_node() -> None:
    """InputError, whether the type is a class or needs a deeper check, before any phase runs."""
    called: list[Any] = []

    class Sum(Node[list[int], int]):
        def exec(self, values: list[int]) -> int:
            called.append(values)
            return sum(values)

    graph: Graph[Any, Any] = Graph(plus, name="g")
    with pytest.raises(InputError, match="node 'plus' of graph 'g' takes int, not str"):
        graph.run_sync("1")
    with pytest.raises(InputError, match="node 'plus' of graph 'g' takes int, not str"):
        asyncio.run(graph.run("1"))
    summed: Graph[Any, Any] = Graph(Sum())
    with pytest.raises(InputError, match=r"node 'sum' of graph 'graph' takes list\[int\], not list\[str\]"):
        summed.run_sync(["a"])
    assert called == []
    assert summed.run_sync([1, 2]) == 3
    items: Graph[Any, Any] = Graph(each(plus))
    with pytest.raises(InputError, match=r"node 'each_plus' of graph 'graph' takes Iterable\[int\], not int"):
        items.run_sync(3)


class Forgetful(Node[int, Any]):
    """Forgets an `await` in the phase that its input names."""


def forgetful(phase: str, colour: str) -> Node[Any, Any]:
    async def lookup() -> int:
        return 1

    async def forgets_async(*_: Any) -> Any:
        return lookup()

    def forgets_def(*_: Any) -> Any:
        return lookup()

    forgets: Any = forgets_async if colour == "async" else forgets_def

    async def accepts_async(*arguments: Any) -> Any:
        return 1

    def accepts_def(*arguments: Any) -> Any:
        return 1

    accepts: Any = accepts_async if colour == "async" else accepts_def
    phases = {name: forgets if name == phase else accepts for name in ("prep", "exec", "post")}
    return type("Charge", (Node,), {name: lambda self, *a, fn=fn: fn(*a) for name, fn in phases.items()} if colour == "def"
                else {name: _async_method(fn) for name, fn in phases.items()})()  # type: ignore[no-any-return]  # fmt: skip


def _async_method(function: Any) -> Any:
    async def method(self: Any, *arguments: Any) -> Any:
        return await function(*arguments)

    return method


@pytest.mark.parametrize("phase", ["prep", "exec", "post"])
@pytest.mark.parametrize("colour", ["async", "def"])
@pytest.mark.parametrize(
    "options", [{}, {"retry": Retry(attempts=3)}, {"timeout": 5.0}], ids=["plain", "retry", "timeout"]
)
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_a_missing_await_is_an_error_that_names_node_and_phase(
    phase: str, colour: str, options: Any, sync: bool
) -> None:
    """PhaseError, not retried, without a warning about a coroutine that was never awaited; later phases aren't called."""
    graph: Graph[Any, Any] = Graph(forgetful(phase, colour).with_options(**options))
    with warnings.catch_warnings(record=True) as caught, pytest.raises(PhaseError) as error:
        warnings.simplefilter("always")
        graph.run_sync(1) if sync else asyncio.run(graph.run(1))
    assert f"Charge.{phase} returned a coroutine: a call lacks `await`" in str(error.value)
    assert "lookup" in str(error.value)
    assert [str(warning.message) for warning in caught] == []


def test_a_decorator_that_hides_an_async_def_is_named() -> None:
    """It lacks no `await`: a decorator of another library returns a `def`, and `functools.wraps` gives it the phase's name."""

    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any) -> Any:
            return function(*arguments)

        return call

    class Charge(Node[int, int]):
        @logged
        async def exec(self, n: int) -> int:
            return n

    with pytest.raises(
        PhaseError, match=r"Charge\.exec is `async def`, but is decorated by a function that is not; let the"
    ):
        Graph(Charge()).run_sync(1)


# ---------------------------------------------------------------- graphs within graphs
class Mark(Node[int, int]):
    """Counts its visits in the store, at the key that it was made for."""

    def __init__(self, key: str) -> None:
        self.key = key

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.update(self.key, lambda visits: visits + 1, default=0)
        return n


def test_a_nested_graph_shares_its_parents_store() -> None:
    """Unless it has its own; also if it ran alone before, with a store of its own."""
    inner = Graph(Mark("a"), name="inner")
    asyncio.run(inner.run(1))
    store = SyncStore()
    asyncio.run(Graph(inner >> Mark("b"), store=store).run(1))
    assert (store.get("a"), store.get("b")) == (1, 1)


def test_a_nested_graph_can_have_a_scope_of_its_parents_store() -> None:
    """`scope=` is relative to the parent's scope."""
    store = SyncStore()
    inner = Graph(Mark("a"), name="inner", scope=Key("tenant:{}")("x:y"))
    asyncio.run(Graph(inner, store=store, scope="outer").run(1))
    assert list(store.keys()) == ["outer:tenant:x%3Ay:a"]
    asyncio.run(Graph(inner, store=store.scope("below")).run(1))
    assert store.get("below:tenant:x%3Ay:a") == 1


def test_a_nested_graph_can_bring_its_own_store() -> None:
    """Its nodes read and write there, and the parent's nodes in the parent's store."""
    own, outer = SyncStore(), SyncStore()
    inner = Graph(Mark("a"), name="inner", store=own)
    asyncio.run(Graph(inner >> Mark("b"), store=outer).run(1))
    assert (list(own.keys()), list(outer.keys())) == (["a"], ["b"])


def test_a_graph_without_a_store_keeps_one_of_its_own() -> None:
    """In memory, and the same one in each run."""
    mark = Mark("a")
    graph = Graph(mark)

    class Read(Node[int, int]):
        async def prep(self, store: StoreReader, n: int) -> int:
            return int(await store.get("a", 0))

    graph = Graph(mark >> Read())
    assert [asyncio.run(graph.run(1)) for _ in range(3)] == [1, 2, 3]


def test_the_inner_graphs_last_action_is_the_graph_nodes_own() -> None:
    """An action without an edge inside is routed outside; "default" and END continue with the outer default edge."""
    fork = Fork()
    inner = Graph(fork, fork.act >> plus, name="inner")
    graph = Graph(inner >> double, inner.on("stop") >> plus)
    assert (graph.run_sync(1), graph.run_sync(-1)) == (4, 0)
    ends = Graph(Leave() >> plus, name="ends")
    assert Graph(ends >> double).run_sync(END(5)) == 10


def test_actions_pass_through_several_graphs() -> None:
    """Two levels deep, up to a graph that has an edge for them."""
    fork = Fork()
    middle = Graph(Graph(fork, fork.act >> plus, name="inner"), name="middle")
    outer = Graph(middle >> double, middle.on("stop") >> plus)
    assert (outer.run_sync(1), outer.run_sync(-1)) == (4, 0)
    unrouted: Graph[Any, Any] = Graph(Graph(Leave(), name="inner") >> double)
    with pytest.raises(RouteError, match="node 'leave' of graph 'inner' left by 'off'"):
        unrouted.run_sync(Next("off", 1))


def test_an_item_cannot_leave_the_graph_around_it() -> None:
    """An action of an `each` item has no edge, even if the outer graph has such an edge; END ends the item."""
    inner = Graph(each(Leave()), name="inner")
    graph: Graph[Any, Any] = Graph(inner, inner.on("off") >> plus)
    assert graph.run_sync([1, END(2)]) == [1, 2]
    with pytest.raises(RouteError, match="node 'leave' of graph 'inner' left by 'off'"):
        graph.run_sync([1, Next("off", 2)])


def test_a_graph_as_an_item_cannot_leave_the_graph_around_it_either() -> None:
    """If its node tries, nothing of that node is written."""

    class Note(Node[int, int]):
        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> Next[int]:
            store.set("noted", n)
            return Next("off", n)

    store = SyncStore()
    for item in (Graph(Note(), name="item"), Graph(Graph(Note(), name="inner"), name="item")):
        inner = Graph(each(item), name="around")
        graph: Graph[Any, Any] = Graph(inner, inner.on("off") >> plus, store=store)
        with pytest.raises(RouteError, match=r"node 'note' of graph '(item|inner)' left by 'off'"):
            graph.run_sync([1])
        assert store.get("noted") is None


def test_steps_are_counted_over_nested_graphs() -> None:
    """The outermost graph's limit counts, whatever the inner one would allow."""
    inner = Graph(plus >> double, name="inner", max_steps=100_000)
    loop = Graph(inner >> inner, name="outer", max_steps=30)
    with pytest.raises(StepLimitError, match=r"30 are allowed.*max_steps"):
        loop.run_sync(1)
    assert Graph(inner >> plus, max_steps=4).run_sync(1) == 5
    with pytest.raises(StepLimitError, match="as step 4; 3 are allowed"):
        Graph(inner >> plus, max_steps=3).run_sync(1)


def test_depth_is_bounded() -> None:
    """StepLimitError names the setting; a deeper graph can be allowed."""

    def nested(depth: int, **options: int) -> Graph[int, int]:
        graph = Graph(plus, name="g0", **options)
        for level in range(1, depth + 1):
            graph = Graph(graph, name=f"g{level}", **options)
        return graph

    assert nested(32).run_sync(1) == 2
    with pytest.raises(StepLimitError, match=r"graph 'g0' is nested 33 levels deep; 32 are allowed.*max_depth"):
        nested(33).run_sync(1)
    assert nested(33, max_depth=40).run_sync(1) == 2
    assert asyncio.run(nested(60, max_depth=60).run(1)) == 2


# ---------------------------------------------------------------- the picture
def test_a_graph_draws_itself() -> None:
    """Nodes by their kind, edges by their action, declared keys below the name; the same text each time."""

    class Charge(Node[int, int], reads=(Key("price:{}"),), writes=(Key("order"),)):
        declined = Action[str]()

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            return n

    @node
    def apologise(why: str) -> str:
        return why

    charge = Charge()
    inner = Graph(plus, name="inner")
    graph: Graph[Any, Any] = Graph(
        charge >> inner >> each(double), charge.declined >> apologise, charge.on('say "hi"') >> charge
    )
    assert graph.mermaid() == "\n".join([
        "flowchart TD",
        '    n0["charge<br/>reads price:&#123;&#125;<br/>writes order"]',
        '    subgraph n1["inner (graph)"]',
        '        n1_0["plus"]',
        "    end",
        '    n2[/"each_double"/]',
        '    n3["apologise"]',
        "    n0 --> n1",
        '    n0 -- "declined" --> n3',
        '    n0 -- "say &quot;hi&quot;" --> n0',
        "    n1 --> n2",
    ])  # fmt: skip
    assert graph.mermaid() == graph.mermaid()
    assert repr(Graph(plus >> double, name="g")) == "<graph g: plus, double>"


# ---------------------------------------------------------------- without await
class LoopBound(Memory):
    """A backend that belongs to the event loop that opened it, and reports a use on another loop."""

    inline_read = inline_write = False
    needs_loop = True

    async def open(self) -> None:
        self.loop = asyncio.get_running_loop()
        await super().open()

    async def _at_home(self) -> None:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop

    async def read(self, key: str) -> Entry | None:
        await self._at_home()
        return await super().read(key)

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        await self._at_home()
        return await super().write(changes, expect)


class Def(Node[int, int]):
    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
        return int(store.update("n", lambda old: old + n, default=0))


@pytest.mark.parametrize("mark", [Mark("n"), Def()], ids=["async", "def"])
@pytest.mark.parametrize("opened", [True, False], ids=["opened", "new"])
def test_run_sync_over_a_backend_that_is_bound_to_a_loop(mark: Node[int, int], opened: bool) -> None:
    """Each run uses the backend's own loop, whether the user or the first run has opened it."""
    store = SyncStore(LoopBound())
    graph = Graph(mark, store=store)
    if opened:
        store.__enter__()
    try:
        for _ in range(3):
            graph.run_sync(1)
        assert store.get("n") == 3
    finally:
        store.close()


def test_run_sync_of_a_nested_store_that_needs_a_loop() -> None:
    """If only an inner graph's store needs a loop, this is found before the run, not during it."""

    class Waits(Layer):
        async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
            await asyncio.sleep(0)
            return await self.inner.write(changes, expect)

    store = SyncStore(layers=[Waits()])
    assert Graph(Graph(Def(), name="inner", store=store) >> plus).run_sync(1) == 2
    assert store.get("n") == 1


def test_run_sync_of_async_phases_where_a_loop_runs_is_refused() -> None:
    """SyncError with the way out, instead of a loop that waits for itself; graphs with `def` phases run there."""

    @node
    async def later(n: int) -> int:
        return n

    async def main() -> None:
        assert Graph(plus).run_sync(1) == 2
        with pytest.raises(SyncError, match=r"graph 'g' has async phases.*await graph\.run"):
            Graph(later, name="g").run_sync(1)
        with pytest.raises(SyncError, match=r"graph 'g' has .* a timeout .*await graph\.run"):
            Graph(plus, name="g", timeout=5).run_sync(1)

    asyncio.run(main())


def test_run_sync_keeps_to_the_callers_thread() -> None:
    """`def exec` runs in the caller's thread; `run` passes it to a worker thread."""
    import threading

    @node
    def where(n: int) -> str:
        return threading.current_thread().name

    here = threading.current_thread().name
    assert Graph(where).run_sync(1) == here
    assert asyncio.run(Graph(where).run(1)).startswith("pocket_plug-")


# ---------------------------------------------------------------- size
def test_a_chain_of_ten_thousand_nodes() -> None:
    """Joined, validated, run and drawn in linear time, without recursion."""
    chain: Any = plus.with_options(name="n0")
    for number in range(1, 10_000):
        chain = chain >> plus.with_options(name=f"n{number}")
    graph = Graph(chain, store=Store())
    assert graph.run_sync(0) == 10_000
    assert len(graph.mermaid().splitlines()) == 20_000


def test_a_thousand_runs_at_once() -> None:
    """Each has its own path and its own result, and no update of a shared key is lost."""
    store = SyncStore()

    class Add(Node[int, int]):
        async def exec(self, n: int) -> int:
            await asyncio.sleep(0)
            return n

        async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
            await store.update("sum", lambda total: total + n, default=0)
            return n

    graph = Graph(Add() >> plus, store=store)

    async def main() -> list[int]:
        return await asyncio.gather(*(graph.run(n) for n in range(1_000)))

    assert asyncio.run(main()) == list(range(1, 1_001))
    assert store.get("sum") == sum(range(1_000))


def test_recursion_by_running_a_graph_in_exec_ends() -> None:
    """A node that runs its own graph without end gets an error, not a crash."""

    class Again(Node[int, int]):
        async def exec(self, n: int) -> int:
            return await graph.run(n + 1) if n < 20 else n

        def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
            store.update("depth", lambda depth: depth + 1, default=0)
            return result

    store = SyncStore()
    graph: Graph[int, int] = Graph(Again(), store=store)
    assert asyncio.run(graph.run(0)) == 20
    assert store.get("depth") == 21


def test_prep_reads_within_the_scope() -> None:
    """A graph with `scope=` sees nothing outside of it."""
    store = SyncStore()
    store.set("a", "outside")
    store.set("inside:a", "inside")

    class Read(Node[int, Any]):
        def prep(self, store: SyncReader, n: int) -> Any:
            return store.get("a"), store.get("outside:a")

    assert Graph(Read(), store=store, scope="inside").run_sync(1) == ("inside", None)
