"""What all views of a store share: a source (a stack, or a transaction over one), a prefix, and how keys become names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, Protocol, Self, TypeVar, final

from pocket_plug.errors import KeyNameError
from pocket_plug.primitives.durations import Duration
from pocket_plug.primitives.names import (
    MAX_NAME_BYTES,
    PAST_OWN,
    RESERVED,
    check_length,
    check_prefix,
    check_readable,
    check_scope,
)
from pocket_plug.primitives.values import Value

from .backend import Backend, Clock
from .keys import Key
from .layer import Layer
from .stack import Stack, StorePlace, build, stack_table
from .transaction import Transaction

T_co = TypeVar("T_co", covariant=True)

Name = str | Key
"""How users name an entry or a scope."""

Source = Stack | Transaction


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"

    __str__ = __repr__


MISSING: Final = Missing.MISSING
"""A default that no stored value equals: it distinguishes a stored None from no value."""

NO_DEFAULT: Final[Any] = object()
"""Stands for a default that the caller of `pop` or `update` did not give. MISSING is one that may be given."""


@final
@dataclass(frozen=True, slots=True)
class StoredValue(Generic[T_co]):
    """A value with its version and expiry time, from one read: what `entry` returns."""

    value: T_co
    """The stored value."""
    version: int
    """The version, for `set(…, expect=version)`. It changes with each write of the key; compare it for equality only.
    -1 in a transaction stands for its own write, which gets its version with the commit."""
    expires_at: float | None
    """When it expires, in epoch seconds; None for never."""


class Readable(Protocol):
    """What a typed view needs of the view that it reads: `StoreReader`, whose module imports those of the views made of it."""

    _source: Source

    async def get(self, key: Any, /, default: Value = None) -> Value: ...
    async def require(self, key: str, /) -> Value: ...
    async def entry(self, key: str, /) -> StoredValue[Value] | None: ...
    async def count(self, prefix: str = "") -> int: ...
    async def tail(self, key: str, n: int, /) -> list[Value]: ...
    async def length(self, key: Name, /) -> int: ...
    def _item_pages(self, key: str) -> AsyncIterator[list[Value]]: ...
    def keys(
        self, prefix: str = "", *, after: Name | None = None, reverse: bool = False, limit: int | None = None
    ) -> AsyncIterator[str]: ...
    def _pages(
        self, prefix: str, *, after: Name | None, reverse: bool, limit: int | None
    ) -> AsyncIterator[list[tuple[str, Value]]]: ...


class Writable(Readable, Protocol):
    """What a typed view, a mapping and a cached function need of the view that they write: `StoreWriter`."""

    def _name(self, key: str, /) -> str: ...
    def _written(self, key: str, /) -> str: ...
    async def set(
        self, key: Any, value: Value, /, *, ttl: Duration | None = None, expect: int | None = None
    ) -> None: ...
    async def add(self, key: Any, value: Value, /, *, ttl: Duration | None = None) -> bool: ...
    async def _added(self, key: Any, value: Value, ttl: Duration | None) -> dict[str, int]: ...
    async def touch(self, key: Name, /, *, ttl: Duration | None) -> bool: ...
    async def append(self, key: str, item: Value, /, *, ttl: Duration | None = None) -> int: ...
    async def trim(self, key: Name, /, *, keep: int) -> int: ...
    async def delete(self, key: Name, /) -> bool: ...
    async def delete_many(self, keys: Iterable[Name], /) -> int: ...
    async def delete_prefix(self, prefix: str, /) -> int: ...
    async def set_many(self, values: Mapping[Value, Value], /) -> None: ...
    async def pop(self, key: Any, /, default: object = ...) -> Value: ...
    async def has(self, key: Name, /) -> bool: ...


SHORT = MAX_NAME_BYTES // 4
"""A name of at most so many characters isn't too long, whatever the characters."""


class View:
    """What every view is: a source and a prefix."""

    __slots__ = ("_prefix", "_source")

    def __init__(self, source: Source, prefix: str = "") -> None:
        self._source = source
        self._prefix = prefix

    def __repr__(self) -> str:
        scope = f", scope={self._prefix[:-1]!r}" if self._prefix else ""
        return f"{type(self).__name__}({self._source!r}{scope})"

    def _repr_html_(self) -> str:
        """In a notebook: the parts of its stack."""
        return stack_table(*self.place)

    def _name(self, key: Any) -> str:
        if key.__class__ is str and not (RESERVED <= key < PAST_OWN) and key and key.isascii():
            return self._prefix + key
        if key.__class__ is Key:
            return self._prefix + key.full_name()
        return check_readable(self._prefix + key if key and isinstance(key, str) else key)

    def _written(self, key: Any) -> str:
        """The name of a key that is to be written, which must not be too long."""
        name = self._name(key)
        return name if len(name) <= SHORT else check_length(name)

    def _names(self, keys: Any) -> dict[str, Any]:
        """The names of several keys, in order, each with its key. A str is refused: each of its letters would be a name."""
        if isinstance(keys, str) or keys.__class__ is Key:
            raise KeyNameError(f"{str(keys)!r:.80} is one key where several are expected; give a list of keys")
        return {self._name(key): key for key in keys}

    def _bound(self, after: Any) -> str:
        """The key after which a scan begins, from the name that a user gives as `after`."""
        if after is None or after == "":
            return ""
        return self._prefix + (
            after.full_name() if after.__class__ is Key else check_prefix(after, "the name in after=")
        )

    @property
    def place(self) -> StorePlace:
        """The stack of this view, and the view's prefix in it."""
        return self._source.stack, self._prefix

    def scope(self, prefix: Name, /) -> Self:
        """A view of the names below `prefix`; its `get("123")` is `get("user:123")` here.

        >>> from pocket_plug import SyncStore
        >>> store = SyncStore()
        >>> store.scope("user").scope("admin").set("001", "Alice")
        >>> store.get("user:admin:001")
        'Alice'
        """
        view = object.__new__(type(self))
        view._source, view._prefix = self._source, self._below(prefix)
        return view

    def _below(self, prefix: Name) -> str:
        return check_scope(self._written(prefix)) + ":"


class StackOwner(View):
    """A view of a whole stack, which opens and closes it."""

    __slots__ = ()

    def __init__(
        self,
        backend: str | Backend = "memory://",
        /,
        *,
        layers: Collection[str | Layer] = (),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(build(backend, layers, clock))
