"""`Graph(version=2, upgrade={1: …})`: a run of an older version is upgraded when it is claimed, once, or not at all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from pocket_plug import (
    Answered,
    Ask,
    CodecError,
    ConfigError,
    Graph,
    InputError,
    Layer,
    Memory,
    Next,
    Node,
    Put,
    RunChangedError,
    RunMismatchError,
    RunPosition,
    RunSuspendedError,
    Sleep,
    Store,
    StoreError,
    StoreWriter,
    each,
    idempotency_key,
    node,
)
from pocket_plug.codec import default_codec
from pocket_plug.graph.durable.records import RUN
from pocket_plug.graph.durable.waits import put_wait, read_wait, wait_key
from pocket_plug.primitives.waiting import drive_inline
from pocket_plug.store.backend import NO_EXPECTATIONS, Change
from pocket_plug.testing.clock import FakeClock


class Kept(Memory):
    """A store that lasts as long as a test, as a file would."""

    survives = True


class Stumble(Exception):
    """Raised by a node where the run is to stop."""


broken: set[str] = set()


@pytest.fixture(autouse=True)
def _whole() -> None:
    broken.clear()


def step(name: str, takes: Any = Any, gives: Any = Any, adds: Any = None) -> Node[Any, Any]:
    """A node that stores its name and input as an effect; it raises while its name, or its name with its
    input, is in `broken`.
    """

    async def work(store: StoreWriter, value: Any) -> Any:
        if name in broken or f"{name}({value})" in broken:
            raise Stumble(name)
        await store.update("effects", lambda done: [*done, f"{name}({value})"], default=[])
        return value if adds is None else adds

    work.__annotations__ = {"store": StoreWriter, "value": takes, "return": gives}
    return node.post(work).with_options(name=name)


async def effects(store: Store) -> list[str]:
    return await store.get("effects", [])  # type: ignore[no-any-return]


async def everything(store: Store) -> dict[str, tuple[int, Any]]:
    found = await store.stack.read_many([key async for key in store.stack.scan("")])
    return {key: (entry.version, entry.value) for key, entry in found.items()}


async def stopped(graph: Graph[Any, Any], at: str, input: Any = 1) -> None:
    broken.add(at)
    with pytest.raises((Stumble, RunSuspendedError)):
        await graph.run(input, run_id="r")
    broken.clear()


A, B, C = step("a", int, int), step("b", int, int), step("c", int, int)


def renamed(position: RunPosition) -> RunPosition:
    return position.renamed("b", "b2")


# ---------------------------------------------------------------- what an upgrade can do
def test_a_renamed_node() -> None:
    """The run continues at the new name; from then on it belongs to the new version, and the old version refuses it."""

    async def main() -> None:
        async with Store(Kept()) as store:
            former = Graph(A >> B >> C, store=store)
            await stopped(former, "b")
            after = Graph(A >> step("b2", int, int) >> C, store=store, version=2, upgrade={1: renamed})
            assert [(check.verdict, check.node, check.version) for check in await after.check_runs()] == [
                ("upgraded", "b", 1)
            ]
            broken.add("c")
            with pytest.raises(Stumble):
                await after.run(1, run_id="r")
            broken.clear()
            with pytest.raises(
                RunChangedError, match="belongs to version 2 of graph 'graph', but this graph has version 1"
            ):
                await former.resume("r")
            assert [check.verdict for check in await after.check_runs()] == ["unchanged"]
            assert await after.resume("r") == 1
            assert await effects(store) == ["a(1)", "b2(1)", "c(1)"]

    asyncio.run(main())


@dataclass
class Order:
    amount: int


def test_another_value() -> None:
    """The upgrade converts the pending value for the new version's node."""

    async def main() -> None:
        async with Store(Kept()) as store:
            await stopped(Graph(A >> B, store=store), "b")
            take = step("b", Order, int, adds=7)
            with pytest.raises(RunChangedError, match=r"\+ node b takes Order"):
                await Graph(step("a", int, Order) >> take, store=store).resume("r")

            def to_order(position: RunPosition) -> RunPosition:
                return replace(position, value=Order(position.value))

            after = Graph(step("a", int, Order) >> take, store=store, version=2, upgrade={1: to_order})
            assert await after.resume("r") == 7
            assert await effects(store) == ["a(1)", "b(Order(amount=1))"]

    asyncio.run(main())


def test_several_versions_at_once() -> None:
    """Each upgrade gets the result of the previous one; a run of the middle version needs only the last."""
    seen: list[tuple[str, ...]] = []

    def again(position: RunPosition) -> RunPosition:
        seen.append(position.path)
        return position.renamed("b2", "b3")

    async def main() -> None:
        async with Store(Kept()) as store:
            await stopped(Graph(A >> B, store=store), "b")
            middle = Graph(A >> step("b2"), store=store, version=2, upgrade={1: renamed})
            broken.add("b2")
            with pytest.raises(Stumble):
                await middle.run(2, run_id="middle")
            broken.clear()
            last = Graph(A >> step("b3"), store=store, version=3, upgrade={1: renamed, 2: again})
            assert await last.resume("r") == 1
            assert await last.resume("middle") == 2
            assert seen == [("b2",), ("b2",)]
            assert await effects(store) == ["a(1)", "a(2)", "b3(1)", "b3(2)"]

    asyncio.run(main())


def test_a_node_of_a_nested_graph() -> None:
    """It is named by its path. The numbers of visits are kept, so that idempotency keys continue."""
    keys: list[str] = []

    def charge(name: str) -> Node[Any, Any]:
        async def work(n: int) -> Any:
            if broken and n == 2:
                raise Stumble
            keys.append(idempotency_key())
            return Next("again", n + 1) if n < 2 else n

        return node(work).with_options(name=name)

    def move(position: RunPosition) -> RunPosition:
        assert position == RunPosition(run_id="r", path=("pay", "charge"), value=2, visits=({}, {"charge": 1}))
        assert position.renamed("charge", "x") == position, "no node of the outermost graph"
        return position.renamed(("pay", "charge"), "debit").renamed("pay", "bill")

    async def main() -> None:
        async with Store(Kept()) as store:
            first, second = charge("charge"), charge("debit")
            before = Graph(Graph(first, first.on("again") >> first, name="pay") >> C, store=store)
            after = Graph(
                Graph(second, second.on("again") >> second, name="bill") >> C, store=store, version=2, upgrade={1: move}
            )
            await stopped(before, "anything")
            assert await after.resume("r") == 2
            assert keys == ["r/pay#1/charge#1", "r/bill#1/debit#2"]
            assert await effects(store) == ["c(2)"]

    asyncio.run(main())


def test_a_node_that_becomes_nested_and_one_that_no_longer_is() -> None:
    """The path that the upgrade returns may be longer or shorter."""

    def into(position: RunPosition) -> RunPosition:
        return replace(position, path=("deep", "b"))

    def out_of(position: RunPosition) -> RunPosition:
        assert position.path == ("deep", "b")
        return replace(position, path=("b",))

    async def main() -> None:
        async with Store(Kept()) as store:
            await stopped(Graph(A >> B >> C, store=store), "b")
            deep = Graph(A >> Graph(B, name="deep") >> C, store=store, version=2, upgrade={1: into})
            broken.add("b")
            with pytest.raises(Stumble):
                await deep.resume("r")
            broken.clear()
            assert await Graph(A >> B >> C, store=store, version=3, upgrade={2: out_of}).resume("r") == 1
            assert await effects(store) == ["a(1)", "b(1)", "c(1)"]

    asyncio.run(main())


def test_a_question() -> None:
    """A waiting run waits at the question's new place; the answer must have the type that is asked for there."""

    def move(position: RunPosition) -> RunPosition:
        assert position.waits
        return position.renamed("sure", "really")

    async def main() -> None:
        async with Store(Kept()) as store:
            use = step("use")
            await stopped(Graph(A >> Ask(bool, question="Sure?", name="sure") >> use, store=store), "")
            options: Any = {"store": store, "version": 2, "upgrade": {1: move}}
            gone = Graph(A >> step("really") >> use, **options)
            with pytest.raises(RunChangedError, match="waits for an answer at 'really', but no node asks there"):
                await gone.resume("r", answer=True)
            after = Graph(A >> Ask(str, question="Really?", name="really") >> use, **options)
            with pytest.raises(RunSuspendedError):
                await after.resume("r")
            with pytest.raises(InputError, match="asks for str, not bool"):
                await after.resume("r", answer=True)
            assert await after.resume("r", answer="yes") == Answered(1, "yes")

    asyncio.run(main())


def test_an_answer_that_was_given_before() -> None:
    """The node that asks now gets it, unless it asks for another type."""

    async def main() -> None:
        fails: list[str] = []
        async with Store(Kept(), layers=[Failing(fails=fails)]) as store:
            use = step("use")
            before = Graph(Ask(bool, question="Sure?", name="sure") >> use, store=store)
            await stopped(before, "")
            fails += ["", "refuse"]
            with pytest.raises(StoreError, match="gone"):
                await before.resume("r", answer=True)
            options: Any = {"store": store, "version": 2, "upgrade": {1: lambda run: run.renamed("sure", "really")}}
            other = Graph(Ask(str, question="Really?", name="really") >> use, **options)
            with pytest.raises(RunChangedError, match="its answer is not the str that 'really'"):
                await other.resume("r")
            with pytest.raises(RunChangedError, match="has been given an answer at 'really', but no node asks there"):
                await Graph(step("really") >> use, **options).resume("r")
            same = Graph(Ask(bool, question="Really?", name="really") >> use, **options)
            assert await same.resume("r") == Answered(1, True)

    asyncio.run(main())


def test_questions_of_items() -> None:
    """Each moves with its item, open or answered, and an answer may use the id under which it was asked."""
    seen: list[RunPosition] = []

    def move(position: RunPosition) -> RunPosition:
        seen.append(position)
        return position.renamed(("all", "way", "sure"), "really")

    def made(question: str, **options: Any) -> Graph[Any, Any]:
        way = Graph(step("p") >> Ask(bool, question="Sure?", name=question) >> step("q"), name="way")
        return Graph(each(way, concurrency=1).with_options(name="all") >> step("join"), **options)

    async def main() -> None:
        async with Store(Kept()) as store:
            before = made("sure", store=store)
            with pytest.raises(RunSuspendedError) as suspended:
                await before.run([1, 2, 3], run_id="r")
            assert list(suspended.value.questions) == [f"all#1[{n}]/sure#1" for n in range(3)]
            broken.add("q(Answered(input=2, answer=True))")
            with pytest.raises(Stumble):
                await before.resume("r", answer=True, question="all#1[1]/sure#1")
            broken.clear()
            kept = await everything(store)
            gone = Graph(each(step("x")).with_options(name="all"), store=store, version=2, upgrade={1: move})
            with pytest.raises(RunChangedError, match="item 0 of 'all' waits for an answer at 'all/way/really'"):
                await gone.resume("r")
            assert await everything(store) == kept
            after = made("really", store=store, version=2, upgrade={1: move})
            assert [check.verdict for check in await after.check_runs()] == ["upgraded"]
            with pytest.raises(RunSuspendedError) as suspended:
                await after.resume("r", answer=True, question="all#1[2]/sure#1")
            assert list(suspended.value.questions) == ["all#1[0]/really#1"]
            answers = await after.resume("r", answer=False, question="all#1[0]/really#1")
            assert answers == [Answered(1, False), Answered(2, True), Answered(3, True)]
            assert {number: item.waits for number, item in seen[-1].items.items()} == {0: True, 1: False, 2: True}
            assert sorted(await effects(store)) == sorted(
                [*(f"p({n})" for n in (1, 2, 3)), *(f"q({each})" for each in answers), f"join({answers})"]
            )

    asyncio.run(main())


def test_a_sleep() -> None:
    """It keeps sleeping until its time, at the new place; if it is moved to another node, it is awake."""

    async def main() -> None:
        clock = FakeClock()
        async with Store(Kept(), clock=clock) as store:
            for run_id in ("a", "b"):
                with pytest.raises(RunSuspendedError):
                    await Graph(Sleep("1h", name="pause") >> A, store=store).run(1, run_id=run_id)
            woken = clock() + 3600
            clock.advance(1800)
            upgrade = {1: lambda run: run.renamed("pause", "rest")}
            resting = Graph(Sleep("9h", name="rest") >> A, store=store, version=2, upgrade=upgrade)
            with pytest.raises(RunSuspendedError) as suspended:
                await resting.resume("a")
            assert suspended.value.wake_at == woken
            assert await Graph(step("rest") >> A, store=store, version=2, upgrade=upgrade).resume("b") == 1
            clock.advance(1800)
            assert await resting.resume("a") == 1
            assert await effects(store) == ["rest(1)", "a(1)", "a(1)"]
            assert [key for key in await everything(store) if "run-wake" in key] == []

    asyncio.run(main())


NUMBERS = step("numbers", int, list[int], adds=[1, 2, 3])


def test_items_of_a_fan_out() -> None:
    """Items that have started are upgraded too: their node, their value, their result."""
    seen: list[Mapping[int, RunPosition]] = []

    def move(position: RunPosition) -> RunPosition:
        seen.append(position.items)
        position = position.renamed(("all", "way", "q"), "q2").renamed(("all", "way"), "road").renamed("all", "every")
        items = {number: replace(item, value=f"<{item.value}>") for number, item in position.items.items()}
        return replace(position, items=items)

    async def main() -> None:
        async with Store(Kept()) as store:
            way = Graph(step("p") >> step("q"), name="way")
            before = Graph(NUMBERS >> each(way, concurrency=1).with_options(name="all") >> step("join"), store=store)
            await stopped(before, "q(2)")
            road = Graph(step("p") >> step("q2"), name="road")
            spread = each(road, concurrency=1).with_options(name="every")
            after = Graph(NUMBERS >> spread >> step("join"), store=store, version=2, upgrade={1: move})
            assert await after.resume("r") == ["<1>", "<2>", 3]
            assert await effects(store) == [
                *("numbers(1)", "p(1)", "q(1)", "p(2)", "q2(<2>)", "p(3)", "q2(3)", "join(['<1>', '<2>', 3])")
            ]
            done, begun = seen[0][0], seen[0][1]
            assert (done.path, done.left_by, done.value) == ((), "default", 1)
            assert (begun.path, begun.left_by, begun.value) == (("way", "q"), None, 2)
            assert [key for key in await everything(store) if "item:" in key] == []

    asyncio.run(main())


def test_items_of_items_whose_own_records_are_not_there_yet() -> None:
    """An item in its first node has no record; if it is a fan-out itself, the upgrade gets the item's input."""
    seen: list[RunPosition] = []

    def move(position: RunPosition) -> RunPosition:
        seen.append(position)
        return position.renamed(("all", "way", "leaves"), "twigs")

    def made(leaves: str, **options: Any) -> Graph[Any, Any]:
        way = Graph(each(step("leaf"), concurrency=1).with_options(name=leaves) >> step("sum"), name="way")
        return Graph(each(way, concurrency=1).with_options(name="all") >> step("join"), **options)

    async def main() -> None:
        async with Store(Kept()) as store:
            await stopped(made("leaves", store=store), "leaf(4)", [[1, 2], [3, 4]])
            after = made("twigs", store=store, version=2, upgrade={1: move})
            assert await after.resume("r") == [[1, 2], [3, 4]]
            found = await effects(store)
            assert sorted(found) == sorted(
                [*(f"leaf({n})" for n in (1, 2, 3, 4)), "sum([1, 2])", "sum([3, 4])", "join([[1, 2], [3, 4]])"]
            )
            item = seen[0].items[1]
            assert (item.path, item.value, item.items[0].value) == (("way", "leaves"), [3, 4], 3)

    asyncio.run(main())


def test_hooks_that_are_still_to_be_called() -> None:
    """The renamed node's hooks are called."""

    class Stop(BaseException):
        pass

    class Hooked(Node[int, int]):
        async def post(self, store: StoreWriter, input: int, prepared: Any, result: Any) -> int:
            return input

        async def on_success(self, store: StoreWriter, output: int) -> None:
            if broken:
                raise Stop
            await store.update("effects", lambda done: [*done, "hook"], default=[])

    async def main() -> None:
        async with Store(Kept()) as store:
            hooked = Hooked()
            broken.add("the hook")
            with pytest.raises(Stop):
                await Graph(hooked >> B, store=store).run(1, run_id="r")
            broken.clear()
            other = Graph(hooked.with_options(name="other") >> B, store=store)
            with pytest.raises(RunChangedError, match="has left node 'hooked', which doesn't exist there"):
                await other.resume("r")
            after = Graph(
                hooked.with_options(name="other") >> B,
                store=store,
                version=2,
                upgrade={1: lambda run: run.renamed("hooked", "other")},
            )
            assert await after.resume("r") == 1
            assert await effects(store) == ["hook", "b(1)"]

    asyncio.run(main())


def test_a_run_that_was_only_submitted() -> None:
    """It starts in the current graph, from its first node, if that accepts its input: nothing of it was done before."""

    async def main() -> None:
        async with Store(Kept()) as store:
            before = Graph(A >> B, store=store)
            for run_id in ("a", "b", "c", "d"):
                await before.submit(1, run_id=run_id)
            after = Graph(step("first", int, int) >> A >> C, store=store)
            assert {check.verdict for check in await after.check_runs()} == {"not begun"}
            assert await after.resume("a") == 1
            assert await effects(store) == ["first(1)", "a(1)", "c(1)"]
            with pytest.raises(RunChangedError, match=r"\+ node a takes str"):
                await Graph(step("a", str), store=store).resume("b")
            changed: Any = {
                "store": store,
                "version": 2,
                "upgrade": {1: lambda run: replace(run, value=str(run.value))},
            }
            assert await Graph(step("word", str) >> step("a", str), **changed).resume("b") == "1"
            assert (await effects(store))[3:] == ["word(1)", "a(1)"]
            broken.add("a")
            with pytest.raises(Stumble):
                await before.resume("c")
            broken.clear()
            with pytest.raises(RunChangedError):
                await after.resume("c")
            assert await before.resume("d") == 1

    asyncio.run(main())


@pytest.mark.parametrize("is_upgraded", [False, True])
def test_a_fan_out_over_questions_of_which_one_is_answered(is_upgraded: bool) -> None:
    """The item whose question is answered is done: it doesn't ask any more, and doesn't have to."""
    ask = Ask[int, bool](bool, question="Sure?", name="sure")

    async def main() -> None:
        async with Store(Kept()) as store:
            before = Graph(step("a") >> each(ask, name="all") >> node(len), store=store)
            await stopped(before, "", [1, 2])
            with pytest.raises(RunSuspendedError):
                await before.resume("r", answer=True, question="all#1[0]")
            options: Any = {"version": 2, "upgrade": {1: lambda position: position}} if is_upgraded else {}
            after = Graph(step("a2") >> each(ask, name="all") >> node(len), store=store, **options)
            assert [each.verdict for each in await after.check_runs()] == [
                "upgraded" if is_upgraded else "unchanged ahead"
            ]
            assert await after.resume("r", answer=True, question="all#1[1]") == 2

    asyncio.run(main())


# ---------------------------------------------------------------- what an upgrade can't do
def test_what_an_upgrade_can_not_do_changes_nothing() -> None:
    """If it fails, or returns something invalid, the run is refused with the reason; the old version can continue it."""

    def wrong(position: RunPosition) -> Any:
        return "b2"

    def failing(position: RunPosition) -> RunPosition:
        raise LookupError("no such order")

    class Unknown:
        pass

    to = {
        "to 2 raised LookupError": failing,
        "returned a str of 2 characters, not a RunPosition": wrong,
        "the new name can't be a tuple": lambda position: position.renamed("b", ("b2",)),  # type: ignore[arg-type]
        "is at node 'b', which doesn't exist there": lambda position: position,
        "is at node 'nowhere', which doesn't exist there": lambda position: replace(position, path=("nowhere",)),
        "is inside 'a', which is not a graph; its kind is node": lambda position: replace(position, path=("a", "b2")),
        "is at node 'b2' with str, but the node takes int": lambda position: replace(renamed(position), value="x"),
        "leaves '' by 'x', for which there is no edge": lambda position: replace(position, path=(), left_by="x"),
        "is not registered": lambda position: replace(renamed(position), value=Unknown()),
    }

    async def main() -> None:
        async with Store(Kept()) as store:
            before = Graph(A >> B >> C, store=store)
            await stopped(before, "b")
            kept = await everything(store)
            for says, upgrade in to.items():
                after = Graph(A >> step("b2", int) >> C, store=store, version=2, upgrade={1: upgrade})
                with pytest.raises((RunChangedError, CodecError, ConfigError), match=re.escape(says)):
                    await after.resume("r")
                (check,) = await after.check_runs()
                assert (check.can_resume, check.verdict) == (False, "refused")
                assert says in check.why
                assert await everything(store) == kept
            assert await before.resume("r") == 1
            assert await effects(store) == ["a(1)", "b(1)", "c(1)"]

    asyncio.run(main())


def test_a_version_that_nothing_upgrades() -> None:
    """It is compared with the graph if there are no upgrades at all; if there are others, it is an error."""

    async def main() -> None:
        async with Store(Kept()) as store:
            await stopped(Graph(A >> B, store=store), "b")
            more = Graph(A >> step("b2"), store=store, version=3, upgrade={2: renamed})
            with pytest.raises(RunChangedError, match=r"no function upgrades version 1 to 2; give .*upgrade=\{1: …\}"):
                await more.resume("r")
            with pytest.raises(RunChangedError, match=r"Graph\(…, version=3, upgrade=\{2: …\}\)"):
                await Graph(A >> step("b2"), store=store, version=2).resume("r")
            assert await Graph(step("a2") >> B, store=store, version=2).resume("r") == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"version": 0}, "version can't be 0"),
        ({"version": "2"}, r"version can't be a str of 1 character; give"),
        ({"upgrade": {1: renamed}}, "upgrade has the key 1; its keys must be versions below 1"),
        ({"version": 2, "upgrade": {"1": renamed}}, r"upgrade has the key a str of 1 character"),
        ({"version": 2, "upgrade": {1: "renamed"}}, r"upgrade from 1 can't be a str of 7 characters; give a function"),
        ({"version": 2, "upgrade": [renamed]}, r"upgrade can't be a list of 1 item; give a dict"),
    ],
)
def test_an_invalid_version_or_upgrade_is_refused(options: Any, says: str) -> None:
    """It is refused when it is written."""
    with pytest.raises(ConfigError, match=says):
        Graph(A, **options)


# ---------------------------------------------------------------- once
class Failing(Layer):
    """Fails writes as it is told: refuses one, loses its answer, or makes it conflict with itself."""

    inline_write = False
    fails: Any = ()

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        fault = self.fails.pop(0) if self.fails and changes else ""
        if fault == "refuse":
            raise StoreError("the server is gone")
        version = await self.inner.write(changes, expect)
        if fault == "lose":
            raise StoreError("the answer is lost")
        if fault == "repeat":
            return await self.inner.write(changes, expect)
        return version


@pytest.mark.parametrize("fault", ["refuse", "lose", "repeat"])
@pytest.mark.parametrize("at", range(4))
def test_an_upgrade_takes_effect_exactly_once(fault: str, at: int) -> None:
    """It is written with the claim: whatever happens to that write, the run belongs to one version or the other, never in
    between.
    """

    def add(position: RunPosition) -> RunPosition:
        return replace(renamed(position), value=position.value + 1)

    async def main() -> None:
        fails: list[str] = []
        async with Store(Kept(), layers=[Failing(fails=fails)]) as store:
            await stopped(Graph(A >> B >> C, store=store), "b")
            after = Graph(A >> step("b2", int, int) >> C, store=store, version=2, upgrade={1: add})
            fails += [""] * at + [fault]
            try:
                result = await after.resume("r")
            except StoreError:
                result = await after.resume("r")
            assert result == 2
            assert await effects(store) == ["a(1)", "b2(2)", "c(2)"]

    asyncio.run(main())


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_item_committed_after_the_check_is_checked_too(position: int) -> None:
    """The claim expects the items to be unchanged: if another execution adds one meanwhile, it reads again."""

    def made(last: str, **options: Any) -> Graph[Any, Any]:
        way = Graph(step("p") >> step(last), name="way")
        return Graph(NUMBERS >> each(way, concurrency=1).with_options(name="all"), **options)

    async def main() -> None:
        async with Store(Kept()) as store:
            await stopped(made("q", store=store), "q(1)")
            key = "pocket:run-part:r:item:/all#1[0]"
            entry = await store.stack.read(key)
            assert entry is not None
            seen: list[list[int]] = []

            def move(run: RunPosition) -> RunPosition:
                seen.append(list(run.items))
                if len(seen) == 1:  # another execution is still running
                    landed = Put(key.replace("[0]", f"[{position}]"), entry.value)
                    drive_inline(store.stack.write([landed]))
                return run.renamed(("all", "way", "q"), "q2")

            broken.add("q2")
            with pytest.raises(Stumble):
                await made("q2", store=store, version=2, upgrade={1: move}).resume("r")
            assert seen == [[0], sorted({0, position})]

    asyncio.run(main())


def test_an_answer_after_the_check_is_not_lost() -> None:
    """The claim that moves a question expects it to be unchanged."""

    async def main() -> None:
        async with Store(Kept()) as store:
            before = Graph(Ask(bool, question="Sure?", name="sure") >> step("use"), store=store)
            await stopped(before, "")
            part = "pocket:run-part:r:"
            seen: list[bool] = []

            def move(run: RunPosition) -> RunPosition:
                seen.append(run.waits)
                if len(seen) == 1:
                    entry = drive_inline(store.stack.read(wait_key(part, "sure#1")))
                    assert entry is not None
                    asked = read_wait(part, wait_key(part, "sure#1"), entry).wait
                    answered = replace(asked, answer=default_codec.encode(False), settled=1.0)
                    drive_inline(store.stack.write([put_wait(part, "sure#1", answered)]))
                return run.renamed("sure", "really")

            really = Ask(bool, question="Really?", name="really")
            after = Graph(really >> step("use"), store=store, version=2, upgrade={1: move})
            with pytest.raises(RunMismatchError, match="was already answered"):
                await after.resume("r", answer=True)
            assert await after.resume("r") == Answered(1, False)
            assert seen[:2] == [True, False]

    asyncio.run(main())


def test_an_upgrade_is_not_asked_for_runs_of_its_own_version() -> None:
    """Nor for a finished run: its result is kept."""

    def never(position: RunPosition) -> RunPosition:
        raise AssertionError

    async def main() -> None:
        async with Store(Kept()) as store:
            assert await Graph(A, store=store).run(1, run_id="done") == 1
            after = Graph(A >> B, store=store, version=2, upgrade={1: never})
            await stopped(after, "b")
            assert await after.resume("r") == 1
            assert await after.resume("done") == 1
            assert await after.check_runs() == []
            assert [key async for key in store.stack.scan(RUN)] == [f"{RUN}done", f"{RUN}r"]

    asyncio.run(main())
