"""Durable runs of pocket_plug as DBOS workflows.

DBOS decides when a run is resumed, and by which executor: queues, limits, priorities, schedules, recovery. The run's progress is
in pocket_plug's store, node by node. So DBOS's own tables contain only ids and states, and no steps of a run.
"""

from .queue import DBOSQueue, RunFailedError
from .serializer import PocketSerializer

__all__ = ["DBOSQueue", "PocketSerializer", "RunFailedError"]
