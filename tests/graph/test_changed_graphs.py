"""A graph is edited while one of its runs is open: the run is resumed only if the part of the graph ahead of it is unchanged.

Each case stops a run somewhere in one graph, and resumes it in another. A resumed run has each effect exactly once; a refused one
has changed nothing, and can be resumed in the original graph.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pocket_plug import (
    Ask,
    Chain,
    Graph,
    Memory,
    Next,
    Node,
    Put,
    RunChangedError,
    RunMismatchError,
    RunSuspendedError,
    Sleep,
    Store,
    StoreWriter,
    each,
    node,
)
from pocket_plug.graph.durable.forms import type_tag
from pocket_plug.testing.clock import FakeClock

UNTYPED: Any = Any


class Stumble(Exception):
    """Raised by a node where the run is to stop."""


class Stop(BaseException):
    """Raised by a hook."""


class Kept(Memory):
    """A store that lasts as long as a test, as a file would."""

    survives = True


class World:
    """Where runs stop."""

    def __init__(self) -> None:
        self.stops: set[str] = set()
        self.crowd: asyncio.Barrier | None = None
        self.clock = FakeClock()
        self.questions: list[str] = []
        """The ids of those at which the run has stopped."""

    async def effects(self, store: Store) -> list[str]:
        """The effects of nodes, in order: `name`, for items `name(value)`, and `name!` for hooks."""
        return await store.get("effects", [])  # type: ignore[no-any-return]


world: World


async def have_effect(store: StoreWriter, name: str) -> None:
    await store.update("effects", lambda done: [*done, name], default=[])


def step(name: str, takes: Any = int, gives: Any = int, by: str = "", shows: bool = False) -> Node[Any, Any]:
    """A node with an effect. `shows`: with its input, as for items; then it stops at `name(input)`."""

    async def work(store: StoreWriter, value: Any) -> Any:
        me = f"{name}({value})" if shows else name
        if me in world.stops or name in world.stops:
            if world.crowd is not None:
                await world.crowd.wait()
            raise Stumble(me)
        await have_effect(store, me)
        result = [1, 2, 3] if gives == list[int] else str(value) if gives is str else value
        if shows and gives is int:
            result = int(value)
        return Next(by, result) if by else result

    work.__annotations__ = {"store": StoreWriter, "value": takes, "return": gives}
    return node.post(work).with_options(name=name)


def hooked(name: str, gives: Any = int, by: str = "") -> Node[Any, Any]:
    """The same with an on_success, which has an effect too; the run stops in it at `name!`."""

    class Hooked(Node[Any, gives], name=name):  # type: ignore[valid-type]
        async def post(self, store: StoreWriter, input: int, prepared: Any, result: Any) -> Any:
            await have_effect(store, name)
            return Next(by, input) if by else input

        async def on_success(self, store: StoreWriter, output: Any) -> None:
            if f"{name}!" in world.stops:
                raise Stop
            await have_effect(store, f"{name}!")

    return Hooked()


def ask(name: str, answer: Any = bool) -> Node[Any, Any]:
    return Ask(answer, question=f"{name}?", name=name)


def graph(main: Any, *more: Any, **options: Any) -> Graph[Any, Any]:
    return Graph(main, *more, name=options.pop("name", "work"), **options)


Made = Callable[[], tuple[Any, ...]]
"""Makes the chains of a graph."""


@dataclass
class Case:
    """One edit."""

    before: Made
    stops: str
    """The node, item or hook at which the run stops; "" for a question."""
    after: Made
    goes: str
    """The effects of the run that goes on in the edited graph, all in all; "" where it is refused."""
    stays: str
    """The effects of the run that goes on in the graph it was begun by."""
    says: str = ""
    """What the refusal says."""
    crowd: int = 0
    """So many items stop at once."""
    allowed: bool = False


a, b, c, z = step("a"), step("b"), step("c"), step("z")
p, q = step("p"), step("q")
CASES: dict[str, Case] = {}


def edits(before: Made, stops: str, stays: str, cases: dict[str, tuple[Made, str, str]], **more: Any) -> None:
    for name, (after, goes, says) in cases.items():
        assert name not in CASES, name
        CASES[name] = Case(before, stops, after, goes, stays, says, **more)


# ---------------------------------------------------------------- a chain; the run is at its second node
edits(
    lambda: (a >> b >> c,),
    "b",
    "a b c",
    {
        "nothing": (lambda: (a >> b >> c,), "a b c", ""),
        "the same from other classes": (lambda: (step("a") >> step("b") >> step("c"),), "a b c", ""),
        "rename what was passed": (lambda: (step("a2") >> b >> c,), "a b c", ""),
        "insert before what was passed": (lambda: (z >> a >> b >> c,), "a b c", ""),
        "insert behind what was passed": (lambda: (a >> z >> b >> c,), "a b c", ""),
        "remove what was passed": (lambda: (b >> c,), "a b c", ""),
        "retype what was passed": (lambda: (step("a", str) >> b >> c,), "a b c", ""),
        "nest what was passed": (lambda: (graph(a, name="a") >> b >> c,), "a b c", ""),
        "reroute what was passed": (lambda: (a >> b >> c, a.on("skip") >> c), "a b c", ""),
        "fan out what was passed": (
            lambda: (each(step("x", gives=UNTYPED)).with_options(name="a") >> step("one", UNTYPED) >> b >> c,),
            "a b c",
            "",
        ),
        "rename what comes next": (lambda: (a >> step("b2") >> c,), "", "is at node 'b'"),
        "remove what comes next": (lambda: (a >> c,), "", "is at node 'b'"),
        "retype what comes next": (lambda: (step("a", gives=str) >> step("b", str) >> c,), "", "+ node b takes str"),
        "untype what comes next": (lambda: (a >> step("b", UNTYPED) >> c,), "", "+ node b takes Any"),
        "nest what comes next": (lambda: (a >> graph(b, name="b") >> c,), "", "+ graph b"),
        "fan out what comes next": (
            lambda: (step("a", gives=UNTYPED) >> each(b).with_options(name="b") >> step("c", UNTYPED),),
            "",
            "+ fan_out b",
        ),
        "ask in place of what comes next": (lambda: (a >> ask("b") >> step("c", UNTYPED),), "", "+ ask b"),
        "rename what lies ahead": (lambda: (a >> b >> step("c2"),), "", "+ node c2"),
        "insert ahead": (lambda: (a >> b >> z >> c,), "", "+ node z"),
        "append": (lambda: (a >> b >> c >> z,), "", "+ edge c -default-> z"),
        "remove ahead": (lambda: (a >> b,), "", "- node c"),
        "retype what lies ahead": (lambda: (a >> step("b", gives=str) >> step("c", str),), "a b c", ""),
        "nest what lies ahead": (lambda: (a >> b >> graph(c, name="c"),), "", "+ graph c"),
        "fan out what lies ahead": (
            lambda: (a >> step("b", gives=UNTYPED) >> each(c).with_options(name="c"),),
            "",
            "+ fan_out c",
        ),
        "reroute to the end": (lambda: (a >> b, a.on("skip") >> c), "", "- edge b -default-> c"),
        "reroute back": (lambda: (a >> b >> c, b.on("again") >> a), "", "+ edge b -again-> a"),
        "another way ahead": (lambda: (a >> b >> c, b.on("skip") >> c), "", "+ edge b -skip-> c"),
        "a passed node moves ahead": (lambda: (b >> a >> c,), "", "+ edge b -default-> a"),
        "a passed node is also ahead": (lambda: (a >> b >> a.with_options(name="a2") >> c,), "", "a2"),
        "one ahead moves behind": (lambda: (a >> c >> b,), "", "- edge b -default-> c"),
        "one ahead moves to the front": (lambda: (c >> a >> b,), "", "- node c"),
        "another scope of the graph": (lambda: (a >> b >> c, {"scope": "other"}), "", "RunMismatchError"),
        "another name of the graph": (lambda: (a >> b >> c, {"name": "other"}), "", "RunMismatchError"),
    },
)

# ---------------------------------------------------------------- loops and actions
back = step("back", by="again")
edits(
    lambda: (a >> b >> c, b.on("again") >> a),
    "b",
    "a b c",
    {
        "rename what was passed and lies ahead again": (
            lambda: (step("a2") >> b >> c, b.on("again") >> step("a3")),
            "",
            "edge b -again-> a",
        ),
        "retype what was passed and lies ahead again": (
            lambda: (a2 := step("a", gives=UNTYPED)) and (a2 >> b >> c, b.on("again") >> a2),
            "a b c",
            "",
        ),
        "insert before a loop": (lambda: (z >> a >> b >> c, b.on("again") >> a), "a b c", ""),
        "rename an action ahead": (lambda: (a >> b >> c, b.on("retry") >> a), "", "+ edge b -retry-> a"),
        "insert into a loop": (lambda: (a >> z >> b >> c, b.on("again") >> a), "", "+ node z"),
    },
)

# ---------------------------------------------------------------- within a nested graph
inner = graph(p >> q, name="inner")
edits(
    lambda: (a >> graph(p >> q, name="inner") >> c,),
    "q",
    "a p q c",
    {
        "nested: rename what was passed within": (
            lambda: (a >> graph(step("p2") >> q, name="inner") >> c,),
            "a p q c",
            "",
        ),
        "nested: rename what was passed outside": (lambda: (step("a2") >> inner >> c,), "a p q c", ""),
        "nested: insert what was passed within": (lambda: (a >> graph(z >> p >> q, name="inner") >> c,), "a p q c", ""),
        "nested: rename what comes next": (
            lambda: (a >> graph(p >> step("q2"), name="inner") >> c,),
            "",
            "is at node 'inner/q'",
        ),
        "nested: append within": (lambda: (a >> graph(p >> q >> z, name="inner") >> c,), "", "+ node inner/z"),
        "nested: rename what lies ahead outside": (lambda: (a >> inner >> step("c2"),), "", "+ node c2"),
        "nested: another way out": (lambda: (a >> inner >> c, inner.on("skip") >> c), "", "+ edge inner -skip-> c"),
        "nested: another scope": (
            lambda: (a >> graph(p >> q, name="inner", scope="in") >> c,),
            "",
            "+ graph inner in scope 'in:'",
        ),
        "nested: rename the graph": (lambda: (a >> graph(p >> q, name="inner2") >> c,), "", "is at node 'inner'"),
        "nested: flatten": (lambda: (a >> p >> q >> c,), "", "is at node 'inner'"),
        "nested: flatten to a node of its name": (
            lambda: (a >> q.with_options(name="inner") >> q >> c,),
            "",
            "'inner', which is not a graph; its kind is node",
        ),
        "nested: nest once more": (
            lambda: (a >> graph(graph(p >> q, name="inner"), name="outer") >> c,),
            "",
            "is at node 'inner'",
        ),
    },
)
edits(
    lambda: (a >> graph(p >> q, name="inner") >> c,),
    "p",
    "a p q c",
    {
        "at a nested graph: rename what was passed": (lambda: (step("a2") >> inner >> c,), "a p q c", ""),
        "at a nested graph: insert at its start": (
            lambda: (a >> graph(z >> p >> q, name="inner") >> c,),
            "",
            "+ start inner/z",
        ),
        "at a nested graph: another scope": (
            lambda: (a >> graph(p >> q, name="inner", scope="in") >> c,),
            "",
            "in scope 'in:'",
        ),
        "at a nested graph: retype its start": (
            lambda: (step("a", gives=str) >> graph(step("p", str) >> q, name="inner") >> c,),
            "",
            "+ node inner takes str",
        ),
    },
)


edits(
    lambda: (hooked("a") >> graph(p >> q, name="inner") >> c,),
    "q",
    "a a! p q c",
    {
        "nested: rename a node with hooks that have ended": (
            lambda: (hooked("a2") >> graph(p >> q, name="inner") >> c,),
            "a a! p q c",
            "",
        ),
    },
)


def deep(last: str = "c", next_: str = "b", skip: str = "") -> Made:
    """The innermost of three graphs is being left."""

    def made() -> tuple[Any, ...]:
        within = graph(graph(hooked("q"), name="deep") >> step(next_), name="inner")
        chains: tuple[Any, ...] = (a >> within >> step(last),)
        return (*chains, within.on(skip) >> z) if skip else chains

    return made


edits(
    deep(),
    "q!",
    "a q q! b c",
    {
        "leaving a graph in a graph: nothing": (deep(), "a q q! b c", ""),
        "leaving a graph in a graph: where it leads": (deep(next_="b2"), "", "+ edge inner/deep -default-> inner/b2"),
        "leaving a graph in a graph: rename what lies ahead": (deep("c2"), "", "+ node c2"),
        "leaving a graph in a graph: another way ahead": (deep(skip="skip"), "", "+ edge inner -skip-> z"),
    },
)


def leaving(by: str = "", way: str = "", scope: str | None = None, last: Node[Any, Any] | None = None) -> Made:
    def made() -> tuple[Any, ...]:
        within = graph(p >> (last or hooked("q", by=by)), name="inner", scope=scope)
        chains: tuple[Any, ...] = (a >> within >> c,)
        return (*chains, within.on(way) >> z) if way else chains

    return made


edits(
    leaving("x", "x"),
    "q!",
    "a p q q! z",
    {
        "leaving: what was passed within": (
            lambda: (
                (within := graph(step("p2") >> hooked("q", by="x"), name="inner"))
                and (a >> within >> c, within.on("x") >> z)
            ),
            "a p q q! z",
            "",
        ),
        "leaving: the other way out": (
            lambda: (
                (within := graph(p >> hooked("q", by="x"), name="inner"))
                and (a >> within >> step("c2"), within.on("x") >> z)
            ),
            "a p q q! z",
            "",
        ),
        "leaving: its action has gone": (leaving("x", "y"), "", "leaves 'inner' by 'x', for which there is no edge"),
        "leaving: its action leads elsewhere": (
            lambda: (
                (within := graph(p >> hooked("q", by="x"), name="inner"))
                and (a >> within >> c, within.on("x") >> step("z2"))
            ),
            "",
            "+ edge inner -x-> z2",
        ),
        "leaving: the node of its hooks has gone": (
            leaving("x", "x", last=hooked("q2", by="x")),
            "",
            "has left node 'inner/q', which doesn't exist there",
        ),
        "leaving: the node of its hooks gives another type": (
            leaving("x", "x", last=hooked("q", bool, by="x")),
            "",
            "+ node inner/q gives bool",
        ),
        "leaving: another scope for its hooks": (leaving("x", "x", scope="in"), "", "in scope 'in:'"),
        "leaving: what takes the value is retyped": (
            lambda: (
                (within := graph(p >> hooked("q", by="x"), name="inner"))
                and (a >> within >> c, within.on("x") >> step("z", str))
            ),
            "",
            "+ node z takes str",
        ),
    },
)

# ---------------------------------------------------------------- waiting for an answer
use = step("use", UNTYPED, UNTYPED)
edits(
    lambda: (a >> ask("sure") >> use,),
    "",
    "a use",
    {
        "waiting: rename what was passed": (lambda: (step("a2") >> ask("sure") >> use,), "a use", ""),
        "waiting: a question before": (lambda: (ask("first") >> ask("sure") >> use,), "a use", ""),
        "waiting: retype what was passed": (lambda: (step("a", str) >> ask("sure") >> use,), "a use", ""),
        "waiting: rename the question": (lambda: (a >> ask("really") >> use,), "", "waits for an answer at 'sure'"),
        "waiting: retype the answer": (lambda: (a >> ask("sure", int) >> use,), "", "+ ask sure for int"),
        "waiting: another question ahead": (lambda: (a >> ask("sure") >> ask("really") >> use,), "", "+ ask really"),
        "waiting: the question moves": (
            lambda: (a >> step("sure", UNTYPED, UNTYPED) >> ask("really") >> use,),
            "",
            "waits for an answer at 'sure', but no node asks there",
        ),
        "waiting: insert ahead": (
            lambda: (a >> ask("sure") >> step("z", UNTYPED, UNTYPED) >> use,),
            "",
            "+ node z",
        ),
        "waiting: nest the question": (
            lambda: (a >> graph(ask("sure"), name="sure") >> use,),
            "",
            "+ graph sure",
        ),
    },
)
edits(
    lambda: (a >> graph(hooked("p") >> ask("sure"), name="inner") >> use,),
    "",
    "a p p! use",
    {
        "waiting within: rename what was passed within": (
            lambda: (a >> graph(p.with_options(name="p2") >> ask("sure"), name="inner") >> use,),
            "a p p! use",
            "",
        ),
        "waiting within: rename what was passed outside": (
            lambda: (step("a2") >> graph(hooked("p") >> ask("sure"), name="inner") >> use,),
            "a p p! use",
            "",
        ),
        "waiting within: the question moves out": (
            lambda: (a >> graph(hooked("p"), name="inner") >> ask("sure") >> use,),
            "",
            "waits for an answer at 'inner/sure'",
        ),
    },
)

# ---------------------------------------------------------------- waiting for a time
edits(
    lambda: (a >> Sleep("1h", name="pause") >> c,),
    "",
    "a c",
    {
        "sleeping: rename what was passed": (lambda: (step("a2") >> Sleep("1h", name="pause") >> c,), "a c", ""),
        "sleeping: another duration": (lambda: (a >> Sleep("2h", name="pause") >> c,), "a c", ""),
        "sleeping: rename it": (lambda: (a >> Sleep("1h", name="rest") >> c,), "", "is at node 'pause'"),
        "sleeping: a node in its place": (lambda: (a >> step("pause", UNTYPED, UNTYPED) >> c,), "", "+ node pause"),
    },
)

# ---------------------------------------------------------------- items
numbers = step("numbers", int, list[int])


def items(
    work: Node[Any, Any] | None = None,
    join: Node[Any, Any] | Chain[Any, Any] | None = None,
    first: Node[Any, Any] | Chain[Any, Any] = numbers,
    **options: Any,
) -> Made:
    def made() -> tuple[Any, ...]:
        work_ = step("work", shows=True) if work is None else work
        spread = each(work_, **{"concurrency": 1, **options}).with_options(name="all")
        return (first >> spread >> (step("join", UNTYPED, UNTYPED) if join is None else join),)

    return made


edits(
    items(),
    "work(2)",
    "numbers work(1) work(2) work(3) join",
    {
        "items: nothing": (items(), "numbers work(1) work(2) work(3) join", ""),
        "items: rename what was passed": (
            items(first=step("n2", int, list[int])),
            "numbers work(1) work(2) work(3) join",
            "",
        ),
        "items: others at once": (items(concurrency=3), "numbers work(1) work(2) work(3) join", ""),
        "items: collect their errors": (items(errors="collect"), "numbers work(1) work(2) work(3) join", ""),
        "items: other results": (items(step("work", int, str, shows=True)), "", "+ items of all give str"),
        "items: other inputs": (items(step("work", UNTYPED, shows=True)), "", "+ node all takes Any"),
        "items: the results are taken as others": (
            items(join=step("join", list[float], UNTYPED)),
            "",
            "+ node join takes list[float]",
        ),
        "items: rename their node": (items(step("work2", shows=True)), "", "+ start all/work2"),
        "items: a graph in place of their node": (
            items(graph(step("work", shows=True), name="work")),
            "",
            "+ graph all/work",
        ),
        "items: rename what lies ahead": (items(join=step("join2", UNTYPED, UNTYPED)), "", "+ node join2"),
        "items: one node in place of the fan-out": (
            lambda: (numbers >> step("all", UNTYPED, UNTYPED) >> step("join", UNTYPED, UNTYPED),),
            "",
            "halfway through the fan-out 'all'",
        ),
        "items: a fan-out of another name": (
            lambda: (
                numbers >> each(step("work", shows=True)).with_options(name="every") >> step("join", UNTYPED, UNTYPED),
            ),
            "",
            "is at node 'all'",
        ),
    },
)


edits(
    items(first=step("n", int, list[int]) >> hooked("spread", list[int])),
    "work(2)",
    "n spread spread! work(1) work(2) work(3) join",
    {
        "items: rename a node with hooks that have ended": (
            items(first=step("n", int, list[int]) >> hooked("spread2", list[int])),
            "n spread spread! work(1) work(2) work(3) join",
            "",
        ),
    },
)


def way(*nodes: Node[Any, Any], **options: Any) -> Graph[Any, Any]:
    chain: Any = nodes[0]
    for each_ in nodes[1:]:
        chain = chain >> each_
    return graph(chain, name="way", **options)


P, Q, Z = step("p", shows=True), step("q", shows=True), step("z", shows=True)
HALF = "numbers p(1) q(1) p(2) q(2) p(3) q(3) join"
edits(
    items(way(P, Q)),
    "q(2)",
    HALF,
    {
        "items within: nothing": (items(way(P, Q)), HALF, ""),
        "items within: rename what one has passed": (
            items(way(step("p2", shows=True), Q)),
            "",
            "- node all/way/p",
        ),
        "items within: rename where one stands": (
            items(way(P, step("q2", shows=True))),
            "",
            "item 1 of 'all' is at node 'all/way/q'",
        ),
        "items within: rename where one stands, and collect": (
            items(way(P, step("q2", shows=True)), errors="collect"),
            "",
            "item 1 of 'all' is at node 'all/way/q'",
        ),
        "items within: retype where one stands": (
            items(way(step("p", int, UNTYPED, shows=True), step("q", UNTYPED, shows=True))),
            "",
            "+ node all/way/q takes Any",
        ),
        "items within: a node more": (items(way(P, Q, Z)), "", "+ node all/way/z"),
        "items within: a node more, and collect": (items(way(P, Q, Z), errors="collect"), "", "+ node all/way/z"),
        "items within: a node less": (items(way(Q)), "", "- node all/way/p"),
        "items within: another scope": (items(way(P, Q, scope="in")), "", "+ graph all/way in scope 'in:'"),
        "items within: other results": (items(way(P, step("q", int, str, shows=True))), "", "+ items of all give str"),
        "items within: flatten": (
            items(Q.with_options(name="way")),
            "",
            "'all/way', which is not a graph; its kind is node",
        ),
    },
)
edits(
    items(way(P, Q), concurrency=3),
    "q",
    "join numbers p(1) p(2) p(3) q(1) q(2) q(3)",
    {
        "all items begun: rename what they have passed": (
            items(way(step("p2", shows=True), Q)),
            "join numbers p(1) p(2) p(3) q(1) q(2) q(3)",
            "",
        ),
        "all items begun: insert what they have passed": (
            items(way(P, Z, Q)),
            "join numbers p(1) p(2) p(3) q(1) q(2) q(3)",
            "",
        ),
        "all items begun: retype what they began with": (
            items(way(step("p", UNTYPED, shows=True), Q)),
            "join numbers p(1) p(2) p(3) q(1) q(2) q(3)",
            "",
        ),
        "all items begun: rename where they stand": (
            items(way(P, step("q2", shows=True))),
            "",
            "item 0 of 'all' is at node 'all/way/q'",
        ),
        "all items begun: a node more": (items(way(P, Q, Z)), "", "+ node all/way/z"),
    },
    crowd=3,
)


def nested_items(first: Node[Any, Any] = numbers, work: Node[Any, Any] | None = None, outer: str = "inner") -> Made:
    def made() -> tuple[Any, ...]:
        spread = each(work or step("work", shows=True), concurrency=1).with_options(name="all")
        return (first >> graph(spread >> step("join", UNTYPED, UNTYPED), name=outer),)

    return made


edits(
    nested_items(),
    "work(2)",
    "numbers work(1) work(2) work(3) join",
    {
        "a graph that begins with items: rename what was passed": (
            nested_items(step("n2", int, list[int])),
            "numbers work(1) work(2) work(3) join",
            "",
        ),
        "a graph that begins with items: other results": (
            nested_items(work=step("work", int, str, shows=True)),
            "",
            "+ items of inner/all give str",
        ),
        "a graph that begins with items: rename it": (nested_items(outer="in"), "", "is at node 'inner'"),
    },
)


def items_of_items(work: Node[Any, Any] | None = None, p: Node[Any, Any] | None = None) -> Made:
    def made() -> tuple[Any, ...]:
        leaf = each(work or step("work", shows=True), concurrency=1).with_options(name="leaves")
        twig = step("twig", int, list[int], shows=True) if p is None else p
        spread = each(way(twig, leaf), concurrency=1).with_options(name="all")
        return (numbers >> spread >> step("join", UNTYPED, UNTYPED),)

    return made


LEAVES = "work(1) work(2) work(3)"
edits(
    items_of_items(),
    "work(2)",
    f"numbers twig(1) {LEAVES} twig(2) {LEAVES} twig(3) {LEAVES} join",
    {
        "items of items: nothing": (
            items_of_items(),
            f"numbers twig(1) {LEAVES} twig(2) {LEAVES} twig(3) {LEAVES} join",
            "",
        ),
        "items of items: other results": (
            items_of_items(step("work", int, str, shows=True)),
            "",
            "+ items of all/way/leaves give str",
        ),
        "items of items: rename where one stands": (items_of_items(step("work2", shows=True)), "", "work2"),
    },
)


def asking_items(question: Node[Any, Any] | None = None, first: Node[Any, Any] = numbers, **options: Any) -> Made:
    def made() -> tuple[Any, ...]:
        asks = way(step("p", shows=True), ask("sure") if question is None else question, step("q", UNTYPED, UNTYPED))
        spread = each(asks, **{"concurrency": 1, **options}).with_options(name="all")
        return (first >> spread >> step("join", UNTYPED, UNTYPED),)

    return made


edits(
    asking_items(),
    "",
    "numbers p(1) p(2) p(3) q q q join",
    {
        "items that wait: rename what was passed": (
            asking_items(first=step("n2", int, list[int])),
            "numbers p(1) p(2) p(3) q q q join",
            "",
        ),
        "items that wait: rename the question": (
            asking_items(ask("really")),
            "",
            "item 0 of 'all' waits for an answer at 'all/way/sure', but no node asks there",
        ),
        "items that wait: retype the answer": (asking_items(ask("sure", int)), "", "+ ask all/way/sure for int"),
        "items that wait: a node in place of the question": (
            asking_items(step("sure", UNTYPED, UNTYPED)),
            "",
            "item 0 of 'all' waits for an answer at 'all/way/sure', but no node asks there",
        ),
        "items that wait: rename the question, and collect": (
            asking_items(ask("really"), errors="collect"),
            "",
            "item 0 of 'all' waits for an answer",
        ),
    },
)


def questions_as_items(question: Node[Any, Any] | None = None, within: bool = False) -> Made:
    def made() -> tuple[Any, ...]:
        asks = ask("sure") if question is None else question
        item = graph(asks >> step("q", UNTYPED, UNTYPED), name="way") if within else asks
        return (numbers >> each(item).with_options(name="all") >> step("join", UNTYPED, UNTYPED),)

    return made


for within in (False, True):
    place, effects_ = ("all/way/sure", "numbers q q q join") if within else ("all/sure", "numbers join")
    edits(
        questions_as_items(within=within),
        "",
        effects_,
        {
            f"{place} waits: nothing": (questions_as_items(within=within), effects_, ""),
            f"{place} waits: retype the answer": (
                questions_as_items(ask("sure", int), within),
                "",
                f"+ ask {place} for int",
            ),
            f"{place} waits: rename the question": (
                questions_as_items(ask("really"), within),
                "",
                "+ ask all/way/really" if within else "item 0 of 'all' waits for an answer at 'all/sure'",
            ),
        },
    )


# ---------------------------------------------------------------- allow_changed: what is ahead may differ, but not the
# run's node
edits(
    lambda: (a >> b >> c,),
    "b",
    "a b c",
    {
        "allowed: append": (lambda: (a >> b >> c >> z,), "a b c z", ""),
        "allowed: rename what lies ahead": (lambda: (a >> b >> step("c2"),), "a b c2", ""),
        "allowed: rename what comes next": (lambda: (a >> step("b2") >> c,), "", "is at node 'b'"),
        "allowed: retype what comes next": (lambda: (a >> step("b", UNTYPED) >> c,), "", "+ node b takes Any"),
    },
    allowed=True,
)
edits(
    lambda: (a >> graph(p >> q, name="inner") >> step("b2"),),
    "q",
    "a p q b2",
    {
        "allowed: flatten a graph to a node of its name": (
            lambda: (a >> q.with_options(name="inner") >> q,),
            "",
            "'inner', which is not a graph; its kind is node",
        ),
        "allowed: another scope": (
            lambda: (a >> graph(p >> q, name="inner", scope="in") >> step("b2"),),
            "",
            "in scope 'in:'",
        ),
    },
    allowed=True,
)
edits(
    leaving("x", "x"),
    "q!",
    "a p q q! z",
    {"allowed: the action of leaving has gone": (leaving("x", "y"), "", "leaves 'inner' by 'x'")},
    allowed=True,
)
edits(
    lambda: (a >> ask("sure") >> use,),
    "",
    "a use",
    {
        "allowed: the question moves": (
            lambda: (a >> step("sure", UNTYPED, UNTYPED) >> ask("really") >> use,),
            "",
            "but no node asks there",
        ),
        "allowed: another question ahead": (lambda: (a >> ask("sure") >> step("y", UNTYPED, UNTYPED),), "a y", ""),
    },
    allowed=True,
)
edits(
    items(way(P, Q)),
    "q(2)",
    HALF,
    {
        "allowed: rename where an item stands": (items(way(P, step("q2", shows=True))), "", "item 1 of 'all' is at"),
        "allowed: rename where an item stands, and collect": (
            items(way(P, step("q2", shows=True)), errors="collect"),
            "",
            "item 1 of 'all' is at",
        ),
        "allowed: a node more for some items": (items(way(P, Q, Z)), "", "+ node all/way/z"),
        "allowed: append behind the items": (
            items(way(P, Q), join=step("join", UNTYPED, UNTYPED) >> step("z", UNTYPED, UNTYPED)),
            f"{HALF} z",
            "",
        ),
    },
    allowed=True,
)


def built(made: Made, store: Store) -> Graph[Any, Any]:
    parts = made()
    options: dict[str, Any] = next((part for part in parts if isinstance(part, dict)), {})
    return graph(*(part for part in parts if not isinstance(part, dict)), store=store, **options)


async def everything(store: Store) -> dict[str, tuple[int, Any]]:
    found = await store.stack.read_many([key async for key in store.stack.scan("")])
    return {key: (entry.version, entry.value) for key, entry in found.items()}


async def go_on(case: Case, graph: Graph[Any, Any]) -> None:
    """Resume the run, and answer all its questions."""
    questions = list(world.questions)
    while True:
        options: dict[str, Any] = {"answer": True, "question": questions[0]} if questions else {}
        try:
            await graph.resume("r", allow_changed=case.allowed, **options)
            return
        except RunSuspendedError as suspended:
            questions = list(suspended.questions)


async def stop(case: Case, store: Store) -> None:
    world.stops = {case.stops}
    world.crowd = asyncio.Barrier(case.crowd) if case.crowd else None
    with pytest.raises((Stumble, Stop, RunSuspendedError)) as stopped:
        await built(case.before, store).run(1, run_id="r")
    world.stops, world.crowd = set(), None
    if isinstance(stopped.value, RunSuspendedError):
        world.questions = list(stopped.value.questions)
        world.clock.advance(3600)


@pytest.fixture(autouse=True)
def _new_world() -> None:
    global world
    world = World()


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_resumed_if_what_is_ahead_is_unchanged(name: str) -> None:
    """With each effect exactly once; otherwise it is refused, nothing has changed, and the original graph continues it."""
    case = CASES[name]

    async def main() -> None:
        async with Store(Kept(), clock=world.clock) as store:
            await stop(case, store)
            after, before = built(case.after, store), await everything(store)
            checked = await after.check_runs()
            assert await everything(store) == before
            if case.goes:
                await go_on(case, after)
                assert order(case, await world.effects(store)) == case.goes.split()
                assert case.allowed or [check.can_resume for check in checked] == [True]
                return
            with pytest.raises((RunChangedError, RunMismatchError)) as refused:
                await go_on(case, after)
            assert case.says in f"{refused.typename} {refused.value}"
            assert await everything(store) == before
            if isinstance(refused.value, RunChangedError):
                assert [(check.can_resume, check.differences) for check in checked] == [
                    (False, refused.value.differences)
                ] or case.allowed
                assert not any(check.can_resume for check in checked)
            else:
                assert checked == []  # runs of other graphs aren't checked
            await go_on(replace(case, allowed=False), built(case.before, store))
            assert order(case, await world.effects(store)) == case.stays.split()

    asyncio.run(main())


UNSEEN = ("takes", "gives", "give ", "in scope", "ask sure for")
"""What differs, where an older version has not recorded it."""


NEW = ("sleeping:", "items that wait:", "waits:")
"""Cases that it hasn't: of what an older version can't do."""
OLDER = [
    name
    for name, case in CASES.items()
    if not any(map(case.says.__contains__, UNSEEN)) and not any(map(name.__contains__, NEW))
]


@pytest.mark.parametrize("name", OLDER)
def test_a_record_of_an_older_version_is_compared_by_what_it_has(name: str) -> None:
    """It has no types and no scopes; nodes, edges and questions are compared all the same."""
    case = CASES[name]

    async def main() -> None:
        async with Store(Kept(), clock=world.clock) as store:
            await stop(case, store)
            key = "pocket:run-part:r:start"
            entry = await store.stack.read(key)
            assert entry is not None
            former = {field: entry.value[field] for field in ("graph", "scope", "input", "started")}
            lines = built(case.before, store).plan.shape.lines
            await store.stack.write([Put(key, {**former, "shape": lines})])
            before = await everything(store)
            if case.goes:
                await go_on(case, built(case.after, store))
                assert order(case, await world.effects(store)) == case.goes.split()
                return
            with pytest.raises((RunChangedError, RunMismatchError)):
                await go_on(case, built(case.after, store))
            assert await everything(store) == before
            await go_on(replace(case, allowed=False), built(case.before, store))
            assert order(case, await world.effects(store)) == case.stays.split()

    asyncio.run(main())


def order(case: Case, effects: list[str]) -> list[str]:
    """Items that run at the same time may have any order."""
    return sorted(effects) if case.crowd else effects


def test_a_run_resumed_with_allow_changed_belongs_to_the_new_graph() -> None:
    """With allow_changed, which is needed once; a run that is resumed without it may use either graph, at any time."""

    async def main() -> None:
        async with Store(Kept()) as store:
            before, after = graph(a >> b >> c, store=store), graph(a >> b >> step("c2"), store=store)
            passed = graph(step("a2") >> b >> c, store=store)
            for resumed, run_id in ((after, "allowed"), (passed, "by itself")):
                world.stops = {"b"}
                with pytest.raises(Stumble):
                    await before.run(1, run_id=run_id)
                with pytest.raises(Stumble):
                    await resumed.resume(run_id, allow_changed=resumed is after)
                world.stops = set()
            verdicts = {check.run_id: check.verdict for check in await after.check_runs()}
            assert verdicts == {"allowed": "unchanged", "by itself": "refused"}
            with pytest.raises(RunChangedError):
                await before.resume("allowed")
            assert await after.resume("allowed") == await before.resume("by itself") == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("hint", "tag"),
    [
        (tuple[int, ...], "tuple[int, ...]"),
        (tuple[int, str], "tuple[int, str]"),
        (Callable[..., str], "Callable[..., str]"),
        (Callable[[int, str], None], "Callable[[int, str], None]"),
        (Callable[[], str], "Callable[[], str]"),
    ],
    ids=str,
)
def test_a_type_is_recorded_with_all_of_its_arguments(hint: Any, tag: str) -> None:
    """Also those that are no types: of which length a tuple is, and what a function takes."""
    assert type_tag(hint) == tag


def test_there_are_enough_edits() -> None:
    """Some edits allow a resume, and some are refused."""
    assert len(CASES) >= 60
    assert 20 <= sum(not case.goes for case in CASES.values()) <= len(CASES) - 20
