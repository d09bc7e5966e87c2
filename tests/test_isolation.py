"""Withdrawals that race: what a node's isolation keeps them from, in memory and on SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pocket_plug import Graph, Key, Node, Store, StoreReader, StoreWriter

BALANCE = Key("balance:{}", int)


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/state.db?durability=process"
    return lambda: Store(url)


class Withdraw(Node[str, int, bool]):
    """Takes 10 from one of two accounts, if both together have as much."""

    async def prep(self, store: StoreReader, account: str) -> int:
        return await store.require(BALANCE("a")) + await store.require(BALANCE("b"))

    async def exec(self, together: int) -> bool:
        await asyncio.sleep(0)  # whoever else withdraws has read as well by now
        return together >= 10

    async def post(self, store: StoreWriter, account: str, together: int, granted: bool) -> int:
        if granted:
            await store.set(BALANCE(account), await store.require(BALANCE(account)) - 10)
        return 10 if granted else 0


async def race(store: Store, withdraw: Withdraw, accounts: str, *, a: int, b: int) -> tuple[int, int]:
    """What is paid out, and what is left together."""
    async with store:
        await store.set_many({BALANCE("a"): a, BALANCE("b"): b})
        graph = Graph(withdraw, store=store, name="withdrawals")
        paid = await asyncio.gather(*(graph.run(account) for account in accounts))
        return sum(paid), await store.require(BALANCE("a")) + await store.require(BALANCE("b"))


def test_no_withdrawal_is_lost(make_store: Callable[[], Store]) -> None:
    """Thirty at once from one account: each that was paid is missing there, and no more are paid than there was for."""
    assert asyncio.run(race(make_store(), Withdraw(), "a" * 30, a=100, b=0)) == (100, 0)


def test_serializable_withdrawals_never_take_what_is_not_there(make_store: Callable[[], Store]) -> None:
    """From two accounts at once: each sees what the other has taken, although it writes another key."""
    withdraw = Withdraw().with_options(isolation="serializable")
    assert asyncio.run(race(make_store(), withdraw, "ab" * 15, a=40, b=60)) == (100, 0)


def test_by_default_only_what_is_written_is_guarded(make_store: Callable[[], Store]) -> None:
    """The same without it: two that write different keys don't see each other. What was paid is right all the same."""
    paid, left = asyncio.run(race(make_store(), Withdraw(), "ab", a=10, b=0))
    assert (paid, left) == (20, -10)
