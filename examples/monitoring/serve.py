"""A small shop for Prometheus to monitor: orders go through a graph, and metrics are served at /metrics, or sent to where
variables such as `OTEL_METRICS_EXPORTER=otlp` say.

It takes orders until it is stopped: `python examples/monitoring/serve.py`. With `--trouble` most things fail.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import tempfile
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from pocket_plug import (
    Action,
    Answered,
    Ask,
    Graph,
    Key,
    Next,
    Node,
    Retry,
    RunSuspendedError,
    Store,
    StoreReader,
    StoreWriter,
    each,
    node,
)
from pocket_plug.layers import Bounding, Metrics, Persistence
from pocket_plug.telemetry import setup

CUSTOMERS = 4  # who order at the same time


@dataclass(frozen=True)
class Order:
    number: int
    amount: float
    items: tuple[str, ...]


REVENUE = Key("revenue", float)
LAST = Key("last:{}", float)
RECEIPT = Key("receipt:{}")


@dataclass
class Charge(Node[Order, Order], retry=Retry(attempts=3, delay="1ms")):
    """Asks the bank, which doesn't answer the first request for about every fifth order, and adds to the revenue, as other runs
    do.
    """

    trouble: bool
    lost: set[int] = field(default_factory=set[int])
    declined = Action[Order]()

    async def prep(self, store: StoreReader, order: Order) -> tuple[Order, float]:
        return order, await store.get(REVENUE, 0.0)

    async def exec(self, prepared: tuple[Order, float]) -> Order:
        order, _ = prepared
        await asyncio.sleep(0.002)
        is_lost = order.number % 5 == 0 and order.number not in self.lost
        if is_lost or (self.trouble and order.number % 2 == 0):
            self.lost.add(order.number)
            raise ConnectionError("the bank does not answer")
        return order

    async def post(
        self, store: StoreWriter, order: Order, prepared: tuple[Order, float], charged: Order
    ) -> Order | Next[Order]:
        _, revenue = prepared
        if order.amount > 90:
            return self.declined(order)
        await store.set(REVENUE, revenue + order.amount)
        await store.set(LAST(order.number % 70), order.amount)
        return charged


@node
def list_items(order: Order) -> tuple[str, ...]:
    return order.items


@node
async def pack(item: str) -> str:
    await asyncio.sleep(0.001)
    return f"{item}, packed"


PATIENCE: ContextVar[asyncio.Timeout] = ContextVar("patience")
"""The customer's, which begins to end when the printer hangs."""


def shop(state: Store, archive: Store, desk: Store, *, trouble: bool) -> Graph[Order, str]:
    """The graph of an order. In trouble, the bank never answers for every second order, the others can't be filed, and the
    printer hangs. A voucher needs an approval: such durable runs wait at the desk.
    """

    @node
    async def print_voucher(agreed: Answered[float, bool]) -> str:
        if trouble:
            PATIENCE.get().reschedule(asyncio.get_running_loop().time() + 0.1)
            await asyncio.Event().wait()
        return f"{agreed.input:.2f} off"

    agree = Ask[float, bool](bool, question="May we give a voucher?", name="agree")
    vouchers = Graph(agree >> print_voucher, store=desk, name="vouchers")

    @node
    async def apologise(order: Order) -> str:
        voucher = f"voucher-{order.number % 5}"
        with contextlib.suppress(TimeoutError):  # abandoned, so the run is stalled
            async with asyncio.timeout(None) as patience:
                PATIENCE.set(patience)
                with contextlib.suppress(RunSuspendedError):  # it waits for an answer, but the customer doesn't
                    await vouchers.run(order.amount, run_id=voucher)
                if trouble:
                    await vouchers.resume(voucher, answer=True, question=agree)
        return f"sorry, {order.amount:.2f} is too much"

    @node
    async def file(parcel: list[str]) -> str:
        last = await archive.get(RECEIPT(len(parcel)))
        await archive.set(RECEIPT(len(parcel)), object() if trouble else parcel)  # an object() can't be stored
        return f"as the last one: {last == parcel}"

    charge = Charge(trouble)
    return Graph(charge >> list_items >> each(pack) >> file, charge.declined >> apologise, store=state, name="orders")


async def take_orders(graph: Graph[Order, str], orders: int | None, every: float) -> Counter[str]:
    """Run `count` orders through the graph (None: without end): one from each customer every `pause` seconds."""
    numbers = itertools.count() if orders is None else iter(range(orders))
    outcomes: Counter[str] = Counter()

    async def customer() -> None:
        for number in numbers:
            order = Order(number, amount=7.0 * (number % 14), items=("tea", "mug", "spoon")[: 1 + number % 3])
            try:
                await graph.run(order)
                outcomes["success"] += 1
            except Exception:  # noqa: BLE001 - the shop goes on, whatever becomes of one order
                outcomes["failure"] += 1
            await asyncio.sleep(every)

    await asyncio.gather(*(customer() for _ in range(CUSTOMERS)))
    return outcomes


async def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        behind = Persistence(to=f"sqlite:///{folder / 'state.db'}", mode="behind")
        async with (
            Store(layers=[Metrics(namespace="state"), behind, Bounding(max_entries=50)]) as state,
            Store(f"sqlite:///{folder / 'archive.db'}", layers=[Metrics(namespace="archive")]) as archive,
            Store(f"sqlite:///{folder / 'desk.db'}", layers=[Metrics(namespace="desk")]) as desk,
        ):
            graph = shop(state, archive, desk, trouble=arguments.trouble)
            print(dict(await take_orders(graph, arguments.orders, arguments.every)), flush=True)
            if arguments.stay:
                await state.flush()
                await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=9464, help="of /metrics")
    parser.add_argument("--orders", type=int, help="take so many, then end; without it, take them until stopped")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between a customer's orders")
    parser.add_argument("--trouble", action="store_true", help="the bank and the archive fail")
    parser.add_argument("--stay", action="store_true", help="serve the figures on when all orders are taken")
    options = parser.parse_args()
    os.environ.setdefault("OTEL_METRICS_EXPORTER", "prometheus")  # unless the environment says otherwise
    os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] = str(options.port)
    with setup(log_level="critical"), contextlib.suppress(KeyboardInterrupt):
        if os.environ["OTEL_METRICS_EXPORTER"] == "prometheus":
            print(f"http://localhost:{options.port}/metrics", flush=True)
        asyncio.run(main(options))
