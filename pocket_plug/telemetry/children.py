"""What a forked child has of its own: figures that begin at zero, and an id as an instance of the service.

OpenTelemetry's batches begin anew there by themselves, and ours count anew. Servers that fork their workers after the program
was imported depend on it: else the sum over all workers would have in it, once for each, what was counted before the fork.
"""

from __future__ import annotations

import os
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

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
    """In each forked child of this process, let the provider's figures begin at zero."""
    _providers.add(provider)


def _begin_anew() -> None:
    """OpenTelemetry has no call for that, nor for new locks.

    One that a thread of the parent held at the fork, to collect or to export, would be held in the child for ever.
    """
    for provider in list(_providers):
        consumer: Any = vars(provider)["_measurement_consumer"]
        consumer._lock = Lock()
        for reader, storage in consumer._reader_storages.items():
            reader._export_lock = Lock()  # of those that export; to others it is nothing
            storage._lock = RLock()
            storage._instrument_view_instrument_matches.clear()


after_fork(_begin_anew)
