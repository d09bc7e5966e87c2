"""What a forked child has of its own: figures that begin at zero, and an id as an instance of the service.

OpenTelemetry's batches begin anew there by themselves, and ours count anew. Servers that fork their workers after the program
was imported depend on it: else the sum over all workers would have in it, once for each, what was counted before the fork.
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
    """This process's id, of all three signals."""
    return _instances.setdefault(os.getpid(), str(uuid4()))


class OwnResource(Resource):
    """A resource with an id of the instance, in a forked child with another one. OpenTelemetry does so from 1.44 on."""

    def __init__(self, resource: Resource) -> None:
        super().__init__({INSTANCE: _instance(), **resource.attributes}, resource.schema_url)
        after_fork(self._begin_anew)

    def _begin_anew(self) -> None:
        super().__init__({**self.attributes, INSTANCE: _instance()}, self.schema_url)


_providers: WeakSet[MeterProvider] = WeakSet()


def count_from_zero(provider: MeterProvider) -> None:
    """In each forked child of this process, let the provider's figures begin at zero.

    OpenTelemetry has no call for that, so it is done by names of its own. Those that another version has renamed are said
    once, here and not in a child: right after a fork what is logged would be lost.
    """
    _providers.add(provider)
    missing = {name for owner, name, _ in _parts(provider) if not hasattr(owner, name)}
    if missing:
        unknown = AttributeError(
            f"this version of opentelemetry-sdk is not known: it has no {', '.join(sorted(missing))}"
        )
        say_once("letting the figures of forked children begin at zero, with locks of their own", unknown)


def _parts(provider: MeterProvider) -> Iterator[tuple[Any, str, Callable[[], object]]]:
    """Of whom a child needs what anew: figures, and locks.

    One that a thread of the parent held at the fork, to collect or to export, would be held in the child for ever.
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
    """Whatever is missing, the rest begins anew."""
    for provider in list(_providers):
        for owner, name, make in _parts(provider):
            if hasattr(owner, name):
                setattr(owner, name, make())


after_fork(_begin_anew)
