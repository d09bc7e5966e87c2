"""In a forked child: metrics begin at zero, and the process has its own service instance id.

Some servers import the program and then fork their workers. Without this, each worker would report what was counted before
the fork, and the sum over all workers would contain it several times. OpenTelemetry's batches already begin empty in a child.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from pocket_plug.primitives.failures import say_once
from pocket_plug.primitives.forking import after_fork
from pocket_plug.primitives.locks import Lock, RLock

INSTANCE = "service.instance.id"

_instances: dict[int, str] = {}


def _instance() -> str:
    """The service instance id of this process, the same for all three signals."""
    return _instances.setdefault(os.getpid(), str(uuid4()))


class OwnResource(Resource):
    """A resource with a service instance id; a forked child gets another id. OpenTelemetry itself does this from 1.44 on."""

    def __init__(self, resource: Resource) -> None:
        super().__init__({INSTANCE: _instance(), **resource.attributes}, resource.schema_url)
        after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        super().__init__({**self.attributes, INSTANCE: _instance()}, self.schema_url)


_providers: WeakSet[MeterProvider] = WeakSet()


def count_from_zero(provider: MeterProvider) -> None:
    """In each forked child of this process, make the provider's metrics begin at zero.

    OpenTelemetry has no public call for this, so private names of the SDK are used. If a version has renamed one, this is logged
    once, here and not in a child: what is logged right after a fork would be lost.
    """
    _providers.add(provider)
    missing = {name for owner, name, _ in _parts(provider) if not hasattr(owner, name)}
    if missing:
        unknown = AttributeError(
            f"pocket_plug doesn't know this version of opentelemetry-sdk: it has no {', '.join(sorted(missing))}"
        )
        say_once("resetting metrics and their locks in forked children", unknown)


def _parts(provider: MeterProvider) -> Iterator[tuple[Any, str, Callable[[], object]]]:
    """What a child must replace, as (object, name of its attribute, function that makes the new one): metrics and locks.

    A lock that a thread of the parent held at the fork, to collect or to export, would stay locked in the child for ever.
    """
    consumer: Any = getattr(provider, "_measurement_consumer", None)
    if consumer is None:
        yield provider, "_measurement_consumer", dict
        return
    yield consumer, "_lock", Lock
    storages: Any = getattr(consumer, "_reader_storages", None)
    if storages is None:
        yield consumer, "_reader_storages", dict
        return
    for reader, storage in storages.items():
        if isinstance(reader, PeriodicExportingMetricReader):
            yield reader, "_export_lock", Lock
        yield storage, "_lock", RLock
        yield storage, "_instrument_view_instrument_matches", dict


def _begin_anew() -> None:
    """Replace all that this version of the SDK has; names that it doesn't have are skipped."""
    for provider in list(_providers):
        for owner, name, make in _parts(provider):
            if hasattr(owner, name):
                setattr(owner, name, make())


after_fork(_begin_anew)
