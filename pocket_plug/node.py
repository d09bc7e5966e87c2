"""Nodes: what they are made of (phases, options, ways out) and how they are joined into chains.

A node keeps no edges and no state of a run, so one node may stand in many graphs and run many times at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, overload

from typing_extensions import TypeVar

from .keys import Key
from .retry import Retry
from .ttl import TTL, seconds

I = TypeVar("I", contravariant=True)  # noqa: E741 - input
O = TypeVar("O", covariant=True)  # noqa: E741 - output
if TYPE_CHECKING:
    R = TypeVar("R", covariant=True, default=O)  # what exec returns: the output, unless post makes that of it
else:  # on 3.11 a default that names another TypeVar raises in generic subclasses
    R = TypeVar("R", covariant=True, default=Any)
C = TypeVar("C", covariant=True)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)
X = TypeVar("X")
Y = TypeVar("Y")
P = TypeVar("P")
Q = TypeVar("Q")

DEFAULT = "default"
"""The action by which a node leaves that names none."""


@dataclass(frozen=True, slots=True)
class Next(Generic[T_co]):
    """Leave by `action`, with `output` for the node that it leads to."""

    action: str
    output: T_co


class Action(Generic[T]):
    """A way out of a node and the type that it carries. As a class attribute it takes the attribute's name.

    >>> reject = Action[str]("reject")
    >>> reject("too late")
    Next(action='reject', output='too late')
    """

    def __init__(self, name: str = "") -> None:
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
    def __get__(self, node: Node[X, Any, Any], owner: type, /) -> Out[X, T]: ...
    def __get__(self, node: Node[Any, Any, Any] | None, owner: type, /) -> Self | Out[Any, Any]:
        return self if node is None else Out(node, self.name)


END: Action[Any] = Action("END")
"""`return END(output)` ends the run from anywhere; a nested graph then leaves by "default"."""


class Out(Generic[I, T_contra]):
    """One way out of one node: call it to leave by it, `>>` says where it leads."""

    def __init__(self: Out[Any, Any], node: Node[Any, Any, Any], action: str) -> None:
        self._node, self._action = node, action

    def __call__(self, output: T_contra, /) -> Next[Any]:
        return Next(self._action, output)

    def __rshift__(self, other: Node[T_contra, Y, Any] | Chain[T_contra, Y]) -> Chain[I, Y]:
        chain = as_chain(other)
        return Chain(self._node, chain.last, ((self._node, self._action, chain.first), *chain.edges))


class Chain(Generic[I, O]):
    """Edges as an immutable value: `a >> b >> c`. Nothing is written on the nodes."""

    def __init__(self: Chain[Any, Any], first: Any, last: Any, edges: tuple[tuple[Any, str, Any], ...] = ()) -> None:
        self.first, self.last, self.edges = first, last, edges

    def __rshift__(self, other: Node[O, Y, Any] | Chain[O, Y]) -> Chain[I, Y]:
        chain = as_chain(other)
        return Chain(self.first, chain.last, (*self.edges, (self.last, DEFAULT, chain.first), *chain.edges))


def as_chain(node: Node[Any, Any, Any] | Chain[Any, Any]) -> Chain[Any, Any]:
    """A chain as it is; a node as a chain of one."""
    if not isinstance(node, Node | Chain):
        hint = "; it is a class: make an instance of it" if isinstance(node, type) else ""
        raise TypeError(f"{node!r:.80} is no node and no chain of nodes{hint}")
    return node if isinstance(node, Chain) else Chain(node, node)


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a node is declared with, as class keywords or by `with_options`."""

    name: str = ""
    retry: Retry | None = None
    timeout: float | None = None
    reads: tuple[Key[Any], ...] = ()
    writes: tuple[Key[Any], ...] = ()
    trace: bool = True
    isolation: Literal["default", "serializable"] = "default"

    def changed(self, **given: Any) -> Options:
        """These with what was given (not None) in their place; seconds and tuples made of what users write."""
        given = {name: value for name, value in given.items() if value is not None}
        if "timeout" in given:
            given["timeout"] = seconds(given["timeout"])
        for name in ("reads", "writes"):
            if name in given:
                given[name] = tuple(given[name])
                for key in given[name]:
                    if not isinstance(key, Key):
                        raise TypeError(f"{name}=({key!r},): give Keys, such as Key('user:{{}}', User)")
        if given.get("isolation", "default") not in ("default", "serializable"):
            raise ValueError(f"isolation={given['isolation']!r}: it is 'default' or 'serializable'")
        return replace(self, **given)


class Node(Generic[I, O, R]):
    """One step of a graph. Override some of the phases, each `async def` or `def`:

    - `prep(store, input)` reads from the store and gives what `exec` needs;
    - `exec(prepared)` works, without the store; it alone is retried and timed out, and should hold all side effects;
    - `fallback(prepared, error)` answers when `exec` is out of attempts;
    - `post(store, input, prepared, result)` writes, and gives the output, or `self.action(output)` to leave by another
      way. Its writes land at once when it returns, or not at all; it may be called again after a conflict.

    `on_success(store, output)`, `on_failure(store, error)` and then `on_complete(store)` run once the outcome is known.

    Options are class keywords, so they never meet a subclass's own fields:

    >>> class Charge(Node[int, int], retry=Retry(attempts=3), timeout=30):
    ...     declined = Action[str]()
    ...     async def exec(self, amount: int) -> int:
    ...         return amount
    """

    _options: Options = Options()

    def __init_subclass__(cls, *, name: str | None = None, retry: Retry | None = None, timeout: TTL | None = None,
                          reads: Sequence[Key[Any]] | None = None, writes: Sequence[Key[Any]] | None = None,
                          trace: bool | None = None,
                          isolation: Literal["default", "serializable"] | None = None) -> None:  # fmt: skip
        super().__init_subclass__()
        cls._options = cls._options.changed(name=name or _snake_case(cls.__name__), retry=retry, timeout=timeout,
                                            reads=reads, writes=writes, trace=trace, isolation=isolation)  # fmt: skip

    def with_options(self, *, name: str | None = None, retry: Retry | None = None, timeout: TTL | None = None,
                     reads: Sequence[Key[Any]] | None = None, writes: Sequence[Key[Any]] | None = None,
                     trace: bool | None = None, isolation: Literal["default", "serializable"] | None = None) -> Self:  # fmt: skip
        """A copy of this node with other options; what is not given stays."""
        node = copy.copy(self)
        options = self._options.changed(name=name, retry=retry, timeout=timeout, reads=reads, writes=writes,
                                        trace=trace, isolation=isolation)  # fmt: skip
        object.__setattr__(node, "_options", options)
        return node

    # Positional-only and colour-free, so that overrides of either colour, with parameters of any name, type-check.
    def prep(self, store: Any, input: I, /) -> Any:
        """Read what `exec` needs; by default the input."""
        return input

    def exec(self, prepared: Any, /) -> R | Awaitable[R]:
        """Work, without the store; by default what prep gave."""
        return prepared  # type: ignore[no-any-return]

    def fallback(self, prepared: Any, error: Exception, /) -> R | Awaitable[R]:
        """Answer in place of an `exec` that is out of attempts; by default its error stands."""
        raise error

    def post(self, store: Any, input: I, prepared: Any, result: Any, /) -> O | Next[Any] | Awaitable[O | Next[Any]]:
        """Write, and choose the way out; by default what exec gave leaves by "default"."""
        return result  # type: ignore[no-any-return]

    def on_success(self, store: Any, output: Any, /) -> Any:
        """After the commit."""

    def on_failure(self, store: Any, error: BaseException, /) -> Any:
        """After an error or a cancellation; what was written is gone already."""

    def on_complete(self, store: Any, /) -> Any:
        """After everything, whatever happened."""

    def __rshift__(self, other: Node[O, Y, Any] | Chain[O, Y]) -> Chain[I, Y]:
        return as_chain(self) >> other

    @overload
    def on(self, action: Action[T], /) -> Out[I, T]: ...
    @overload
    def on(self, action: str, /) -> Out[I, Any]: ...
    def on(self, action: Action[Any] | str, /) -> Out[Any, Any]:
        """The way out by that action, for `>>`: `node.on("retry") >> other`."""
        return Out(self, action.name if isinstance(action, Action) else action)


def options_of(node: Node[Any, Any, Any]) -> Options:
    """What a node was declared with."""
    return node._options  # pyright: ignore[reportPrivateUsage]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
