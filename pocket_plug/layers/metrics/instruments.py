"""The instruments that publish metrics: one set for each meter provider, and which set is in use now."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, NoOpMeterProvider, Observation, _internal

from pocket_plug.errors import ConflictError
from pocket_plug.hookspecs import NodeCall
from pocket_plug.otel.late import measuring_context
from pocket_plug.otel.reporting import SCHEMA_URL, globals_of, loaded, own_version, surviving
from pocket_plug.primitives.failures import capped, error_type
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.locks import RLock
from pocket_plug.store.backend import WriteQueue

from . import recorded, settings
from .counting import Attributes, Going, Tally, Value, errors, graphs, labels, namespaces, nodes, tallies
from .recorded import RecordedRuns

if TYPE_CHECKING:
    from pocket_plug.graph.runs.figures import RunFigures

_RUN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DB_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)


class Instruments:
    """One set for each meter provider: the SDK silently ignores a second set of observable instruments."""

    def __init__(self, meter_provider: MeterProvider) -> None:
        meter = metrics.get_meter("pocket_plug", own_version(), meter_provider, SCHEMA_URL)
        self._tallies: dict[tuple[tuple[str, Value], ...], tuple[Attributes, Tally]] = {}
        self.queues: weakref.WeakKeyDictionary[WriteQueue, Attributes] = weakref.WeakKeyDictionary()
        self.stores: weakref.WeakKeyDictionary[RecordedRuns, Attributes] = weakref.WeakKeyDictionary()
        self.reset()
        _sets.add(self)
        self.run_duration = meter.create_histogram(
            "pocket_plug.run.duration", "s", "How long runs take", explicit_bucket_boundaries_advisory=_RUN_BUCKETS
        )
        self.node_duration = meter.create_histogram(
            "pocket_plug.node.duration",
            "s",
            "How long visits of nodes take",
            explicit_bucket_boundaries_advisory=_RUN_BUCKETS,
        )
        for name, figure, unit, description in (
            ("run", "runs", "{run}", "Runs that are active"),
            ("fan_out", "items", "{item}", "Items of fan-outs that are being worked on"),
        ):
            meter.create_observable_up_down_counter(
                f"pocket_plug.{name}.active", [self._of_active(figure)], unit, description
            )
        self.node_retries = meter.create_counter(
            "pocket_plug.node.retries", "{retry}", "Attempts at exec after the first"
        )
        self.commit_conflicts = meter.create_counter(
            "pocket_plug.commit.conflicts", "{conflict}", "Commits of nodes that were in conflict with another"
        )
        self.operation_duration = meter.create_histogram(
            "db.client.operation.duration",
            "s",
            "How long operations on disk or a network take",
            explicit_bucket_boundaries_advisory=_DB_BUCKETS,
        )
        for name, unit, description in (
            ("lookups", "{lookup}", "Keys looked up"),
            ("writes", "{entry}", "Entries set or deleted"),
            ("conflicts", "{conflict}", "Writes that expected another version"),
            ("errors", "{error}", "Operations that failed"),
            ("evictions", "{entry}", "Entries that were evicted"),
        ):
            meter.create_observable_counter(f"pocket_plug.store.{name}", [self._counts(name)], unit, description)
        meter.create_observable_gauge(
            "pocket_plug.store.entries", [self._counts("entries")], "{entry}", "Entries kept in memory, or bounded"
        )
        meter.create_observable_gauge(
            "pocket_plug.store.queue", [self._of_queues("length")], "{write}", "Keys that wait to be written behind"
        )
        meter.create_observable_gauge(
            "pocket_plug.store.queue.age",
            [self._of_queues("age")],
            "s",
            "How long the oldest queued write has been waiting",
        )
        self._observe_durable_runs(meter)

    def _observe_durable_runs(self, meter: metrics.Meter) -> None:
        for name, of_runs, unit, sums, description in (
            ("recorded", recorded.recorded, "{run}", True, "Durable runs that a store keeps"),
            ("question.age", recorded.questions, "s", False, "How long the oldest open question has been waiting"),
            ("stalled.age", recorded.stalled, "s", False, "How long the oldest stalled run has made no progress"),
        ):
            meter.create_observable_gauge(
                f"pocket_plug.run.{name}", [self._of_stores(of_runs, sums)], unit, description
            )

    def reset(self) -> None:
        """Nothing is active: at the start, and in a forked child, which reports only what it begins itself."""
        self.runs, self.items = Going(), Going()
        self._lock = RLock()  # reentrant: a signal's handler may build a store while it is held

    def tally(self, about: Attributes) -> Tally:
        """The tally that is shared by all stores with these attributes."""
        with self._lock:
            return self._tallies.setdefault((*about.items(),), (about, Tally()))[1]

    def _of_active(self, figure: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            going: Going = getattr(self, figure)  # a forked child has another one
            for value, attributes in going.values():
                yield Observation(value, attributes)

        return collect

    def _counts(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                tallies = list(self._tallies.values())
            for about, tally in tallies:
                for value, attributes in getattr(tally, name)():
                    yield Observation(value, about | attributes)

        return collect

    def watch(self, queue: WriteQueue, about: Attributes) -> None:
        """Publish the length and the age of a queue."""
        with self._lock:
            self.queues[queue] = about

    def leave(self, queue: WriteQueue) -> None:
        """Stop publishing the queue."""
        with self._lock:
            self.queues.pop(queue, None)

    def _of_queues(self, figure: Literal["length", "age"]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                queues = list(self.queues.items())
            found: dict[tuple[tuple[str, Value], ...], float] = {}
            for queue, attributes in queues:
                key, value = tuple(attributes.items()), getattr(queue, figure)
                former = found.get(key, 0)
                found[key] = former + value if figure == "length" else max(former, value)
            for key, value in found.items():
                yield Observation(value, dict(key))

        return collect

    def watch_runs(self, runs: RecordedRuns, about: Attributes) -> None:
        """Publish how many durable runs there are, and how long they have been waiting."""
        with self._lock:
            self.stores[runs] = about

    def leave_runs(self, runs: RecordedRuns) -> None:
        """Stop publishing these runs."""
        with self._lock:
            self.stores.pop(runs, None)

    def _of_stores(
        self, figure: Callable[[RunFigures], Iterable[tuple[float, Attributes]]], sums: bool
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def collect(options: CallbackOptions) -> Iterable[Observation]:
            with self._lock:
                stores = list(self.stores.items())
            found: dict[tuple[tuple[str, Value], ...], float] = {}
            seen = set[tuple[object, ...]]()
            for runs, about in stores:
                place = (runs.place, *about.items())  # several stores may keep the same runs
                if place in seen or (figures := runs.figures()) is None:
                    continue
                seen.add(place)
                for value, attributes in figure(figures):
                    key = tuple((about | attributes).items())
                    former = found.get(key, 0)
                    found[key] = former + value if sums else max(former, value)
            for key, value in found.items():
                yield Observation(value, dict(key))

        return collect

    def event(self, name: str, call: NodeCall, attributes: Mapping[str, Any]) -> None:
        """Count retries and conflicts."""
        if name == "retry":
            self.node_retries.add(1, about(call) | failure(attributes.get("error")), measuring_context())
        elif name == "conflict":
            self.commit_conflicts.add(1, about(call) | _CONFLICT, measuring_context())


def of_store(system: str, namespace: str, label: str) -> Attributes:
    """The attributes of a store's metrics, without empty ones."""
    attributes: Attributes = {"db.system.name": capped(system)}
    if namespace:
        attributes["db.namespace"] = namespaces[namespace]
    if label:
        attributes["pocket_plug.layer.label"] = labels[label]
    return attributes


# ---------------------------------------------------------------- the meter provider
class Follower(Protocol):
    """A store's layer, which publishes by the set that is in use."""

    def follow(self, instruments: Instruments | None) -> None:
        """Publish by this set from now on; None: there is no provider."""


_sets: weakref.WeakSet[Instruments] = weakref.WeakSet()
_for_providers: list[tuple[weakref.ref[MeterProvider], Instruments]] = []
"""The set of each provider. It is found by identity: Logfire's provider can't be hashed."""
_followers: weakref.WeakSet[Follower] = weakref.WeakSet()
_making = RLock()  # re-entered if the SDK logs, and a log handler uses a store
_seen: tuple[object, Instruments | None] = (object(), None)
"""The global provider at the last look, and the set in use. Assigned as one tuple, for other threads."""
GLOBAL: Final = "_METER_PROVIDER"
api: Final = globals_of(_internal, GLOBAL, metrics.get_meter_provider)
"""`api[GLOBAL]` is OpenTelemetry's global provider, None until there is one."""


def look() -> Instruments | None:
    """The set that is in use now; None if there is no provider. Costs a tenth of a microsecond.

    A provider that is set later, or replaced, is found when the next run begins or a store is used next.
    """
    known, instruments = _seen
    return instruments if api[GLOBAL] is known else _look_again()


def _look_again() -> Instruments | None:
    global _seen
    with _making:
        known, given = api[GLOBAL], settings.settings.meter_provider
        provider: MeterProvider = known
        if known is None:
            provider = loaded(metrics.get_meter_provider, NoOpMeterProvider(), "OTEL_PYTHON_METER_PROVIDER")
        if given is not None and not (isinstance(given, settings.Muted) and given.provider is not provider):
            provider = given
        instruments = _set_of(provider)
        _seen = known, instruments
        for follower in list(_followers):
            follower.follow(instruments)
        return instruments


settings.on_change.append(_look_again)


def _set_of(provider: MeterProvider) -> Instruments | None:
    # the API's own: a proxy, or one that does nothing
    own = type(provider).__module__.startswith("opentelemetry.metrics")
    if own or isinstance(provider, settings.Muted):
        return None
    _for_providers[:] = [(known, found) for known, found in _for_providers if known() is not None]
    for known, found in _for_providers:
        if known() is provider:
            return found
    with surviving("making the instruments of a meter provider"):  # also stores ask for them
        made = Instruments(provider)
        _for_providers.append((weakref.ref(provider), made))
        return made
    return None


def join(follower: Follower) -> None:
    """Notify a layer of the set in use, now and at each change."""
    look()
    with _making:
        _followers.add(follower)
        follower.follow(_seen[1])


def about(call: NodeCall) -> Attributes:
    """The attributes of a node."""
    return {"pocket_plug.graph.name": graphs[call.run.graph], "pocket_plug.node.name": nodes[call.name]}


def failure(error: BaseException | None) -> Attributes:
    """The attributes of an error; none without an error."""
    return {} if error is None else {"error.type": errors[error_type(error)]}


_CONFLICT: Attributes = {"error.type": f"{ConflictError.__module__}.{ConflictError.__qualname__}"}


# ---------------------------------------------------------------- forks
def _reset() -> None:
    global _making
    _making = RLock()
    for instruments in list(_sets):
        instruments.reset()
    for tally in list(tallies):
        tally.reset()


after_fork(_reset)
