"""Figures of runs, nodes and stores. It speaks the OpenTelemetry API only and sets nothing up.

A store operation in memory is counted in integers of our own, which are published when metrics are collected: the SDK's
own counters cost thirty times a read. Attributes never hold a key, a value, a run's id or a message, and of what a
program names (graphs, nodes, actions, exceptions, namespaces) they hold so many different ones, then `_OTHER`.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from typing_extensions import Unpack

from pocket_plug.backend import NO_EXPECTATIONS, Change, Entry, Put
from pocket_plug.errors import Conflict
from pocket_plug.hookspecs import NodeCall, Observer, Run, hookimpl
from pocket_plug.layer import Layer, parts
from pocket_plug.layers.bounding import Bounding
from pocket_plug.layers.persistence import Persistence
from pocket_plug.memory import Memory, Reason
from pocket_plug.reporting import SCHEMA_URL, capped, changed, error_type, nobody_can, own_version, say_once, system_of

if TYPE_CHECKING:
    from pocket_plug.backend import Backend
    from pocket_plug.layers.write_behind import WriteBehind
    from pocket_plug.pocket import Pocket

Attributes = dict[str, str | bool | int | float]
_RUN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DB_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


# ---------------------------------------------------------------- settings
@dataclass(frozen=True, slots=True)
class Settings:
    """What the process's metrics do. `meter_provider` None: OpenTelemetry's global one.

    `node_duration` False leaves out the histogram of nodes, which costs about 10 µs for each visit.
    """

    meter_provider: MeterProvider | None = None
    node_duration: bool = True


class Changes(TypedDict, total=False):
    """What `configure` takes."""

    meter_provider: MeterProvider | None
    node_duration: bool


def configure(**changes: Unpack[Changes]) -> Settings:
    """Change the process's metrics, from the next run and the next stack on; gives the former settings.

    `[plugins.metrics] node_duration = false` does the same. Raises ConfigError for what isn't an option.
    """
    global _settings
    former, _settings = _settings, changed("metrics", _settings, changes)
    return former


_settings = Settings()


# ---------------------------------------------------------------- hooks
@hookimpl
def pocket_configure(pocket: Pocket, options: Mapping[str, Any]) -> None:
    """The table `[plugins.metrics]`; without one, settings stay as they are."""
    if options:
        configure(**options)


@hookimpl
def pocket_layers() -> Sequence[type[Layer]]:
    """The layer `metrics`."""
    return [Metrics]


@hookimpl
def pocket_observe(run: Run) -> Observer | None:
    """Measure a run while a meter provider is set."""
    if _settings.meter_provider is None and nobody_can(metrics.MeterProvider):
        return None
    provider = _settings.meter_provider or metrics.get_meter_provider()
    if type(provider).__module__.startswith("opentelemetry.metrics"):  # the API's own: it stands in, or does nothing
        return None
    instruments = _instruments(_settings.meter_provider)
    timed = _settings.node_duration

    def node(call: NodeCall) -> _NodeTimer | None:
        return _NodeTimer(instruments, call, timed) if timed or call.is_item else None

    return Observer(run=lambda run: _RunTimer(instruments, run), node=node, event=instruments.event)


class _RunTimer:
    __slots__ = ("active", "graph", "instruments", "run", "started")

    def __init__(self, instruments: _Instruments, run: Run) -> None:
        self.instruments, self.run = instruments, run
        self.graph: Attributes = {"pocket_plug.graph.name": _graphs[run.graph]}

    def __enter__(self) -> None:
        self.active = self.instruments.runs.begin(self.graph)
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.started
        self.active.end()
        attributes = self.graph | _failure(self.run.error)
        attributes["pocket_plug.run.outcome"] = self.run.outcome or "success"
        self.instruments.run_duration.record(seconds, attributes)


class _NodeTimer:
    __slots__ = ("active", "call", "instruments", "started", "timed")

    def __init__(self, instruments: _Instruments, call: NodeCall, timed: bool) -> None:
        self.instruments, self.call, self.timed = instruments, call, timed
        self.active: Active | None = None

    def __enter__(self) -> None:
        if self.call.is_item:
            self.active = self.instruments.items.begin(_about(self.call))
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.started
        if self.active is not None:
            self.active.end()
        if not self.timed:
            return
        call = self.call
        attributes = _about(call) | _failure(call.error)
        attributes["pocket_plug.node.outcome"] = call.outcome or "ok"
        if call.action is not None:  # some edge's: a run refuses what no edge has, whoever made it up
            attributes["pocket_plug.node.action"] = _actions[call.action]
        self.instruments.node_duration.record(seconds, attributes)


def _about(call: NodeCall) -> Attributes:
    return {"pocket_plug.graph.name": _graphs[call.run.graph], "pocket_plug.node.name": _nodes[call.name]}


def _failure(error: BaseException | None) -> Attributes:
    return {} if error is None else {"error.type": _errors[error_type(error)]}


_CONFLICT: Attributes = {"error.type": f"{Conflict.__module__}.{Conflict.__qualname__}"}


class Names(dict[str, str]):
    """What attributes call things that a program has named: so many different ones by their names, the rest `_OTHER`.

    A graph that is made anew for each request, with an id in its name, can't fill up the backend.

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


_graphs, _nodes, _actions, _errors, _namespaces = Names(500), Names(1000), Names(500), Names(200), Names(500)


# ---------------------------------------------------------------- instruments
class _Instruments:
    """One set for each meter provider: of a second set of observable ones, the SDK silently takes nothing."""

    def __init__(self, meter_provider: MeterProvider | None) -> None:
        meter = metrics.get_meter("pocket_plug", own_version(), meter_provider, SCHEMA_URL)
        self.tallies: dict[tuple[str, str], Tally] = {}
        self.queues: weakref.WeakKeyDictionary[WriteBehind, Attributes] = weakref.WeakKeyDictionary()
        self.reset()
        _sets.add(self)
        self.run_duration = meter.create_histogram(
            "pocket_plug.run.duration", "s", "How long runs take",
            explicit_bucket_boundaries_advisory=_RUN_BUCKETS)  # fmt: skip
        self.node_duration = meter.create_histogram(
            "pocket_plug.node.duration", "s", "How long visits of nodes take",
            explicit_bucket_boundaries_advisory=_RUN_BUCKETS)  # fmt: skip
        for name, figure, unit, description in (
            ("run", "runs", "{run}", "Runs that go on"),
            ("fan_out", "items", "{item}", "Items of fan-outs that are being worked on"),
        ):
            meter.create_observable_up_down_counter(
                f"pocket_plug.{name}.active", [self._of_active(figure)], unit, description
            )
        self.node_retries = meter.create_counter(
            "pocket_plug.node.retries", "{retry}", "Attempts at exec after the first"
        )
        self.commit_conflicts = meter.create_counter(
            "pocket_plug.commit.conflicts", "{conflict}", "Commits of nodes that met somebody else's"
        )
        self.operation_duration = meter.create_histogram(
            "db.client.operation.duration", "s", "How long operations on disk or a network take",
            explicit_bucket_boundaries_advisory=_DB_BUCKETS)  # fmt: skip
        for name, unit, description in (
            ("lookups", "{lookup}", "Keys looked up"),
            ("writes", "{entry}", "Entries set or deleted"),
            ("conflicts", "{conflict}", "Writes that expected another version"),
            ("errors", "{error}", "Operations that failed"),
            ("evictions", "{entry}", "Entries that had to go"),
        ):
            meter.create_observable_counter(f"pocket_plug.store.{name}", [self._counts(name)], unit, description)
        meter.create_observable_gauge(
            "pocket_plug.store.entries", [self._counts("entries")], "{entry}", "Entries kept in memory, or bounded"
        )
        meter.create_observable_gauge(
            "pocket_plug.store.queue", [self._of_queues("length")], "{write}", "Keys that are yet to be written behind"
        )
        meter.create_observable_gauge(
            "pocket_plug.store.queue.age", [self._of_queues("age")], "s", "How long the oldest of them has been waiting"
        )

    def reset(self) -> None:
        """Nothing goes on yet: at the start, and in a forked child, which reports what it begins itself."""
        self.runs, self.items = Going(), Going()
        self._lock = threading.Lock()

    def tally(self, namespace: str, system: str) -> Tally:
        """What the stores of one namespace over one kind of backend count together."""
        with self._lock:
            return self.tallies.setdefault((namespace, system), Tally())

    def _of_active(self, figure: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            going: Going = getattr(self, figure)  # a forked child has another one
            for value, attributes in going.values():
                yield Observation(value, attributes)

        return collect

    def _counts(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                tallies = list(self.tallies.items())
            for (namespace, system), tally in tallies:
                for value, attributes in getattr(tally, name)():
                    yield Observation(value, _store(namespace, system) | attributes)

        return collect

    def watch(self, queue: WriteBehind, namespace: str, system: str) -> None:
        """Publish the length and the age of a queue."""
        with self._lock:
            self.queues[queue] = _store(namespace, system)

    def _of_queues(self, figure: Literal["length", "age"]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                queues = list(self.queues.items())
            found: dict[tuple[tuple[str, Any], ...], float] = {}
            for queue, attributes in queues:
                key, value = tuple(attributes.items()), getattr(queue, figure)
                former = found.get(key, 0)
                found[key] = former + value if figure == "length" else max(former, value)
            for key, value in found.items():
                yield Observation(value, dict(key))

        return collect

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        """Retries and conflicts are counted."""
        if name == "retry":
            self.node_retries.add(1, _about(call) | _failure(attributes.get("error")))
        elif name == "conflict":
            self.commit_conflicts.add(1, _about(call) | _CONFLICT)


def _store(namespace: str, system: str) -> Attributes:
    attributes: Attributes = {"db.system.name": capped(system)}
    if namespace:
        attributes["db.namespace"] = namespace
    return attributes


_sets: weakref.WeakSet[_Instruments] = weakref.WeakSet()
_for_global: _Instruments | None = None
_for_providers: weakref.WeakKeyDictionary[MeterProvider, _Instruments] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def _instruments(meter_provider: MeterProvider | None) -> _Instruments:
    """The set of a provider; of the global one, which may be set later: the API's stand-ins then become real.

    The global one has one set too where it is handed over as well.
    """
    global _for_global
    with _making:
        if meter_provider is None:
            if _for_global is None:
                _for_global = _for_providers.get(metrics.get_meter_provider()) or _Instruments(None)
            return _for_global
        if (found := _for_providers.get(meter_provider)) is None:
            is_global = _for_global is not None and metrics.get_meter_provider() is meter_provider
            found = _for_global if is_global else None
            found = _for_providers[meter_provider] = found or _Instruments(meter_provider)
        return found


# ---------------------------------------------------------------- counting
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
        self._lock = threading.Lock()
        self._looks = 0  # each look takes an item too

    def add_many(self, number: int) -> None:
        """Add several."""
        deque(itertools.islice(self.counter, number), maxlen=0)

    def value(self) -> int:
        """What was added so far."""
        with self._lock:
            value = next(self.counter) - self._looks
            self._looks += 1
            return value

    def reset(self) -> None:
        """Begin at 0 again, in a forked child: what it inherited, its parent reports."""
        self._lock = threading.Lock()
        self._looks = next(self.counter) + 1


class Active:
    """How many of a kind go on: those begun, less those ended."""

    __slots__ = ("attributes", "begin", "begun", "end", "ended")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.begun, self.ended = Count(), Count()
        self.begin, self.end = self.begun.add, self.ended.add

    def value(self) -> int:
        """How many there are now."""
        ended = self.ended.value()  # asked first: what begins and ends meanwhile is no less than none
        return self.begun.value() - ended


class Going:
    """What goes on, by attributes.

    >>> going = Going()
    >>> run = going.begin({"graph": "orders"})
    >>> going.values()
    [(1, {'graph': 'orders'})]
    >>> _ = run.end()
    >>> going.values()
    [(0, {'graph': 'orders'})]
    """

    def __init__(self) -> None:
        self._kinds: dict[tuple[Any, ...], Active] = {}

    def begin(self, attributes: Attributes) -> Active:
        """One more, until its `end()`."""
        key = (*attributes.values(),)
        active = self._kinds.get(key) or self._kinds.setdefault(key, Active(attributes))
        active.begin()
        return active

    def values(self) -> list[tuple[int, Attributes]]:
        """How many there are of each kind that there was."""
        return [(active.value(), active.attributes) for active in list(self._kinds.values())]


class Keeper(Protocol):
    """A part of a stack that knows what it keeps: Memory, or bounding over something else."""

    @property
    def entries(self) -> int: ...
    @property
    def evictions(self) -> Mapping[Reason, int]: ...


class _Watched:
    """What a keeper evicts from now on, though it goes away itself."""

    __slots__ = ("_evictions", "_start", "keeper")

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = weakref.ref(keeper)
        self._evictions = keeper.evictions
        self.reset()

    def evicted(self) -> Counter[Reason]:
        return Counter({reason: number - self._start[reason] for reason, number in self._evictions.items()})

    def reset(self) -> None:
        self._start = dict(self._evictions)


class Tally:
    """What is counted of stores."""

    def __init__(self) -> None:
        self.hits, self.misses, self.puts, self.deletes, self.lost = Count(), Count(), Count(), Count(), Count()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._watched: list[_Watched] = []
        self._evicted: Counter[Reason] = Counter()  # by keepers that are gone
        self._lock = threading.Lock()
        _tallies.add(self)

    def watch(self, keeper: Keeper) -> None:
        """Count what it keeps and evicts, for as long as it is there; stores may share it."""
        with self._lock:
            gone = [watched for watched in self._watched if watched.keeper() is None]
            for watched in gone:
                self._evicted.update(watched.evicted())
                self._watched.remove(watched)
            if not any(watched.keeper() is keeper for watched in self._watched):
                self._watched.append(_Watched(keeper))

    def entries(self) -> Iterable[tuple[int, Attributes]]:
        """For `pocket_plug.store.entries`."""
        with self._lock:
            keepers = [keeper for watched in self._watched if (keeper := watched.keeper()) is not None]
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
        if isinstance(error, Conflict):
            self.lost.add()
            return
        with self._lock:
            self._failed[operation, _errors[error_type(error)]] += 1

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
        """Begin again, in a forked child."""
        for count in (self.hits, self.misses, self.puts, self.deletes, self.lost):
            count.reset()
        self._failed.clear()
        self._evicted = Counter(dict.fromkeys(self._evicted, 0))
        for watched in self._watched:
            watched.reset()
        self._lock = threading.Lock()


_tallies: weakref.WeakSet[Tally] = weakref.WeakSet()


def _reset() -> None:
    global _making
    _making = threading.Lock()
    for instruments in list(_sets):
        instruments.reset()
    for tally in list(_tallies):
        tally.reset()


if hasattr(os, "register_at_fork"):  # where processes can fork
    os.register_at_fork(after_in_child=_reset)


# ---------------------------------------------------------------- the layer
class Metrics(Layer):
    """Counts lookups with hits and misses, writes, conflicts, errors and evictions; times operations that go to a disk or
    a network, which are those that may suspend, and those on a durable backend with no cache in front of it.

    - `namespace`: names the store in what is published (`db.namespace`); stores without one are counted together.
    - `durations=True`: time operations in memory, too, which costs some 10 µs each.
    """

    namespace: str = ""
    durations: bool = False

    inline_read = inline_write = True

    def on_build(self) -> None:
        self._system = system_of(parts(self.inner)[-1])
        self._instruments = _instruments(_settings.meter_provider)
        self._namespace = _namespaces[self.namespace]
        self._tally = tally = self._instruments.tally(self._namespace, self._system)
        self._put = tally.puts.add
        self._counted_read = counted_read = _counting(self.inner.read, tally)
        cached = any(isinstance(part, Persistence) for part in parts(self.inner))
        always = self.durations or (self.inner.survives and not cached)
        self._timed_read = always or not self.inner.inline_read
        self._timed_write = always or not self.inner.inline_write
        if not self._timed_read:
            setattr(self, "read", counted_read)  # noqa: B010 - decided here once, not at each call
        keeper = _keeper_of(self.inner)
        if keeper is not None:
            tally.watch(keeper)
        for part in parts(self.inner):
            queue = part.queue if isinstance(part, Persistence) else None
            if queue is not None:
                self._instruments.watch(queue, self._namespace, system_of(queue.durable))

    async def read(self, key: str) -> Entry | None:
        started = time.perf_counter()
        try:
            entry = await self._counted_read(key)
        except BaseException as error:
            self._record("get", started, error)
            raise
        self._record("get", started, None)
        return entry

    async def read_many(self, keys: Iterable[str]) -> dict[str, Entry]:
        keys = list(keys)
        started = time.perf_counter()
        failed: BaseException | None = None
        try:
            entries = await self.inner.read_many(keys)
        except BaseException as error:
            failed = error
            if isinstance(error, Exception):
                self._tally.failed("get_many", error)
            raise
        finally:
            if self._timed_read:
                self._record("get_many", started, failed)
        self._tally.hits.add_many(len(entries))
        self._tally.misses.add_many(len(keys) - len(entries))
        return entries

    async def write(self, changes: Sequence[Change], expect: Mapping[str, int] = NO_EXPECTATIONS) -> int:
        started = time.perf_counter() if self._timed_write else 0.0
        failed: BaseException | None = None
        try:
            version = await self.inner.write(changes, expect)
        except BaseException as error:
            failed = error
            if isinstance(error, Exception):
                self._tally.failed(_operation(changes), error)
            raise
        finally:
            if self._timed_write:
                self._record(_operation(changes), started, failed)
        for change in changes:
            if change.__class__ is Put:
                self._put()
            else:
                self._tally.deletes.add()
        return version

    def _record(self, operation: str, started: float, error: BaseException | None) -> None:
        attributes = _store(self._namespace, self._system) | _failure(error)
        attributes["db.operation.name"] = operation
        try:
            self._instruments.operation_duration.record(time.perf_counter() - started, attributes)
        except Exception as failure:  # noqa: BLE001 - a failing meter must not fail the store
            say_once("measuring a store operation", failure)


def _keeper_of(stack: Backend) -> Keeper | None:
    """The outermost part that knows what it keeps. Bounding right over Memory is Memory's own way of keeping."""
    for part in parts(stack):
        if isinstance(part, Memory) or (isinstance(part, Bounding) and type(part.inner) is not Memory):
            return part
    return None


def _counting(
    inner_read: Callable[[str], Awaitable[Entry | None]], tally: Tally
) -> Callable[[str], Awaitable[Entry | None]]:
    """A read that is counted. What it calls are local names: a third of what it costs would be to find them."""
    hits, misses = tally.hits.counter, tally.misses.counter

    async def read(key: str) -> Entry | None:
        try:
            entry = await inner_read(key)
        except Exception as error:
            tally.failed("get", error)
            raise
        if entry is None:
            next(misses)
        else:
            next(hits)
        return entry

    return read


def _operation(changes: Sequence[Change]) -> str:
    if len(changes) == 1:
        return "set" if isinstance(changes[0], Put) else "delete"
    return "write" if changes else "check"
