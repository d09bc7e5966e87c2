"""Nodes from functions: `@node`, `@node.post` and `node.of`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, Protocol, cast, overload

from typing_extensions import TypeVar

from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.redaction import named
from pocket_plug.store.keys import Key
from pocket_plug.store.store import StoreReader, StoreWriter
from pocket_plug.store.sync import SyncReader, SyncWriter

from .chain import I, Next, O
from .node import Node, X, Y
from .options import Options, Traced
from .retry import Retry

C = TypeVar("C", covariant=True)
P = TypeVar("P")
Q = TypeVar("Q")


class FunctionNode(Node[I, O], Generic[I, O, C]):
    """What `@node` gives: a node that can still be called as the function that it was."""

    def __init__(self, functions: dict[str, Any], options: dict[str, Any]) -> None:
        self.functions = {phase: given for phase, given in functions.items() if given is not None}
        given: Any
        for phase, given in self.functions.items() or [("exec", None)]:
            if not callable(given) or isinstance(given, Node) or (isinstance(given, type) and issubclass(given, Node)):
                raise TypeError(
                    f"a node's {phase} can't be {named(cast('object', given))}; give a function, and options by their names"
                )
        self.__wrapped__ = self.functions.get("exec") or self.functions.get("post") or self.functions.get("prep")
        name = options.pop("name") or getattr(self.__wrapped__, "__name__", "node")
        self.__name__ = name
        self.__doc__ = self.__wrapped__.__doc__
        self._options = Options().changed(self._takes, name=name, **options)

    def __call__(self, input: I, /) -> C:
        """Call the function itself, as a unit test does."""
        assert self.__wrapped__ is not None
        return self.__wrapped__(input)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"<node {self._options.name}>"


class PostNode(FunctionNode[I, O, Any]):
    """What `@node.post` gives: one function of (store, input)."""

    _takes = Node._takes - {"retry", "timeout"}

    def __call__(self, store: Any, input: I, /) -> Any:  # type: ignore[override]  # pyright: ignore
        """Call the function itself, as a unit test does."""
        assert self.__wrapped__ is not None
        return self.__wrapped__(store, input)


class _Decorator(Protocol):
    @overload
    def __call__(self, fn: Callable[[X], Coroutine[Any, Any, Y]], /) -> FunctionNode[X, Y, Coroutine[Any, Any, Y]]: ...
    @overload
    def __call__(self, fn: Callable[[X], Y], /) -> FunctionNode[X, Y, Y]: ...


class _PostDecorator(Protocol):
    @overload
    def __call__(self, fn: Callable[[StoreWriter, X], Coroutine[Any, Any, Next[Any]]], /) -> Node[X, Any]: ...
    @overload
    def __call__(self, fn: Callable[[StoreWriter, X], Coroutine[Any, Any, Y | Next[Any]]], /) -> Node[X, Y]: ...
    @overload
    def __call__(self, fn: Callable[[SyncWriter, X], Next[Any]], /) -> Node[X, Any]: ...
    @overload
    def __call__(self, fn: Callable[[SyncWriter, X], Y | Next[Any]], /) -> Node[X, Y]: ...


class _NodeFactory:
    """`@node`, `@node.post` and `node.of`: nodes from functions.

    >>> @node
    ... async def greet(name: str) -> str:
    ...     return f"Hello, {name}"
    >>> greet
    <node greet>
    """

    @overload
    def __call__(self, fn: Callable[[X], Coroutine[Any, Any, Y]], /) -> FunctionNode[X, Y, Coroutine[Any, Any, Y]]: ...
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
    ) -> _Decorator: ...
    def __call__(
        self, fn: Any = None, *, name: str = "", retry: Any = None, timeout: Any = None, trace: Any = None
    ) -> Any:
        """A node whose `exec` is the function."""

        def make(fn: Any) -> FunctionNode[Any, Any, Any]:
            return FunctionNode({"exec": fn}, {"name": name, "retry": retry, "timeout": timeout, "trace": trace})

        return make if fn is None else make(fn)

    @overload
    def post(self, fn: Callable[[StoreWriter, X], Coroutine[Any, Any, Next[Any]]], /) -> Node[X, Any]: ...
    @overload
    def post(self, fn: Callable[[StoreWriter, X], Coroutine[Any, Any, Y | Next[Any]]], /) -> Node[X, Y]: ...
    @overload
    def post(self, fn: Callable[[SyncWriter, X], Next[Any]], /) -> Node[X, Any]: ...
    @overload
    def post(self, fn: Callable[[SyncWriter, X], Y | Next[Any]], /) -> Node[X, Y]: ...
    @overload
    def post(
        self,
        *,
        name: str = "",
        reads: Sequence[Key[Any]] | None = None,
        writes: Sequence[Key[Any]] | None = None,
        trace: Traced | None = None,
    ) -> _PostDecorator: ...
    def post(self, fn: Any = None, *, name: str = "", reads: Any = None, writes: Any = None, trace: Any = None) -> Any:
        """A node whose `post` is the function, called with (store, input)."""

        def make(fn: Any) -> PostNode[Any, Any]:
            return PostNode({"post": fn}, {"name": name, "reads": reads, "writes": writes, "trace": trace})

        return make if fn is None else make(fn)

    @overload
    def of(
        self,
        *,
        prep: Callable[[StoreReader, X], Coroutine[Any, Any, P]],
        exec: Callable[[P], Coroutine[Any, Any, Q]],
        post: Callable[[StoreWriter, X, P, Q], Coroutine[Any, Any, Y]],
        name: str = "",
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Node[X, Y, Q]: ...
    @overload
    def of(
        self,
        *,
        prep: Callable[[StoreReader, X], Coroutine[Any, Any, P]],
        exec: Callable[[P], Coroutine[Any, Any, Y]],
        name: str = "",
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Node[X, Y]: ...
    @overload
    def of(
        self,
        *,
        prep: Callable[[SyncReader, X], P],
        exec: Callable[[P], Q],
        post: Callable[[SyncWriter, X, P, Q], Y],
        name: str = "",
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Node[X, Y, Q]: ...
    @overload
    def of(
        self,
        *,
        prep: Callable[[SyncReader, X], P],
        exec: Callable[[P], Y],
        name: str = "",
        retry: Retry | None = None,
        timeout: Duration | None = None,
    ) -> Node[X, Y]: ...
    def of(
        self,
        *,
        prep: Any = None,
        exec: Any = None,
        post: Any = None,
        name: str = "",
        retry: Any = None,
        timeout: Any = None,
    ) -> Any:
        """A node from one function for each phase; type checkers check that they fit each other."""
        options = {"name": name, "retry": retry, "timeout": timeout}
        return FunctionNode[Any, Any, Any]({"prep": prep, "exec": exec, "post": post}, options)


node = _NodeFactory()
"""Makes nodes from functions."""
