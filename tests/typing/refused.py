"""What type checkers must refuse: each line as its comment says. A comment that isn't needed fails `make lint`.

Nothing here runs. mypy takes any str for a LiteralString, so f-strings in keys are refused by pyright alone. A template
that was not filled is refused by neither, but at run time.
"""

# What follows from an error is left out: that its result is of an unknown type.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

from dataclasses import dataclass

from pocket_plug import (
    Action,
    Ask,
    Graph,
    Key,
    Layer,
    Next,
    Node,
    Retry,
    Runs,
    RunStream,
    Store,
    StoreReader,
    StoreWriter,
    SyncReader,
    SyncStore,
    SyncWriter,
    Worker,
    each,
    fan_out,
    join_name,
    node,
    progress,
    secret,
)
from pocket_plug.layers import Bounding, Persistence


@dataclass(frozen=True)
class Order:
    id: str


@dataclass(frozen=True)
class Receipt:
    order: Order


AGE = Key("age", int)
ORDER = Key("order:{}", Order)
ORDERS = Key("orders:{}", list[Order])
LIMIT = Key("limit", int | None)


class Charge(Node[Order, Receipt]):
    declined = Action[str]()
    again = Action[Order]()

    async def exec(self, order: Order) -> Receipt:
        return Receipt(order)


@node
def file(receipt: Receipt) -> str:
    return receipt.order.id


@node
def apologise(reason: str) -> str:
    return reason


@node
def price(order: Order) -> float:
    return 1.0


charge = Charge()


# ---------------------------------------------------------------- the store
class WritesInPrep(Node[Order, Order]):
    """prep has no means to write, not by a scope or a typed view either."""

    async def prep(self, store: StoreReader, order: Order) -> Order:
        await store.set("a", 1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        await store.scope("a").set("x", 1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        await store.typed(Order).set("x", order)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        await store.update(AGE, lambda age: age, default=0)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        await store.delete("a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        return order


class WritesInSyncPrep(Node[Order, Order]):
    def prep(self, store: SyncReader, order: Order) -> Order:
        store.set("a", 1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        store.scope("a").set("x", 1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        store.typed(Order).set("x", order)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        return order


async def scopes(store: Store, sync: SyncStore) -> None:
    """A part of a store closes nothing."""
    async with store.scope("a"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    with sync.scope("a"):  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    await store.scope("a").close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    sync.scope("a").close()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


async def store_operations(store: Store, writer: StoreWriter) -> None:
    store.set(AGE, 1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    writer.set(AGE, 1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    store.delete(AGE)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    print(store.reader().set)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await store.set(AGE, "x")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    found = await store.get_many([AGE])
    ages: dict[str, str] = found  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(ages)
    await store.set(LIMIT, "x")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.append(ORDERS(1), "x")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.append(ORDER(1), Order("1"))  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.tail(ORDER(1), 3)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.typed(Order).append("log", "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await store.set(ORDER(1), "x")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.update(AGE, lambda age: str(age), default=0)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.update(AGE, lambda age: age + 1, default="0")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    text: str = await store.require(AGE)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    text = await store.get(AGE, "")  # type: ignore[misc, arg-type]  # pyright: ignore[reportAssignmentType]
    number: int = await store.get(AGE)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    await store.typed(Order).set("x", "y")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await store.add(AGE, "x")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.touch(AGE)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    print(store.reader().pop)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    await store.get(7)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.set("a", 1, ttl=[5])  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await store.set("a", 1, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    print(text, number)


def sync_store_operations(store: SyncStore, writer: SyncWriter) -> None:
    store.set(AGE, "x")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    writer.update(AGE, lambda age: age + 1, default="0")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    text: str = store.require(AGE)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    number: int = store.get(AGE)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(store.reader().set)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    print(text, number)


def keys(user: str, maybe: str | None) -> None:
    ORDER(maybe)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ORDER(1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    ORDER(id=maybe)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    join_name("order", maybe)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Key(f"user:{user}")  # pyright: ignore[reportArgumentType]
    Key(user, Order)  # pyright: ignore[reportArgumentType, reportCallIssue]
    Key("user:{}", 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    Key("user:{}", [Order])  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


def stacks() -> None:
    Bounding(max_entris=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Bounding(max_entries="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Bounding(3)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    Persistence(to="sqlite:///a.db", mode="behnd")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Persistence()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Store(layers=[Bounding])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Store(layer=[Bounding(max_entries=3)])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# ---------------------------------------------------------------- nodes
class WrongResult(Node[Order, Order]):
    async def exec(self, order: Order) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return ""


class WrongOutput(Node[Order, Order]):
    async def post(self, store: StoreWriter, order: Order, prepared: Order, result: Order) -> str:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return ""


class WrongInput(Node[Order, Order]):
    def prep(self, store: SyncReader, order: Receipt) -> Order:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        return order.order


def options() -> None:
    class Typo(Node[Order, Order], timout=30): ...  # type: ignore[call-arg]  # pyright: ignore[reportGeneralTypeIssues, reportCallIssue]

    class WrongOption(Node[Order, Order], retry=3): ...  # type: ignore[arg-type]  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]

    print(Typo, WrongOption, charge.with_options(timout=30))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Retry(on="OSError")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Retry(on=[int])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Retry(attempts="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Ask(bool, question=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(Retry(3))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def actions() -> None:
    charge.declind("x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    charge.declined(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Charge.declined(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Action[int]("a")("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@node.post
async def loses(store: StoreWriter, order: Order) -> Receipt | Next[str]:
    return order  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@node.post
def logs(store: SyncWriter, order: Order) -> Order:
    return order


async def called(store: Store) -> None:
    loses(store, Order("1"))  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    await loses(store.sync, Order("1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    logs(store, Order("1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    logs(store.sync, "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    logs(Order("1"))  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]


def joints() -> None:
    async def prep(store: StoreReader, order: Order) -> int:
        return 1

    async def exec(prepared: str) -> str:
        return prepared

    def prep_sync(store: SyncReader, order: Order) -> int:
        return 1

    def exec_sync(prepared: str) -> str:
        return prepared

    node.of(prep=prep, exec=exec)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    node.of(prep=prep_sync, exec=exec_sync)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


class Sealing(Layer):
    key: str = secret()


def secrets() -> None:
    Sealing()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Sealing(key=b"k")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- graphs
async def graphs() -> None:
    print(charge >> apologise)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    print(charge >> file >> price)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    print(charge.declined >> file)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    print(charge.on(Charge.declined) >> file)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    mixed: Graph[Order, str] = Graph(charge >> file, charge.on(Charge.again) >> price)  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    back: Graph[Order, str] = Graph(charge >> file, charge.again >> charge, charge.again >> price)  # type: ignore[misc]  # pyright: ignore[reportAssignmentType]
    print(mixed, back)
    Graph(charge >> file).run_sync("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await Graph(charge >> file).run(Receipt(Order("1")))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    number: int = await Graph(charge >> file).run(Order("1"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    Graph(charge >> file).run(Order("1"))  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    Graph(charge >> file, store="sqlite:///a.db")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Graph(charge >> file, max_step=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    Graph(charge >> file, version="2")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    Graph(charge >> file, version=2, upgrade={1: Order})  # type: ignore[dict-item]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await Graph(charge >> file).submit("order", run_id="r")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await Graph(charge >> file).submit(Order("1"))  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Worker([charge])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    Graph(Charge)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    each(charge, executor=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    charge.with_options(executor=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    each(charge, errors="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await Graph(each(charge)).run(Order("1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await fan_out(charge, ["x"])  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    receipts: list[Receipt] = await fan_out(charge, [Order("1")], errors="collect")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(Ask[Order, bool](bool, question=str) >> price)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
    Ask[Order, bool](str, question=str)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    asks = Ask[Order, bool](bool, question=str)
    asking = Graph(asks)
    await asking.resume("r", answer="yes", question=asks)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    asking.resume_sync("r", answer=None, question=asks)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    asking.resume_sync("r", question=asks, takeovr=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await Graph(charge >> file).run(Order("1"), run_id=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    print(number, receipts)
    stream: RunStream[int] = Graph(charge >> file).stream(Order("1"))  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    async for event in Graph(charge >> file).stream("x"):  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        print(event.place, stream)  # type: ignore[union-attr]  # pyright: ignore[reportAttributeAccessIssue]
    progress("half")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await Runs(Store()).list(state="runing")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    (await Runs(Store()).get("r")).state = "failed"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    Runs("sqlite:///a.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
