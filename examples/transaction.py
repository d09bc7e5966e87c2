"""All or nothing: if a `post` raises, none of its writes is stored. `store.transaction()` does the same outside of graphs.

Each transfer is also an entry of its own, with a status that shows its outcome.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from pocket_plug import Action, Graph, Key, Next, Node, Store, StoreWriter, node


@dataclass(frozen=True)
class Transfer:
    id: str
    payer: str
    payee: str
    amount: int
    status: str = "pending"


BALANCE = Key("balance:{}", int)
TRANSFER = Key("transfer:{}", Transfer)


@node.post
async def begin(store: StoreWriter, transfer: Transfer) -> Transfer:
    await store.set(TRANSFER(transfer.id), transfer)
    return transfer


class Move(Node[Transfer, Transfer]):
    refused = Action[Transfer]()

    async def post(
        self, store: StoreWriter, transfer: Transfer, _: Transfer, __: Transfer
    ) -> Transfer | Next[Transfer]:
        if await store.get(BALANCE(transfer.payer), 0) < transfer.amount:
            return self.refused(transfer)
        await store.update(BALANCE(transfer.payer), lambda balance: balance - transfer.amount, default=0)
        await store.update(BALANCE(transfer.payee), lambda balance: balance + transfer.amount, default=0)
        if transfer.payee == "nobody":
            raise LookupError(f"{transfer.id}: there is no account 'nobody'")  # neither update is stored
        return transfer


@node.post
async def commit(store: StoreWriter, transfer: Transfer) -> Transfer:
    done = replace(transfer, status="committed")
    await store.set(TRANSFER(done.id), done)
    return done


@node.post
async def roll_back(store: StoreWriter, transfer: Transfer) -> Transfer:
    undone = replace(transfer, status="rolled back")
    await store.set(TRANSFER(undone.id), undone)
    return undone


async def main() -> None:
    store = Store()
    move = Move()
    bank = Graph(begin >> move >> commit, move.refused >> roll_back, store=store, name="bank")

    async def balances() -> str:
        return ", ".join([f"{name} {await store.get(BALANCE(name), 0)}" for name in ("alice", "bob", "nobody")])

    async with store.transaction() as tx:  # two accounts are opened, or none
        await tx.set(BALANCE("alice"), 100)
        await tx.set(BALANCE("bob"), 0)
    print("opened:", await balances())

    for transfer in (Transfer("t-1", "alice", "bob", 70), Transfer("t-2", "alice", "bob", 70)):
        done = await bank.run(transfer)
        print(f"{done.id} {done.status}:", await balances())

    try:
        await bank.run(Transfer("t-3", "alice", "nobody", 10))
    except LookupError as error:
        print(f"{error}:", await balances())
    print("t-3 is still", (await store.require(TRANSFER("t-3"))).status)

    try:
        async with store.transaction() as tx:
            await tx.delete(BALANCE("alice"))
            raise PermissionError("alice still has money in it")
    except PermissionError as error:
        print(f"{error}:", await balances())


if __name__ == "__main__":
    asyncio.run(main())
