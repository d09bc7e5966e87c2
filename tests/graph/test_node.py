"""Nodes and chains as values: their parts and names; using them in a graph doesn't change them."""

from __future__ import annotations

import asyncio
import math
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, TypeVar
from unittest.mock import AsyncMock, Mock

import pytest

from pocket_plug.errors import ConfigError, GraphError, InputError, PhaseError
from pocket_plug.graph.fan_out import fan_out
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.kinds.each import each
from pocket_plug.graph.nodes.chain import END, Action, Chain, Next
from pocket_plug.graph.nodes.node import Node, options_of
from pocket_plug.graph.nodes.node_functions import node
from pocket_plug.graph.nodes.retry import Retry
from pocket_plug.store.keys import Key
from pocket_plug.store.store import Store, StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncStore, SyncWriter

T = TypeVar("T")


class AsyncAll(Node[int, int]):
    async def prep(self, store: StoreReader, n: int) -> int:
        return n + await store.get("base", 0)

    async def exec(self, n: int) -> int:
        return 10 * n

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("seen", (n, prepared, result))
        return result + 1


class DefAll(Node[int, int]):
    def prep(self, store: SyncReader, n: int) -> int:
        return n + store.get("base", 0)

    def exec(self, n: int) -> int:
        return 10 * n

    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
        store.set("seen", (n, prepared, result))
        return result + 1


class Mixed(Node[int, int]):
    def prep(self, store: SyncReader, n: int) -> int:
        return n + store.get("base", 0)

    async def exec(self, n: int) -> int:
        return 10 * n

    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int:
        store.set("seen", (n, prepared, result))
        return result + 1


class MixedOtherWay(Node[int, int]):
    async def prep(self, store: StoreReader, n: int) -> int:
        return n + await store.get("base", 0)

    def exec(self, n: int) -> int:
        return 10 * n

    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> int:
        await store.set("seen", (n, prepared, result))
        return result + 1


def of_functions() -> Any:
    return node.of(prep=AsyncAll().prep, exec=AsyncAll().exec, post=AsyncAll().post, name="of")


@pytest.mark.parametrize("make", [AsyncAll, DefAll, Mixed, MixedOtherWay, of_functions], ids=lambda make: make.__name__)
@pytest.mark.parametrize("sync", [False, True], ids=["run", "run_sync"])
def test_async_and_def_phases_pass_on_their_results(make: Callable[[], Any], sync: bool) -> None:
    """prep gets the input, exec the result of prep, post all three; `run` and `run_sync` agree, whichever phases are async."""
    store = SyncStore()
    store.set("base", 1)
    graph = Graph(make(), store=store)
    assert (graph.run_sync(2) if sync else asyncio.run(graph.run(2))) == 31
    assert store.get("seen") == (2, 3, 30)


def test_a_phase_that_is_not_overridden_passes_on_what_it_gets() -> None:
    """Without exec, post gets the result of prep; without post, the result is the output."""

    class PrepAndPost(Node[int, Any]):
        def prep(self, store: SyncReader, n: int) -> str:
            return f"prepared {n}"

        def post(self, store: SyncWriter, n: int, prepared: str, result: Any) -> Any:
            return n, prepared, result

    class ExecOnly(Node[int, int]):
        def exec(self, n: int) -> int:
            return n + 1

    assert Graph(PrepAndPost()).run_sync(1) == (1, "prepared 1", "prepared 1")
    assert Graph(ExecOnly()).run_sync(1) == 2


# ---------------------------------------------------------------- functions as nodes
def test_a_function_node_can_still_be_called() -> None:
    """The function of `@node` stays callable, with its name and docstring; that of `@node.post` with (store, input)."""

    @node
    def double(n: int) -> int:
        """Twice as much."""
        return 2 * n

    @node(retry=Retry(attempts=2))
    async def triple(n: int) -> int:
        return 3 * n

    @node.post
    def keep(store: SyncWriter, n: int) -> int:
        store.set("kept", n)
        return n

    store = SyncStore()
    assert double(2) == 4
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert (double.__module__, keep.__module__) == (__name__, __name__)  # or doctest skips it
    assert double.__qualname__.endswith("<locals>.double")  # type: ignore[attr-defined]
    assert asyncio.run(triple(2)) == 6
    assert keep(store, 5) == 5  # type: ignore[operator]
    assert store.get("kept") == 5
    assert Graph(double >> triple >> keep, store=store).run_sync(1) == 6
    assert store.get("kept") == 6
    assert repr(double) == "<node double>"


def test_post_functions_can_leave_by_an_action() -> None:
    """`Next` from a `@node.post` function is routed like one from a class."""

    @node.post
    def gate(store: SyncWriter, n: int) -> Next[int] | int:
        return Next("big", n) if n > 10 else n

    @node
    def shrink(n: int) -> int:
        return n // 2

    graph = Graph(gate, gate.on("big") >> shrink >> gate)
    assert graph.run_sync(50) == 6


def test_pythons_own_callables_can_be_nodes() -> None:
    """A builtin, a type, a partial or an object with `__call__` works like a function."""

    class Adder:
        async def __call__(self, n: int) -> int:
            return n + 1

    async def power(base: int, n: int) -> int:
        return base**n

    graph = Graph(
        node(int) >> node(Adder(), name="add") >> node(partial(power, 2), name="power") >> node(str) >> node(len)  # type: ignore[call-overload]
    )
    assert graph.run_sync("9") == 4


def test_the_annotations_of_objects_and_partials_are_read() -> None:
    """Their inputs are checked as those of functions are."""

    class Adder:
        def __call__(self, n: int) -> int:
            return n + 1

    def power(base: int, n: int) -> int:
        return base**n

    for made in (
        node(Adder(), name="add"),
        node(partial(power, 2), name="add"),
        node(partial(partial(power), 2), name="add"),
    ):  # type: ignore[call-overload]
        with pytest.raises(InputError, match="node 'add' of graph 'graph' takes int, not str"):
            Graph(made).run_sync("9")
        with pytest.raises(GraphError, match="node 'add' leaves with int, but 'file' takes bytes"):
            Graph(made >> node.of(exec=file, name="file")).validate()


def file(data: bytes) -> int:
    return len(data)


# ---------------------------------------------------------------- names and options
@pytest.mark.parametrize(
    ("class_name", "name"),
    [("Charge", "charge"), ("ChargeCard", "charge_card"), ("HTTPFetch", "http_fetch"), ("Step2Done", "step2_done"),
     ("X", "x"), ("already_snake", "already_snake")],
)  # fmt: skip
def test_a_class_is_named_in_snake_case(class_name: str, name: str) -> None:
    """A node's name is its class's, in snake case."""
    cls: type[Node[Any, Any]] = type(class_name, (Node,), {})
    assert options_of(cls()).name == name


def test_names_can_be_given() -> None:
    """By class keyword, decorator, `of` and `with_options`; without one a function's name is used."""

    class Charge(Node[int, int], name="pay"):
        pass

    @node
    def own(n: int) -> int:
        return n

    @node(name="other")
    def given(n: int) -> int:
        return n

    names = [options_of(each_node).name for each_node in
             (Charge(), own, given, node.of(exec=own.__wrapped__, prep=lambda s, n: n), Charge().with_options(name="x"))]  # type: ignore[call-overload] # fmt: skip
    assert names == ["pay", "own", "other", "own", "x"]


def test_options_are_inherited_and_a_subclass_changes_only_what_it_names() -> None:
    """Class keywords are inherited by subclasses; a name is not."""

    class Base(Node[int, int], retry=Retry(attempts=7), timeout="2m", reads=(Key("a"),), isolation="serializable"):
        pass

    class Derived(Base, timeout=5):
        pass

    base, derived = options_of(Base()), options_of(Derived())
    assert (base.timeout, derived.timeout) == (120.0, 5.0)
    assert base.retry == derived.retry == Retry(attempts=7)
    assert derived.reads == (Key("a"),)
    assert (base.name, derived.name, derived.isolation) == ("base", "derived", "serializable")


def test_with_options_copies() -> None:
    """The copy has the options, the original is unchanged, and so are the user's attributes of the node."""

    @dataclass(frozen=True)
    class Charge(Node[int, int]):
        fee: int

        def exec(self, n: int) -> int:
            return n + self.fee

    charge = Charge(3)
    patient = charge.with_options(retry=Retry(attempts=9), timeout="1m", trace=False, name="patient")
    assert options_of(charge).retry is None
    assert options_of(charge).name == "charge"
    assert (options_of(patient).retry, options_of(patient).timeout) == (Retry(attempts=9), 60.0)
    assert (options_of(patient).trace, options_of(patient).name) == (False, "patient")
    assert Graph(charge >> patient).run_sync(1) == 7


def test_options_do_not_collide_with_the_users_own_fields() -> None:
    """A node may have fields called name, timeout, retry, reads: they are the user's."""

    class Clash(Node[int, tuple[Any, ...]], timeout=9):
        def __init__(self) -> None:
            self.name, self.timeout, self.retry, self.reads = "mine", 0, "no", "yes"

        def exec(self, n: int) -> tuple[Any, ...]:
            return self.name, self.timeout, self.retry, self.reads

    assert Graph(Clash()).run_sync(1) == ("mine", 0, "no", "yes")


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [({"timeout": 0}, ValueError, "0"), ({"timeout": -1}, ValueError, "-1"), ({"timeout": "soon"}, ValueError, "soon"),
     ({"reads": ("plain",)}, TypeError, "Key"), ({"writes": (3,)}, TypeError, "writes"),
     ({"isolation": "total"}, ValueError, "serializable"), ({"retry": 3}, ConfigError, r"retry can't be 3; give a Retry"),
     ({"reads": Key("a")}, TypeError, "reads can't be Key; give a tuple of Keys"), ({"writes": "a"}, TypeError, "Key"),
     ({"name": 5}, ConfigError, "name can't be 5"), ({"name": ""}, ConfigError, "name can't be an empty str"),
     ({"trace": "yes"}, ConfigError, "give True, False, or a mapping"),
     ({"timeout": math.nan}, ConfigError, "timeout of node '.*' can't be nan")],
)  # fmt: skip
def test_invalid_options_are_refused(options: Any, kind: type[Exception], says: str) -> None:
    """At the class statement and by `with_options`: the error says what was given and what is allowed."""
    with pytest.raises(kind, match=says):
        type("Broken", (Node,), {}, **options)
    with pytest.raises(kind, match=says):
        AsyncAll().with_options(**options)


def test_an_object_may_have_a_phase_of_its_own() -> None:
    """A function that `__init__` sets under the name of a phase is this phase: it was ignored without a word."""

    class Calling(Node[int, int]):
        def __init__(self, function: Any) -> None:
            self.exec = function  # type: ignore[method-assign]
            self.post = "https://example.org"  # type: ignore[method-assign, assignment]  # no function, so no phase

    async def doubled(n: int) -> int:
        return 2 * n

    plain = node(lambda n: n)
    plain.exec = lambda n: n + 100  # type: ignore[method-assign, assignment, misc]
    assert Graph(Calling(lambda n: n + 1) >> Calling(doubled).with_options(name="doubled") >> plain).run_sync(1) == 104
    with pytest.raises(GraphError, match=r"Calling\.exec takes n, m, but is called with 1"):
        Graph(Calling(lambda n, m: n)).run_sync(1)


def test_a_mock_can_be_a_node() -> None:
    """A Mock and an AsyncMock stand for functions; an AsyncMock's `__annotations__` is None."""
    for fake in (Mock(return_value=3), AsyncMock(return_value=3)):
        assert Graph(node(fake)).run_sync(1) == 3
        fake.assert_called_once_with(1)


# ---------------------------------------------------------------- Retry
def test_pauses_grow_up_to_their_maximum() -> None:
    """delay times backoff to the power of the attempts so far, at most max_delay, for any number of attempts."""
    retry = Retry(attempts=10_000, delay="500ms", backoff=2, max_delay=5)
    assert [retry.pause(attempt) for attempt in range(1, 6)] == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert retry.pause(9_999) == 5.0
    assert Retry(delay=0.5, backoff=1.5, max_delay=3).pause(9_999) == 3
    assert Retry(backoff=2).pause(9_999) == 0.0


def test_by_default_there_are_three_attempts_and_no_pause() -> None:
    """As the reference says: no delay, no backoff, no jitter, and a minute at most."""
    assert (Retry().attempts, Retry().jitter, Retry().on) == (3, 0, (Exception,))
    assert [Retry().pause(attempt) for attempt in (1, 2, 99)] == [0, 0, 0]
    assert [Retry(delay=2).pause(attempt) for attempt in (1, 2, 99)] == [2, 2, 2]
    assert [Retry(delay=7, backoff=10).pause(attempt) for attempt in (1, 2, 3)] == [7, 60, 60]
    assert [Retry(delay="5m", backoff=2).pause(attempt) for attempt in (1, 2)] == [300, 300]  # not cut to a minute


def test_jitter_adds_up_to_its_part() -> None:
    """A random part of up to `jitter` of the pause is added, by the given random generator."""
    retry = Retry(delay=2, jitter=0.5, _random=random.Random(7))
    pauses = [retry.pause(1) for _ in range(200)]
    assert all(2 <= pause <= 3 for pause in pauses)
    assert max(pauses) > 2.9
    assert min(pauses) < 2.1


@pytest.mark.parametrize(
    ("option", "values"),
    [("attempts", (0, -1, "3", 2.0, True, None)), ("backoff", (0.5, "2", math.nan, math.inf, True, None)),
     ("jitter", (2, -0.1, "0.5", math.nan, False)), ("delay", (-1, math.nan, math.inf, "soon", True, None)),
     ("max_delay", (-1, math.nan, math.inf, "1 minute", True)),
     ("on", ("OSError", ["OSError"], (OSError, 5), int, 5, None, OSError(), [], (), KeyboardInterrupt, (lambda: True)))],
)  # fmt: skip
def test_an_invalid_retry_is_refused(option: str, values: tuple[Any, ...]) -> None:
    """When it is written: the error names the option, and what is allowed."""
    for value in values:
        with pytest.raises(ConfigError, match=rf"Retry: .*{option}|Retry: KeyboardInterrupt .* leave it out of on"):
            Retry(**{option: value})

    async def asked(error: Exception) -> bool:
        return True

    with pytest.raises(ConfigError, match="Retry: on is `async def`; write `def`"):
        Retry(on=asked)


def test_pauses_are_durations() -> None:
    """As any other duration: text, timedelta or seconds, and 0 for none."""
    retry = Retry(delay="200ms", backoff=100, max_delay="1m")
    assert [retry.pause(1), retry.pause(2), retry.pause(9)] == [0.2, 20.0, 60.0]
    assert Retry(delay=timedelta(seconds=2), max_delay=timedelta(seconds=1)).pause(1) == 1
    assert [Retry(delay=none).pause(1) for none in (0, 0.0, "0s", timedelta(0))] == [0, 0, 0, 0]


@pytest.mark.parametrize("on", [OSError, [OSError], {OSError}, frozenset({OSError}), (OSError,)], ids=repr)
def test_the_errors_of_a_retry_may_be_written_in_many_ways(on: Any) -> None:
    """One class, or a list, set or tuple of them."""
    assert Retry(on=on) == Retry(on=(OSError,))
    assert Retry(on=on).covers(ConnectionError())
    assert not Retry(on=on).covers(ValueError())


class HTTPError(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


def test_a_function_may_say_which_errors_are_worth_a_retry() -> None:
    """It is called for each error, for a group with each leaf, and only while there are attempts left."""
    asked: list[int] = []

    def busy(error: HTTPError) -> bool:
        asked.append(error.status)
        return error.status == 429

    class Fetch(Node[int, int], retry=Retry(attempts=3, on=busy)):
        def __init__(self, *statuses: int) -> None:
            self.errors = [HTTPError(status) for status in statuses]

        def exec(self, n: int) -> int:
            if self.errors:
                raise self.errors.pop(0)
            return n

    assert Graph(Fetch(429, 429)).run_sync(1) == 1
    with pytest.raises(HTTPError):
        Graph(Fetch(429, 404, 429)).run_sync(1)
    with pytest.raises(HTTPError):
        Graph(Fetch(429, 429, 429)).run_sync(1)
    assert asked == [429, 429, 429, 404, 429, 429]
    group = ExceptionGroup("both", [HTTPError(429), HTTPError(404)])
    assert not Retry(on=lambda error: error.status == 429).covers(group)


@pytest.mark.parametrize(
    ("on", "says"),
    [(lambda error: error.status == 429, "raised AttributeError"), (lambda error: None, "returned NoneType"),
     (lambda error: 1, "returned int")],
)  # fmt: skip
def test_a_retry_function_that_returns_no_bool_fails_the_node(on: Any, says: str) -> None:
    """With a PhaseError that no fallback handles: neither True nor False is guessed. The first error is the context."""

    class Fails(Node[int, int], retry=Retry(on=on)):
        def exec(self, n: int) -> int:
            raise ValueError("the first")

        def fallback(self, n: int, error: Exception) -> int:
            return 0

    with pytest.raises(
        PhaseError, match=f"Retry: on, called with ValueError, {says}; it must return True or False"
    ) as raised:
        Graph(Fails()).run_sync(1)
    assert "the first" in "".join(traceback.format_exception(raised.value))


def test_a_group_is_retried_if_all_its_leaves_are() -> None:
    """Also for nested groups; a single other leaf prevents the retry."""
    retry = Retry(on=(OSError, ValueError))
    inner = ExceptionGroup("inner", [ValueError(), ConnectionError()])
    assert retry.covers(ExceptionGroup("all", [OSError(), inner]))
    assert not retry.covers(ExceptionGroup("one", [OSError(), inner, KeyError()]))
    assert not retry.covers(BaseExceptionGroup("interrupt", [OSError(), KeyboardInterrupt()]))


# ---------------------------------------------------------------- chains
class Gate(Node[int, int]):
    high = Action[int]()
    named = Action[int]("quite-low")

    def post(self, store: SyncWriter, n: int, prepared: int, result: int) -> int | Next[Any]:
        return self.high(n) if n > 10 else self.named(n) if n < 0 else n


@node
def plus(n: int) -> int:
    return n + 1


@node
def minus(n: int) -> int:
    return n - 1


def test_a_chain_is_an_immutable_value() -> None:
    """`>>` makes a new chain each time; neither the nodes nor the original chains change."""
    before = dict(plus.__dict__)
    short = plus >> minus
    edges = short.edges
    long = short >> plus.with_options(name="again")
    assert short.edges is edges
    assert len(long.edges) == 2
    assert plus.__dict__ == before
    assert Graph(short).run_sync(1) == 1
    assert Graph(long).run_sync(1) == 2


def test_joining_chains_keeps_all_their_edges() -> None:
    """`(a >> b) >> (c >> d)` is `a >> b >> c >> d`, and `a >> (b >> c)` is `(a >> b) >> c`."""
    a, b, c, d = (plus.with_options(name=name) for name in "abcd")
    grouped, flat = (a >> b) >> (c >> d), a >> b >> c >> d
    assert grouped.edges == flat.edges
    assert (a >> (b >> c)).edges == (a >> b >> c).edges
    assert Graph(grouped).run_sync(0) == Graph(flat).run_sync(0) == 4
    assert repr(grouped) == "<chain a >> b >> c >> d>"
    assert repr(Gate().high >> a) == "<chain gate.high >> a>"


def test_one_node_may_stand_in_many_graphs() -> None:
    """Each graph has its own edges for it."""
    first, second = Graph(plus >> minus), Graph(plus >> plus.with_options(name="more"))
    alone = Graph(plus)
    assert (first.run_sync(1), second.run_sync(1), alone.run_sync(1)) == (1, 3, 2)


def test_an_actions_name_is_its_attributes_unless_given() -> None:
    """`x = Action()` has the name "x"; the class attribute is the Action, the instance attribute makes a Next."""
    assert (Gate.high.name, Gate.named.name, END.name) == ("high", "quite-low", "END")
    assert Gate().high(3) == Next("high", 3)
    assert repr(Gate.high) == "Action('high')"
    gate = Gate()
    graph = Graph(gate >> plus, gate.high >> minus, gate.named >> plus)
    assert [graph.run_sync(n) for n in (5, 50, -5)] == [6, 49, -4]


def test_actions_of_a_base_class_are_the_subclasss_too() -> None:
    """They count as declared, so they need an edge, and they route."""

    class Derived(Gate):
        pass

    gate = Derived()
    with pytest.raises(GraphError, match="high"):
        Graph(gate).validate()
    assert Graph(gate, gate.high >> minus, gate.on(Gate.named) >> plus).run_sync(50) == 49


def test_a_store_among_the_chains_is_refused_with_the_way_out() -> None:
    """A graph's store is given by its name."""
    store = Store()
    for given in (store, store.sync, store.scope("run"), store.sync.scope("run")):
        with pytest.raises(TypeError, match=r"neither a node nor a chain of nodes; .* Graph\(node, store=store\)"):
            Graph(plus, given)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [AsyncAll, 3, None, len], ids=str)
def test_only_nodes_can_be_chained(wrong: Any) -> None:
    """A class, a bare function or anything else is refused at once, with a hint for a class."""
    with pytest.raises(TypeError, match="is neither a node nor"):
        plus >> wrong
    with pytest.raises(TypeError, match="is neither a node nor"):
        Graph(wrong)
    with pytest.raises(TypeError, match="make an instance" if isinstance(wrong, type) else "is neither a node nor"):
        each(wrong)


def test_each_takes_one_node() -> None:
    """A chain is refused with the way out, and so are invalid options."""
    with pytest.raises(TypeError, match=r"each\(Graph"):
        each(plus >> minus)  # type: ignore[call-overload]
    for concurrency in (0, "3", 2.0, True):
        with pytest.raises(ConfigError, match=r"concurrency can't be .*; give a whole number from 1 up"):
            each(plus, concurrency=concurrency)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="collect"):
        asyncio.run(fan_out(plus, [1], errors="ignore"))  # type: ignore[call-overload]


# ---------------------------------------------------------------- declared types
class Labelled(Node[str, T], Generic[T]):
    """A base class whose only parameter is not the input."""


class Listed(Node[list[T], T], Generic[T]):
    """A base class that has its parameter within another type."""


def test_types_are_found_through_generic_bases() -> None:
    """The input is what Node's first parameter becomes, in whatever order the subclass has its own parameters."""

    class Length(Labelled[int]):
        def exec(self, text: str) -> int:
            return len(text)

    class First(Listed[int]):
        def exec(self, numbers: list[int]) -> int:
            return numbers[0]

    assert Graph(Length()).run_sync("four") == 4
    with pytest.raises(InputError, match="takes str, not int"):
        Graph(Length()).run_sync(4)  # type: ignore[arg-type]
    assert Graph(First()).run_sync([7]) == 7
    with pytest.raises(InputError, match=r"takes list\[int\], not str"):
        Graph(First()).run_sync("x")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"leaves with int, but 'length' takes str"):
        Graph(First() >> Length()).validate()  # type: ignore[operator]


def test_nodes_keep_no_state_of_a_run() -> None:
    """Concurrent runs of one graph don't interfere, and don't change the node."""
    arrived = 0

    class Meet(Node[int, int]):
        async def exec(self, n: int) -> int:
            nonlocal arrived
            arrived += 1
            while arrived < 50:
                await asyncio.sleep(0)
            return n

    meet = Meet()
    graph = Graph(meet, store=Store())

    async def main() -> list[int]:
        return await asyncio.gather(*(graph.run(n) for n in range(50)))

    assert asyncio.run(main()) == list(range(50))
    assert vars(meet) == {}
    assert isinstance(meet >> plus, Chain)
