"""Nodes from functions: `@node`, `@node.post` and `node.of`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from functools import update_wrapper
from typing import Any, Generic, Protocol, Unpack, cast, overload

from typing_extensions import TypeVar

from pocket_plug.graph.elsewhere import Elsewhere
from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.redaction import named
from pocket_plug.store.store import StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncWriter

from .chain import AnyNext, I, O
from .node import HOOKS, AnyNode, Node, X, Y
from .options import ALL_OPTIONS, Keys, NodeOptions, Options, Traced, check_options
from .retry import Retry

AsyncOf = Coroutine[Any, Any, X]
"""What a call of an `async def` that returns X gives: a coroutine."""

C = TypeVar("C", covariant=True, default=Any)
S = TypeVar("S", contravariant=True, default=Any)
P = TypeVar("P")
Q = TypeVar("Q")


class FunctionNode(Node[I, O], Generic[I, O, C]):
    """A node made by `@node`. It can still be called, which calls the function."""

    __wrapped__: Callable[..., Any]

    def __init__(self, functions: dict[str, Any], options: dict[str, Any]) -> None:
        self.functions = {phase: given for phase, given in functions.items() if given is not None}
        given: Any
        for phase, given in self.functions.items() or [("exec", None)]:
            if not callable(given) or isinstance(given, Node) or (isinstance(given, type) and issubclass(given, Node)):
                raise TypeError(
                    f"a node's {phase} can't be {named(cast('object', given))}; give a function, and options by their names"
                )
        # without the function's module, doctest takes the node for an import from here, and skips its examples
        wrapped = self.functions.get("exec") or self.functions.get("post") or self.functions["prep"]
        update_wrapper(self, wrapped, updated=())
        self.__name__ = name = options.pop("name") or getattr(wrapped, "__name__", "node")
        self._options = Options().changed(self._takes, name=name, **options)

    def __call__(self, input: I, /) -> C:
        """Call the function itself, as a unit test does."""
        return self.__wrapped__(input)  # type: ignore[no-any-return]  # the decorator has typed it as C

    def __repr__(self) -> str:
        return f"<node {self._options.name}>"


class PostNode(FunctionNode[I, O, C], Generic[I, O, S, C]):
    """A node made by `@node.post`: a function of (store, input). `S` is the view that it takes."""

    _takes = Node._takes - {"retry", "timeout", "executor"}

    def __call__(self, store: S, input: I, /) -> C:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]  # it takes two arguments
        """Call the function itself, as a unit test does."""
        return self.__wrapped__(store, input)  # type: ignore[no-any-return]  # the decorator has typed it as C


AsyncPostNode = PostNode[X, Y, StoreWriter, AsyncOf[Any]]
SyncPostNode = PostNode[X, Y, SyncWriter, Any]
"""A call returns an output or a Next. Type checkers can't tell which, so for them it is Any."""


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[[X], AsyncOf[Y]], /) -> FunctionNode[X, Y, AsyncOf[Y]]: ...
    @overload
    def __call__(self, fn: Callable[[X], Y], /) -> FunctionNode[X, Y, Y]: ...


class _PostDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[[StoreWriter, X], AsyncOf[AnyNext]], /) -> AsyncPostNode[X, Any]: ...
    @overload
    def __call__(self, fn: Callable[[StoreWriter, X], AsyncOf[Y | AnyNext]], /) -> AsyncPostNode[X, Y]: ...
    @overload
    def __call__(self, fn: Callable[[SyncWriter, X], AnyNext], /) -> SyncPostNode[X, Any]: ...
    @overload
    def __call__(self, fn: Callable[[SyncWriter, X], Y | AnyNext], /) -> SyncPostNode[X, Y]: ...


class _NodeFactory:
    """`@node`, `@node.post` and `node.of`: nodes from functions.

    >>> @node
    ... async def greet(name: str) -> str:
    ...     return f"Hello, {name}"
    >>> greet
    <node greet>
    """

    @overload
    def __call__(self, fn: Callable[[X], AsyncOf[Y]], /) -> FunctionNode[X, Y, AsyncOf[Y]]: ...
    @overload
    def __call__(self, fn: Callable[[X], Y], /) -> FunctionNode[X, Y, Y]: ...
    @overload
    def __call__(
        self,
        *,
        name: str = "",
        retry: Retry | None = None,
        timeout: Duration | None = None,
        trace: Traced | None = None,
        executor: Elsewhere | None = None,
    ) -> _Decorator: ...
    def __call__(
        self,
        fn: object = None,
        *,
        name: str = "",
        retry: object = None,
        timeout: object = None,
        trace: object = None,
        executor: object = None,
        **unknown: object,
    ) -> Any:
        """Make a node whose `exec` is the function. Raises TypeError for something else, and for an unknown option."""
        options = {"name": name, "retry": retry, "timeout": timeout, "trace": trace, "executor": executor}
        _check_options("a node of a function", unknown, options)

        def make(fn: object) -> AnyNode:
            return FunctionNode({"exec": fn}, {**options})

        return make if fn is None else make(fn)

    @overload
    def post(self, fn: Callable[[StoreWriter, X], AsyncOf[AnyNext]], /) -> AsyncPostNode[X, Any]: ...
    @overload
    def post(self, fn: Callable[[StoreWriter, X], AsyncOf[Y | AnyNext]], /) -> AsyncPostNode[X, Y]: ...
    @overload
    def post(self, fn: Callable[[SyncWriter, X], AnyNext], /) -> SyncPostNode[X, Any]: ...
    @overload
    def post(self, fn: Callable[[SyncWriter, X], Y | AnyNext], /) -> SyncPostNode[X, Y]: ...
    @overload
    def post(
        self,
        *,
        name: str = "",
        reads: Keys | None = None,
        writes: Keys | None = None,
        trace: Traced | None = None,
    ) -> _PostDecorator: ...
    def post(
        self,
        fn: object = None,
        *,
        name: str = "",
        reads: object = None,
        writes: object = None,
        trace: object = None,
        **unknown: object,
    ) -> Any:
        """Make a node whose `post` is the function; it is called with (store, input)."""
        options = {"name": name, "reads": reads, "writes": writes, "trace": trace}
        _check_options("a node of a post", unknown, options)

        def make(fn: object) -> AnyNode:
            return PostNode({"post": fn}, {**options})

        return make if fn is None else make(fn)

    @overload
    def of(
        self,
        *,
        prep: Callable[[StoreReader, X], AsyncOf[P]],
        exec: Callable[[P], AsyncOf[Q]],
        post: Callable[[StoreWriter, X, P, Q], AsyncOf[Y]],
        name: str = "",
        **options: Unpack[NodeOptions],
    ) -> Node[X, Y, Q]: ...
    @overload
    def of(
        self,
        *,
        prep: Callable[[StoreReader, X], AsyncOf[P]],
        exec: Callable[[P], AsyncOf[Y]],
        name: str = "",
        **options: Unpack[NodeOptions],
    ) -> Node[X, Y]: ...
    @overload
    def of(
        self,
        *,
        prep: Callable[[SyncReader, X], P],
        exec: Callable[[P], Q],
        post: Callable[[SyncWriter, X, P, Q], Y],
        name: str = "",
        **options: Unpack[NodeOptions],
    ) -> Node[X, Y, Q]: ...
    @overload
    def of(
        self,
        *,
        prep: Callable[[SyncReader, X], P],
        exec: Callable[[P], Y],
        name: str = "",
        **options: Unpack[NodeOptions],
    ) -> Node[X, Y]: ...
    def of(
        self,
        *,
        prep: object = None,
        exec: object = None,
        post: object = None,
        name: str = "",
        **options: object,
    ) -> Any:
        """Make a node from one function for each phase. Type checkers check that the functions fit each other."""
        functions = {"prep": prep, "exec": exec, "post": post}
        _check_options("a node of functions", options.keys() - ALL_OPTIONS, functions.keys() | ALL_OPTIONS)
        made: AnyNode = FunctionNode(functions, {"name": name, **options})
        return made


def _check_options(owner: str, unknown: Collection[str], known: Collection[str]) -> None:
    """Raise TypeError for an unknown option; for one that only a class can have, it says how to write that."""
    for name in sorted(unknown):
        if (is_method := name == "fallback" or name in HOOKS) or name in ALL_OPTIONS:
            written = f"(Node), with the method {name}" if is_method else f"(Node, {name}=…)"
            raise TypeError(f"{owner} has no option {name!r}; write a class, which may have it: class Work{written}")
    check_options(owner, unknown, known)


node = _NodeFactory()
"""Makes nodes from functions."""
