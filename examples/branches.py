"""A node with several ways out: each is declared as an action with the type it passes on, and joined to a node in the graph.

An action without an edge is an error when the graph is validated; the run doesn't end silently.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocket_plug import END, Action, Graph, GraphError, Next, Node, StoreWriter, SyncWriter, node


@dataclass(frozen=True)
class Order:
    id: str
    total: float


class Charge(Node[Order, Order]):
    declined = Action[str]()
    review = Action[Order]()

    async def post(
        self, store: StoreWriter, order: Order, prepared: Order, charged: Order
    ) -> Order | Next[str] | Next[Order]:
        if charged.total > 10_000:
            return self.declined(f"{order.id}: {charged.total:.0f} is over the limit")
        return self.review(charged) if charged.total > 1_000 else charged


@node.post
def inspect(store: SyncWriter, order: Order) -> Order | Next[str]:
    """Ends the run early if there is a reason to reject the input."""
    return END(f"{order.id}: held back") if order.total == 6_666 else order


@node
def receipt(order: Order) -> str:
    return f"{order.id}: paid {order.total:.2f}"


@node
def apologise(reason: str) -> str:
    return f"sorry, {reason}"


charge = Charge()
orders = Graph(
    charge >> receipt,
    charge.review >> inspect >> receipt,
    charge.declined >> apologise,
    name="orders",
)


def main() -> None:
    for total in (42, 4_200, 6_666, 42_000):
        print(orders.run_sync(Order(f"o-{total}", total)))
    try:
        Graph(charge >> receipt, name="careless").validate()
    except GraphError as error:
        print(error)
    print(orders.mermaid())


if __name__ == "__main__":
    main()
