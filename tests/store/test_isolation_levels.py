"""Concurrent withdrawals: what each isolation level prevents, in memory and on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pocket_plug import Graph, Key, Node, Store, StoreReader, StoreWriter, each

BALANCE = Key("balance:{}", int)


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/state.db?durability=process"
    return lambda: Store(url)


class Withdraw(Node[str, int, bool]):
    """Takes 10 from one of two accounts, if the sum of both is enough."""

    async def prep(self, store: StoreReader, account: str) -> int:
        return await store.require(BALANCE("a")) + await store.require(BALANCE("b"))

    async def exec(self, together: int) -> bool:
        await asyncio.sleep(0)  # all other withdrawals have read by now
        return together >= 10

    async def post(self, store: StoreWriter, account: str, together: int, granted: bool) -> int:
        if granted:
            await store.set(BALANCE(account), await store.require(BALANCE(account)) - 10)
        return 10 if granted else 0


async def race(store: Store, withdraw: Withdraw, accounts: str, *, a: int, b: int) -> tuple[int, int]:
    """The amount that was paid, and the sum that is left."""
    async with store:
        await store.set_many({BALANCE("a"): a, BALANCE("b"): b})
        graph = Graph(withdraw, store=store, name="withdrawals")
        paid = await asyncio.gather(*(graph.run(account) for account in accounts))
        return sum(paid), await store.require(BALANCE("a")) + await store.require(BALANCE("b"))


def test_no_withdrawal_is_lost(make_store: Callable[[], Store]) -> None:
    """Thirty at once from one account: each payment was subtracted, and no more are paid than there was money for."""
    assert asyncio.run(race(make_store(), Withdraw(), "a" * 30, a=100, b=0)) == (100, 0)


def test_serializable_withdrawals_never_overdraw(make_store: Callable[[], Store]) -> None:
    """From two accounts at once: each sees what the other has taken, although it writes another key."""
    withdraw = Withdraw().with_options(isolation="serializable")
    assert asyncio.run(race(make_store(), withdraw, "ab" * 15, a=40, b=60)) == (100, 0)


def test_by_default_only_written_keys_are_checked(make_store: Callable[[], Store]) -> None:
    """By default two withdrawals that write different keys don't see each other. The sums are right all the same."""
    paid, left = asyncio.run(race(make_store(), Withdraw(), "ab", a=10, b=0))
    assert (paid, left) == (20, -10)


# ------------------------------------------------------------ nodes that only read are checked, too
FLAG = Key("flag", str)


class Look(Node[int, str]):
    """Returns the flag, which is changed as soon as the phase has read it, the first time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.phases: list[str] = []

    async def look(self, phase: str, view: StoreReader) -> str:
        flag = await view.require(FLAG)
        if phase not in self.phases:
            await self.store.set(FLAG, "stop")
        self.phases.append(phase)
        return flag


class LookInPost(Look):
    async def post(self, store: StoreWriter, n: int, prepared: int, result: int) -> str:
        return await self.look("post", store)


class LookInPrep(Look, isolation="serializable"):
    async def prep(self, store: StoreReader, n: int) -> str:
        return await self.look("prep", store)


class LookInBoth(Look):
    async def prep(self, store: StoreReader, n: int) -> str:
        return await self.look("prep", store)

    async def exec(self, flag: str) -> str:
        self.phases.append("exec")
        await self.store.set(FLAG, "stop")  # whenever it runs
        return flag

    async def post(self, store: StoreWriter, n: int, prepared: str, result: str) -> str:
        return f"{result} {await self.look('post', store)}"


class LookDeclared(LookInPost, reads=(FLAG,)):
    """The flag is read before `post` starts."""


LOOKS: dict[str, tuple[type[Look], str, list[str]]] = {
    "post": (LookInPost, "stop", ["post", "post"]),
    "post, declared": (LookDeclared, "stop", ["post", "post"]),
    "serializable prep": (LookInPrep, "stop", ["prep", "prep"]),
    "both": (LookInBoth, "stop stop", ["prep", "exec", "post", "prep", "exec", "post", "post"]),
}


@pytest.mark.parametrize("place", ["a node", "a nested graph", "an item", "a durable run"])
@pytest.mark.parametrize(("kind", "gives", "phases"), LOOKS.values(), ids=LOOKS.keys())
def test_a_node_that_only_read_is_checked(
    make_store: Callable[[], Store], kind: type[Look], gives: str, phases: list[str], place: str
) -> None:
    """One key, nothing written: what `post` read, and what a serializable `prep` read, is unchanged at the commit.

    If prep would read an equal value again, neither it nor `exec` is repeated.
    """

    async def main() -> None:
        async with make_store() as store:
            await store.set(FLAG, "go")
            look = kind(store)
            if place == "an item":
                graph = Graph(each(look), store=store, name="looks")
                assert await graph.run([1]) == [gives]
            else:
                inner = Graph(look, store=store, name="looks")
                outer = Graph(inner, store=store, name="outer") if place == "a nested graph" else inner
                durable = place == "a durable run" and store.stack.survives
                assert await outer.run(1, run_id="look" if durable else None) == gives
            assert look.phases == phases

    asyncio.run(main())


def test_a_key_that_only_prep_read_is_not_checked_by_default(make_store: Callable[[], Store]) -> None:
    """It may have changed during exec: a node for which that matters reads it in `post`, or declares isolation="serializable"."""

    class Plain(LookInPrep, isolation="default"):
        pass

    async def main() -> None:
        async with make_store() as store:
            await store.set(FLAG, "go")
            look = Plain(store)
            assert await Graph(look, store=store, name="looks").run(1) == "go"
            assert look.phases == ["prep"]

    asyncio.run(main())
