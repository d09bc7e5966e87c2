"""`store.mapping(…)`: entries of a store as a `MutableMapping`, for code that expects a dict.

A key of the mapping is any text; it fills the placeholder of a `Key`, which escapes it, and parses it from a name again. So a
mapping has the entries whose names its Key makes, and none of the entries beside or below them.
"""

# The views of a mapping are friends of it.
# pyright: reportPrivateUsage=false
from __future__ import annotations

from collections.abc import ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from contextlib import suppress
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar, cast, overload

from pocket_plug.errors import KeyNameError, MissingKeyError
from pocket_plug.primitives.redaction import summary

from .base import MISSING, NO_DEFAULT, Writable
from .driven import FEW, driven
from .keys import Key
from .naming import Template

if TYPE_CHECKING:
    from _typeshed import SupportsKeysAndGetItem

T = TypeVar("T")
D = TypeVar("D")

SOME = 500
"""How many entries `clear` removes in one write."""


EACH = Key("{}")
"""The Key of all names in a scope that have one part."""


class StoreMapping(MutableMapping[str, T]):
    """Entries of a store as a mapping of text to values: what `mapping` of a store, a scope or a typed view returns.

    It caches nothing: each access goes to the store, as with `sync`. Iteration lists the keys in the order of their names,
    in pages, also while others write. `len` reads each name; `bool` reads one page. To change a value in place changes
    nothing in the store: set it again, or use `store.update`.

    >>> from pocket_plug import SyncStore
    >>> store = SyncStore()
    >>> prices = store.scope("prices").mapping()
    >>> prices["eu:shoes"] = 80
    >>> prices |= {"us": 90}
    >>> dict(prices.items()), store.get("prices:eu%3Ashoes")
    ({'eu:shoes': 80, 'us': 90}, 80)
    """

    __slots__ = ("_key", "_source", "_stem", "_view")

    def __init__(self, view: Writable, key: Key[T]) -> None:
        if key.__class__ is not Key:
            raise KeyNameError(
                f"mapping takes a Key with one placeholder, such as Key('user:{{}}'), not {summary(key)}"
            )
        number = 0 if key.is_filled else Template(key.template).placeholders
        if number != 1:
            raise KeyNameError(
                f"a mapping's Key has one placeholder, for the mapping's key, but {key!r} has {number}; fill the others by a "
                "scope: store.scope(…).mapping(Key('{}'))"
            )
        self._view = view
        self._source = view._source
        self._key = key
        self._stem = key.template.partition("{")[0]  # all its names begin with this

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._key!r}, {self._view!r})"

    def _at(self, key: object) -> Key[T]:
        if not isinstance(key, str):  # keys are read back as text
            raise KeyNameError(f"the mapping {self._key!r}: its keys must be str, not {summary(key)}")
        return self._key(key)

    def _found(self, name: str) -> str | None:
        """The mapping's key with this name; None for a name that is not of this mapping."""
        parsed = self._key.parse(name)
        return None if parsed is None else cast(str, parsed.values[0])

    # ------------------------------------------------------------ one entry
    def __getitem__(self, key: str) -> T:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise MissingKeyError(f"nothing at {key!r} of {self._key!r}")
        return value

    @overload
    def get(self, key: str, /) -> T | None: ...
    @overload
    def get(self, key: str, /, default: T) -> T: ...
    @overload
    def get(self, key: str, /, default: D) -> T | D: ...
    def get(self, key: str, /, default: object = None) -> object:
        """The value, else `default`."""
        return self._source.run_read(self._view.get(self._at(key), default))

    def __contains__(self, key: object) -> bool:
        try:
            at = self._at(key)
        except KeyNameError:  # an object that can't be a key has no entry
            return False
        return self._source.run_read(self._view.has(at))

    def __setitem__(self, key: str, value: T) -> None:
        self._source.run_write(self._view.set(self._at(key), value))

    def __delitem__(self, key: str) -> None:
        if not self._source.run_update(self._view.delete(self._at(key))):
            raise MissingKeyError(f"nothing at {key!r} of {self._key!r}")

    @overload
    def pop(self, key: str, /) -> T: ...
    @overload
    def pop(self, key: str, /, default: T) -> T: ...
    @overload
    def pop(self, key: str, /, default: D) -> T | D: ...
    def pop(self, key: str, /, default: object = NO_DEFAULT) -> object:
        """Remove the value and return it, to exactly one caller; if there is none, `default`, or MissingKeyError without one."""
        return self._source.run_update(self._view.pop(self._at(key), default))

    @overload
    def setdefault(self: StoreMapping[D | None], key: str, default: None = None, /) -> D | None: ...
    @overload
    def setdefault(self, key: str, default: T, /) -> T: ...
    def setdefault(self, key: str, default: object = None, /) -> object:
        """The value; if there is none, `default`, which is stored. Callers at the same time all get the same value."""
        at = self._at(key)
        while (value := self._source.run_read(self._view.get(at, MISSING))) is MISSING:
            if self._source.run_write(self._view.add(at, default)):
                return default
        return value

    # ------------------------------------------------------------ all of them
    def __iter__(self) -> Iterator[str]:
        names = driven(self._source.run_read, self._view.keys(self._stem), FEW)
        return (key for name in names if (key := self._found(name)) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def items(self) -> ItemsView[str, T]:
        """The keys with their values, read 100 at a time; each page is as of one moment."""
        return _Items(self)

    def values(self) -> ValuesView[T]:
        """The values, read 100 at a time."""
        return _Values(self)

    def _pairs(self) -> Iterator[tuple[str, T]]:
        pages = self._view._pages(self._stem, after=None, reverse=False, limit=None)
        for name, value in chain.from_iterable(driven(self._source.run_read, pages)):
            key = self._key.parse(name)
            if key is not None:
                yield cast(str, key.values[0]), key.checked(value)

    def popitem(self) -> tuple[str, T]:
        """Remove the first entry and return it, to exactly one caller. Raises MissingKeyError if there is none."""
        for key in self:
            with suppress(MissingKeyError):  # somebody was faster
                return key, self.pop(key)
        raise MissingKeyError(f"there is nothing in {self._key!r} to pop")

    def clear(self) -> None:
        """Remove all entries of the mapping, in writes of at most 500."""
        keys = iter(self)
        while some := list(islice(keys, SOME)):
            self._source.run_write(self._view.delete_many([self._at(key) for key in some]))

    def update(self, other: SupportsKeysAndGetItem[str, T] | Iterable[tuple[str, T]] = (), /, **values: T) -> None:
        """Set several values in one write: all or none."""
        wanted = {self._at(key): value for key, value in dict(other, **values).items()}
        self._source.run_write(self._view.set_many(wanted))

    def __ior__(self, other: SupportsKeysAndGetItem[str, T] | Iterable[tuple[str, T]]) -> StoreMapping[T]:
        self.update(other)
        return self

    def __or__(self, other: Mapping[str, T]) -> dict[str, T]:
        return {**dict(self.items()), **other}

    def __ror__(self, other: Mapping[str, T]) -> dict[str, T]:
        return {**other, **dict(self.items())}


# The views of `collections.abc` read each value singly, and fail if it was removed meanwhile; these read pages.
class _Items(ItemsView[str, T]):
    _mapping: StoreMapping[T]

    def __iter__(self) -> Iterator[tuple[str, T]]:
        return self._mapping._pairs()


class _Values(ValuesView[T]):
    _mapping: StoreMapping[T]

    def __iter__(self) -> Iterator[T]:
        return (value for _, value in self._mapping._pairs())

    def __contains__(self, value: object) -> bool:
        return any(each is value or each == value for each in self)
