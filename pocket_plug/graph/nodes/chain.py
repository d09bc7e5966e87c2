"""The exits of nodes, and chains: the edges of a graph as immutable values. Joining nodes doesn't change them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, overload

from typing_extensions import TypeVar

from pocket_plug.primitives.redaction import found, named
from pocket_plug.store.base import View

I = TypeVar("I", contravariant=True)  # noqa: E741 - input
O = TypeVar("O", covariant=True)  # noqa: E741 - output
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
X = TypeVar("X")
Y = TypeVar("Y")
M = TypeVar("M", default=Any)
N = TypeVar("N", default=Any)

DEFAULT = "default"
"""The action of a node that returns an output without an action."""


@dataclass(frozen=True, slots=True)
class Next(Generic[T_co]):
    """Leave by `action`, with `output` for the node that it leads to."""

    action: str
    output: T_co


class Action(Generic[T]):
    """A named edge out of a node, and the type of its output. As a class attribute it gets the attribute's name.

    >>> reject = Action[str]("reject")
    >>> reject("too late")
    Next(action='reject', output='too late')
    """

    def __init__(self, name: str = "") -> None:
        if not isinstance(name, str):
            hint = (
                f"; write the type of its output in brackets: Action[{name.__name__}]()"
                if isinstance(name, type)
                else ""
            )
            raise TypeError(f"an action's name must be a text, not {found(name)}{hint}")
        self.name = name

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = self.name or name

    def __repr__(self) -> str:
        return f"Action({self.name!r})"

    def __call__(self, output: T, /) -> Next[T]:
        return Next(self.name, output)

    @overload
    def __get__(self, node: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self, node: Link[X, Any], owner: type, /) -> Out[X, T]: ...
    def __get__(self, node: AnyLink | None, owner: type, /) -> Self | AnyOut:
        return self if node is None else Out(node, self.name)


END: Action[Any] = Action("END")
"""`return END(output)` ends the run at any node. In a nested graph it ends that graph, which then leaves by "default"."""


class Out(Generic[I, T_contra]):
    """An exit of a node, for one action. Call it to leave by that action; `>>` joins it to the node that comes next."""

    def __init__(self: AnyOut, node: AnyLink, action: str) -> None:
        self._node, self.action = node, action

    def __call__(self, output: T_contra, /) -> AnyNext:
        return Next(self.action, output)

    @overload
    def __rshift__(self, other: Link[T_contra, Y]) -> Chain[I, Y, Y]: ...
    @overload
    def __rshift__(self, other: Chain[T_contra, Y, M]) -> Chain[I, Y, M]: ...
    def __rshift__(self, other: Any) -> AnyChain:
        chain = as_chain(other)
        return Chain(self._node, chain.last, ((self._node, self.action, chain.first), *chain.edges))


class Link(Generic[I, O]):
    """What a chain joins: a node, with the types of its input and output."""


class Ends(Generic[I, O]):
    """The types of a chain's input and output, without those between. A graph needs no more of most of its chains."""


class Chain(Ends[I, O], Generic[I, O, M]):
    """Edges as an immutable value: `a >> b >> c`. The nodes are not changed.

    `M` is the union of its nodes' output types, for type checkers: a branch whose output is one of them may lead back into it.
    """

    def __init__(self: AnyChain, first: Any, last: Any, edges: tuple[tuple[Any, str, Any], ...] = ()) -> None:
        self.first, self.last, self.edges = first, last, edges

    def __repr__(self: AnyChain) -> str:
        exits = [f"{node._options.name}{'' if action == DEFAULT else f'.{action}'}" for node, action, _ in self.edges]
        return f"<chain {' >> '.join([*exits, self.last._options.name])}>"

    @overload
    def __rshift__(self, other: Link[O, Y]) -> Chain[I, Y, M | Y]: ...
    @overload
    def __rshift__(self, other: Chain[O, Y, N]) -> Chain[I, Y, M | N]: ...
    def __rshift__(self, other: Any) -> AnyChain:
        chain = as_chain(other)
        return Chain(self.first, chain.last, (*self.edges, (self.last, DEFAULT, chain.first), *chain.edges))

    if not TYPE_CHECKING:  # hidden, so that type checkers report a left side that is no node

        def __rrshift__(self, other: Any) -> Any:
            return as_chain(other) >> self


AnyNext = Next[Any]
AnyLink = Link[Any, Any]
AnyChain = Chain[Any, Any, Any]
AnyOut = Out[Any, Any]


def as_chain(node: AnyLink | AnyChain) -> AnyChain:
    """Return a chain unchanged, and a node as a chain of one node. Raises TypeError for anything else."""
    if not isinstance(node, Link | Chain):
        raise TypeError(f"{named(node)} is neither a node nor a chain of nodes{_instead(node)}")
    return node if isinstance(node, Chain) else Chain(node, node)


def _instead(found: object) -> str:
    """A hint for a value that is no node: what the caller probably wanted."""
    if isinstance(found, type):
        return "; it is a class: make an instance of it"
    if found is END:
        return "; END is returned by a node's post: return END(output)"
    if isinstance(found, Action):
        return "; it is an action of a class: use that of an instance, node.action"
    if isinstance(found, Out):
        return "; it is an exit of a node, and belongs on the left of >>"
    if isinstance(found, View):
        return "; give it by its name: Graph(node, store=store)"
    if isinstance(found, list | tuple):
        return (
            "; join nodes by >>, and give each chain as an argument of its own: Graph(a >> b, a.action >> c). To run several "
            "nodes at the same time, use gather(a, b)"
        )
    if isinstance(getattr(found, "__wrapped__", None), Link):
        return (
            "; a decorator above @node has put it in the node's place: put @node above all others, and let beartype's import "
            "hooks decorate functions first (claw_decor_place_func)"
        )
    return "; put @node before the function" if callable(found) else ""
