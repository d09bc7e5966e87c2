"""Nodes: their phases and options.

A node keeps no edges and no state of a run, so one node may be in many graphs and run many times at once.
"""

from __future__ import annotations

import copy
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, Unpack, overload

from typing_extensions import TypeVar

from pocket_plug.graph.elsewhere import Elsewhere
from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.names import snake_case
from pocket_plug.primitives.redaction import named
from pocket_plug.primitives.values import Value

from .chain import Action, AnyNext, AnyOut, Chain, I, Link, M, O, Out, as_chain
from .options import ALL_OPTIONS, Isolation, Keys, NodeOptions, Options, Traced
from .retry import Retry

if TYPE_CHECKING:
    R = TypeVar("R", covariant=True, default=O)  # what exec returns; without a post, that is the output
else:  # on 3.11 a default that names another TypeVar raises in generic subclasses
    R = TypeVar("R", covariant=True, default=Any)
T = TypeVar("T")
X = TypeVar("X")
Y = TypeVar("Y")

HOOKS = ("on_success", "on_failure", "on_complete")
"""The methods that are called after a node's phases."""


class Node(Link[I, O], Generic[I, O, R]):
    """One step of a graph. Override some of the phases, each `async def` or `def`:

    - `prep(store, input)` reads from the store and returns what `exec` needs;
    - `exec(prepared)` works, without access to the store; only this phase has retries and a timeout. It may run more than once:
      by a retry, and after a conflict about a key that prep has read;
    - `fallback(prepared, error)` returns a result when all attempts at `exec` have failed;
    - `post(store, input, prepared, result)` writes, and returns the output, or `self.action(output)` to leave by another
      action. Its writes are committed together when it returns, or not at all; it may be called again after a conflict.

    `on_success(store, output)`, `on_failure(store, error)` and then `on_complete(store)` run once the outcome is known;
    like `post`, each may be called again after a conflict.

    Options are class keywords, so they never collide with a subclass's own fields:

    >>> class Charge(Node[int, int], retry=Retry(attempts=3), timeout=30):
    ...     declined = Action[str]()
    ...     async def exec(self, amount: int) -> int:
    ...         return amount
    """

    _options: Options = Options()
    _takes: ClassVar[frozenset[str]] = ALL_OPTIONS
    """The options that nodes of this class accept."""

    def __init_subclass__(cls, *, name: str | None = None, **options: Unpack[NodeOptions]) -> None:
        super().__init_subclass__()
        name = snake_case(cls.__name__) if name is None else name
        cls._options = cls._options.changed(cls._takes, name=name, **options)

    def with_options(
        self,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        reads: Keys | None = None,
        writes: Keys | None = None,
        trace: Traced | None = None,
        isolation: Isolation | None = None,
        executor: Elsewhere | None = None,
    ) -> Self:
        """A copy of this node with other options; options that are not given stay the same."""
        node = copy.copy(self)
        options = self._options.changed(
            self._takes,
            name=name,
            retry=retry,
            timeout=timeout,
            reads=reads,
            writes=writes,
            trace=trace,
            isolation=isolation,
            executor=executor,
        )
        object.__setattr__(node, "_options", options)
        return node

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._options.name}>"

    # Positional-only, and typed as neither async nor sync: so overrides of both kinds, with any parameter names, type-check.
    def prep(self, store: Any, input: I, /) -> Value:
        """Read what `exec` needs; by default it returns the input."""
        return input

    def exec(self, prepared: Value, /) -> R | Awaitable[R]:
        """Work, without access to the store; by default it returns the result of prep."""
        return prepared  # type: ignore[no-any-return]  # without an exec, R is what prep returns

    def fallback(self, prepared: Value, error: Exception, /) -> R | Awaitable[R]:
        """Return a result when all attempts at `exec` have failed; by default the error is raised."""
        raise error

    def post(self, store: Any, input: I, prepared: Value, result: Value, /) -> O | AnyNext | Awaitable[O | AnyNext]:
        """Write, and choose the action; by default it returns the result of exec, and leaves by "default"."""
        return result  # type: ignore[no-any-return]  # without a post, O is what exec returns

    def on_success(self, store: Any, output: Value, /) -> Value:
        """Called after the commit."""

    def on_failure(self, store: Any, error: BaseException, /) -> Value:
        """Called after an error or a cancellation; the node's writes are already discarded."""

    def on_complete(self, store: Any, /) -> Value:
        """Called last, in any case."""

    @overload
    def __rshift__(self, other: Node[O, Y, Any]) -> Chain[I, Y, O | Y]: ...
    @overload
    def __rshift__(self, other: Chain[O, Y, M]) -> Chain[I, Y, O | M]: ...
    def __rshift__(self, other: Any) -> Any:
        return as_chain(self) >> other

    if not TYPE_CHECKING:  # hidden, so that type checkers report a left side that is no node

        def __rrshift__(self, other: Any) -> Any:
            return as_chain(other) >> self

    @overload
    def on(self, action: Action[T], /) -> Out[I, T]: ...
    @overload
    def on(self, action: str, /) -> Out[I, Any]: ...
    def on(self, action: Action[Any] | str, /) -> AnyOut:
        """The exit for that action, to be joined by `>>`: `node.on("retry") >> other`."""
        if not isinstance(action, Action | str) or not action:
            raise TypeError(f"an action must be a name or an Action, not {named(action)}")
        return Out(self, action.name if isinstance(action, Action) else action)


AnyNode = Node[Any, Any, Any]


def options_of(node: AnyNode) -> Options:
    """The options of a node."""
    return node._options  # pyright: ignore[reportPrivateUsage]  # the class is of this module
