"""The fault layer: it does one harm, to the operations of its rule, and to the same ones each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from pocket_plug import AnswerLostError, ConfigError, ConflictError, Memory, Put, Store, StoreError, SyncStore
from pocket_plug.layers import Fault
from pocket_plug.plugins.pocket import Pocket
from pocket_plug.store.layer import Layer
from pocket_plug.testing.clock import FakeClock, run_virtual
from pocket_plug.testing.layer_contract import LayerContract


async def no_time(seconds: float) -> None:
    """Returns at once."""


class TestFault(LayerContract):
    """A rule without operations does nothing."""

    def recipe(self) -> Layer:
        return Fault(keys="no such key", does="delay", delay=1)


class TestFaultThatDelays(LayerContract):
    """A rule that only delays passes the contract."""

    def recipe(self) -> Layer:
        return Fault(does="delay", delay=1, pause=no_time)


def outcomes(use: Callable[[int], object], times: int) -> str:
    """A letter for each call: "x" if it raised StoreError, else "."."""
    said = ""
    for n in range(times):
        try:
            use(n)
            said += "."
        except StoreError:
            said += "x"
    return said


USES: dict[str, Callable[[SyncStore], object]] = {
    "read": lambda store: store.get("order:1"),
    "read_many": lambda store: store.get_many(["guest", "order:1"]),
    "write": lambda store: store.set("order:1", 2),
    "scan": lambda store: list(store.keys("order:")),
    "delete": lambda store: store.delete("order:1"),
}


@pytest.mark.parametrize(
    ("on", "hit"),
    [
        ("read", {"read", "read_many", "delete"}),  # a delete reads first
        ("write", {"write", "delete"}),
        ("scan", {"scan"}),
        (None, {"read", "read_many", "write", "scan", "delete"}),
    ],
)
@pytest.mark.parametrize("use", USES)
def test_operations_of_the_rule_fail(on: Any, hit: set[str], use: str) -> None:
    """The operation isn't done, and the error says that it is on purpose."""
    backend = Memory()
    asyncio.run(backend.write([Put("order:1", 1), Put("guest", 1)]))
    store = SyncStore(backend, layers=[Fault(on=on, keys="order:*")])
    if use in hit:
        with pytest.raises(StoreError, match="fails on purpose: Fault"):
            USES[use](store)
    else:
        USES[use](store)
    assert store.get("guest") == 1  # other keys are not affected
    found = asyncio.run(backend.read("order:1"))
    assert (found is not None and found.value == 1) is (use in hit or use not in ("write", "delete"))


def test_counts() -> None:
    """The first `skip` calls pass, then `times` calls fail; both are counted."""
    store = SyncStore(layers=[Fault(on="write", skip=2, times=3)])
    assert outcomes(lambda n: store.set("a", n), 8) == "..xxx..."
    [fault] = [part for part in _parts(store) if isinstance(part, Fault)]
    assert (fault.matched, fault.hit) == (8, 3)


def test_chance_is_repeatable() -> None:
    """With one seed, two stacks of one recipe fail at the same operations; another seed gives others."""
    said = []
    recipe = Fault(probability=0.3, seed=7)
    for layer in (recipe, recipe, Fault(probability=0.3, seed=8)):
        store = SyncStore(layers=[layer])
        said.append(outcomes(lambda n, store=store: store.get("a"), 200))
    assert said[0] == said[1] != said[2]
    assert 30 < said[0].count("x") < 90


def test_an_answer_is_lost() -> None:
    """The write is done completely."""
    store = SyncStore(layers=[Fault(does="lose", times=1)])
    with pytest.raises(AnswerLostError, match="'a', 'b' was stored, and its answer is lost, on purpose"):
        store.set_many({"a": 1, "b": 2})
    assert store.get_many(["a", "b"]) == {"a": 1, "b": 2}


def test_a_conflict_is_raised_for_a_write_that_was_done() -> None:
    """With the keys, as for a write that was sent twice."""
    backend = Memory()
    layer = Fault(does="conflict", times=1).build(backend)

    async def main() -> None:
        with pytest.raises(ConflictError, match="on purpose") as caught:
            await layer.write([Put("a", 1)], {"a": 0})
        assert caught.value.keys == {"a"}
        assert await layer.read("a") is not None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("does", "error"), [("fail", StoreError), ("lose", AnswerLostError), ("conflict", ConflictError)]
)
def test_a_real_conflict_is_not_changed(does: Any, error: type[StoreError]) -> None:
    """If the inner layer refuses the write, its error is raised; only "fail" comes before."""
    layer = Fault(does=does, on="write").build(Memory())

    async def main() -> None:
        with pytest.raises(StoreError) as caught:
            await layer.write([Put("a", 1)], {"a": 7})
        assert type(caught.value) is (StoreError if does == "fail" else ConflictError)

    asyncio.run(main())


def test_it_delays_on_the_loops_time() -> None:
    """A task sleeps; so a test in virtual time doesn't wait."""
    clock = FakeClock()

    async def main() -> None:
        store = Store(layers=[Fault(on="read", does="delay", delay="2s")])
        await store.set("a", 1)
        assert clock.elapsed == 0
        assert await store.get("a") == 1

    run_virtual(main(), clock)
    assert clock.elapsed == pytest.approx(2)


def test_it_delays_by_an_injected_clock() -> None:
    """In a plain thread too: with a pause that moves a clock no time passes. Any harm may be delayed."""
    clock = FakeClock()

    async def advance(seconds: float) -> None:
        clock.advance(seconds)

    store = SyncStore(layers=[Fault(on="write", delay=5, pause=advance)], clock=clock)
    with pytest.raises(StoreError, match="on purpose"):
        store.set("a", 1)
    assert clock.elapsed == 5
    assert store.get("a") is None
    assert clock.elapsed == 5


@pytest.mark.parametrize(
    ("options", "inline"),
    [
        ({}, (True, True)),
        ({"delay": 1}, (False, False)),
        ({"on": "read", "delay": 1}, (False, True)),
        ({"on": "write", "delay": 1}, (True, False)),
        ({"does": "lose", "delay": 1}, (True, False)),
    ],
)
def test_only_operations_that_it_may_delay_suspend(options: dict[str, Any], inline: tuple[bool, bool]) -> None:
    """Sync callers call the others in place."""
    stack = SyncStore(layers=[Fault(**options)]).stack
    assert (stack.inline_read, stack.inline_write) == inline


def test_several_rules_are_several_layers() -> None:
    """Each with its label, in one stack, also from a configuration."""
    pocket = Pocket()
    rules = [
        {"use": "fault", "label": "reads", "on": "read", "skip": 1, "times": 1},
        {"use": "fault", "label": "writes", "on": "write", "does": "lose", "times": 1},
    ]
    store = SyncStore(layers=[pocket.layer(rule) for rule in rules])
    assert outcomes(lambda n: store.set("a", n), 2) == "x."
    assert outcomes(lambda n: store.get("a"), 3) == ".x."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"does": "lose", "on": "read"}, "does='lose' is for writes"),
        ({"does": "conflict", "on": "scan"}, "does='conflict' is for writes"),
        ({"does": "delay"}, "does='delay' needs a delay above 0"),
        ({"probability": 0}, "probability can't be 0"),
        ({"probability": 1.5}, "probability can't be 1.5"),
        ({"skip": -1}, "skip=-1"),
        ({"times": 0}, "times=0"),
        ({"delay": "soon"}, "fault: delay can't be 'soon'"),
    ],
)
def test_a_rule_that_never_applies_is_refused(options: dict[str, Any], message: str) -> None:
    """When it is written down, so that a configuration's check finds it beside the mistakes of other layers."""
    with pytest.raises(ConfigError, match=message):
        Fault(**options)


def test_its_place_by_name() -> None:
    """Directly around the backend that it makes unreliable: inside of other plugins' layers."""
    assert str(Store(layers={"fault", "migrate", "compress"})) == "Store(Migrate() > Compress() > Fault() > memory)"


def _parts(store: SyncStore) -> list[Any]:
    from pocket_plug.store import parts

    return list(parts(store.stack))
