"""Integers of our own, and the names that they are counted by. The SDK's counters cost thirty times a read of a store."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable

from pocket_plug.errors import ConflictError
from pocket_plug.primitives.failures import capped, error_type
from pocket_plug.primitives.locks import Lock, RLock
from pocket_plug.store.backend import Keeper, Reason

Value = str | bool | int | float
Attributes = dict[str, Value]


# ---------------------------------------------------------------- names
class Names(dict[str, str]):
    """Names in a program, for attributes: at most `most` different ones as they are, the rest as `_OTHER`.

    So a graph that is made for each request, with an id in its name, can't fill up the metrics backend.

    >>> names = Names(most=2)
    >>> [names[name] for name in ("a", "b", "c", "a")]
    ['a', 'b', '_OTHER', 'a']
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __missing__(self, name: str) -> str:
        if len(self) >= self._most:
            return "_OTHER"
        self[name] = known = capped(name)
        return known


graphs, nodes, actions, errors = Names(500), Names(1000), Names(500), Names(200)
namespaces, labels = Names(500), Names(100)


# ---------------------------------------------------------------- numbers
class Count:
    """An integer that any number of threads may add to without a lock: the next item of a counter is one step in C.

    >>> count = Count()
    >>> _ = count.add(), count.add(), count.add_many(40)
    >>> count.value(), count.value()
    (42, 42)
    """

    __slots__ = ("_lock", "_looks", "add", "counter")

    def __init__(self) -> None:
        self.counter = itertools.count()
        """`next(count.counter)` is `add`, in two thirds of the time."""
        self.add: Callable[[], int] = self.counter.__next__
        self._lock = Lock()
        self._looks = 0  # each call of `value` takes an item too

    def add_many(self, number: int) -> None:
        """Add a number."""
        deque(itertools.islice(self.counter, number), maxlen=0)

    def value(self) -> int:
        """The sum so far."""
        with self._lock:
            value = next(self.counter) - self._looks
            self._looks += 1
            return value

    def reset(self) -> None:
        """Start at 0 again, in a forked child: the parent reports the inherited count."""
        self._lock = Lock()
        self._looks = next(self.counter) + 1


class Active:
    """What of a kind is active: a set, not a count up and down, since Ctrl-C may come before the end of a part is noted.

    The references are weak, so a part that is gone is not active.
    """

    __slots__ = ("_parts", "attributes")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self._parts: set[weakref.ref[object]] = set()

    def begin(self, part: object) -> None:
        """It is active from now on."""
        self._parts.add(weakref.ref(part))

    def end(self, part: object) -> None:
        """It is not active any more."""
        self._parts.discard(weakref.ref(part))

    def value(self) -> int:
        """How many are active now."""
        self._parts.difference_update([part for part in list(self._parts) if part() is None])
        return len(self._parts)


class Going:
    """What is active, by attributes.

    >>> going, run = Going(), Going()  # any object
    >>> active = going.begin(run, {"graph": "orders"})
    >>> going.values()
    [(1, {'graph': 'orders'})]
    >>> active.end(run)
    >>> going.values()
    [(0, {'graph': 'orders'})]
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[Value, ...], Active] = {}

    def begin(self, part: object, attributes: Attributes) -> Active:
        """One more is active, until `end(part)` of the result."""
        key = (*attributes.values(),)
        active = self._kinds.get(key) or self._kinds.setdefault(key, Active(attributes))
        active.begin(part)
        return active

    def values(self) -> list[tuple[int, Attributes]]:
        """How many are active now, for each kind that ever was."""
        return [(active.value(), active.attributes) for active in list(self._kinds.values())]


class Watched:
    """The evictions of a keeper from now on, which are counted even when the keeper is gone."""

    __slots__ = ("_evictions", "_start", "keeper")

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = weakref.ref(keeper)
        self._evictions = keeper.evictions
        self.reset()

    def counts(self, keeper: Keeper) -> bool:
        """Does it share its evictions with this keeper? Bounding directly over a Memory does."""
        return self._evictions is keeper.evictions

    def evicted(self) -> Counter[Reason]:
        return Counter({reason: number - self._start[reason] for reason, number in self._evictions.items()})

    def reset(self) -> None:
        self._start = dict(self._evictions)


class Tally:
    """The counts of stores with the same attributes."""

    def __init__(self) -> None:
        self.hits, self.misses, self.puts, self.deletes, self.lost = Count(), Count(), Count(), Count(), Count()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._watched: list[Watched] = []
        self._evicted: Counter[Reason] = Counter()  # by keepers that are gone
        self._lock = RLock()  # reentrant: a signal's handler may use a store while it is held
        tallies.add(self)

    def watch(self, keeper: Keeper) -> None:
        """Count the keeper's entries and evictions, as long as it exists; stores may share it."""
        with self._lock:
            self._settle(None)
            if not any(watched.counts(keeper) for watched in self._watched):
                self._watched.append(Watched(keeper))

    def leave(self, keeper: Keeper) -> None:
        """Stop counting: the keeper's evictions are published elsewhere from now on, or nowhere."""
        with self._lock:
            self._settle(keeper)

    def _settle(self, keeper: Keeper | None) -> None:
        """Add up the evictions of a keeper that leaves; None: of keepers that are gone."""
        for watched in [watched for watched in self._watched if watched.keeper() is keeper]:
            evicted = watched.evicted()
            if watched in self._watched:  # else a signal's handler has added them up in between
                self._watched.remove(watched)
                for reason, number in evicted.items():
                    self._evicted.setdefault(reason, 0)  # as in `failed`
                    self._evicted[reason] += number

    def entries(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.entries`."""
        with self._lock:
            keepers = tuple(keeper for watched in self._watched if (keeper := watched.keeper()) is not None)
        if keepers:
            yield sum(keeper.entries for keeper in keepers), {}

    def evictions(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.evictions`."""
        with self._lock:
            evicted = Counter(self._evicted)
            for watched in self._watched:
                evicted.update(watched.evicted())
        for reason, number in evicted.items():
            yield number, {"pocket_plug.store.eviction.reason": reason}

    def failed(self, operation: str, error: Exception) -> None:
        """Count a failed operation."""
        if isinstance(error, ConflictError):
            self.lost.add()
            return
        kind = operation, errors[error_type(error)]
        with self._lock:
            self._failed.setdefault(kind, 0)  # so that no call comes between the look-up and the addition
            self._failed[kind] += 1

    def lookups(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.lookups`."""
        yield self.hits.value(), {"pocket_plug.store.hit": True}
        yield self.misses.value(), {"pocket_plug.store.hit": False}

    def writes(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.writes`."""
        yield self.puts.value(), {"db.operation.name": "set"}
        yield self.deletes.value(), {"db.operation.name": "delete"}

    def conflicts(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.conflicts`."""
        yield self.lost.value(), {}

    def errors(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.errors`."""
        with self._lock:
            failed = list(self._failed.items())
        for (operation, kind), number in failed:
            yield number, {"db.operation.name": operation, "error.type": kind}

    def reset(self) -> None:
        """Start again at 0, in a forked child."""
        for count in (self.hits, self.misses, self.puts, self.deletes, self.lost):
            count.reset()
        self._failed.clear()
        self._evicted = Counter(dict.fromkeys(self._evicted, 0))
        for watched in self._watched:
            watched.reset()
        self._lock = RLock()


tallies: weakref.WeakSet[Tally] = weakref.WeakSet()
"""All tallies: a forked child resets each."""
