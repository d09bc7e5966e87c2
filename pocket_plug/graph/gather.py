"""Takes one value through several branches at the same time: an `each` over a graph in which each item begins another branch."""

from __future__ import annotations

from collections.abc import Iterable
from types import GenericAlias
from typing import Any, TypeVar, overload

from pocket_plug.errors import ConfigError
from pocket_plug.primitives.typefits import fits
from pocket_plug.primitives.values import Value

from .graph import Graph
from .kinds.each import Each, EachStep
from .nodes.chain import AnyChain, AnyNext, Ends, Link, Next, as_chain
from .nodes.node import Node, options_of
from .observing.views import NodeCall
from .planning.step import Step, make_step
from .running.protocols import Running

X = TypeVar("X")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")


class Begin(Node[tuple[int, Any], Any], name="<begin>"):
    """The first node of the graph of branches: it has an edge to each of them. No other node has its name."""


class BeginStep(Step):
    """The step of a `Begin`. An item is the number of a branch, and the value."""

    is_hidden = True

    @property
    def returns_input(self) -> bool:
        return True

    async def perform(self, run: Running, call: NodeCall | None, item: tuple[int, Value]) -> AnyNext:
        return Next(str(item[0]), item[1])


class Gather(Each[Any, Any]):
    """A node that takes its input through several branches; made by `gather`."""

    def __init__(self, branches: tuple[Any, ...], name: str) -> None:
        if len(branches) < 2:
            raise ConfigError(
                f"gather takes two branches or more, each as an argument of its own, as in gather(a, b); it got {len(branches)}"
            )
        begin, chains = Begin(), [as_chain(branch) for branch in branches]
        _check_shared(chains)
        graph = Graph(*(begin.on(str(number)) >> chain for number, chain in enumerate(chains)), name="branches")
        names = "_".join(options_of(chain.first).name for chain in chains)
        super().__init__(graph, len(chains), "raise", None, name or f"gather_{names}")


class GatherStep(EachStep):
    """The step of a `Gather`."""

    def __init__(self, node: Gather) -> None:
        super().__init__(node)
        plan = self.inner.inner_graph().plan
        self.branches = plan.begins
        typed = [branch for branch in self.branches if branch.input_type is not Any]
        # What all branches take is checked here. If no branch has such a type, each branch checks the input itself.
        taker = next((it for it in typed if all(fits(it.input_type, other.input_type) for other in typed)), None)
        self.input_type, self.fits = (Any, None) if taker is None else (taker.input_type, taker.fits)
        self.output_type = GenericAlias(tuple, tuple(plan.output_type_from(branch) for branch in self.branches))

    async def perform(self, run: Running, call: NodeCall | None, value: Value) -> Value:
        items = [(number, value) for number in range(len(self.branches))]
        return tuple(await super().perform(run, call, items))


def _check_shared(chains: Iterable[AnyChain]) -> None:
    """Raise ConfigError for a node with other edges in one branch than in another, since each branch would take all of them."""
    known: dict[int, set[tuple[str, int]]] = {}
    for chain in chains:
        for node in (chain.first, *(node for source, _, target in chain.edges for node in (source, target))):
            edges = {(action, id(target)) for source, action, target in chain.edges if source is node}
            if known.setdefault(id(node), edges) != edges:
                name = options_of(node).name
                raise ConfigError(
                    f"gather: node {name!r} is in several branches, and doesn't lead to the same node in each; put a copy with "
                    f"a name of its own into one of them: {name}.with_options(name='{name}_2')"
                )


Branch = Link[X, A] | Ends[X, A]
"""A node or a chain, by the types of its input and output."""


@overload
def gather(a: Branch[X, A], b: Branch[X, B], /, *, name: str = ...) -> Node[X, tuple[A, B], Any]: ...
@overload
def gather(
    a: Branch[X, A], b: Branch[X, B], c: Branch[X, C], /, *, name: str = ...
) -> Node[X, tuple[A, B, C], Any]: ...
@overload
def gather(
    a: Branch[X, A], b: Branch[X, B], c: Branch[X, C], d: Branch[X, D], /, *, name: str = ...
) -> Node[X, tuple[A, B, C, D], Any]: ...
@overload
def gather(
    a: Branch[X, A], b: Branch[X, B], c: Branch[X, C], d: Branch[X, D], e: Branch[X, E], /, *, name: str = ...
) -> Node[X, tuple[A, B, C, D, E], Any]: ...
@overload
def gather(
    a: Branch[X, A],
    b: Branch[X, A],
    c: Branch[X, A],
    d: Branch[X, A],
    e: Branch[X, A],
    f: Branch[X, A],
    /,
    *more: Branch[X, A],
    name: str = ...,
) -> Node[X, tuple[A, ...], Any]: ...
def gather(*branches: Any, name: str = "") -> Value:
    """A node that takes its input through several branches at the same time, and returns the tuple of their outputs, in order.

    A branch is a node, a graph, or a chain of nodes. All get the same object. Each node of a branch commits its own writes, and
    has its own retries. The first error cancels the other branches; give a node a `fallback` if its branch may fail. In a durable
    run, a finished branch is not done again. With `run_sync`, `def` phases run one after the other.

    >>> from pocket_plug import Graph, node
    >>> @node
    ... def double(n: int) -> int:
    ...     return 2 * n
    >>> @node
    ... def text(n: int) -> str:
    ...     return str(n)
    >>> Graph(gather(double, text)).run_sync(7)
    (14, '7')
    """
    return Gather(branches, name)


make_step.register(Begin, BeginStep)
make_step.register(Gather, GatherStep)
