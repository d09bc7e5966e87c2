"""`run_node`: runs a single node through all its phases, as in a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from pocket_plug.errors import ConfigError, GraphError
from pocket_plug.graph.addresses import executor_faults
from pocket_plug.graph.durable.records import escaped, keys_of, visit_place
from pocket_plug.graph.graph import Graph
from pocket_plug.graph.nodes.chain import as_chain
from pocket_plug.graph.nodes.node import Node, options_of
from pocket_plug.graph.observing.host import RunHost, default_host
from pocket_plug.graph.running.context import in_own_context
from pocket_plug.graph.running.execution import Execution
from pocket_plug.store.store import Store, StoreScope
from pocket_plug.store.sync import SyncScope

I = TypeVar("I")  # noqa: E741 - input
O = TypeVar("O")  # noqa: E741 - output
O_co = TypeVar("O_co", covariant=True)


@dataclass(frozen=True, slots=True)
class NodeResult(Generic[O_co]):
    """The result of `run_node`."""

    output: O_co
    """The value that the next node would get, also from an action with another type."""
    action: str = "default"
    """The action by which the node was left; "default" if it names none, and for END."""


async def run_node(
    node: Node[I, O, Any],
    input: I,
    /,
    *,
    store: StoreScope | SyncScope | None = None,
    pocket: RunHost | None = None,
    run_id: str | None = None,
) -> NodeResult[O]:
    """Run a node with an input: prep, exec with its retries and timeout, post, the commit, then the hooks.

    The node uses `store`, or else a new store in memory. `pocket` has the plugins that observe it, and its executor; by default
    it is the process's default Pocket. `run_id` is for a node that calls `idempotency_key()`: the key is that of its first visit
    in a durable run with this id. The run isn't recorded. The node may be left by any action, without an edge for it. Raises
    what the node raises, InputError for an input of a wrong type, and GraphError, with all faults, for a node that no graph
    could run.

    >>> import asyncio
    >>> from pocket_plug import Action, Node, Store, StoreWriter
    >>> class Charge(Node[int, int]):
    ...     declined = Action[str]()
    ...     async def post(self, store: StoreWriter, amount: int, prepared: int, result: int):
    ...         if amount > 100:
    ...             return self.declined("too much")
    ...         return await store.update("revenue", lambda revenue: revenue + amount, default=0)
    >>> asyncio.run(run_node(Charge(), 7))
    NodeResult(output=7, action='default')
    >>> asyncio.run(run_node(Charge(), 700))
    NodeResult(output='too much', action='declined')
    """
    execution = _execution(node, input, store, pocket, run_id, loop=True)
    await execution.stack.ensure_open()
    output: O = await in_own_context(execution.go())
    return NodeResult(output, execution.left_by)


def run_node_sync(
    node: Node[I, O, Any],
    input: I,
    /,
    *,
    store: StoreScope | SyncScope | None = None,
    pocket: RunHost | None = None,
    run_id: str | None = None,
) -> NodeResult[O]:
    """`run_node` for callers without `await`; as in `run_sync`, an event loop is made if a phase is `async def`.

    >>> from pocket_plug import node
    >>> @node
    ... def double(number: int) -> int:
    ...     return 2 * number
    >>> run_node_sync(double, 21).output
    42
    """
    execution = _execution(node, input, store, pocket, run_id, loop=False)
    output: O = execution.go_in_place()
    return NodeResult(output, execution.left_by)


def _execution(
    node: Node[Any, Any, Any],
    input: object,
    store: StoreScope | SyncScope | None,
    pocket: RunHost | None,
    run_id: str | None,
    *,
    loop: bool,
) -> Execution:
    """A run of a graph with only this node, which may be left by any action."""
    pocket = pocket or default_host()
    graph: Graph[Any, Any] = Graph(node, name=options_of(as_chain(node).first).name)
    if graph.plan.asks:
        raise ConfigError(
            f"node {graph.name!r} asks, so it may have to wait; run it in a durable run: graph.run(…, run_id=…)"
        )
    found = graph.plan.findings(ANY_ACTION)
    if graph.plan.is_elsewhere:
        found += executor_faults(graph, pocket)
    if found:
        raise GraphError(f"node {graph.name!r} can't run:", found)
    place = graph.own_place(pocket, store or Store())
    execution = Execution(graph, place, input, pocket, loop, run_id=run_id or "")
    execution.exits = ANY_ACTION
    if run_id is not None:
        execution.key = _key(graph, run_id)
    return execution


def _key(graph: Graph[Any, Any], run_id: str) -> str:
    """The idempotency key of the node's first visit in a durable run."""
    step = graph.plan.start
    if step.kind != "node":
        raise ConfigError(
            f"node {step.name!r} has nodes inside, each with a key of its own, so run_node takes no run_id= for it; run it "
            "in a durable run: graph.run(…, run_id=…)"
        )
    keys_of(run_id)  # an id that a run would refuse
    return escaped(run_id, "/") + visit_place("", step.name, 1)


class _AnyAction(Mapping[str, object]):
    """Exits for any action, as if a graph had an edge for each."""

    def __contains__(self, action: object) -> bool:
        return isinstance(action, str)

    def __getitem__(self, action: str) -> object:
        raise KeyError(action)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


ANY_ACTION = _AnyAction()
